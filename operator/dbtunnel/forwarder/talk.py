"""Who spoke last in a session, and how: whether ending it now would interrupt something.

The one place that decides it. Only a drain asks, so that a delivery costs no more than a copy of its last bytes.
"""

from collections.abc import Callable, Mapping, Sequence

from dbtunnel.api.engines import WireProtocol
from dbtunnel.forwarder.handshake import Handshake

_LAST_BYTES = 128
"""How much of what a database said last is kept: MySQL's packet that ends an answer has a text for people in it."""

_HANDSHAKE, _GSS_GRANTED = b"\x16\x03", b"G"
"""How a TLS server begins (RFC 8446, section 5.1), and PostgreSQL's whole answer to a GSSENCRequest that it grants."""

_READY = b"Z\0\0\0\x05I"
"""PostgreSQL's ReadyForQuery outside of a transaction (its manual, "Message Formats")."""

_OK, _EOF = 0x00, 0xFE
_UNDER_WAY = 0x0001 | 0x0008 | 0x0040
"""MySQL's status flags: in a transaction, more results follow, a cursor is open (its manual, SERVER_STATUS_flags)."""

_NUMBER_SIZES = {0xFC: 3, 0xFD: 4, 0xFE: 9}
"""Bytes of MySQL's length-encoded integers, by the first; of others it is the only one."""

_STATEMENT_CLOSED = {WireProtocol.MYSQL: (9, 31)}
"""Bytes of COM_STMT_CLOSE, which is never answered, alone and as a record of TLS 1.3: the last word of many drivers."""


class Talk:
    """Of one session."""

    __slots__ = ("_answered", "_is_opaque", "_last", "handshake")

    def __init__(self) -> None:
        self._answered, self._last, self._is_opaque = 0, b"", False
        self.handshake: Handshake | None = None
        """Of MySQL, while it lasts."""

    def begins(self, words: bytes) -> None:
        """Takes a delivery among the first few, whole or its beginning: it shows whether the rest can be read."""
        self._is_opaque = self._is_opaque or words == _GSS_GRANTED or words.startswith(_HANDSHAKE)

    def heard(self, pieces: Sequence[memoryview], sent: int) -> None:
        """The database said something, when the client had sent so many bytes."""
        if self.handshake and self.handshake.heard(b"".join(pieces)):
            self.handshake = None
        self._answered = sent
        self._last = bytes(pieces[-1][-_LAST_BYTES:])

    def is_over(self, protocol: WireProtocol, sent: int) -> bool:
        """Whether nothing is under way, as far as can be seen, now that the client has sent so many bytes.

        Something is, where the client spoke last, and unless an answer says at its end that it is the end, and that no
        transaction is open. Of TLS only the first can be seen.
        """
        plain, sealed = _STATEMENT_CLOSED.get(protocol, (0, 0))
        unanswered = sent - self._answered
        if self._is_opaque:
            return unanswered in (0, sealed)
        return unanswered in (0, plain) and _ENDS[protocol](self._last)


def _postgresql_ends(last: bytes) -> bool:
    return last.endswith(_READY)


def _mysql_ends(last: bytes) -> bool:
    """Whether these end with an OK or EOF packet that leaves nothing open; an error may be one in a transaction."""
    for start in range(len(last) - 9, -1, -1):
        packet = last[start + 4 :]
        if int.from_bytes(last[start : start + 3], "little") == len(packet) and packet[0] in (_OK, _EOF):
            flags = packet[3:5] if len(packet) == 5 else _after_number(_after_number(packet[1:]))[:2]
            return len(flags) == 2 and not int.from_bytes(flags, "little") & _UNDER_WAY
    return False


def _after_number(data: bytes) -> bytes:
    return data[_NUMBER_SIZES.get(data[0], 1) :] if data else b""


_ENDS: Mapping[WireProtocol, Callable[[bytes], bool]] = {
    WireProtocol.POSTGRESQL: _postgresql_ends,
    WireProtocol.MYSQL: _mysql_ends,
}
