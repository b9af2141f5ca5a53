"""Limits of connections and of idleness, and what is told of each session's end."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.support.bastion import Bastion
from tests.support.databases import DATABASE, PASSWORD, USER, PostgresServer
from tests.support.forwarder import Forwarder, seconds
from tests.support.processes import wait_until

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


# --- how many ---------------------------------------------------------------------------------------------------------


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
