"""Packets that are dropped: what nobody is told is noticed in time, at both ends, and nobody waits for ever."""

import asyncio
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbtunnel.api.engines import Engine
from dbtunnel.domain.sshd_config import match_block
from dbtunnel.forwarder import listener, pieces, quiet
from dbtunnel.forwarder.metrics import CLIENTS_OPEN
from tests.support.bastion import Bastion
from tests.support.cable import Cable
from tests.support.databases import DATABASE, PASSWORD, USER, PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config, hop_to, seconds
from tests.support.in_process import DataPath
from tests.support.keys import KeyPair
from tests.support.postgres_words import lock_table, query
from tests.support.processes import wait_until
from tests.support.relay import Relay

Session = psycopg.Connection[tuple[Any, ...]]

PARKED = "dbtunnel_forwarder_clients_parked"
BLAMED = 'dbtunnel_forwarder_database_failures_total{reason="DatabaseTimeout"}'

KEEPALIVE_SECONDS, KEEPALIVES = 3, 1
"""`spec.tunnel.keepalive`; as by default it takes longer than a channel may take to open."""

FASTER = 15
"""How many times more often than by the hand-out the bastion asks for a sign of life."""

PROMISED_SECONDS = 120
"""When the locks of a node that is gone are free at the latest, by what README.md says of the hand-out."""

CONNECT_SECONDS, PARKING_SECONDS = 3, 30

CLIENT_SECONDS, LOOK_SECONDS = 2, 0.25
"""When a client that is gone is noticed, and how often it is looked for, as the test has it."""

SLACK_SECONDS = 2.0
"""What a busy machine may add; less than another keepalive would."""


def handed_out() -> dict[str, str]:
    """What a bastion's administrator is told to have in `sshd_config` for the tunnels' user."""
    block = match_block("dbtunnel")
    assert block
    return dict(line.split(maxsplit=1) for line in block.splitlines()[1:])


HANDED_OUT = handed_out()
ALIVE_SECONDS, ALIVES = int(HANDED_OUT["ClientAliveInterval"]) // FASTER, int(HANDED_OUT["ClientAliveCountMax"])
FREED_SECONDS = 2 * ALIVE_SECONDS * (ALIVES + 1)
"""sshd 9.2 lets two intervals pass for each message that is not answered, and for the last wait."""


class FarBastion:
    """A bastion at the far end of a cable, and a forwarder at this end. The bastion always reaches the database."""

    def __init__(
        self, directory: Path, key: KeyPair, postgres: PostgresServer, stack: ExitStack, *, fallback: bool = False
    ) -> None:
        """`fallback`: another bastion at this end, which no cut keeps from the forwarder."""
        self._key, self._stack = key, stack
        self.cable = stack.enter_context(Cable(directory))
        database = stack.enter_context(Relay(postgres.host, postgres.port, host=self.cable.near))
        far = {"host": self.cable.host, "port": 2222, "prefix": self.cable.prefix}
        self.bastion = self._start(directory / "far-bastion", **far)
        self.fallback = self._start(directory / "fallback") if fallback else None
        config = forwarder_config(
            self.bastion,
            database.port,
            fallbacks=(hop_to(self.fallback),) if self.fallback else None,
            keepalive_count_max=KEEPALIVES,
            seconds=seconds(
                keepalive_interval=KEEPALIVE_SECONDS, connect_timeout=CONNECT_SECONDS, parking_max=PARKING_SECONDS
            ),
        )
        self.forwarder = Forwarder(directory / "forwarder", config, {KEY: key.private})
        stack.callback(self.forwarder.stop)
        self.forwarder.start()
        self.forwarder.wait_for("database", "Succeeded")

    def _start(self, directory: Path, **where: Any) -> Bastion:
        lines = HANDED_OUT | {"ClientAliveInterval": str(ALIVE_SECONDS)}
        names = {"orders.internal": self.cable.near}
        bastion = Bastion(directory, hosts=names, config=[" ".join(line) for line in lines.items()], **where)
        bastion.authorize(self._key.public)
        self._stack.callback(bastion.stop)
        return bastion.start()

    def cut(self, *, one_way: bool = False) -> None:
        """Drops what the two say to each other."""
        self.cable.cut(self.bastion.port, one_way=one_way)

    def connect(self) -> Session:
        """A client's session."""
        target: dict[str, Any] = {"host": "127.0.0.1", "port": self.forwarder.port, "connect_timeout": 40}
        return psycopg.connect(user=USER, password=PASSWORD, dbname=DATABASE, **target)

    def ask(self) -> int:
        """What a client does that comes, asks and goes."""
        with self.connect() as session:
            row = session.execute("select count(*) from orders").fetchone()
        return row[0] if row else 0


@pytest.fixture
def far(tmp_path: Path, client_key: KeyPair, postgres: PostgresServer) -> Iterator[FarBastion]:
    with ExitStack() as stack:
        yield FarBastion(tmp_path, client_key, postgres, stack)


def come_and_be_parked(far: FarBastion, clients: ThreadPoolExecutor, began: float) -> tuple[list[Future[int]], float]:
    """Clients before and after the loss is noticed, all of which wait; and the seconds until it was."""
    coming = [clients.submit(far.ask) for _ in range(10)]
    far.forwarder.wait(lambda status: status.transport.status == "False", "the loss to be noticed")
    noticed = time.monotonic() - began
    coming += [clients.submit(far.ask) for _ in range(10)]
    wait_until(lambda: far.forwarder.metric(PARKED) == len(coming), "all clients to be parked")
    return coming, noticed


@pytest.mark.parametrize("one_way", [False, True], ids=["both ways", "answers alone"])
def test_a_link_that_drops_packets_is_noticed_and_those_who_come_meanwhile_are_served(
    far: FarBastion, one_way: bool
) -> None:
    session = far.connect()
    session.execute("select 1")
    far.cut(one_way=one_way)
    began = time.monotonic()
    with ThreadPoolExecutor(20) as clients:
        coming, noticed = come_and_be_parked(far, clients, began)
        with pytest.raises(psycopg.OperationalError):
            session.execute("select 1")
        ended = time.monotonic() - began
        far.forwarder.wait_for("transport", "ConnectTimeout")
        far.cable.mend()
        mended = time.monotonic()
        assert [client.result(40) for client in coming] == [3] * len(coming)
    print(f"noticed after {noticed:.1f} s, given up after {ended:.1f}")
    print(f"all {len(coming)} served {time.monotonic() - mended:.1f} s after its return")
    assert noticed <= CONNECT_SECONDS + SLACK_SECONDS, "by a client who waits for its channel"
    assert KEEPALIVE_SECONDS * KEEPALIVES < ended <= KEEPALIVE_SECONDS * (KEEPALIVES + 1) + SLACK_SECONDS
    assert far.forwarder.metric("dbtunnel_forwarder_ssh_connects_total") == 2
    assert far.forwarder.metric(BLAMED) == 0, "nor is the database blamed for it"


def test_a_fallback_takes_over_from_a_link_that_drops_packets_and_serves_those_who_came_meanwhile(
    tmp_path: Path, client_key: KeyPair, postgres: PostgresServer
) -> None:
    with ExitStack() as stack:
        far = FarBastion(tmp_path, client_key, postgres, stack, fallback=True)
        lost = [far.connect() for _ in range(5)]
        far.cut()
        began = time.monotonic()
        with ThreadPoolExecutor(20) as clients:
            coming, noticed = come_and_be_parked(far, clients, began)
            assert [client.result(PARKING_SECONDS) for client in coming] == [3] * len(coming)
        served = time.monotonic() - began
        print(f"noticed after {noticed:.1f} s, all {len(coming)} served after {served:.1f} s")
        assert noticed <= CONNECT_SECONDS + SLACK_SECONDS
        assert served <= noticed + CONNECT_SECONDS + SLACK_SECONDS, "the first has one more try"
        check_fallback_serves(far, lost, len(coming))
        wait_until(lambda: postgres.sessions() == 0, "the far bastion to let go of the sessions that were lost")
        assert far.bastion.connections() == 0


def check_fallback_serves(far: FarBastion, lost: list[Session], served: int) -> None:
    """Each client that was there is told and each that came was served, over one connection to the fallback."""
    for session in lost:
        with pytest.raises(psycopg.OperationalError):
            session.execute("select 1")
    forwarder = far.forwarder
    status = forwarder.wait(lambda status: status.database.status == "True", "the fallback's probe")
    assert [hop.active for hop in status.hops] == [False, True]
    assert (status.hops[0].failure or status.transport).reason == "ConnectTimeout"
    assert far.fallback
    assert far.fallback.connections() == 1
    assert forwarder.metric("dbtunnel_forwarder_ssh_connects_total") == 2
    assert forwarder.metric('dbtunnel_forwarder_ssh_reconnects_total{reason="KeepaliveUnanswered"}') == 1
    assert forwarder.metric('dbtunnel_forwarder_clients_refused_total{reason="Parking"}') == 0

    def ends() -> Counter[str]:
        return Counter(one["how"] for one in forwarder.events() if one["event"] == "session ended")

    wait_until(lambda: ends().total() == len(lost) + served, "the end of each session to be told")
    assert ends()["SSH connection lost"] == len(lost)


# --- the forwarder's node ---------------------------------------------------------------------------------------------


def lock(far: FarBastion) -> Session:
    """A session in a transaction that others wait for."""
    session = far.connect()
    session.execute("lock table orders in access exclusive mode")
    return session


def check_freed(postgres: PostgresServer, began: float) -> None:
    assert postgres.is_locked()
    wait_until(lambda: not postgres.is_locked(), "the lock to be free", 15)
    took = time.monotonic() - began
    print(f"free after {took:.1f} s")
    wait_until(lambda: postgres.sessions() == 0, "the database's sessions to end")
    assert took <= FREED_SECONDS + SLACK_SECONDS
    assert FREED_SECONDS * FASTER <= PROMISED_SECONDS


def test_a_frozen_forwarder_holds_no_locks(far: FarBastion, postgres: PostgresServer) -> None:
    """Its kernel still takes packets: TCP alone would notice nothing, ever."""
    session = lock(far)
    far.forwarder.process.signal(signal.SIGSTOP)
    try:
        check_freed(postgres, time.monotonic())
    finally:
        far.forwarder.process.signal(signal.SIGCONT)
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")
    assert far.ask() == 3


def test_a_forwarder_whose_node_is_gone_holds_no_locks(far: FarBastion, postgres: PostgresServer) -> None:
    session = lock(far)
    far.cut()
    check_freed(postgres, time.monotonic())
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")
    far.cable.mend()
    assert far.ask() == 3


# --- a client's node --------------------------------------------------------------------------------------------------

ANSWER = query("select repeat('x', 1000) from generate_series(1, 100000000)")


@pytest.mark.parametrize("asks", [b"", ANSWER], ids=["at rest", "within an answer"])
def test_a_client_whose_node_is_gone_holds_no_locks(
    tmp_path: Path,
    bastion: Bastion,
    client_key: KeyPair,
    open_postgres: PostgresServer,
    monkeypatch: pytest.MonkeyPatch,
    asks: bytes,
) -> None:
    """TCP asks one that has said nothing for a while; the other owes it an answer."""
    often = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    monkeypatch.setattr(listener, "_KEEPALIVE", [(option, 1) for option in often])
    monkeypatch.setattr(pieces, "LOST_SECONDS", 1)
    monkeypatch.setattr(quiet, "LOOKS", quiet.SILENT_SECONDS / LOOK_SECONDS)
    target: dict[str, Any] = {"key": client_key.private, "engine": Engine.POSTGRESQL}
    with (
        Cable(tmp_path / "cable") as cable,
        DataPath(hop_to(bastion), open_postgres.port, host=cable.near, **target) as path,
        cable.connect(path.port) as client,
        ExitStack() as stack,
    ):
        looking = path.run(lambda: asyncio.ensure_future(path.listener.run()))
        stack.callback(path.run, looking.cancel)
        lock_table(client)
        client.sendall(asks)
        wait_until(lambda: path.run(lambda: has_all(path)) != bool(asks), "it to owe an answer, or none")
        assert open_postgres.is_locked()
        cable.cut(client.getsockname()[1])
        began = time.monotonic()
        wait_until(lambda: not open_postgres.is_locked(), "the lock to be free")
        print(f"free after {time.monotonic() - began:.1f} s")
        assert time.monotonic() - began < CLIENT_SECONDS + SLACK_SECONDS
        wait_until(lambda: open_postgres.sessions() == 0, "the database's session to end")
        assert path.listener.clients == path.link.uses == path.metrics.get(CLIENTS_OPEN) == 0


def has_all(path: DataPath) -> bool:
    """Whether all that the database has said was acknowledged."""
    return all(client.has_all() for client in path.listener._clients)
