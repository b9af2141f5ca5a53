"""Random bytes both ways in pieces of random sizes, each byte compared with what it must be."""

import os
import random
import socket
import threading
from dataclasses import dataclass, field

_PERIOD = 8 * 2**20
_LARGEST = 256 * 1024
_CONTENT = bytes(os.urandom(_PERIOD))
_CONTENT += _CONTENT[:_LARGEST]
_VIEW = memoryview(_CONTENT)

_SLOWEST = 4 * 2**20
"""Bytes a second, on a machine that is busy: the other direction may be over long before this one."""


@dataclass
class Way:
    """One direction of a connection: where it begins in the content, and how far it has come at either end."""

    begin: int
    total: int
    sent: int = 0
    received: int = 0
    wrong: int | None = None
    """Where the first byte is that differs."""
    generator: random.Random = field(default_factory=random.Random, repr=False)

    def send(self, connection: socket.socket) -> None:
        """Sends all of it in pieces of 1 byte to 256 KiB, small ones as often as large ones, and then its end."""
        while self.sent < self.total:
            size = min(int(2 ** self.generator.uniform(0, 18)), self.total - self.sent)
            start = (self.begin + self.sent) % _PERIOD
            connection.sendall(_VIEW[start : start + size])
            self.sent += size
        connection.shutdown(socket.SHUT_WR)

    def receive(self, connection: socket.socket) -> None:
        """Receives until the end."""
        room = bytearray(_LARGEST)
        while (size := connection.recv_into(room)) and self.wrong is None:
            start = (self.begin + self.received) % _PERIOD
            if room[:size] != _CONTENT[start : start + size]:
                self.wrong = self.received
            self.received += size

    @property
    def is_whole(self) -> bool:
        """Whether every byte has come, and no other."""
        return self.wrong is None and self.received == self.sent == self.total


class Exchange:
    """A connection through the forwarder with bytes going both ways; `serve` is for the far end."""

    def __init__(self, up: int, down: int, seed: int) -> None:
        self.up, self.down = Way(seed * 1009, up), Way(seed * 1013 + 7, down)
        for way in (self.up, self.down):
            way.generator.seed(seed)
        self._served = threading.Event()

    def serve(self, peer: socket.socket) -> None:
        """What the far end does."""
        self._exchange(peer, self.down, self.up)
        self._served.set()

    def run(self, client: socket.socket) -> None:
        """What the client does; returns when it is over at both ends."""
        self._exchange(client, self.up, self.down)
        self._served.wait(60)

    @staticmethod
    def _exchange(connection: socket.socket, out: Way, back: Way) -> None:
        sending = threading.Thread(target=_quietly, args=(out.send, connection), daemon=True)
        sending.start()
        _quietly(back.receive, connection)
        sending.join(60 + out.total / _SLOWEST)

    def __repr__(self) -> str:
        return f"Exchange(up={self.up}, down={self.down})"

    @property
    def is_whole(self) -> bool:
        """Whether every byte has come both ways."""
        return self.up.is_whole and self.down.is_whole

    @property
    def is_sound(self) -> bool:
        """Whether what has come is right as far as it goes."""
        return self.up.wrong is None and self.down.wrong is None


def _quietly(what: object, connection: socket.socket) -> None:
    try:
        what(connection)  # type: ignore[operator]
    except OSError:
        return  # which shows in what has come
