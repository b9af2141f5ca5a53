"""Bytes in several pieces, as they wait to be sent; and where bytes are put."""

import mmap
from collections.abc import Iterator, Sequence


def room_for(size: int) -> memoryview:
    """So many bytes, of which the system gives memory only for those that are used; a bytearray would use all."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def after(pieces: list[memoryview], sent: int) -> Iterator[memoryview]:
    """What is left of pieces of which the first bytes, so many, are gone."""
    for piece in pieces:
        if sent < len(piece):
            yield piece[sent:]
        sent = max(sent - len(piece), 0)


_IN_TRANSACTION = (b"Z\0\0\0\x05T", b"Z\0\0\0\x05E")
"""PostgreSQL's ReadyForQuery within a transaction, and within one that has failed (its manual, "Message Formats")."""


def is_in_transaction(pieces: Sequence[memoryview]) -> bool:
    """Whether PostgreSQL has a transaction open after these; of TLS and of other protocols nothing is seen."""
    return bytes(pieces[-1][-6:]) in _IN_TRANSACTION
