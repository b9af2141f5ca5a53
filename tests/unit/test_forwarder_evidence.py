"""What a server's first bytes show, also where they are hostile."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.api.engines import WireProtocol
from dbtunnel.api.forwarder import DatabaseFact
from dbtunnel.domain.diagnosis import quoted
from dbtunnel.forwarder.evidence import judge
from dbtunnel.forwarder.failures import Failure

POSTGRESQL, MYSQL = WireProtocol.POSTGRESQL, WireProtocol.MYSQL


def message(kind: bytes, body: bytes) -> bytes:
    """A PostgreSQL message: kind, length of the rest, body."""
    return kind + (4 + len(body)).to_bytes(4, "big") + body


def packet(payload: bytes) -> bytes:
    """A MySQL packet, the first of a connection."""
    return len(payload).to_bytes(3, "little") + b"\0" + payload


def greeting(version: bytes, flags: int = 0xFFFF, rest: bytes = b"\x2d") -> bytes:
    """As MySQL sends it: protocol, version, connection id, first part of the challenge, filler, capabilities."""
    return packet(b"\x0a" + version + b"\0" + b"\1\0\0\0" + b"challeng" + b"\0" + flags.to_bytes(2, "little") + rest)


def end_of_greeting(plugin: bytes, upper_flags: int = 0xFFFF, length: int = 21) -> bytes:
    """Character set, status, more capabilities, the challenge's length, what is reserved, its second part, plugin."""
    challenge = b"c" * max(13, length - 8)
    return b"\x2d\2\0" + upper_flags.to_bytes(2, "little") + bytes([length]) + bytes(10) + challenge + plugin + b"\0"


@pytest.mark.parametrize(
    ("first", "tls"),
    [
        (b"S", True),
        (b"N", False),
        (b"G", None),
        (message(b"R", b"\0\0\0\x0a"), None),
        (message(b"v", b"\0\0\0\0"), None),
        (message(b"E", b"SFATAL\0C28000\0Mno entry\0\0"), None),
        (b"EFATAL:  unsupported frontend protocol\n\0", None),
        (b"\x16\x03\x03\0\x7a", True),
        (b"\x15\x03\x03\0\x02", None),
    ],
)
def test_postgresql(first: bytes, tls: bool | None) -> None:
    assert judge(POSTGRESQL, first) == DatabaseFact(protocol="PostgreSQL", tls_offered=tls)


@pytest.mark.parametrize(
    "first",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"220 mail ESMTP\r\n",
        b"-ERR unknown command\r\n",
        b"RTSP/1.0 400\r\n",
        b"ERROR\r\n",
        b"NOTICE",
        greeting(b"8.0.36"),
        message(b"R", b"x" * 40_000),
    ],
)
def test_what_is_not_postgresql(first: bytes) -> None:
    with pytest.raises(Failure) as failure:
        judge(POSTGRESQL, first)
    assert failure.value.reason == "UnexpectedProtocol"


def test_postgresql_without_a_free_connection() -> None:
    with pytest.raises(Failure) as failure:
        judge(POSTGRESQL, message(b"E", b"SFATAL\0C53300\0Msorry, too many clients already\0\0"))
    assert failure.value.reason == "TooManyConnections"
    assert failure.value.seen == 'it says "sorry, too many clients already"'


@pytest.mark.parametrize(
    ("code", "text", "may_pass"),
    [
        (b"57P03", b"the database system is starting up", True),
        (b"57P03", b"das Datenbanksystem startet", True),
        (b"28000", b'no pg_hba.conf entry for host "10.0.0.5", user "app", database "shop", no encryption', False),
        (b"28000", b'pg_hba.conf rejects connection for host "10.0.0.5", user "app", database "shop"', False),
    ],
)
def test_postgresql_that_lets_nobody_in(code: bytes, text: bytes, may_pass: bool) -> None:
    with pytest.raises(Failure) as failure:
        judge(POSTGRESQL, message(b"E", b"SFATAL\0VFATAL\0C" + code + b"\0M" + text + b"\0\0"))
    assert failure.value.reason == "DatabaseRefused"
    assert failure.value.may_pass is may_pass
    assert failure.value.seen == f"it says {quoted(text.decode())}"


@pytest.mark.parametrize("first", [b"R", b"E\0\0", b"v\0\0\0"])
def test_a_postgresql_message_that_has_only_begun_says_nothing(first: bytes) -> None:
    assert judge(POSTGRESQL, first) is None


def test_mysql() -> None:
    fact = judge(MYSQL, greeting(b"5.5.5-10.11.6-MariaDB-0+deb12u1"))
    assert fact == DatabaseFact(protocol="MySQL", server_version="10.11.6-MariaDB-0+deb12u1", tls_offered=True)
    old = judge(MYSQL, greeting(b"5.5.5-log"))
    assert old is not None
    assert old.server_version == "5.5.5-log"
    without_tls = judge(MYSQL, greeting(b"8.0.36", 0xF7FF))
    assert without_tls is not None
    assert without_tls.tls_offered is False


@pytest.mark.parametrize(
    ("rest", "plugin"),
    [
        (end_of_greeting(b"caching_sha2_password"), "caching_sha2_password"),
        (end_of_greeting(b"sha256_password", length=60), "sha256_password"),
        (end_of_greeting(b"old", length=0), "old"),
        (end_of_greeting(b"none such", upper_flags=0xFFF7), None),
        (end_of_greeting(b""), None),
        (end_of_greeting(b"p\x1b[2J")[:-1], r"p\x1b[2J"),
        (end_of_greeting(b"cut off")[:20], None),
        (end_of_greeting(b"x" * 400), "x" * 64),
    ],
)
def test_how_mysql_wants_clients_to_log_in(rest: bytes, plugin: str | None) -> None:
    fact = judge(MYSQL, greeting(b"8.0.36", rest=rest))
    assert fact is not None
    assert fact.auth_plugin == plugin


@pytest.mark.parametrize(
    ("code", "reason"),
    [(1040, "TooManyConnections"), (1129, "HostBlocked"), (1130, "DatabaseRefused"), (1, "DatabaseRefused")],
)
def test_errors_of_mysql(code: int, reason: str) -> None:
    with pytest.raises(Failure) as failure:
        judge(MYSQL, packet(b"\xff" + code.to_bytes(2, "little") + b"Host 'x' is what it is"))
    assert failure.value.reason == reason
    assert failure.value.seen == f"error {code}: \"Host 'x' is what it is\""


@pytest.mark.parametrize("first", [b"SSH-2.0-OpenSSH_9.2\r\n", b"S", b"HTTP", packet(b"\x09old") + b"-" * 8])
def test_what_is_not_mysql(first: bytes) -> None:
    if len(first) < 4:
        assert judge(MYSQL, first) is None
        return
    with pytest.raises(Failure) as failure:
        judge(MYSQL, first)
    assert failure.value.reason == "UnexpectedProtocol"


@given(st.sampled_from(WireProtocol), st.binary(min_size=1, max_size=600))
def test_hostile_bytes_lead_to_a_fact_or_a_bounded_failure(protocol: WireProtocol, first: bytes) -> None:
    said = ""
    try:
        fact = judge(protocol, first)
    except Failure as failure:
        fact, said = None, failure.seen
    assert len(said) <= 600
    assert fact is None or f"{fact.server_version}{fact.auth_plugin}".isprintable()


@given(st.binary(max_size=300))
def test_a_hostile_greeting_is_bounded(rest: bytes) -> None:
    with contextlib.suppress(Failure):
        fact = judge(MYSQL, packet(b"\x0a" + rest) + b"\0" * 8)
        assert fact is not None
        assert len(fact.server_version or "") <= 128
        assert len(fact.auth_plugin or "") <= 64
