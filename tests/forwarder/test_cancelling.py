"""At the limit of connections a query can still be cancelled: over any SSH connection, and by any replica."""

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Self

import psycopg
import pymysql
import pytest

from dbtunnel.api.engines import Engine
from tests.support.databases import DATABASE, PASSWORD, USER, MariaDBServer, PostgresServer
from tests.support.forwarder import Forwarder
from tests.support.processes import wait_until
from tests.support.relay import Relay

StartForwarder = Callable[..., Forwarder]

REFUSED = 'dbtunnel_forwarder_clients_refused_total{reason="ConnectionLimit"}'

LIMIT = 2

Connect = Callable[[int], Any]
"""A client's session through a port of this machine."""


def connect_postgres(port: int) -> "psycopg.Connection[tuple[Any, ...]]":
    target: dict[str, Any] = {"host": "127.0.0.1", "port": port, "connect_timeout": 15}
    return psycopg.connect(user=USER, password=PASSWORD, dbname=DATABASE, autocommit=True, **target)


def connect_mysql(port: int) -> "pymysql.Connection[Any]":
    return pymysql.connect(host="127.0.0.1", port=port, user=USER, password=PASSWORD, database=DATABASE)


def soon(cancel: Callable[[], object]) -> None:
    """While a query is running."""
    threading.Timer(0.5, cancel).start()


class FullService:
    """Replicas that are full, and the one address before them. Use it as a context manager."""

    def __init__(self, replicas: list[Forwarder], connections: int, connect: Connect) -> None:
        self.replicas, self._connections, self._connect = replicas, connections, connect
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        wait_until(lambda: self._all("dbtunnel_forwarder_ssh_up") == {self._connections}, "all connections")
        self._address = self._stack.enter_context(Relay("127.0.0.1", self.replicas[0].port))
        self.busy = self._stack.enter_context(self._connect(self._address.port))
        """A session through the first replica."""
        rooms = [LIMIT - 1, *[LIMIT] * (len(self.replicas) - 1)]
        ports = [one.port for one, room in zip(self.replicas, rooms, strict=True) for _ in range(room)]
        self.others = [self._stack.enter_context(self._connect(port)) for port in ports]
        """All other sessions that there is room for."""
        self._address.target = "127.0.0.1", self.replicas[-1].port
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def connect(self) -> Any:
        """One session more; the address leads it to the last replica."""
        return self._connect(self._address.port)

    def check_was_full(self, cancels: int) -> None:
        """So many who came to cancel were let in by the last replica, and nobody had to leave for them."""
        wait_until(lambda: self._all("dbtunnel_forwarder_clients") == {LIMIT}, "those who cancelled to be gone")
        assert self.replicas[-1].metric("dbtunnel_forwarder_clients_total") == LIMIT + cancels
        assert self._all(REFUSED) == {0}
        for session in self.others:
            session.cursor().execute("select 1")

    def _all(self, metric: str) -> set[float]:
        return {replica.metric(metric) for replica in self.replicas}


@pytest.mark.parametrize(
    ("database", "replicas", "connections"),
    [("postgres", 2, 2), ("postgres_tls", 1, 1), ("postgres_tls", 1, 2), ("postgres_tls", 2, 1)],
)
def test_a_query_is_cancelled_at_the_limit(
    start_forwarder: StartForwarder, request: pytest.FixtureRequest, database: str, replicas: int, connections: int
) -> None:
    """As libpq does it since version 17: under TLS where the session is."""
    server: PostgresServer = request.getfixturevalue(database)
    changes: dict[str, Any] = {"max_clients": LIMIT, "connections": connections}
    running = [start_forwarder(server.port, **changes) for _ in range(replicas)]
    with FullService(running, connections, connect_postgres) as service:
        soon(service.busy.cancel_safe)
        with pytest.raises(psycopg.errors.QueryCanceled):
            service.busy.execute("select pg_sleep(20)")
        service.check_was_full(cancels=1)
        with pytest.raises(psycopg.OperationalError):
            service.connect()


@pytest.mark.parametrize(("replicas", "connections"), [(1, 1), (1, 2), (2, 2)])
def test_a_statement_is_killed_at_the_limit_with_mysql(
    start_forwarder: StartForwarder, mariadb: MariaDBServer, replicas: int, connections: int
) -> None:
    changes: dict[str, Any] = {"engine": Engine.MYSQL, "database_host": "mysql.internal"}
    running = [
        start_forwarder(mariadb.port, max_clients=LIMIT, connections=connections, **changes) for _ in range(replicas)
    ]
    with FullService(running, connections, connect_mysql) as service:
        cursor = service.busy.cursor()
        cursor.execute("select connection_id()")
        thread = cursor.fetchone()[0]

        def kill() -> None:
            with service.connect() as other:
                other.cursor().execute(f"kill query {thread}")

        soon(kill)
        with pytest.raises(pymysql.err.OperationalError, match="interrupted"):
            cursor.execute("select sleep(20)")
        cursor.execute("select 1")
        service.check_was_full(cancels=1)


@pytest.mark.parametrize("database", ["postgres", "postgres_tls"])
def test_a_query_is_cancelled_in_the_clear_whatever_the_session_is(
    start_forwarder: StartForwarder, request: pytest.FixtureRequest, database: str
) -> None:
    """As libpq did it before version 17. It holds up the whole process, so that no relay of ours can be between
    the two.
    """
    server: PostgresServer = request.getfixturevalue(database)
    forwarder = start_forwarder(server.port, max_clients=1)
    forwarder.wait_for("database", "Succeeded")
    with connect_postgres(forwarder.port) as busy:
        soon(busy.cancel)
        with pytest.raises(psycopg.errors.QueryCanceled):
            busy.execute("select pg_sleep(20)")


def test_a_login_gets_no_further_than_the_reserve(
    start_forwarder: StartForwarder, postgres_tls: PostgresServer
) -> None:
    """Its place there is free again at once, for those that cancel."""
    forwarder = start_forwarder(postgres_tls.port, max_clients=1)
    forwarder.wait_for("database", "Succeeded")
    with connect_postgres(forwarder.port) as session:
        before = postgres_tls.log_text().count("connection authorized")
        for _ in range(5):
            with pytest.raises(psycopg.OperationalError):
                connect_postgres(forwarder.port)
        assert postgres_tls.log_text().count("connection authorized") == before
        assert forwarder.metric(REFUSED) == 5
        assert session.execute("select 1").fetchone() == (1,)
    connect_postgres(forwarder.port).close()


def test_who_comes_to_kill_a_statement_of_mysql_does_not_stay_and_others_are_told_the_limit(
    start_forwarder: StartForwarder, mariadb: MariaDBServer
) -> None:
    """What is said in a session of MySQL is not looked into: a guest has some seconds for whatever it does."""
    forwarder = start_forwarder(mariadb.port, engine=Engine.MYSQL, max_clients=1, database_host="mysql.internal")
    forwarder.wait_for("database", "NotProbed")
    with connect_mysql(forwarder.port) as session:
        began = time.monotonic()
        guests = [connect_mysql(forwarder.port) for _ in range(2)]
        for _ in range(20):
            with pytest.raises(pymysql.err.OperationalError, match=r"1040, .Too many connections: the limit"):
                connect_mysql(forwarder.port)
        assert forwarder.metric(REFUSED) == 20
        with pytest.raises(pymysql.err.OperationalError), guests[0].cursor() as slow:
            slow.execute("select sleep(20)")
        assert 5 < time.monotonic() - began < 15
        session.cursor().execute("select 1")
