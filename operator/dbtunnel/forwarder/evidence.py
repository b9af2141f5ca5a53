"""What a server's first bytes say: on a probe's connection, and on those of real clients."""

from dataclasses import replace

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.engines import WireProtocol
from dbtunnel.api.forwarder import DatabaseFact
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.diagnosis import printable, quoted
from dbtunnel.forwarder.failures import Failure

SNIFFED_BYTES = 512
"""How much of a server's first answers is looked at."""

SSL_REQUEST = bytes.fromhex("0000000804d2162f")
"""PostgreSQL's SSLRequest (protocol documentation, 55.7, Message Formats)."""

TLS_DENIED = b"N"
"""After it the client asks for a session without TLS, and what is said next tells whether there is one."""

_TLS_ANSWERS = {b"S": True, TLS_DENIED: False}
"""The whole answer to an SSLRequest, and whether TLS is offered."""

_HANDSHAKE = b"\x16"
"""A TLS handshake, of PostgreSQL 17's direct TLS."""

_OTHER_ANSWERS = (b"G", b"\x15", _HANDSHAKE)
"""The answer to a GSSENCRequest; a TLS alert."""

_MESSAGES = b"REvK"
"""First messages of a server without TLS: authentication, error, negotiation of the protocol's version, key data."""

_LONGEST_MESSAGE = 30000
"""libpq takes longer first messages for those of something else, too."""

_OLD_ERROR = b"EFATAL"
"""What servers before 7.4 answer to what they do not know: no length, no fields."""

_TOO_MANY_CONNECTIONS, _CANNOT_CONNECT_NOW, _NOT_AUTHORIZED = "53300", "57P03", "28000"
"""SQLSTATE of errors before a login (PostgreSQL's documentation, appendix A): no session is left; it starts, recovers
or ends; one who is not let in."""

_ADDRESSES = "pg_hba.conf"
"""It stands in the error, in whatever language, where this file has no entry for an address, or one that rejects it."""

_MYSQL_HEAD = 8
"""Bytes of the shortest first packet that says something: length, number, kind, and an error's code."""

_GREETING, _ERROR = b"\x0a", b"\xff"
_CLIENT_SSL, _CLIENT_PLUGIN_AUTH = 0x0800, 0x0008_0000
_ERRORS = {1040: Reason.TOO_MANY_CONNECTIONS, 1129: Reason.HOST_BLOCKED, 1130: Reason.DATABASE_REFUSED}
"""MySQL's errors before a login: too many connections, host blocked, host not privileged."""


def judge(protocol: WireProtocol, first: bytes) -> DatabaseFact | None:
    """What a server's first bytes show; None for too few of them. Raises Failure where it does not work."""
    return _JUDGES[protocol](first)


def greets(first: bytes) -> bool:
    """Whether the first bytes of MySQL's server are its greeting, which waits for a login, and not an error."""
    return first[4:5] == _GREETING


def unexpected(first: bytes) -> Failure:
    """The failure of a server that speaks something else."""
    return _failure(Reason.UNEXPECTED_PROTOCOL, f"it says {quoted(first.decode('latin-1'))}")


def _failure(reason: Reason, seen: str) -> Failure:
    return Failure(ConditionType.DATABASE_REACHABLE, reason, seen)


def _postgresql(first: bytes) -> DatabaseFact | None:
    if first in _TLS_ANSWERS:
        return DatabaseFact(protocol=WireProtocol.POSTGRESQL, tls_offered=_TLS_ANSWERS[first])
    if len(first) < 5 and first[0] in _MESSAGES:
        return None
    length = int.from_bytes(first[1:5], "big")
    is_message = first[0] in _MESSAGES and 4 <= length < _LONGEST_MESSAGE
    if not (is_message or first.startswith((*_OTHER_ANSWERS, _OLD_ERROR))):
        raise unexpected(first)
    if is_message and _is_cut(first, 1 + length):
        return None
    if first[:1] == b"E":
        _check_postgresql_error(first)
    return DatabaseFact(protocol=WireProtocol.POSTGRESQL, tls_offered=first[:1] == _HANDSHAKE or None)


def _check_postgresql_error(first: bytes) -> None:
    """An ErrorResponse: fields of a code and a text each; very old servers send a text alone."""
    fields = {part[:1]: part[1:].decode("latin-1") for part in first[5:].split(b"\0") if part}
    code, text = fields.get(b"C"), fields.get(b"M", "")
    seen = f"it says {quoted(text)}"
    if code == _TOO_MANY_CONNECTIONS:
        raise _failure(Reason.TOO_MANY_CONNECTIONS, seen)
    if code == _CANNOT_CONNECT_NOW:
        raise replace(_failure(Reason.DATABASE_REFUSED, seen), may_pass=True)
    if code == _NOT_AUTHORIZED and _ADDRESSES in text:
        raise _failure(Reason.DATABASE_REFUSED, seen)


def _mysql(first: bytes) -> DatabaseFact | None:
    """A server's first packet: a greeting of protocol 10, or an error."""
    if len(first) < _MYSQL_HEAD and first[3:4] in (b"", b"\0"):
        return None
    size = 4 + int.from_bytes(first[:3], "little")
    payload = first[4:size]
    if first[2:4] != b"\0\0" or payload[:1] not in (_GREETING, _ERROR):
        raise unexpected(first)
    if _is_cut(first, size):
        return None
    if payload[:1] == _ERROR:
        code = int.from_bytes(payload[1:3], "little")
        text = payload[3:].decode("latin-1")
        raise _failure(_ERRORS.get(code, Reason.DATABASE_REFUSED), f"error {code}: {quoted(text)}")
    version, _, rest = payload[1:].partition(b"\0")
    flags = int.from_bytes(rest[13:15] + rest[18:20], "little") if len(rest) >= 15 else None
    return DatabaseFact(
        protocol=WireProtocol.MYSQL,
        server_version=printable(_version(version.decode("latin-1")), 128),
        auth_plugin=_auth_plugin(rest) if flags and flags & _CLIENT_PLUGIN_AUTH else None,
        tls_offered=bool(flags & _CLIENT_SSL) if flags is not None else None,
    )


def _is_cut(first: bytes, size: int) -> bool:
    """Whether there is more to come that is looked at, of a message of so many bytes."""
    return len(first) < min(size, SNIFFED_BYTES)


def _version(text: str) -> str:
    """As people know it: MariaDB says 5.5.5 first, for replicas that take a version of two digits for an old one."""
    return text.removeprefix("5.5.5-") if "MariaDB" in text else text


def _auth_plugin(rest: bytes) -> str | None:
    """The last field of a greeting, after a challenge of which it tells the length."""
    name = rest[31 + max(13, rest[20] - 8) :].partition(b"\0")[0] if len(rest) > 31 else b""
    return printable(name.decode("latin-1"), 64) or None


_JUDGES = {WireProtocol.POSTGRESQL: _postgresql, WireProtocol.MYSQL: _mysql}
