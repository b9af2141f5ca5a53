"""Who may come in beyond `connectionLimits.max`: those that want to cancel a query, and nobody for long.

PostgreSQL's cancel is a connection of its own: CancelRequest and nothing else (PostgreSQL's documentation, section
"Message Formats"), in the clear or, since libpq 17, under TLS. Under TLS it is told from a login by its turns: one that
cancels has said all before the server's first answer under TLS, one that logs in says more after it.
"""

from dbtunnel.api.engines import WireProtocol
from dbtunnel.forwarder.records import DATA, GOODBYE, HANDSHAKE, Records

VISIT_SECONDS = {WireProtocol.POSTGRESQL: 3, WireProtocol.MYSQL: 10}
"""How long a client is served beyond the limit: a cancel says all at once, MySQL's KILL is a statement of a session."""

_ERROR = b"\xff" + (1040).to_bytes(2, "little") + b"Too many connections: the limit of the tunnel is reached"

LAST_WORDS = {
    WireProtocol.POSTGRESQL: b"",
    WireProtocol.MYSQL: len(_ERROR).to_bytes(3, "little") + b"\0" + _ERROR,
}
"""What a client hears for which there is no room, instead of a reset: MySQL's error in place of its greeting. Those of
PostgreSQL ask for TLS first, and show no error that comes before it (libpq since version 17)."""

FIRST_BYTES = 8
"""Bytes of PostgreSQL's first packet that tell what it is: its length, and a code."""

_CANCEL, _ASKS_FOR_TLS = 80877102, 80877103


def reserve_of(most: int) -> int:
    """How many clients may come in beyond a limit."""
    return min(max(most // 100, 2), 10)


class Visitor:
    """What one client beyond the limit does."""

    def __init__(self, protocol: WireProtocol) -> None:
        self._is_judged = protocol is WireProtocol.POSTGRESQL
        self._unread = b""
        self._is_cancel = False
        self._records: Records | None = None
        """Under TLS."""
        self._has_said = self._is_answered = False
        """Under TLS: whether it has sent data, and whether something came back since."""

    def may_send(self, data: bytes) -> bool:
        """Whether these bytes of its may go to the database; False where they show that it logs in."""
        if not self._is_judged or self._is_cancel:
            return True
        if self._records:
            return self._may_send_records(self._records, data)
        self._unread += data
        while len(self._unread) >= FIRST_BYTES:
            if self._unread[0] == HANDSHAKE:
                self._records = Records()
                return self._may_send_records(self._records, self._unread)
            code = int.from_bytes(self._unread[4:FIRST_BYTES], "big")
            self._is_cancel = code == _CANCEL
            if code != _ASKS_FOR_TLS:
                return self._is_cancel
            self._unread = self._unread[FIRST_BYTES:]
        return True

    def received(self) -> None:
        """Something came from the database."""
        self._is_answered = self._has_said

    def _may_send_records(self, records: Records, data: bytes) -> bool:
        for kind, length in records.heads(data):
            is_data = kind == DATA
            if is_data and self._is_answered and length > GOODBYE:
                return False
            self._has_said = self._has_said or is_data
        return True
