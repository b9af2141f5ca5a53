"""A network cable to a host of its own, that can be cut: packets are dropped, and nobody is told."""

import ipaddress
from pathlib import Path
from typing import Self

from tests.support.debian import ensure_packages
from tests.support.faults import BlackHole
from tests.support.processes import run

PACKAGES = {"iproute2": "network interfaces of the tests", "iptables": "links that drop packets"}


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
