"""What a server's first bytes say: on a probe's connection, and on those of real clients."""

from dbtunnel.api.conditions import ConditionType, Reason
from dbtunnel.api.engines import WireProtocol
from dbtunnel.api.forwarder import DatabaseFact
from dbtunnel.domain.diagnosis import printable
from dbtunnel.forwarder.failures import Failure

SSL_REQUEST = bytes.fromhex("0000000804d2162f")
"""PostgreSQL's SSLRequest (protocol documentation, 55.7, Message Formats)."""

_POSTGRESQL_FIRST = b"SNREGvK"
"""First bytes of a PostgreSQL server: answers to SSLRequest and GSSENCRequest, authentication, error, negotiation."""

_TLS_RECORDS = b"\x15\x16"
"""Alert and handshake: direct TLS, of PostgreSQL 17."""

_TOO_MANY_CONNECTIONS = "53300"
"""SQLSTATE too_many_connections."""

_PROTOCOL_VERSION = 10
_CLIENT_SSL = 0x0800
_ERRORS = {1040: Reason.TOO_MANY_CONNECTIONS, 1129: Reason.HOST_BLOCKED, 1130: Reason.DATABASE_REFUSED}
"""MySQL's errors before a login: too many connections, host blocked, host not privileged."""


def judge(protocol: WireProtocol, first: bytes) -> DatabaseFact:
    """What a server's first bytes show. Raises Failure where they show that it does not work."""
    return _postgresql(first) if protocol is WireProtocol.POSTGRESQL else _mysql(first)


def unexpected(first: bytes) -> Failure:
    """The failure of a server that speaks something else."""
    return _failure(Reason.UNEXPECTED_PROTOCOL, f'it says "{printable(first.decode("latin-1"), 200)}"')


def _failure(reason: Reason, seen: str) -> Failure:
    return Failure(ConditionType.DATABASE_REACHABLE, reason, seen)


def _postgresql(first: bytes) -> DatabaseFact:
    # a MySQL greeting begins with its length, which may well be the code of S or N
    if _mysql_payload(first) is not None or first[:1] not in {
        bytes([code]) for code in _POSTGRESQL_FIRST + _TLS_RECORDS
    }:
        raise unexpected(first)
    if first[:1] in (b"S", b"N"):
        return DatabaseFact(protocol=WireProtocol.POSTGRESQL, tls_offered=first[:1] == b"S")
    if first[:1] == b"E":
        _check_postgresql_error(first)
    return DatabaseFact(protocol=WireProtocol.POSTGRESQL)


def _check_postgresql_error(first: bytes) -> None:
    """An ErrorResponse: fields of a code and a text each; very old servers send a text alone."""
    fields = {part[:1]: part[1:].decode("latin-1") for part in first[5:].split(b"\0") if part}
    if fields.get(b"C") == _TOO_MANY_CONNECTIONS:
        raise _failure(Reason.TOO_MANY_CONNECTIONS, fields.get(b"M", ""))


def _mysql(first: bytes) -> DatabaseFact:
    payload = _mysql_payload(first)
    if payload is None:
        raise unexpected(first)
    if payload[0] == 0xFF:
        code = int.from_bytes(payload[1:3], "little")
        text = payload[3:].decode("latin-1")
        raise _failure(_ERRORS.get(code, Reason.DATABASE_REFUSED), f"error {code}: {text}")
    version, _, rest = payload[1:].partition(b"\0")
    flags = int.from_bytes(rest[13:15], "little") if len(rest) >= 15 else None
    return DatabaseFact(
        protocol=WireProtocol.MYSQL,
        server_version=printable(version.decode("latin-1"), 128),
        tls_offered=bool(flags & _CLIENT_SSL) if flags is not None else None,
    )


def _mysql_payload(first: bytes) -> bytes | None:
    """The payload of a server's first packet: a greeting of protocol 10, or an error."""
    is_packet = len(first) > 5 and first[2:4] == b"\0\0" and first[4] in (_PROTOCOL_VERSION, 0xFF)
    return first[4 : 4 + int.from_bytes(first[:3], "little")] if is_packet else None
