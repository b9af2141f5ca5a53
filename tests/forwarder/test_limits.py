"""Limits of connections and of idleness, and what is told of each session's end."""

import os
import resource
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pymysql
import pytest

from dbtunnel.api.engines import Engine
from tests.support.bastion import Bastion
from tests.support.databases import DATABASE, PASSWORD, USER, MariaDBServer, PostgresServer
from tests.support.faults import FaultServer
from tests.support.forwarder import Forwarder, seconds
from tests.support.processes import wait_until
from tests.support.relay import Relay

StartForwarder = Callable[..., Forwarder]
Session = psycopg.Connection[tuple[Any, ...]]

REFUSED = 'dbtunnel_forwarder_clients_refused_total{reason="ConnectionLimit"}'
IDLE = "dbtunnel_forwarder_sessions_idle_total"


def connect(forwarder: Forwarder, **options: Any) -> Session:
    target: dict[str, Any] = {"host": "127.0.0.1", "port": forwarder.port, "connect_timeout": 15, **options}
    return psycopg.connect(user=USER, password=PASSWORD, dbname=DATABASE, **target)


def cancel_soon(cancel: Callable[[], None]) -> None:
    """While a query is running."""
    threading.Timer(0.5, cancel).start()


def ended(forwarder: Forwarder) -> list[dict[str, Any]]:
    """The events of sessions that ended."""
    return [one for one in forwarder.events() if one["event"] == "session ended"]


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as are needed, here and in what is started."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 8192), max(before[1], 8192)))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


# --- how many ---------------------------------------------------------------------------------------------------------


class Crowd:
    """Clients that connect at once, say a word, and wait for its echo."""

    def __init__(self, port: int, count: int, word: bytes) -> None:
        self._selector = selectors.DefaultSelector()
        self.served: list[socket.socket] = []
        self.refused = 0
        self._word = word
        for _ in range(count):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            self._selector.register(client, selectors.EVENT_WRITE)

    def settle(self, timeout_seconds: float) -> float:
        """Returns once each was answered or refused, with the seconds that the last took."""
        began = time.monotonic()
        while self._selector.get_map() and time.monotonic() < began + timeout_seconds:
            for key, events in self._selector.select(1):
                client = key.fileobj
                assert isinstance(client, socket.socket)
                try:
                    self._go_on(client, events)
                except (ConnectionResetError, BrokenPipeError):
                    self.refused += 1
                    self._selector.unregister(client)
                    client.close()
        return time.monotonic() - began

    def _go_on(self, client: socket.socket, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            client.sendall(self._word)
            self._selector.modify(client, selectors.EVENT_READ)
        elif client.recv(100) == self._word:
            self._selector.unregister(client)
            self.served.append(client)

    @property
    def waiting(self) -> int:
        return len(self._selector.get_map())

    def close(self) -> None:
        for client in self.served:
            client.close()


def echo(peer: socket.socket) -> None:
    while data := peer.recv(65536):
        peer.sendall(data)


def test_two_thousand_at_once_against_a_limit_of_five_hundred(
    many_files: None, start_forwarder: StartForwarder
) -> None:
    """The word is no cancel, so that those who come in as visitors are told too."""
    with FaultServer(echo) as server:
        forwarder = start_forwarder(server.port, engine=Engine.POSTGRESQL, probe_mode="Disabled", max_clients=500)
        forwarder.wait_for("authentication", "Succeeded")
        crowd = Crowd(forwarder.port, 2000, b"\0\0\0\x10\0\3\0\0user\0a\0\0")
        took = crowd.settle(30)
        print(f"{len(crowd.served)} served, {crowd.refused} refused, {crowd.waiting} left waiting, in {took:.1f} s")
        assert (len(crowd.served), crowd.refused, crowd.waiting) == (500, 1500, 0)
        assert forwarder.metric(REFUSED) == 1500
        assert forwarder.metric("dbtunnel_forwarder_clients") == 500
        for client in crowd.served:
            client.setblocking(True)
            client.sendall(b"more")
        assert all(client.recv(4, socket.MSG_WAITALL) == b"more" for client in crowd.served), "none is lost"
        crowd.close()
        wait_until(lambda: forwarder.metric("dbtunnel_forwarder_clients") == 0, "all to leave")
        events = [one["event"] for one in forwarder.events()]
        assert events.count("connection limit reached") == 1, "said, and not for each"
        assert len(ended(forwarder)) == 500
        again = Crowd(forwarder.port, 500, b"\0\0\0\x10\0\3\0\0user\0a\0\0")
        again.settle(30)
        assert len(again.served) == 500, "there is room again"
        again.close()


def test_more_than_the_limit_wait_for_the_bastion_no_more_than_they_are_served(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    """Those who are parked have a place; the rest is told at once, and not after its patience."""
    bastion.stop()
    forwarder = start_forwarder(postgres.port, max_clients=3)
    forwarder.wait_for("transport", "ConnectionRefused")
    results: list[str] = []

    def ask() -> None:
        try:
            with connect(forwarder) as session:
                results.append(str(session.execute("select count(*) from orders").fetchone()))
        except psycopg.OperationalError:
            results.append("refused")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_until(lambda: results == ["refused"] * 5, "five to be refused")
    bastion.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["(3,)"] * 3 + ["refused"] * 5


@pytest.mark.parametrize("database", ["postgres", "postgres_tls"])
def test_a_query_is_cancelled_at_the_limit(
    start_forwarder: StartForwarder, request: pytest.FixtureRequest, database: str
) -> None:
    """By libpq as it was before version 17, in the clear, and as it is since, under TLS where the session is."""
    server: PostgresServer = request.getfixturevalue(database)
    forwarder = start_forwarder(server.port, max_clients=2)
    forwarder.wait_for("database", "Succeeded")
    with connect(forwarder) as busy, connect(forwarder) as other:
        assert other.execute("select 1").fetchone() == (1,)
        for cancel in (busy.cancel, busy.cancel_safe):
            cancel_soon(cancel)
            with pytest.raises(psycopg.errors.QueryCanceled):
                busy.execute("select pg_sleep(20)")
            busy.rollback()
        with pytest.raises(psycopg.OperationalError):
            connect(forwarder)
        assert other.execute("select 1").fetchone() == (1,)
    assert forwarder.metric(REFUSED) >= 1


def test_a_query_is_cancelled_through_another_replica_that_is_full_too(
    start_forwarder: StartForwarder, postgres: PostgresServer
) -> None:
    """A Service leads a cancel to any of them."""
    first, second = (start_forwarder(postgres.port, max_clients=1) for _ in range(2))
    for forwarder in (first, second):
        forwarder.wait_for("database", "Succeeded")
    with Relay("127.0.0.1", first.port) as service, connect(first, port=service.port) as busy, connect(second) as other:
        service.target = "127.0.0.1", second.port
        cancel_soon(busy.cancel_safe)
        with pytest.raises(psycopg.errors.QueryCanceled):
            busy.execute("select pg_sleep(20)")
        assert service.accepted == 2
        assert other.execute("select 1").fetchone() == (1,)


def test_a_login_gets_no_further_than_the_reserve(
    start_forwarder: StartForwarder, postgres_tls: PostgresServer
) -> None:
    """Its place there is free again at once, for those that cancel."""
    forwarder = start_forwarder(postgres_tls.port, max_clients=1)
    forwarder.wait_for("database", "Succeeded")
    with connect(forwarder) as session:
        before = postgres_tls.log_text().count("connection authorized")
        for _ in range(5):
            with pytest.raises(psycopg.OperationalError):
                connect(forwarder)
        assert postgres_tls.log_text().count("connection authorized") == before
        assert forwarder.metric(REFUSED) == 5
        assert session.execute("select 1").fetchone() == (1,)
    connect(forwarder).close()


def test_a_statement_is_killed_at_the_limit_with_mysql(start_forwarder: StartForwarder, mariadb: MariaDBServer) -> None:
    forwarder = start_forwarder(mariadb.port, engine=Engine.MYSQL, max_clients=1, database_host="mysql.internal")
    forwarder.wait_for("database", "NotProbed")
    target: dict[str, Any] = {"host": "127.0.0.1", "port": forwarder.port, "user": USER, "password": PASSWORD}
    with pymysql.connect(**target, database=DATABASE) as busy, busy.cursor() as cursor:
        cursor.execute("select connection_id()")
        thread = (cursor.fetchone() or (0,))[0]

        def kill() -> None:
            with pymysql.connect(**target) as other, other.cursor() as killer:
                killer.execute(f"kill query {thread}")

        threading.Timer(0.5, kill).start()
        with pytest.raises(pymysql.err.OperationalError, match="interrupted"):
            cursor.execute("select sleep(20)")
        guests = [pymysql.connect(**target) for _ in range(2)]
        with pytest.raises(pymysql.err.OperationalError):
            pymysql.connect(**target)
        began = time.monotonic()
        with pytest.raises(pymysql.err.OperationalError), guests[0].cursor() as slow:
            slow.execute("select sleep(20)")
        assert 5 < time.monotonic() - began < 15, "no guest stays for long"
        cursor.execute("select 1")


# --- for how long -----------------------------------------------------------------------------------------------------


def test_an_idle_session_is_ended_and_a_busy_one_is_not(
    start_forwarder: StartForwarder, postgres: PostgresServer
) -> None:
    forwarder = start_forwarder(postgres.port, seconds=seconds(idle=2))
    forwarder.wait_for("database", "Succeeded")
    with connect(forwarder) as busy, connect(forwarder) as idle:
        began = time.monotonic()
        while forwarder.metric(IDLE) == 0:
            assert busy.execute("select pg_sleep(0.2)").fetchone() is not None
            assert time.monotonic() < began + 20
        with pytest.raises(psycopg.OperationalError):
            idle.execute("select 1")
        assert busy.execute("select 1").fetchone() == (1,)
        (event,) = ended(forwarder)
        assert event["how"] == "idle"
        assert 2 <= event["seconds"] <= 8
    wait_until(lambda: postgres.sessions() == 0, "the database to know")


# --- how it ended -----------------------------------------------------------------------------------------------------


def test_the_end_of_each_session_is_told(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start_forwarder(postgres.port)
    forwarder.wait_for("database", "Succeeded")

    def last(how: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = wait_until(
            lambda: [one for one in ended(forwarder) if one["how"] == how], f"the end: {how}"
        )
        return found[-1]

    session = connect(forwarder)
    session.execute("select repeat('x', 100000)").fetchone()
    # libpq says goodbye before it closes, so that the database might close first
    with socket.socket(fileno=os.dup(session.fileno())) as connection:
        connection.shutdown(socket.SHUT_WR)
    event = last("client closed")
    session.close()
    assert event["hop"] == f"bastion {bastion.host}:{bastion.port}"
    assert event["client"].startswith("127.0.0.1:")
    assert event["received"] > 100_000
    assert 50 < event["sent"] < 2000
    assert 0 <= event["seconds"] < 10

    session = connect(forwarder)
    with postgres.connect() as administrator:
        administrator.execute("select pg_terminate_backend(%s)", (session.info.backend_pid,))
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")
    session.close()
    last("database closed")
    session = connect(forwarder)
    bastion.kill_sessions()
    last("SSH connection lost")
    session.close()
    forwarder.wait_for("database", "Succeeded")
    session = connect(forwarder)
    forwarder.process.signal(signal.SIGTERM)
    assert forwarder.process.wait(15) == 0
    session.close()
    last("forwarder ended")
    assert len(ended(forwarder)) == 4
