"""Bytes in several pieces, as they wait to be sent; and where bytes are put."""

import fcntl
import mmap
import sys
from collections.abc import Iterator


def room_for(size: int) -> memoryview:
    """So many bytes, of which the system gives memory only for those that are used; a bytearray would use all."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def after(pieces: list[memoryview], sent: int) -> Iterator[memoryview]:
    """What is left of pieces of which the first bytes, so many, are gone."""
    for piece in pieces:
        if sent < len(piece):
            yield piece[sent:]
        sent = max(sent - len(piece), 0)


_SIOCOUTQ = 0x5411
"""See tcp(7)."""


def unacknowledged(descriptor: int) -> int:
    """How many bytes a TCP connection's other end has still to take: a reset would drop them."""
    return int.from_bytes(fcntl.ioctl(descriptor, _SIOCOUTQ, bytes(4)), sys.byteorder)
