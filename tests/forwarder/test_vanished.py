"""Packets that are dropped: what nobody is told is noticed in time, at both ends, and nobody waits for ever."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.bastion import HARDENED, Bastion
from tests.support.cable import Cable
from tests.support.databases import DATABASE, PASSWORD, USER, PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config, seconds
from tests.support.keys import KeyPair
from tests.support.processes import wait_until
from tests.support.relay import Relay

Session = psycopg.Connection[tuple[Any, ...]]

KEEPALIVE_SECONDS, KEEPALIVES = 1, 1
"""`spec.tunnel.keepalive`."""

ALIVE_SECONDS, ALIVES = 1, 2
"""ClientAliveInterval and ClientAliveCountMax of the bastion."""

SLACK_SECONDS = 2.0
"""What a busy machine may add."""


class FarBastion:
    """A bastion at the far end of a cable, and a forwarder at this end. The bastion always reaches the database."""

    def __init__(self, directory: Path, key: KeyPair, postgres: PostgresServer, stack: ExitStack) -> None:
        self.cable = stack.enter_context(Cable(directory))
        database = stack.enter_context(Relay(postgres.host, postgres.port, host=self.cable.near))
        self.bastion = Bastion(
            directory / "far-bastion",
            host=self.cable.host,
            port=2222,
            hosts={"orders.internal": self.cable.near},
            config=(f"ClientAliveInterval {ALIVE_SECONDS}", f"ClientAliveCountMax {ALIVES}", *HARDENED),
            prefix=self.cable.prefix,
        )
        self.bastion.authorize(key.public)
        stack.callback(self.bastion.stop)
        self.bastion.start()
        config = forwarder_config(
            self.bastion,
            database.port,
            keepalive_count_max=KEEPALIVES,
            seconds=seconds(keepalive_interval=KEEPALIVE_SECONDS, connect_timeout=3, parking_max=30),
        )
        self.forwarder = Forwarder(directory / "forwarder", config, {KEY: key.private})
        stack.callback(self.forwarder.stop)
        self.forwarder.start()
        self.forwarder.wait_for("database", "Succeeded")

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


@pytest.mark.parametrize("one_way", [False, True], ids=["both ways", "answers alone"])
def test_a_link_that_drops_packets_is_noticed_and_those_who_come_meanwhile_are_served(
    far: FarBastion, one_way: bool
) -> None:
    session = far.connect()
    session.execute("select 1")
    far.cut(one_way=one_way)
    began = time.monotonic()
    with ThreadPoolExecutor(20) as clients:
        coming = [clients.submit(far.ask) for _ in range(10)]
        far.forwarder.wait(lambda status: status.transport.status == "False", "the loss to be noticed")
        noticed = time.monotonic() - began
        coming += [clients.submit(far.ask) for _ in range(10)]
        parked = "dbtunnel_forwarder_clients_parked"
        wait_until(lambda: far.forwarder.metric(parked) == len(coming), "all clients to be parked")
        with pytest.raises(psycopg.OperationalError):
            session.execute("select 1")
        far.forwarder.wait_for("transport", "ConnectTimeout")
        far.cable.mend()
        mended = time.monotonic()
        assert [client.result(40) for client in coming] == [3] * len(coming)
    print(f"noticed after {noticed:.1f} s, all {len(coming)} served {time.monotonic() - mended:.1f} s after its return")
    assert noticed <= KEEPALIVE_SECONDS * (KEEPALIVES + 1) + SLACK_SECONDS
    assert far.forwarder.metric("dbtunnel_forwarder_ssh_connects_total") == 2


# --- the forwarder's node ---------------------------------------------------------------------------------------------


def is_locked(postgres: PostgresServer) -> bool:
    with postgres.connect() as session:
        try:
            session.execute("lock table orders in access exclusive mode nowait")
        except psycopg.errors.LockNotAvailable:
            return True
    return False


def lock(far: FarBastion) -> Session:
    """A session in a transaction that others wait for."""
    session = far.connect()
    session.execute("lock table orders in access exclusive mode")
    return session


def check_freed(postgres: PostgresServer, began: float) -> None:
    """sshd 9.2 lets two intervals pass for each message that is not answered, and for the last wait."""
    assert is_locked(postgres)
    wait_until(lambda: not is_locked(postgres), "the lock to be free", 15)
    took = time.monotonic() - began
    print(f"free after {took:.1f} s")
    wait_until(lambda: postgres.sessions() == 0, "the database's sessions to end")
    assert took <= 2 * ALIVE_SECONDS * (ALIVES + 1) + SLACK_SECONDS


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
