"""What servers of other kinds and settings than the usual bastion's make of a tunnel, and how it is told."""

import contextlib
import json
import re
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from dbtunnel.api.forwarder import Algorithms, ForwarderHop, HostKeyRule
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.status import decide
from dbtunnel.forwarder.algorithms import offered
from tests.support import faults
from tests.support.bastion import HARDENED, USER, Bastion
from tests.support.databases import PostgresServer
from tests.support.dropbear import Dropbear
from tests.support.forwarder import KEY, Forwarder, forwarder_config, hop_to
from tests.support.keys import KeyPair, key_pair
from tests.support.odd_ssh import OddSshServer, break_at, close, say_goodbye
from tests.support.processes import free_port
from tests.support.produced import produces
from tests.support.relay import Relay
from tests.support.told import check_told, decided, tunnel_of
from tests.support.values import INSTALLATION, NOW, observed

StartForwarder = Callable[..., Forwarder]

# --- algorithms -------------------------------------------------------------------------------------------------------


SNTRUP = "sntrup761x25519-sha512@openssh.com"


@produces(Reason.NO_COMMON_ALGORITHM)
@pytest.mark.parametrize(
    ("config", "choice", "told", "option"),
    [
        (
            ["KexAlgorithms diffie-hellman-group14-sha1"],
            Algorithms.DEFAULT,
            'key exchange (KexAlgorithms): the server offers "diffie-hellman-group14-sha1',
            "kex_algs",
        ),
        (
            [f"KexAlgorithms {SNTRUP}"],
            Algorithms.LEGACY,
            f'key exchange (KexAlgorithms): the server offers "{SNTRUP}',
            "kex_algs",
        ),
        (
            ["Ciphers aes128-cbc"],
            Algorithms.DEFAULT,
            'encryption (Ciphers): the server offers "aes128-cbc"',
            "encryption_algs",
        ),
        (
            ["Ciphers aes128-ctr", "MACs hmac-sha1"],
            Algorithms.DEFAULT,
            'MAC (MACs): the server offers "hmac-sha1"',
            "mac_algs",
        ),
    ],
    ids=["key exchange", "key exchange, Legacy", "cipher", "MAC"],
)
def test_both_sides_algorithms_are_told(
    start_forwarder: StartForwarder, bastion: Bastion, config: list[str], choice: Algorithms, told: str, option: str
) -> None:
    """Those of the tunnel whole, since one of them may be pasted."""
    bastion.set_config(*config, *HARDENED)
    forwarder = start_forwarder(1, bastion=hop_to(bastion, algorithms=choice))
    forwarder.wait_for("transport", "NoCommonAlgorithm")
    ours = set(offered(choice, compression=False)[option])
    message = check_told(forwarder, Reason.NO_COMMON_ALGORITHM, told, "spec.tunnel.algorithms to Legacy")
    found = re.search(r"; the tunnel offers (.+?)\. Update the SSH server", message)
    assert found
    assert set(found[1].split(", ")) == ours, "the fastest cipher comes first, which a process finds by itself"


@produces(Reason.KEY_REJECTED)
def test_a_key_of_a_kind_that_sshd_does_not_take(start_forwarder: StartForwarder, bastion: Bastion) -> None:
    rsa = key_pair("ssh-rsa")
    bastion.set_config("PubkeyAcceptedAlgorithms ssh-ed25519", *HARDENED)
    bastion.authorize(rsa.public)
    forwarder = start_forwarder(1, {KEY: rsa.private})
    forwarder.wait_for("authentication", "KeyRejected")
    check_told(forwarder, Reason.KEY_REJECTED, "(and allow rsa-sha2-512 or rsa-sha2-256 where PubkeyAcceptedAlgorithms")


# --- several forwarders -----------------------------------------------------------------------------------------------


def test_of_forwarders_that_disagree_the_worse_is_told(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    """As where a pod still has the key of before."""
    well, other = start_forwarder(postgres.port), start_forwarder(postgres.port, {KEY: key_pair().private})
    other.wait_for("authentication", "KeyRejected")
    well.wait_for("database", "Succeeded")
    of = tunnel_of(well.config)
    status = decide(of, observed(of, well.status(), other.status()), INSTALLATION, NOW).status
    ready = next(one for one in status.conditions or () if one.type == "Ready")
    assert (ready.status, ready.reason) == ("False", "KeyRejected")
    assert ready.message.startswith(f"1 of 2 pods: bastion {bastion.host}:{bastion.port}: user {USER}: ")


# --- a connection that breaks -----------------------------------------------------------------------------------------


@produces(Reason.CONNECTION_LOST)
def test_a_connection_that_is_lost_in_the_handshake(start_forwarder: StartForwarder) -> None:
    with OddSshServer(break_at("at NEWKEYS", close)) as server:
        forwarder = start_forwarder(1, bastion=server.hop)
        forwarder.wait_for("transport", "ConnectionLost")
        check_told(forwarder, Reason.CONNECTION_LOST, f"bastion 127.0.0.1:{server.port}: ", "spec.tunnel.keepalive")


# --- names ------------------------------------------------------------------------------------------------------------


ADDRESS_DELAY_SECONDS = 0.25
"""When the next address of a name is tried, while the first does not answer (RFC 8305, section 8)."""

StartNamed = Callable[[str, ForwarderHop, int], Forwarder]


@pytest.fixture
def start_named(tmp_path: Path, bastion: Bastion, client_key: KeyPair) -> Iterator[StartNamed]:
    """Starts a forwarder, to a database's port, that reads this text as its /etc/hosts."""
    with contextlib.ExitStack() as stack:

        def start(hosts: str, hop: ForwarderHop, port: int) -> Forwarder:
            (tmp_path / "hosts").write_text(hosts)
            forwarder = Forwarder(
                tmp_path / "named", forwarder_config(bastion, port, bastion=hop), {KEY: client_key.private}
            )
            stack.callback(forwarder.stop)
            mount = f'mount --bind {tmp_path}/hosts /etc/hosts && exec "$@"'
            return forwarder.start("unshare", "--mount", "sh", "-c", mount, "sh")

        yield start


def test_a_dead_first_address_of_a_name_is_passed_over(
    start_named: StartNamed, bastion: Bastion, postgres: PostgresServer
) -> None:
    """getaddrinfo tells 127.0.0.1 first, which is nearer (RFC 6724, section 6, rule 9)."""
    with Relay(bastion.host, bastion.port, host="127.0.0.9") as relay, answers_nobody("127.0.0.1", relay.port):
        hosts = "127.0.0.1 bastion.internal\n127.0.0.9 bastion.internal\n"
        forwarder = start_named(hosts, hop_to(bastion, host="bastion.internal", port=relay.port), postgres.port)
        forwarder.wait_for("database", "Succeeded")
        took = {end: forwarder.metric(f"dbtunnel_forwarder_ssh_handshake_seconds_{end}") for end in ("count", "sum")}
        assert took["count"] == 1, "at the first attempt"
        assert ADDRESS_DELAY_SECONDS <= took["sum"] < forwarder.config.seconds.connect_timeout / 2


@contextlib.contextmanager
def answers_nobody(host: str, port: int) -> Iterator[None]:
    """An address where there is no room for one more connection: the kernel drops those who ask."""
    with socket.create_server((host, port), backlog=0) as full, socket.create_connection(full.getsockname()):
        with pytest.raises(TimeoutError):
            socket.create_connection(full.getsockname(), 0.1)
        yield


@produces(Reason.CONNECTION_REFUSED)
def test_a_name_all_of_whose_addresses_refuse(start_named: StartNamed, bastion: Bastion) -> None:
    hop = hop_to(bastion, host="bastion.internal", port=free_port())
    forwarder = start_named("127.0.0.8 bastion.internal\n127.0.0.9 bastion.internal\n", hop, 1)
    forwarder.wait_for("transport", "ConnectionRefused")
    check_told(forwarder, Reason.CONNECTION_REFUSED, f"bastion bastion.internal:{hop.port}: connection refused.")


# --- dropbear ---------------------------------------------------------------------------------------------------------


def test_dropbear_forwards(start_forwarder: StartForwarder, tmp_path: Path, client_key: KeyPair) -> None:
    port = free_port()
    with Dropbear(tmp_path / "dropbear", [client_key]) as server:
        forwarder = start_forwarder(port, bastion=server.hop, database_host="localhost")
        fact = forwarder.wait_for("database", "DatabaseRefused")
        check_told(forwarder, Reason.DATABASE_REFUSED, f"refused the connection: {fact.seen}. Start the database")
        database = PostgresServer(tmp_path / "database", port=port).start()
        forwarder.wait_for("database", "Succeeded")
        assert "dropbear" in (forwarder.status().hops[0].server_version or "")
        database.stop()


@produces(Reason.FORWARDING_PROHIBITED)
def test_dropbear_that_forbids_forwarding(
    start_forwarder: StartForwarder, tmp_path: Path, client_key: KeyPair, postgres: PostgresServer
) -> None:
    with Dropbear(tmp_path / "dropbear", [client_key], "-j") as server:
        forwarder = start_forwarder(postgres.port, bastion=server.hop, database_host="localhost")
        forwarder.wait_for("database", "ForwardingProhibited")
        check_told(forwarder, Reason.FORWARDING_PROHIBITED, f"forwarding to localhost:{postgres.port} is prohibited")


@produces(Reason.KEY_REJECTED)
def test_dropbear_that_knows_no_key(start_forwarder: StartForwarder, tmp_path: Path) -> None:
    with Dropbear(tmp_path / "dropbear", []) as server:
        forwarder = start_forwarder(1, bastion=server.hop)
        forwarder.wait_for("authentication", "KeyRejected")
        check_told(forwarder, Reason.KEY_REJECTED, f"user {USER}: the server does not accept the key.")


# --- text that servers send -------------------------------------------------------------------------------------------

HOSTILE = '\x1b[2J\x1b]0;gone\x07\r\n{"event": "connected"}\u202eready \x9b31m"} 1\n\x00 true'
"""Escapes of terminals, a line of a log, a mark that turns the text around, the end of a label."""


def say_goodbye_at(stage: str) -> Callable[[asyncssh.SSHServerConnection], None]:
    return break_at(stage, say_goodbye(2, HOSTILE))


def _bad_version_and_banner(connection: asyncssh.SSHServerConnection) -> None:
    odd: Any = connection
    version = HOSTILE.translate(dict.fromkeys(map(ord, "\r\n\0")))
    odd._server_version = f"SSH-2.0-{version}".encode("ascii", "ignore")  # another is the end of the connection
    odd._send_version = lambda: odd._send(odd._server_version + b"\r\n")
    send_packet = odd.send_packet

    def send(kind: int, *parts: bytes, **more: Any) -> None:
        if kind == 52:  # SSH_MSG_USERAUTH_SUCCESS
            words = HOSTILE.encode()
            send_packet(53, struct.pack(">I", len(words)) + words + struct.pack(">I", 0))  # SSH_MSG_USERAUTH_BANNER
        send_packet(kind, *parts, **more)

    odd.send_packet = send


def _refuses_with(text: str) -> Callable[[asyncssh.SSHServerConnection], None]:
    def change(connection: asyncssh.SSHServerConnection) -> None:
        odd: Any = connection

        def prohibit(*_: object) -> None:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, text)

        odd._owner.connection_requested = prohibit

    return change


_SAMPLE = re.compile(r'dbtunnel_[a-z_]+(\{([a-z]+="[^"\\]*",?)+\})? [-+.\d]+(e[-+]\d+)?')


def check_clean(forwarder: Forwarder) -> None:
    """Whatever tells of the forwarder is printable, and its log has one event a line."""
    decision = decided(forwarder)
    for text in (forwarder.get("/status"), json.dumps(decision.document(), ensure_ascii=False)):
        assert text.isascii()
        assert text.isprintable()
    for line in forwarder.log.read_text().splitlines():
        assert line.isascii()
        assert line.isprintable()
        assert json.loads(line)["event"] != "connected" or "hop" in json.loads(line)
    for line in forwarder.get("/metrics").splitlines():
        assert line.isprintable()
        assert line.startswith("#") or _SAMPLE.fullmatch(line), line


@pytest.mark.parametrize(
    ("change", "layer", "reason"),
    [
        (say_goodbye_at("in the key exchange"), "transport", Reason.CONNECTION_LOST),
        (say_goodbye_at("when the key is offered"), "transport", Reason.CONNECTION_LOST),
        (_refuses_with(HOSTILE), "database", Reason.FORWARDING_PROHIBITED),
    ],
    ids=["goodbye", "refusal of the key", "refusal of a channel"],
)
def test_words_of_an_ssh_server_forge_nothing(
    start_forwarder: StartForwarder, change: Callable[[Any], None], layer: str, reason: Reason
) -> None:
    with OddSshServer(change) as server:
        forwarder = start_forwarder(1, bastion=server.hop, database_host="127.0.0.1")
        fact = forwarder.wait_for(layer, reason)
        assert r"\x1b[2J" in fact.seen
        assert check_told(forwarder, reason, r"\x1b[2J")
        check_clean(forwarder)


def test_a_greeting_forges_nothing(start_forwarder: StartForwarder) -> None:
    pin = HostKeyRule(fingerprints=("SHA256:ohD8VZEXGWo6Ez8GSEJQ9WpafgLFsOfLOtGGQCQo6Og",))
    with faults.says(HOSTILE.encode()) as fault:
        hop = ForwarderHop(host=fault.host, port=fault.port, user=USER, host_key=pin)
        forwarder = start_forwarder(1, bastion=hop)
        forwarder.wait_for("transport", "NotAnSshServer")
        check_told(forwarder, Reason.NOT_AN_SSH_SERVER, r'it says "\x1b[2J\x1b]0;gone\x07\r\n{')
        check_clean(forwarder)


def test_a_version_and_a_banner_forge_nothing(start_forwarder: StartForwarder, postgres: PostgresServer) -> None:
    with OddSshServer(_bad_version_and_banner) as server:
        forwarder = start_forwarder(postgres.port, bastion=server.hop, database_host="127.0.0.1")
        forwarder.wait_for("database", "Succeeded")
        assert r"\x1b[2J" in (forwarder.status().hops[0].server_version or "")
        check_clean(forwarder)
