"""Two hours of a forwarder's life in half a minute: memory, descriptors and tasks stay as they are.

The clocks of two forwarders, of PostgreSQL and of MySQL, go fast while their clients come and go: keepalives, probes,
key exchanges and idle timeouts of all that time happen, against real servers. While connections are lost, and keys and
bastions change, they go as others do, since what servers take for it would be minutes.
"""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from dbtunnel.api.engines import Engine
from dbtunnel.forwarder.evidence import SSL_REQUEST
from tests.support.bastion import HARDENED, Bastion
from tests.support.databases import MariaDBServer, PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config, seconds
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import wait_until
from tests.support.usage import Usage, hasten, told_by, usage

SPEED = 400
HOURS = float(os.environ.get("DBTUNNEL_SOAK_HOURS", "2"))
"""Of the forwarders' own time."""
ROUND_SECONDS = 800
"""Of that time, in each of which clients come and go, and one is idle for too long."""
ROUNDS = max(9, round(HOURS * 3600 / ROUND_SECONDS))
IDLE_SECONDS, PROBE_SECONDS, KEEPALIVE_SECONDS = 600, 60, 60

CLIENTS, TRANSACTIONS, OF_MYSQL = 8, 30, 10
"""In a round: each transaction is on a connection of its own."""

SCRIPT = "select count(*) from orders;\nselect repeat('x', 20000);\nselect length(repeat('y', 20000));\n"

CONNECTS, CLIENTS_OPEN = "dbtunnel_forwarder_ssh_connects_total", "dbtunnel_forwarder_clients"
IDLE, PROBED = "dbtunnel_forwarder_sessions_idle_total", 'dbtunnel_forwarder_probes_total{result="Succeeded"}'

LOOSE = seconds(
    connect_timeout=3600,
    keepalive_interval=KEEPALIVE_SECONDS,
    parking_max=3600,
    probe_interval=PROBE_SECONDS,
    idle=IDLE_SECONDS,
)
"""What servers are waited for takes as long as it does, and so takes minutes by a clock that goes fast."""


@dataclass
class Site:
    """A forwarder, with its bastion and what it has used at the end of each round."""

    forwarder: Forwarder
    bastion: Bastion
    used: list[Usage]

    def check_flat(self, clients: int) -> None:
        """`clients`: how many it has served in a round."""
        first, last = self.used[: ROUNDS // 3], self.used[-(ROUNDS // 3) :]
        print(*self.used, sep="\n")
        # at one moment or another a connection that is replaced, or the question that came just before, is still there
        # what leaks once a round is six more by then
        assert median(one.descriptors for one in last) <= max(one.descriptors for one in first) + 1
        assert median(one.tasks for one in last) <= max(one.tasks for one in first) + 2
        served = clients * ROUNDS * 2 // 3  # from the middle of the one third to that of the other
        blocks = median(one.blocks for one in last) - median(one.blocks for one in first)
        # they come and go by some hundred; twenty objects for each probe would be thousands
        assert blocks < max(served / 4, 1000)
        # the allocator takes more until it has seen everything, two connections at a time too, and then none
        assert median(one.kibibytes for one in last) - median(one.kibibytes for one in first) < 4096
        assert self.used[-1].clock - self.used[0].clock >= (ROUNDS - 1) * ROUND_SECONDS


StartSite = Callable[[Bastion, Engine, int], Site]


@pytest.fixture
def start_site(tmp_path: Path, client_key: KeyPair) -> Iterator[StartSite]:
    """Starts a forwarder whose clock can go fast."""
    running: list[Forwarder] = []

    def start(bastion: Bastion, engine: Engine, port: int) -> Site:
        config = forwarder_config(bastion, port, engine=engine, seconds=LOOSE, keepalive_count_max=10)
        forwarder = Forwarder(tmp_path / f"forwarder-{engine}", config, {KEY: client_key.private})
        running.append(forwarder.start(environment=told_by(forwarder.directory, SPEED)))
        forwarder.wait_for("authentication", "Succeeded")
        return Site(forwarder, bastion, [])

    yield start
    for forwarder in running:
        forwarder.stop()


def test_nothing_grows(
    start_site: StartSite,
    bastion: Bastion,
    further_bastions: Callable[..., Bastion],
    client_key: KeyPair,
    open_postgres: PostgresServer,
    mariadb: MariaDBServer,
) -> None:
    """After each round one forwarder's connection is lost, or replaced since the Secret has another key. The other's
    stands for long enough to have its keys exchanged, until its bastion restarts.
    """
    keys = [client_key, key_pair()]
    bastion.authorize(*(key.public for key in keys))
    telling = further_bastions({"orders.internal": "127.0.0.1"}, client_key.public)
    telling.set_config("LogLevel DEBUG1", *HARDENED)
    sites = one, other = (
        start_site(bastion, Engine.POSTGRESQL, open_postgres.port),
        start_site(telling, Engine.MYSQL, mariadb.port),
    )
    for number in range(ROUNDS):
        one.forwarder.wait_for("database", "Succeeded")
        pass_a_round(sites, open_postgres, mariadb)
        for site in sites:
            wait_until(lambda site=site: site.forwarder.metric(CLIENTS_OPEN) == 0, "no client")  # type: ignore[misc]
        make_another_connection(one, keys[(number + 1) % 2], END[number % len(END)])
        if number == ROUNDS - 3:
            telling.restart()
            wait_until(lambda: other.forwarder.metric(CONNECTS) == 2, "another connection")
        for site in sites:
            site.used.append(usage(site.forwarder))
    one.check_flat(CLIENTS * TRANSACTIONS)
    other.check_flat(OF_MYSQL)
    check_timers(one, other)


def pass_a_round(sites: tuple[Site, Site], postgres: PostgresServer, mariadb: MariaDBServer) -> None:
    """Clients of both, one of which says no more after its first word."""
    forwarders = one, other = sites[0].forwarder, sites[1].forwarder
    begun = [usage(forwarder).clock for forwarder in forwarders]
    with socket.create_connection(("127.0.0.1", one.port), 30) as idle:
        idle.sendall(SSL_REQUEST)
        assert idle.recv(1) in b"NS"
        hasten(*forwarders, on=True)
        postgres.bench(one.port, SCRIPT, clients=CLIENTS, transactions=TRANSACTIONS)
        for _ in range(OF_MYSQL):
            with mariadb.connect(port=other.port) as session, session.cursor() as cursor:
                cursor.execute("select count(*) from orders")
                assert cursor.fetchone() == (3,)
        with pytest.raises(ConnectionResetError):
            idle.recv(1)
    for forwarder, since in zip(forwarders, begun, strict=True):
        wait_until(
            lambda forwarder=forwarder, since=since: usage(forwarder).clock - since >= ROUND_SECONDS,  # type: ignore[misc]
            "the time to pass",
            interval_seconds=0.3,
        )
    hasten(*forwarders, on=False)


def lose(bastion: Bastion) -> None:
    bastion.kill_sessions()


def restart(bastion: Bastion) -> None:
    bastion.restart()


END: tuple[Callable[[Bastion], None] | None, ...] = (lose, None, restart, None)
"""How a connection ends, in turn; None: another takes its place."""


def make_another_connection(site: Site, key: KeyPair, end: Callable[[Bastion], None] | None) -> None:
    """With a client, whose session ends with a connection that is lost, and goes on over one that is replaced."""
    forwarder = site.forwarder
    made = forwarder.metric(CONNECTS)
    with socket.create_connection(("127.0.0.1", forwarder.port), 10) as client:
        client.sendall(SSL_REQUEST)
        wait_until(lambda: forwarder.metric(CLIENTS_OPEN) == 1, "the client to be served")
        if end:
            end(site.bastion)
            wait_until(lambda: forwarder.metric(CLIENTS_OPEN) == 0, "the loss")
        # which also ends the pause: in hours a connection stands long enough for none
        forwarder.write_secret({KEY: key.private})
        wait_until(lambda: has_connected_with(forwarder, key), "another connection")
        # on a busy machine the old key may come in first
        assert forwarder.metric(CONNECTS) - made in ((1, 2) if end else (1,))
        assert forwarder.metric(CLIENTS_OPEN) == (0 if end else 1)
    wait_until(lambda: forwarder.metric(CLIENTS_OPEN) == 0, "the client to be gone")


def has_connected_with(forwarder: Forwarder, key: KeyPair) -> bool:
    return any(one.fingerprint == key.fingerprint for one in forwarder.status().sessions)


def check_timers(one: Site, other: Site) -> None:
    """What was due in all that time has happened: it is of no use to look at what stands still."""
    passed = ROUNDS * ROUND_SECONDS
    idle, probes = one.forwarder.metric(IDLE), one.forwarder.metric(PROBED)
    log = other.bastion.log_text()
    alive, exchanges = log.count("rtype keepalive@openssh.com"), log.count("rekeying in")
    hours = [f"{(site.used[-1].clock - site.used[0].clock) / 3600:.2f} h" for site in (one, other)]
    print(f"{hours}: {idle:.0f} idle, {probes:.0f} probes, {alive} signs of life, {exchanges} key exchanges")
    assert idle == ROUNDS
    assert probes >= passed / PROBE_SECONDS / 2
    assert alive >= passed / KEEPALIVE_SECONDS / 2
    assert exchanges >= passed // 3600 - 1
