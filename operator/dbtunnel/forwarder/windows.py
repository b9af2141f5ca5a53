"""What the SSH servers may send before it is taken, over all connections of the process: all of it waits here where no
client reads.
"""

SMALLEST_WINDOW, FIRST_WINDOW = 2**14, 2**19
"""Bytes: with very many channels, and with few, at first."""

FIRST_BYTES = 48 * 1024 * 1024
"""What the first windows are cut from. Beyond it each has the smallest, no more than a client costs anyhow."""

_SHARES = 64
"""A new channel has this part of what is left."""

WIDEST_BYTES = 64 * 1024 * 1024
"""By how much windows may grow together, for streams and for long ways."""


class Windows:
    """Those of a process, which has a bound however many connections it makes."""

    def __init__(self) -> None:
        self.begun = self.grown = 0
        """Bytes: of the first windows, and by how much they have grown."""

    def begin(self) -> int:
        """The window of one more channel at first, in bytes."""
        share = (FIRST_BYTES - self.begun) // _SHARES
        window = max(SMALLEST_WINDOW, min(FIRST_WINDOW, share))
        self.begun += window
        return window

    def grow(self, growth: int) -> bool:
        """Lets a window grow by so many bytes; False where too much would wait here."""
        if not growth or self.grown + growth > WIDEST_BYTES:
            return False
        self.grown += growth
        return True

    def end(self, first: int, growth: int) -> None:
        """A channel is gone."""
        self.begun -= first
        self.grown -= growth
