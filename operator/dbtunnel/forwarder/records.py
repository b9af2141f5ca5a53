"""TLS records on their way: their heads are read, and their content, of which nothing is known, is passed over."""

from collections.abc import Iterator

CHANGE, HANDSHAKE, DATA = 20, 22, 23
"""Types of records (RFC 8446, section 5.1)."""

GOODBYE = 2 + 1 + 16
"""Bytes of a record with an alert of TLS 1.3, which is marked as data (RFC 8446, sections 5.2 and 6). No message of a
database fits in."""

_HEAD = 5
"""Bytes before the content of a record: type, version, length."""


class Records:
    """Those that one side sends."""

    def __init__(self) -> None:
        self._unread = b""
        self._left = 0
        """Bytes of the current record that are still to come."""

    def heads(self, data: bytes) -> Iterator[tuple[int, int]]:
        """Type and length of each record that begins in what was sent now; all are to be taken."""
        self._unread += data
        while self._unread:
            passed = min(self._left, len(self._unread))
            self._unread, self._left = self._unread[passed:], self._left - passed
            if len(self._unread) < _HEAD:
                return
            kind, self._left = self._unread[0], int.from_bytes(self._unread[3:_HEAD], "big")
            self._unread = self._unread[_HEAD:]
            yield kind, self._left
