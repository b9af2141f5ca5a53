"""A chain of real SSH servers: each is verified and logged in to by its own rule, and each failure names its hop."""

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbtunnel.api.engines import Engine
from dbtunnel.api.forwarder import ForwarderHop, ForwarderKey, HostKeyRule, LayerFact
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.diagnosis import Subject, key_lines
from tests.support.bastion import HARDENED, NO_FORWARDING, USER, Bastion
from tests.support.databases import DATABASE, PASSWORD, PostgresServer
from tests.support.faults import BlackHole
from tests.support.forwarder import KEY, PASSPHRASE_KEY, Forwarder, hop_to, seconds
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import wait_until
from tests.support.told import check_told

StartForwarder = Callable[..., Forwarder]
StartBastion = Callable[..., Bastion]

LAYERS = ("key", "transport", "authentication", "database")

INNER = "bastion.inner"
"""What the last jump host resolves, and nobody else."""

BASTION, JUMP_HOST = 0, 1
"""Their numbers, where there is no fallback."""


def orders(forwarder: Forwarder) -> int:
    options: dict[str, Any] = {"host": "127.0.0.1", "port": forwarder.port, "connect_timeout": 15}
    with psycopg.connect(user="app", password=PASSWORD, dbname=DATABASE, **options) as session:
        row = session.execute("select count(*) from orders").fetchone()
    assert row is not None
    return int(row[0])


def check(forwarder: Forwarder, layer: str, reason: str, hop: int, words: Sequence[str]) -> LayerFact:
    """The layer fails at this hop, and the message says so."""
    fact = forwarder.wait_for(layer, reason)
    status = forwarder.status()
    position = LAYERS.index(layer)
    assert [getattr(status, name).status for name in LAYERS] == (
        ["True"] * position + ["False"] + ["Unknown"] * (3 - position)
    )
    assert fact.hop == hop
    check_told(forwarder, Reason(reason), *words)
    return fact


def works(forwarder: Forwarder) -> None:
    forwarder.wait(lambda status: all(getattr(status, name).status == "True" for name in LAYERS), "all layers", 30)
    assert orders(forwarder) == 3


@pytest.fixture
def jump_host(further_bastions: StartBastion, client_key: KeyPair) -> Bastion:
    """One that lets the client's key in, and resolves the bastion's name."""
    return further_bastions({INNER: "127.0.0.1"}, client_key.public)


@pytest.fixture
def start_chain(start_forwarder: StartForwarder, bastion: Bastion, jump_host: Bastion) -> StartForwarder:
    """Starts a forwarder that reaches the bastion through the jump host."""

    def start(database_port: int, files: Any = None, /, **changes: Any) -> Forwarder:
        usual = {"bastion": hop_to(bastion, host=INNER), "jump_hosts": (hop_to(jump_host),)}
        return start_forwarder(database_port, files, **{**usual, **changes})

    return start


# --- the way ----------------------------------------------------------------------------------------------------------


def test_two_jump_hosts_each_with_its_own_user_key_and_host_key_rule(
    start_forwarder: StartForwarder, further_bastions: StartBastion, bastion: Bastion, postgres: PostgresServer
) -> None:
    keys = [key_pair(), key_pair("ecdsa-sha2-nistp256"), key_pair(passphrase="open sesame")]
    second = further_bastions({INNER: "127.0.0.1"})
    first = further_bastions({"second.inner": "127.0.0.1"})
    names = [ForwarderKey(secret=f"{number}-ssh", key=KEY, passphrase_key=PASSPHRASE_KEY) for number in (1, 2)]
    known_hosts = HostKeyRule(known_hosts_file="known_hosts", alias="second")
    inline = HostKeyRule(known_hosts=bastion.known_hosts(INNER))
    forwarder = start_forwarder(
        postgres.port,
        {KEY: keys[0].private},
        bastion=hop_to(bastion, host=INNER, host_key=inline),
        jump_hosts=(
            hop_to(first, key=names[0]),
            hop_to(second, host="second.inner", host_key=known_hosts, key=names[1]),
        ),
        hop_files={
            (1, "key"): {KEY: keys[1].private},
            (2, "key"): {KEY: keys[2].private, PASSPHRASE_KEY: "open sesame"},
            (2, "known-hosts"): {"known_hosts": f"second {second.host_keys['ed25519'].public}\n"},
        },
    )
    check(forwarder, "authentication", "KeyRejected", 1, [f"jump host {first.host}:{first.port}: user {USER}"])
    status = forwarder.wait(lambda status: all(hop.public_key for hop in status.hops[1:]), "all keys")
    subject = Subject(forwarder.config, (), status.public_key, status.hops)
    for number, server in ((0, bastion), (1, first), (2, second)):
        server.authorize(key_lines(subject, number) or "")
    forwarder.write_hop(1, "key", {KEY: keys[1].private, "touched": "now"})
    works(forwarder)
    status = forwarder.status()
    assert all(hop.active and hop.server_version and hop.cipher and hop.failure is None for hop in status.hops)
    for hop, server in zip(status.hops, (bastion, first, second), strict=True):
        assert hop.host_keys[0].fingerprint in server.fingerprints.values()
    assert forwarder.metric(f'dbtunnel_forwarder_hop_active{{hop="jump host {first.host}:{first.port}"}}') == 1
    assert "open sesame" not in forwarder.log.read_text() + forwarder.get("/status")


def test_bytes_arrive_whole_both_ways_for_several_clients(
    start_chain: StartForwarder,
) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def echo(peer: socket.socket) -> None:
        with peer:
            while data := peer.recv(65536):
                peer.sendall(data)

    def serve() -> None:
        for _ in range(4):
            threading.Thread(target=echo, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    forwarder = start_chain(listener.getsockname()[1], engine=Engine.MYSQL, probe_mode="Disabled")
    forwarder.wait_for("authentication", "Succeeded")
    results: list[bool] = []

    def send(client: socket.socket, content: bytes) -> None:
        client.sendall(content)
        client.shutdown(socket.SHUT_WR)

    def exchange() -> None:
        content = os.urandom(24 * 2**20)
        with socket.create_connection(("127.0.0.1", forwarder.port), 30) as client:
            threading.Thread(target=send, args=(client, content)).start()
            digest = hashlib.sha256()
            while data := client.recv(65536):
                digest.update(data)
            results.append(digest.digest() == hashlib.sha256(content).digest())

    threads = [threading.Thread(target=exchange) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    listener.close()
    assert results == [True] * 4


def test_the_end_of_the_forwarder_ends_all_connections(
    start_chain: StartForwarder, jump_host: Bastion, bastion: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start_chain(postgres.port)
    works(forwarder)
    assert (jump_host.connections(), bastion.connections()) == (1, 1)
    forwarder.stop()
    wait_until(lambda: (jump_host.connections(), bastion.connections()) == (0, 0), "both connections to end")


# --- what the jump host says of what comes next -----------------------------------------------------------------------


def test_a_jump_host_that_prohibits_forwarding(
    start_chain: StartForwarder, jump_host: Bastion, bastion: Bastion, postgres: PostgresServer
) -> None:
    jump_host.set_config(*NO_FORWARDING)
    forwarder = start_chain(postgres.port)
    target = f"{INNER}:{bastion.port}"
    name = f"jump host {jump_host.host}:{jump_host.port}"
    words = [f"{name}: forwarding to {target} is prohibited", f"PermitOpen any or {target}", f'permitopen="{target}"']
    check(forwarder, "transport", "ForwardingProhibited", JUMP_HOST, words)
    jump_host.set_config(*HARDENED)
    works(forwarder)


def test_a_key_that_a_jump_host_permits_something_else(
    start_chain: StartForwarder, jump_host: Bastion, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair
) -> None:
    jump_host.authorize(f'restrict,port-forwarding,permitopen="other:22" {client_key.public}')
    forwarder = start_chain(postgres.port)
    check(forwarder, "transport", "ForwardingProhibited", JUMP_HOST, ["permitopen="])
    jump_host.authorize(key_lines(Subject(forwarder.config, (), forwarder.status().public_key), JUMP_HOST) or "")
    works(forwarder)


def test_nobody_listens_behind_the_jump_host_until_somebody_does(
    start_chain: StartForwarder, jump_host: Bastion, bastion: Bastion, postgres: PostgresServer
) -> None:
    bastion.stop()
    forwarder = start_chain(postgres.port)
    words = [f"bastion {INNER}:{bastion.port}: it refuses the connection of jump host", "spec.tunnel.port"]
    check(forwarder, "transport", "ConnectionRefused", BASTION, words)
    bastion.start()
    works(forwarder)


def test_a_name_that_the_jump_host_does_not_resolve(
    start_chain: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start_chain(postgres.port, bastion=hop_to(bastion, host="nowhere.invalid"))
    words = ["bastion nowhere.invalid", "cannot resolve the name", "Name or service not known", "spec.tunnel.host"]
    check(forwarder, "transport", "HostUnresolvable", BASTION, words)


def test_packets_that_are_dropped_behind_the_jump_host(
    start_chain: StartForwarder, bastion: Bastion, postgres: PostgresServer, tmp_path: Path
) -> None:
    with BlackHole(tmp_path) as hole:
        way = {"bastion": hop_to(bastion, host=hole.host, port=22), "seconds": seconds(connect_timeout=1)}
        words = [f"bastion {hole.host}:22: no answer in time through jump host", "within 1 s"]
        check(start_chain(postgres.port, **way), "transport", "ConnectTimeout", BASTION, words)


# --- host keys, logins and keys, each of its own hop ------------------------------------------------------------------


def test_a_jump_host_with_a_wrong_host_key_leads_nowhere(
    start_chain: StartForwarder, jump_host: Bastion, bastion: Bastion, postgres: PostgresServer
) -> None:
    shown = jump_host.fingerprints["ed25519"]
    wrong = hop_to(bastion).host_key
    forwarder = start_chain(postgres.port, jump_hosts=(hop_to(jump_host, host_key=wrong),))
    name = f"jump host {jump_host.host}:{jump_host.port}"
    words = [f"{name}: the host key is not the pinned one", shown, "/spec/tunnel/jumpHosts/0/hostKey"]
    check(forwarder, "transport", "HostKeyMismatch", JUMP_HOST, words)
    assert "Accepted publickey" not in jump_host.log_text()
    assert "Connection from" not in bastion.log_text()


def test_the_host_key_of_the_bastion_is_not_that_of_the_jump_host(
    start_chain: StartForwarder, jump_host: Bastion, bastion: Bastion, postgres: PostgresServer
) -> None:
    unpinned: ForwarderHop = hop_to(bastion, host=INNER, host_key=HostKeyRule())
    forwarder = start_chain(postgres.port, bastion=unpinned)
    words = [f"bastion {INNER}:{bastion.port}: no host key is pinned", *bastion.fingerprints.values()]
    check(forwarder, "transport", "HostKeyUnknown", BASTION, words)
    assert "Accepted publickey" not in bastion.log_text()
    wait_until(lambda: jump_host.connections() == 0, "the connection to the jump host to end")


def test_the_secret_of_a_jump_host_is_missing(
    start_chain: StartForwarder, jump_host: Bastion, postgres: PostgresServer
) -> None:
    own = key_pair()
    jump_host.authorize(own.public)
    key = ForwarderKey(secret="jump-ssh", key=KEY, passphrase_key=PASSPHRASE_KEY)
    forwarder = start_chain(postgres.port, jump_hosts=(hop_to(jump_host, key=key),))
    check(forwarder, "key", "SecretNotFound", JUMP_HOST, ["Secret jump-ssh is not there"])
    forwarder.write_hop(JUMP_HOST, "key", {"id": own.private})
    check(forwarder, "key", "SecretKeyMissing", JUMP_HOST, ["spec.tunnel.jumpHosts[0].keySecretRef.key"])
    forwarder.write_hop(JUMP_HOST, "key", {KEY: own.private})
    works(forwarder)


# --- the loss of one is the loss of all -------------------------------------------------------------------------------


def test_a_jump_host_that_dies_is_named_and_clients_wait_for_its_return(
    start_chain: StartForwarder, jump_host: Bastion, bastion: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start_chain(postgres.port)
    works(forwarder)
    jump_host.stop()
    fact = forwarder.wait(lambda status: status.transport.status == "False", "the loss").transport
    assert fact.hop == JUMP_HOST
    assert forwarder.metric('dbtunnel_forwarder_ssh_reconnects_total{reason="JumpHostLost"}') == 1
    wait_until(lambda: bastion.connections() == 0, "the connection within to end")
    counts: list[int] = []
    waiting = threading.Thread(target=lambda: counts.append(orders(forwarder)))
    waiting.start()
    wait_until(lambda: forwarder.metric("dbtunnel_forwarder_clients_parked") == 1, "a parked client")
    check(forwarder, "transport", "ConnectionRefused", JUMP_HOST, [f"jump host {jump_host.host}:{jump_host.port}"])
    jump_host.start()
    waiting.join(15)
    assert counts == [3]


def test_a_bastion_that_dies_behind_a_jump_host_is_named(
    start_chain: StartForwarder, jump_host: Bastion, bastion: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start_chain(postgres.port)
    works(forwarder)
    bastion.kill_sessions()
    wait_until(lambda: any(one["event"] == "connection lost" for one in forwarder.events()), "the loss")
    (lost,) = [one for one in forwarder.events() if one["event"] == "connection lost"]
    assert lost["hop"] == f"bastion {INNER}:{bastion.port}"
    works(forwarder)
    assert (jump_host.connections(), bastion.connections()) == (1, 1), "no connection is left behind"


def test_a_hanging_jump_host_is_noticed(
    start_chain: StartForwarder, jump_host: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start_chain(postgres.port, seconds=seconds(connect_timeout=1))
    works(forwarder)
    jump_host.pause()
    forwarder.wait(lambda status: status.transport.status == "False", "the keepalive to give up")
    check(forwarder, "transport", "ConnectTimeout", JUMP_HOST, ["jump host"])
    jump_host.resume()
    works(forwarder)
