"""Bytes in several pieces, as they wait to be sent."""

from collections.abc import Iterator


def after(pieces: list[memoryview], sent: int) -> Iterator[memoryview]:
    """What is left of pieces of which the first bytes, so many, are gone."""
    for piece in pieces:
        if sent < len(piece):
            yield piece[sent:]
        sent = max(sent - len(piece), 0)
