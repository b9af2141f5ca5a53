"""How far a client of MySQL has come with its login: the server counts those that end within it against the bastion.

What ends it is the server's first OK, or its error: a login that is refused does not count (MySQL's manual, "Connection
Phase"). What is no login at all does, and so does a TLS handshake that is given up.
"""

from dbtunnel.forwarder.evidence import greets
from dbtunnel.forwarder.records import CHANGE, DATA, GOODBYE, HANDSHAKE, Records

_OK, _ERROR = b"\0", b"\xff"
"""First bytes of a packet's content."""

_NO_LOGIN = (1043, 1156, 1835)
"""MySQL's errors for what is none: bad handshake, packets out of order, malformed packet (its error reference)."""

_HEAD = 4
"""Bytes of a packet before its content: length and number."""

_REQUEST_BYTES, _REQUEST_HEAD, _CLIENT_SSL = 36, b"\x20\0\0\x01", 0x08
"""A client's SSLRequest: its bytes, which a login has at least, the first of them, and the flag in the sixth (MySQL's
manual, "SSLRequest").
"""

_LONGEST = 16 * 1024
"""Bytes of a server's packet that are read; no login has longer ones."""


class Handshake:
    """Of one client, as it is seen on the way."""

    __slots__ = ("_begun", "_has_changed", "_is_tls", "_records", "_sealed", "_unread", "is_greeted")

    def __init__(self) -> None:
        self.is_greeted = False
        self._begun = self._unread = b""
        """The client's first packet, and what of the server's is not whole yet."""
        self._is_tls: bool | None = None
        self._records, self._has_changed, self._sealed = Records(), False, 0
        """The client's under TLS, whether it has begun to encrypt, and how many it has encrypted: the last of TLS's own
        handshake is one, its login another.
        """

    def said(self, data: bytes) -> None:
        """The client has sent this."""
        if self._is_tls is None:
            self._begun += data
            if len(self._begun) < _REQUEST_BYTES:
                return
            self._is_tls = self._begun.startswith(_REQUEST_HEAD) and bool(self._begun[5] & _CLIENT_SSL)
            data, self._begun = self._begun[_REQUEST_BYTES:], b""
        if self._is_tls:
            for kind, length in self._records.heads(data):
                self._has_changed |= kind == CHANGE
                is_sealed = kind == DATA or (kind == HANDSHAKE and self._has_changed)
                self._sealed += is_sealed and length > GOODBYE

    def heard(self, data: bytes) -> bool:
        """Whether it is over, now that the server has said this."""
        if self._is_tls:
            return self._sealed > 1
        self._unread += data
        while len(self._unread) >= (size := _HEAD + int.from_bytes(self._unread[:3], "little")):
            packet, self._unread = self._unread[:size], self._unread[size:]
            if self._ends(packet):
                return True
        return len(self._unread) > _LONGEST

    def _ends(self, packet: bytes) -> bool:
        """Whether a packet of the server's does. What comes in place of its greeting does, too."""
        if not self.is_greeted:
            self.is_greeted = greets(packet)
            return not self.is_greeted
        kind, code = packet[_HEAD : _HEAD + 1], int.from_bytes(packet[_HEAD + 1 : _HEAD + 3], "little")
        return kind == _OK or (kind == _ERROR and code not in _NO_LOGIN)
