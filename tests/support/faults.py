"""Faults of a network and of servers, on loopback or in a network namespace that is made here."""

import contextlib
import ipaddress
import os
import secrets
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

from tests.support.processes import Process, ProcessError, run, wait_until

HTTP_ANSWER = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
"""What a web server says to a client that speaks first, and something else than HTTP."""

EXCEEDED_MAX_STARTUPS = b"Exceeded MaxStartups\r\n"
"""What sshd says before its version when too many connections are not authenticated yet."""

NOT_ALLOWED_NOW = b"Not allowed at this time\r\n"
"""What sshd says before its version to an address that it penalises (PerSourcePenalties)."""

_MAX_CONNECTIONS = 1000
_MAX_ENDLESS_BYTES = 256 * 2**20


class FaultServer:
    """Takes TCP connections and treats each as one of the functions below says, in a thread of its own.

    Use it as a context manager: leaving closes all connections and waits for the threads.
    """

    def __init__(self, treat: Callable[[socket.socket], None], host: str = "127.0.0.1", port: int = 0) -> None:
        self._treat = treat
        self._listener = socket.create_server((host, port))
        self.host, self.port = self._listener.getsockname()[:2]
        self.accepted = 0
        """How many connections there have been."""
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, name=f"fault server {self.port}", daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        _shut(self._listener)
        self._threads[0].join(10)
        for connection in self._connections:
            _shut(connection)
        for thread in self._threads[1:]:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while self.accepted < _MAX_CONNECTIONS:
                connection, _ = self._listener.accept()
                self.accepted += 1
                self._connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # the client is gone, which is its right
            self._treat(connection)
            _drain(connection)
        connection.close()


def says_nothing() -> FaultServer:
    """Takes connections, reads what comes, and never answers."""
    return FaultServer(lambda connection: None)


def says(data: bytes, *, after_bytes: int = 0, host: str = "127.0.0.1") -> FaultServer:
    """Says `data` and closes; with `after_bytes`, only when so many bytes have come."""

    def treat(connection: socket.socket) -> None:
        _receive(connection, after_bytes)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)

    return FaultServer(treat, host)


def says_http() -> FaultServer:
    """A web server where something else was expected."""
    return says(HTTP_ANSWER, after_bytes=1)


def says_for_ever(chunk: bytes = b"x" * 65536) -> FaultServer:
    """Sends bytes with no end (256 MiB): by default one line that never ends."""

    def treat(connection: socket.socket) -> None:
        for _ in range(_MAX_ENDLESS_BYTES // len(chunk)):
            connection.sendall(chunk)

    return FaultServer(treat)


def resets() -> FaultServer:
    """Resets each connection as soon as it is there."""

    def treat(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()

    return FaultServer(treat)


class BlackHole:
    """An address from which nothing ever comes back, not even a refusal, until the context is left. Needs root.

    It lies in a network namespace that lives as long as a process of this one, and goes with it: a veth pair leads
    there, the far end has no address, so the kernel there drops whatever arrives.
    """

    def __init__(self, directory: Path, *, silent: bool = True) -> None:
        """`silent`: False where the kernel shall find out, which takes it three seconds, and say so."""
        if os.geteuid() != 0:
            raise ProcessError("a black hole needs a network namespace: run the tests as root")
        self._holder = Process(["unshare", "--net", "sleep", "infinity"], directory / "blackhole.log")
        self._is_silent = silent
        self.link = f"dbt{secrets.token_hex(4)}"
        """The network interface that leads there."""
        self.host = ""
        """The address."""

    def __enter__(self) -> Self:
        pid = self._holder.start().pid
        own = Path("/proc/self/ns/net").readlink()
        wait_until(lambda: Path(f"/proc/{pid}/ns/net").readlink() != own, "a network namespace of its own")
        # RFC 2544's range for tests of networks; a /30 for each process id, so that parallel runs do not meet
        network = ipaddress.ip_address("198.18.0.0") + (pid % 2**14) * 4
        self.host = str(network + 2)
        link = self.link
        run(["ip", "link", "add", link, "type", "veth", "peer", "name", "hole", "netns", str(pid)])
        run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "link", "set", "hole", "up"])
        run(["ip", "address", "add", f"{network + 1}/30", "dev", link])
        run(["ip", "link", "set", link, "up"])
        # nobody answers ARP there, and an unanswered ARP request would be reported to the client
        if self._is_silent:
            run(["ip", "neighbour", "add", self.host, "lladdr", "02:00:00:00:00:01", "nud", "permanent", "dev", link])
        return self

    def __exit__(self, *_: object) -> None:
        self._holder.stop()
        gone = Path("/sys/class/net", self.link)
        wait_until(lambda: not gone.exists(), "the namespace's end")


def no_host(directory: Path) -> BlackHole:
    """An address of a network that is there, at which no host is: the kernel says "No route to host". Needs root."""
    return BlackHole(directory, silent=False)


def _receive(connection: socket.socket, count: int) -> None:
    """Waits until so many bytes have come, or the client has ended its side."""
    while count > 0:
        data = connection.recv(65536)
        count = count - len(data) if data else 0


def _drain(connection: socket.socket) -> None:
    """Reads until the client closes, so that closing here sends no reset and loses nothing that was said."""
    while connection.fileno() >= 0 and connection.recv(65536):
        pass


def _shut(connection: socket.socket) -> None:
    """Closes it also for a thread that waits in it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
