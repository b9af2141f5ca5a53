"""A network cable to a host of its own, that can be cut: packets are dropped, and nobody is told."""

import ctypes
import ipaddress
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from tests.support.debian import ensure_packages
from tests.support.faults import BlackHole
from tests.support.processes import run

PACKAGES = {"iproute2": "network interfaces of the tests", "iptables": "links that drop packets"}

_LIBC = ctypes.CDLL(None, use_errno=True)


class Cable(BlackHole):
    """A network namespace with an address, at which servers can be run. Needs root.

    Use it as a context manager: leaving ends the namespace.
    """

    def __init__(self, directory: Path) -> None:
        ensure_packages(PACKAGES)
        super().__init__(directory, silent=False)

    def __enter__(self) -> Self:
        super().__enter__()
        self._there("ip", "link", "set", "lo", "up")
        self._there("ip", "address", "add", f"{self.host}/30", "dev", "hole")
        return self

    def __exit__(self, *_: object) -> None:
        self.mend()  # what is still to be sent there would hold the namespace
        super().__exit__()

    @property
    def near(self) -> str:
        """The address of this end."""
        return str(ipaddress.ip_address(self.host) - 1)

    @property
    def prefix(self) -> list[str]:
        """The command that runs another at the far end."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net"]

    def connect(self, port: int) -> socket.socket:
        """A client at the far end, connected to a port of this one."""
        with ThreadPoolExecutor(1) as there:  # which a thread can be in while others are not
            return there.submit(self._connect, port).result()

    def _connect(self, port: int) -> socket.socket:
        with Path(f"/proc/{self._holder.pid}/ns/net").open() as namespace:
            if _LIBC.setns(namespace.fileno(), 0):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return socket.create_connection((self.near, port), 10)

    def cut(self, port: int, *, one_way: bool = False) -> None:
        """From now on nothing comes from a port at the far end, nor, unless it is cut one way, gets there."""
        self._there(*self._drop("OUTPUT", "--source-port", port))
        if not one_way:
            self._there(*self._drop("INPUT", "--destination-port", port))

    def mend(self) -> None:
        """Everything passes again."""
        self._there("iptables", "--wait", "--flush")

    def _drop(self, chain: str, which: str, port: int) -> list[str]:
        return ["iptables", "--wait", "--append", chain, "--protocol", "tcp", which, str(port), "--jump", "DROP"]

    def _there(self, *command: str) -> None:
        run([*self.prefix, *command])
