"""A drain ends what is at rest first and what runs last, and a COPY that finishes in time loses nothing."""

import os
import signal
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import psycopg
import pymysql
import pymysql.cursors
import pytest
from pymysql.constants import COMMAND

from dbtunnel.api.engines import Engine
from tests.support.databases import DATABASE, PASSWORD, USER, MariaDBServer, PostgresServer
from tests.support.forwarder import Forwarder, seconds
from tests.support.processes import wait_until

StartForwarder = Callable[..., Forwarder]
plain_or_tls = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])

CUT = "forwarder ended"

ROW, FEW, MANY = "x" * 1000, 1000, 10_000
"""What is read: so little that buffers have all of it, and so much that the database has to wait for its reader."""


def drain(forwarder: Forwarder, resting: int) -> None:
    """Tells it to end; returns once the sessions of the first so many clients have been ended, and no other."""
    forwarder.process.signal(signal.SIGTERM)
    wait_until(lambda: len(ends(forwarder)) >= resting, "all that are at rest to be ended")
    assert sorted(ends(forwarder)) == [(number, CUT) for number in range(1, resting + 1)]


def ends(forwarder: Forwarder) -> list[tuple[int, str]]:
    """Number and end of each session that has ended, in this order."""
    return [(event["id"], event["how"]) for event in forwarder.events() if event["event"] == "session ended"]


# --- PostgreSQL -------------------------------------------------------------------------------------------------------

Postgres = psycopg.Connection[tuple[Any, ...]]


def postgres_through(forwarder: Forwarder, *, tls: bool, autocommit: bool = True) -> Postgres:
    return psycopg.connect(
        host="127.0.0.1",
        port=forwarder.port,
        user=USER,
        password=PASSWORD,
        dbname=DATABASE,
        sslmode="require" if tls else "disable",
        autocommit=autocommit,
    )


class Copies:
    """COPY in and out, begun and not finished."""

    def __init__(self, into: Postgres, little: Postgres, much: Postgres) -> None:
        self.sessions = (into, little, much)
        self._running = ExitStack()
        into.execute("create temporary table arrived (line text)")
        self._in = self._running.enter_context(into.cursor().copy("copy arrived from stdin"))
        self._in.write(f"{ROW}\n" * FEW)
        self._outs = [self._begun(session, rows) for session, rows in ((little, FEW), (much, MANY))]
        assert [len(next(out)) for out in self._outs] == [len(ROW) + 1] * 2

    def _begun(self, session: Postgres, rows: int) -> Any:
        with socket.socket(fileno=os.dup(session.fileno())) as same:  # its system takes little that it has not read
            same.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        query = f"copy (select '{ROW}' from generate_series(1, {rows})) to stdout"
        return iter(self._running.enter_context(session.cursor().copy(query)))

    def finish(self) -> list[int]:
        """How many rows arrived at the database, and how many at each client."""
        self._in.write(f"{ROW}\n" * FEW)
        read = [1 + sum(len(line) == len(ROW) + 1 for line in out) for out in self._outs]
        self._running.close()
        arrived = self.sessions[0].execute("select count(*) from arrived").fetchone()
        assert arrived
        return [arrived[0], *read]


@plain_or_tls
def test_copies_and_statements_of_postgresql_finish(
    start_forwarder: StartForwarder, request: pytest.FixtureRequest, *, tls: bool
) -> None:
    database: PostgresServer = request.getfixturevalue("postgres_tls" if tls else "postgres")
    forwarder = start_forwarder(database.port, seconds=seconds(drain_max=6))
    resting = [postgres_through(forwarder, tls=tls) for _ in range(2)]
    copies = Copies(*(postgres_through(forwarder, tls=tls) for _ in range(3)))
    runs = postgres_through(forwarder, tls=tls)
    with database.connect() as holder, ThreadPoolExecutor(1) as pool:
        holder.execute("select pg_advisory_lock(1)")
        answer = pool.submit(runs.execute, "select pg_advisory_lock(1), 'done'")
        drain(forwarder, len(resting))
        holder.execute("select pg_advisory_unlock(1)")
        row = answer.result(5).fetchone()
    assert row
    assert row[1] == "done"
    assert copies.finish() == [2 * FEW, FEW, MANY]
    for session in (*copies.sessions, runs):
        session.close()
    assert forwarder.process.wait(10) == 0
    assert len(ends(forwarder)) == 6


def test_an_open_transaction_of_postgresql_is_cut_last(
    start_forwarder: StartForwarder, postgres: PostgresServer
) -> None:
    """Where TLS does not hide it."""
    forwarder = start_forwarder(postgres.port, seconds=seconds(drain_max=4))
    sessions = [postgres_through(forwarder, tls=False, autocommit=number != 2) for number in (1, 2, 3)]
    for session in sessions:
        session.execute("select 1")
    sessions[2].execute("begin")
    with pytest.raises(psycopg.errors.DivisionByZero):
        sessions[2].execute("select 1 / 0")
    drain(forwarder, 1)
    assert sessions[1].execute("select 2").fetchone() == (2,)
    assert forwarder.process.wait(10) == 0
    assert sorted(ends(forwarder)[1:]) == [(2, CUT), (3, CUT)]


# --- MySQL ------------------------------------------------------------------------------------------------------------


def mysql_through(forwarder: Forwarder, database: MariaDBServer) -> "pymysql.Connection[Any]":
    return database.connect(host="127.0.0.1", port=forwarder.port, autocommit=True)


def ask(session: "pymysql.Connection[Any]", query: str) -> Any:
    with session.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()


def close_a_statement(session: Any) -> None:
    """As drivers do that prepare each: the last word is the client's, and is not answered."""
    session._execute_command(COMMAND.COM_STMT_PREPARE, "select 1")
    number = session._read_packet()._data[1:5]
    for _ in range(2):  # the column, and its end
        session._read_packet()
    session._execute_command(COMMAND.COM_STMT_EXECUTE, number + struct.pack("<BI", 0, 1))
    for _ in range(5):  # their count, the column, its end, the row, its end
        session._read_packet()
    session._execute_command(COMMAND.COM_STMT_CLOSE, number)


@plain_or_tls
def test_statements_and_answers_of_mysql_finish(
    start_forwarder: StartForwarder, request: pytest.FixtureRequest, *, tls: bool
) -> None:
    database: MariaDBServer = request.getfixturevalue("mariadb_tls" if tls else "mariadb")
    forwarder = start_forwarder(database.port, engine=Engine.MYSQL, seconds=seconds(drain_max=6))
    asked, closed, reads, runs = [mysql_through(forwarder, database) for _ in range(4)]
    ask(asked, "select 1")
    close_a_statement(closed)
    reader = reads.cursor(pymysql.cursors.SSCursor)
    reader.execute(f"select '{ROW}' from seq_1_to_{MANY}")
    with database.connect() as holder, ThreadPoolExecutor(1) as pool:
        ask(holder, "select get_lock('drain', 0)")
        answer = pool.submit(ask, runs, "select get_lock('drain', 60)")
        drain(forwarder, 2)
        ask(holder, "select release_lock('drain')")
        assert answer.result(5) == (1,)
    assert len(reader.fetchall()) == MANY
    for session in (reads, runs):
        session.close()
    assert forwarder.process.wait(10) == 0
    assert len(ends(forwarder)) == 4


def test_an_open_transaction_of_mysql_is_cut_last(start_forwarder: StartForwarder, mariadb: MariaDBServer) -> None:
    """As PostgreSQL's."""
    forwarder = start_forwarder(mariadb.port, engine=Engine.MYSQL, seconds=seconds(drain_max=4))
    done, begun, within = [mysql_through(forwarder, mariadb) for _ in range(3)]
    for session in (done, begun, within):
        ask(session, "start transaction")
    for session in (done, within):
        ask(session, "select * from orders")
    ask(done, "commit")
    drain(forwarder, 1)
    assert ask(within, "select 2") == (2,)
    assert forwarder.process.wait(10) == 0
    assert sorted(ends(forwarder)[1:]) == [(2, CUT), (3, CUT)]
