"""Bytes in several pieces, as they wait to be sent; and where bytes are put."""

import contextlib
import fcntl
import mmap
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

PIECES_AT_ONCE = 16
"""Pieces that are sent at once; the system takes 1024 (IOV_MAX), but more are put together at less cost."""

_SHORT_PIECE = 32 * 1024
"""What waits for a slow client is in pieces of which no two neighbours are shorter: each costs memory of its own."""


def room_for(size: int) -> memoryview:
    """So many bytes, of which the system gives memory only for those that are used; a bytearray would use all."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def after(pieces: list[memoryview], sent: int) -> Iterator[memoryview]:
    """What is left of pieces of which the first bytes, so many, are gone."""
    for piece in pieces:
        if sent < len(piece):
            yield piece[sent:]
        sent = max(sent - len(piece), 0)


class Waiting:
    """What waits for a client that takes it slowly."""

    def __init__(self) -> None:
        self._pieces: deque[memoryview] = deque()

    def __len__(self) -> int:
        return len(self._pieces)

    def add(self, rest: bytes) -> None:
        """One more piece."""
        if self._pieces and len(self._pieces[-1]) + len(rest) <= _SHORT_PIECE:
            rest = bytes(self._pieces.pop()) + rest
        self._pieces.append(memoryview(rest))

    def first(self) -> list[memoryview]:
        """As many of them as are sent at once."""
        return list(islice(self._pieces, PIECES_AT_ONCE))

    def drop(self, sent: int) -> None:
        """So many bytes do not wait any more."""
        while sent:
            piece = self._pieces.popleft()
            if sent < len(piece):
                self._pieces.appendleft(piece[sent:])
            sent = max(sent - len(piece), 0)

    def clear(self) -> None:
        """Nobody takes it any more."""
        self._pieces.clear()


_SIOCOUTQ = 0x5411
"""See tcp(7)."""


def unacknowledged(descriptor: int) -> int:
    """How many bytes a TCP connection's other end has still to take: a reset would drop them."""
    return int.from_bytes(fcntl.ioctl(descriptor, _SIOCOUTQ, bytes(4)), sys.byteorder)


LOST_SECONDS, _LOST_TRIES = 120.0, 3
"""For how long, and how many times in a row, the kernel has asked for an acknowledgement in vain of one who is gone.
One who has stopped to read still acknowledges, each two minutes at the latest.
"""

UNANSWERED_TRIES = 2
"""The same of one whose answer is awaited: on a way that loses packets now and then, one may be lost twice at most."""

_TCP_INFO = "=2xBB52xI8xI"
"""tcp_info of linux/tcp.h, as far as it is read."""


def is_lost(connected: socket.socket) -> bool:
    """Whether the other end of a TCP connection has vanished with something on its way to it. Keepalives are not sent
    then, and the kernel itself gives up after a quarter of an hour (tcp_retries2 in ip-sysctl). Its TCP_USER_TIMEOUT
    would end those who have only stopped to read, too.
    """
    info = tcp_info(connected)
    return bool(info and info.tries >= _LOST_TRIES and info.silent_seconds >= LOST_SECONDS)


class TcpInfo(NamedTuple):
    """What the kernel knows of a TCP connection."""

    tries: int
    """Retransmissions and probes in a row that were not answered."""
    silent_seconds: float
    """Since the last acknowledgement came."""
    round_trip_seconds: float


def tcp_info(connected: socket.socket) -> TcpInfo | None:
    """None where the system does not tell."""
    if not hasattr(socket, "TCP_INFO"):
        return None
    with contextlib.suppress(OSError):
        info = connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, struct.calcsize(_TCP_INFO))
        retransmitted, probes, milliseconds, microseconds = struct.unpack(_TCP_INFO, info)
        return TcpInfo(retransmitted + probes, milliseconds / 1e3, microseconds / 1e6)
    return None
