"""Hours of connections and queries in half a minute: memory, descriptors and tasks stay as they are."""

import socket
from pathlib import Path
from statistics import median

from dbtunnel.forwarder.evidence import SSL_REQUEST
from tests.support.bastion import Bastion
from tests.support.databases import PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import wait_until
from tests.support.usage import Usage, told_by, usage

ROUNDS, CLIENTS, TRANSACTIONS = 9, 8, 50
"""Each transaction on a connection of its own: 3,600 of them."""

SCRIPT = "select count(*) from orders;\nselect repeat('x', 20000);\nselect length(repeat('y', 20000));\n"

CONNECTS, CLIENTS_OPEN = "dbtunnel_forwarder_ssh_connects_total", "dbtunnel_forwarder_clients"


def test_nothing_grows(tmp_path: Path, bastion: Bastion, client_key: KeyPair, open_postgres: PostgresServer) -> None:
    """After each round the connection is lost, or replaced since the Secret has another key."""
    keys = [client_key, key_pair()]
    bastion.authorize(*(key.public for key in keys))
    config = forwarder_config(bastion, open_postgres.port)
    forwarder = Forwarder(tmp_path / "fwd", config, {KEY: client_key.private})
    forwarder.start(environment=told_by(forwarder.directory))
    used: list[Usage] = []
    try:
        for number in range(ROUNDS):
            forwarder.wait_for("database", "Succeeded")
            open_postgres.bench(forwarder.port, SCRIPT, clients=CLIENTS, transactions=TRANSACTIONS)
            wait_until(lambda: forwarder.metric(CLIENTS_OPEN) == 0, "the last client to leave")
            make_another_connection(forwarder, bastion, keys[(number + 1) % 2], lost=number % 2 == 0)
            used.append(usage(forwarder))
    finally:
        forwarder.stop()
    first, last = used[: ROUNDS // 3], used[-ROUNDS // 3 :]
    print(*used, sep="\n")
    # at one moment or another a connection that is replaced, or the question that came just before, is still there
    # what leaks once a round is six more by then
    assert median(one.descriptors for one in last) <= max(one.descriptors for one in first) + 1
    assert median(one.tasks for one in last) <= max(one.tasks for one in first) + 2
    served = CLIENTS * TRANSACTIONS * ROUNDS * 2 // 3  # from the middle of the one third to that of the other
    assert median(one.blocks for one in last) - median(one.blocks for one in first) < served / 4
    # the allocator takes more until it has seen everything, two connections at a time too, and then none
    assert median(one.kibibytes for one in last) - median(one.kibibytes for one in first) < 4096


def has_connected_with(forwarder: Forwarder, key: KeyPair) -> bool:
    return any(one.fingerprint == key.fingerprint for one in forwarder.status().sessions)


def make_another_connection(forwarder: Forwarder, bastion: Bastion, key: KeyPair, *, lost: bool) -> None:
    """With a client, whose session ends with a connection that is lost, and goes on over one that is replaced."""
    made = forwarder.metric(CONNECTS)
    with socket.create_connection(("127.0.0.1", forwarder.port), 10) as client:
        client.sendall(SSL_REQUEST)
        wait_until(lambda: forwarder.metric(CLIENTS_OPEN) == 1, "the client to be served")
        if lost:
            bastion.kill_sessions()
            wait_until(lambda: forwarder.metric(CLIENTS_OPEN) == 0, "the loss")
        # which also ends the pause: in hours a connection stands long enough for none
        forwarder.write_secret({KEY: key.private})
        wait_until(lambda: has_connected_with(forwarder, key), "another connection")
        # on a busy machine the old key may come in first
        assert forwarder.metric(CONNECTS) - made in ((1, 2) if lost else (1,))
        assert forwarder.metric(CLIENTS_OPEN) == (0 if lost else 1)
    wait_until(lambda: forwarder.metric(CLIENTS_OPEN) == 0, "the client to be gone")
