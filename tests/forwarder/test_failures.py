"""Each failure shows at its layer with its reason, and goes when it is mended; nothing is restarted for it."""

import contextlib
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbtunnel.api.engines import Engine
from dbtunnel.api.forwarder import Algorithms, ForwarderHop, HostKeyRule
from dbtunnel.api.reasons import Reason
from tests.support import bastion as bastions
from tests.support import faults
from tests.support.bastion import USER, Bastion
from tests.support.certificates import ServerCertificate
from tests.support.databases import DATABASE, PASSWORD, MariaDBServer, PostgresServer
from tests.support.faults import BlackHole, FaultServer
from tests.support.forwarder import KEY, PASSPHRASE_KEY, Forwarder, seconds
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import free_port, wait_until
from tests.support.produced import produces
from tests.support.told import check_told

StartForwarder = Callable[..., Forwarder]

LAYERS = ("key", "transport", "authentication", "database")

PIN = HostKeyRule(fingerprints=("SHA256:ohD8VZEXGWo6Ez8GSEJQ9WpafgLFsOfLOtGGQCQo6Og",))
"""Of nobody's key."""


def check(forwarder: Forwarder, layer: str, reason: str, seen: str = "", *words: str) -> str:
    """The layer fails with the reason, those before it work, those after it are not known; and it is told so.

    Returns the condition's message, in which the words are.
    """
    fact = forwarder.wait_for(layer, reason)
    status = forwarder.status()
    position = LAYERS.index(layer)
    assert [getattr(status, name).status for name in LAYERS] == (
        ["True"] * position + ["False"] + ["Unknown"] * (3 - position)
    )
    assert seen in fact.seen
    assert fact.seen.isprintable()
    return check_told(forwarder, Reason(reason), *words)


def check_working(forwarder: Forwarder, timeout_seconds: float = 20) -> None:
    """All layers work, and a query too."""
    forwarder.wait(
        lambda status: all(getattr(status, name).status == "True" for name in LAYERS), "all layers", timeout_seconds
    )
    options: dict[str, Any] = {"host": "127.0.0.1", "port": forwarder.port, "connect_timeout": 10}
    with psycopg.connect(user="app", password=PASSWORD, dbname=DATABASE, **options) as session:
        assert session.execute("select count(*) from orders").fetchone() == (3,)


# --- the key ----------------------------------------------------------------------------------------------------------


@produces(Reason.SECRET_NOT_FOUND, Reason.SECRET_KEY_MISSING)
def test_a_key_that_comes_late_is_picked_up(
    start_forwarder: StartForwarder, postgres: PostgresServer, client_key: KeyPair
) -> None:
    forwarder = start_forwarder(postgres.port, {})
    check(forwarder, "key", "SecretNotFound", "", "kubectl create secret generic orders-ssh -n shop --from-file=")
    forwarder.write_secret({"id_ed25519": client_key.private, "id_ed25519.pub": client_key.public})
    check(forwarder, "key", "SecretKeyMissing", "id_ed25519, id_ed25519.pub")
    forwarder.write_secret({KEY: client_key.private})
    check_working(forwarder)


_PASSPHRASE = "open sesame"


def _cut(pair: KeyPair) -> str:
    return pair.private[: len(pair.private) // 2]


@pytest.mark.parametrize(
    ("files", "reason", "seen"),
    [
        pytest.param(
            lambda _: {KEY: "no key at all"},
            "PrivateKeyInvalid",
            "no BEGIN line",
            marks=produces(Reason.PRIVATE_KEY_INVALID),
        ),
        (lambda pair: {KEY: ""}, "PrivateKeyInvalid", "it is empty"),
        (lambda pair: {KEY: _cut(pair)}, "PrivateKeyInvalid", "no END line"),
        (lambda pair: {KEY: pair.private.replace("A", "B")}, "PrivateKeyInvalid", "do not parse"),
        (lambda pair: {KEY: "x" * 70_000}, "PrivateKeyInvalid", "more than 65536 bytes"),
        pytest.param(
            lambda pair: {KEY: pair.public + " me@here\n"},
            "PublicKeyGiven",
            "",
            marks=produces(Reason.PUBLIC_KEY_GIVEN),
        ),
    ],
    ids=["garbage", "empty", "cut", "damaged", "large", "public"],
)
def test_what_is_no_private_key(
    start_forwarder: StartForwarder,
    postgres: PostgresServer,
    client_key: KeyPair,
    files: Callable[[KeyPair], dict[str, str]],
    reason: str,
    seen: str,
) -> None:
    forwarder = start_forwarder(postgres.port, files(client_key))
    check(forwarder, "key", reason, seen)
    assert "PRIVATE" not in forwarder.log.read_text()
    forwarder.write_secret({KEY: client_key.private.replace("\n", "\r\n")})
    check_working(forwarder)


@produces(Reason.PASSPHRASE_REQUIRED, Reason.PASSPHRASE_WRONG)
@pytest.mark.parametrize("form", ["openssh", "pkcs8-pem"])
def test_a_passphrase_is_needed_and_right(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, form: str
) -> None:
    locked = key_pair(passphrase=_PASSPHRASE, form=form)
    bastion.authorize(locked.public)
    forwarder = start_forwarder(postgres.port, {KEY: locked.private})
    check(forwarder, "key", "PassphraseRequired")
    forwarder.write_secret({KEY: locked.private, PASSPHRASE_KEY: "open barley"})
    check(forwarder, "key", "PassphraseWrong")
    forwarder.write_secret({KEY: locked.private, PASSPHRASE_KEY: f"{_PASSPHRASE}\r\n"})
    check_working(forwarder)
    assert _PASSPHRASE not in forwarder.log.read_text()


def test_a_removed_key_cuts_nobody(
    start_forwarder: StartForwarder, postgres: PostgresServer, client_key: KeyPair
) -> None:
    forwarder = start_forwarder(postgres.port)
    check_working(forwarder)
    with psycopg.connect(
        host="127.0.0.1", port=forwarder.port, user="app", password=PASSWORD, dbname=DATABASE
    ) as session:
        forwarder.write_secret({})
        check(forwarder, "key", "SecretNotFound")
        assert session.execute("select 1").fetchone() == (1,)
        forwarder.write_secret({KEY: client_key.private})
        check_working(forwarder)
        assert session.execute("select 1").fetchone() == (1,)


# --- the transport ----------------------------------------------------------------------------------------------------


@produces(Reason.HOST_UNRESOLVABLE)
def test_a_name_that_does_not_resolve(start_forwarder: StartForwarder, postgres: PostgresServer) -> None:
    hop = ForwarderHop(host="bastion.invalid", port=22, user=USER, host_key=PIN)
    check(start_forwarder(postgres.port, bastion=hop), "transport", "HostUnresolvable", "", "Check spec.tunnel.host,")


@produces(Reason.NETWORK_UNREACHABLE)
def test_no_route(start_forwarder: StartForwarder, postgres: PostgresServer, tmp_path: Path) -> None:
    with faults.no_host(tmp_path) as nobody:
        hop = ForwarderHop(host=nobody.host, port=22, user=USER, host_key=PIN)
        forwarder = start_forwarder(postgres.port, bastion=hop, seconds=seconds(connect_timeout=30))
        check(forwarder, "transport", "NetworkUnreachable", nobody.host)


@produces(Reason.CONNECTION_REFUSED)
def test_nobody_listens_until_somebody_does(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    bastion.stop()
    forwarder = start_forwarder(postgres.port)
    check(forwarder, "transport", "ConnectionRefused")
    bastion.start()
    check_working(forwarder)


@produces(Reason.CONNECT_TIMEOUT)
def test_packets_that_are_dropped(start_forwarder: StartForwarder, postgres: PostgresServer, tmp_path: Path) -> None:
    with BlackHole(tmp_path) as hole:
        hop = ForwarderHop(host=hole.host, port=22, user=USER, host_key=PIN)
        forwarder = start_forwarder(postgres.port, bastion=hop, seconds=seconds(connect_timeout=1))
        check(forwarder, "transport", "ConnectTimeout", "no TCP connection after 1 s")


_TLS_ALERT = b"\x15\x03\x03\x00\x02\x02\x46"
"""What a TLS server says to a client that speaks something else: protocol_version (RFC 8446, section 6)."""

_NO_SSH: list[Any] = [
    (faults.says_nothing, "ConnectTimeout", "no SSH version line comes within 1 s"),
    pytest.param(faults.says_http, "NotAnSshServer", "HTTP/1.1 400", marks=produces(Reason.NOT_AN_SSH_SERVER)),
    (lambda: faults.says(_TLS_ALERT, after_bytes=1), "NotAnSshServer", r'it says "\x15\x03\x03\x00\x02\x02F"'),
    (lambda: faults.says(b"welcome to the proxy\n" * 5000), "NotAnSshServer", r'it says "welcome to the proxy\n'),
    (lambda: faults.says(b"\x00\xff\x1b[31m" * 10 + b"\r\n"), "NotAnSshServer", "\\x00"),
    (faults.says_for_ever, "NotAnSshServer", "xxxx"),
    (lambda: faults.says(faults.EXCEEDED_MAX_STARTUPS), "BastionRefusing", "Exceeded MaxStartups"),
    (lambda: faults.says(faults.NOT_ALLOWED_NOW), "BastionRefusing", "Not allowed at this time"),
    (lambda: faults.says(b""), "BastionRefusing", "closes the connection"),
]


@pytest.mark.parametrize(
    ("server", "reason", "seen"),
    _NO_SSH,
    ids=["silent", "http", "tls", "100 KB", "binary", "endless", "startups", "penalty", "closes"],
)
def test_what_answers_is_no_ssh_server_or_turns_us_away(
    start_forwarder: StartForwarder, server: Callable[[], FaultServer], reason: str, seen: str
) -> None:
    with server() as fault:
        hop = ForwarderHop(host=fault.host, port=fault.port, user=USER, host_key=PIN)
        forwarder = start_forwarder(1, bastion=hop, seconds=seconds(connect_timeout=1))
        check(forwarder, "transport", reason, seen)


def test_a_tls_server_that_says_nothing(start_forwarder: StartForwarder, certificate: ServerCertificate) -> None:
    """OpenSSL ends the connection without an alert."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)

    def treat(peer: socket.socket) -> None:
        with contextlib.suppress(ssl.SSLError):
            context.wrap_socket(peer, server_side=True)

    with FaultServer(treat) as web:
        hop = ForwarderHop(host=web.host, port=web.port, user=USER, host_key=PIN)
        forwarder = start_forwarder(1, bastion=hop)
        check(forwarder, "transport", "BastionRefusing", "as a server that expects TLS does: check its port first")


@produces(Reason.BASTION_REFUSING)
def test_resets(start_forwarder: StartForwarder) -> None:
    with faults.resets() as fault:
        hop = ForwarderHop(host=fault.host, port=fault.port, user=USER, host_key=PIN)
        forwarder = start_forwarder(1, bastion=hop)
        words = ["Raise MaxStartups", "PerSourcePenaltyExemptList"]
        check(forwarder, "transport", "BastionRefusing", "before its version line", *words)
        wait_until(lambda: fault.accepted >= 5, "more attempts")
        assert forwarder.metric('dbtunnel_forwarder_ssh_failures_total{reason="ConnectionLost"}') == 0


@produces(Reason.NO_COMMON_ALGORITHM)
def test_an_old_bastion_needs_legacy_algorithms(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    bastion.set_config(*bastions.SHA1_ONLY)
    rsa = key_pair("ssh-rsa")
    bastion.authorize(rsa.public)
    forwarder = start_forwarder(postgres.port, {KEY: rsa.private})
    both = 'server host key (HostKeyAlgorithms): the server offers "ssh-rsa"; the tunnel offers ssh-ed25519'
    check(forwarder, "transport", "NoCommonAlgorithm", both, "spec.tunnel.algorithms to Legacy.")
    hop = replace(forwarder.config.bastion, algorithms=Algorithms.LEGACY)
    check_working(start_forwarder(postgres.port, {KEY: rsa.private}, bastion=hop))


# --- authentication ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "authorized", "reason"),
    [
        pytest.param(bastions.HARDENED, False, "KeyRejected", marks=produces(Reason.KEY_REJECTED)),
        pytest.param(
            bastions.SECOND_FACTOR, True, "SecondFactorRequired", marks=produces(Reason.SECOND_FACTOR_REQUIRED)
        ),
        pytest.param(bastions.NO_PUBLIC_KEYS, True, "MethodNotOffered", marks=produces(Reason.METHOD_NOT_OFFERED)),
        pytest.param(bastions.ONE_TRY, False, "TooManyAuthFailures", marks=produces(Reason.TOO_MANY_AUTH_FAILURES)),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_login_that_fails(
    start_forwarder: StartForwarder,
    bastion: Bastion,
    postgres: PostgresServer,
    client_key: KeyPair,
    config: Sequence[str],
    authorized: bool,
    reason: str,
) -> None:
    bastion.set_config(*config)
    if not authorized:
        bastion.unauthorize()
    forwarder = start_forwarder(postgres.port)
    remedy = {
        "KeyRejected": f"is set): {_line(client_key, postgres)}",
        "SecondFactorRequired": "Set AuthenticationMethods publickey",
        "MethodNotOffered": "Set PubkeyAuthentication yes",
        "TooManyAuthFailures": f"authorize the key with this line: {_line(client_key, postgres)}",
    }
    check(forwarder, "authentication", reason, "", remedy[reason])
    key = forwarder.status().public_key
    assert key is not None
    assert key.fingerprint == client_key.fingerprint
    assert key.accepted is {"KeyRejected": False, "SecondFactorRequired": True}.get(reason)
    # the next attempt is a minute away, since sshd penalises those that try too often; a changed Secret ends the wait
    bastion.set_config(*bastions.HARDENED)
    bastion.authorize(client_key.public)
    forwarder.write_secret({KEY: client_key.private, "touched": "now"})
    check_working(forwarder)


def _line(key: KeyPair, postgres: PostgresServer) -> str:
    """What permits a key the tunnel, and nothing else."""
    target = f'permitopen="orders.internal:{postgres.port}"'
    return f'restrict,port-forwarding,{target},permitlisten="localhost:1",command="/bin/false" {key.public} shop/orders'


# --- the database -----------------------------------------------------------------------------------------------------


@produces(Reason.FORWARDING_PROHIBITED)
@pytest.mark.parametrize("config", [bastions.NO_FORWARDING, bastions.OTHER_TARGET], ids=["none", "elsewhere"])
def test_forwarding_that_is_prohibited(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, config: Sequence[str]
) -> None:
    bastion.set_config(*config)
    forwarder = start_forwarder(postgres.port)
    words = ["AllowTcpForwarding local", f"PermitOpen any or orders.internal:{postgres.port}", "permitopen="]
    check(forwarder, "database", "ForwardingProhibited", "open failed", *words)
    bastion.set_config(*bastions.HARDENED)
    bastion.kill_sessions()
    check_working(forwarder)


@produces(Reason.DATABASE_UNRESOLVABLE)
def test_a_name_that_the_bastion_does_not_resolve(start_forwarder: StartForwarder, postgres: PostgresServer) -> None:
    forwarder = start_forwarder(postgres.port, database_host="nowhere.invalid")
    check(forwarder, "database", "DatabaseUnresolvable", "Name or service not known")


@produces(Reason.DATABASE_REFUSED)
def test_a_database_that_starts_late(start_forwarder: StartForwarder, tmp_path: Path, bastion: Bastion) -> None:
    server = PostgresServer(tmp_path / "late")
    forwarder = start_forwarder(server.port)
    check(forwarder, "database", "DatabaseRefused", "Connection refused")
    server.start()
    check_working(forwarder)
    server.stop()


@produces(Reason.DATABASE_TIMEOUT)
def test_a_database_that_drops_packets(start_forwarder: StartForwarder, tmp_path: Path, bastion: Bastion) -> None:
    with BlackHole(tmp_path) as hole:
        forwarder = start_forwarder(5432, database_host=hole.host, seconds=seconds(connect_timeout=1))
        check(forwarder, "database", "DatabaseTimeout", "within 1 s")


@produces(Reason.DATABASE_UNREACHABLE)
def test_a_database_to_which_there_is_no_route(
    start_forwarder: StartForwarder, tmp_path: Path, bastion: Bastion
) -> None:
    with faults.no_host(tmp_path) as nobody:
        forwarder = start_forwarder(5432, database_host=nobody.host, seconds=seconds(connect_timeout=30))
        check(forwarder, "database", "DatabaseUnreachable", "No route to host")


_NO_DATABASE: list[tuple[Callable[[], AbstractContextManager[FaultServer]], str, str]] = [
    (faults.says_http, "UnexpectedProtocol", "HTTP/1.1 400"),
    (lambda: faults.says(b"SSH-2.0-OpenSSH_9.2\r\n"), "UnexpectedProtocol", "SSH-2.0-OpenSSH"),
    (lambda: faults.says(b""), "DatabaseRefused", "closes it at once"),
    (faults.says_nothing, "DatabaseTimeout", "does not answer within 1 s"),
]


@pytest.mark.parametrize(("server", "reason", "seen"), _NO_DATABASE, ids=["http", "ssh", "closes", "silent"])
def test_what_answers_is_no_postgresql(
    start_forwarder: StartForwarder, server: Callable[[], FaultServer], reason: str, seen: str
) -> None:
    with server() as fault:
        forwarder = start_forwarder(fault.port, seconds=seconds(connect_timeout=1))
        check(forwarder, "database", reason, seen)


@produces(Reason.UNEXPECTED_PROTOCOL)
def test_mysql_where_postgresql_is_expected(start_forwarder: StartForwarder, mariadb: MariaDBServer) -> None:
    check(start_forwarder(mariadb.port), "database", "UnexpectedProtocol", "MariaDB")


def test_the_failure_of_a_client_shows_where_nothing_is_probed(
    start_forwarder: StartForwarder, bastion: Bastion
) -> None:
    forwarder = start_forwarder(free_port(), engine=Engine.MYSQL)
    assert forwarder.wait_for("database", "NotProbed").status == "Unknown"
    with socket.create_connection(("127.0.0.1", forwarder.port)) as client, pytest.raises(ConnectionResetError):
        client.recv(1)
    check(forwarder, "database", "DatabaseRefused", "Connection refused")
