"""Clients of MySQL that leave before their login are told of: the server blocks the bastion's address for them."""

import contextlib
import socket
from collections.abc import Callable
from pathlib import Path

import pymysql
import pytest

from dbtunnel.api.engines import Engine
from dbtunnel.domain.database import leavers
from tests.support.bastion import Bastion
from tests.support.databases import DATABASE, PASSWORD, USER, MariaDBServer
from tests.support.faults import FaultServer
from tests.support.forwarder import Forwarder
from tests.support.processes import wait_until
from tests.support.relay import Relay

StartForwarder = Callable[..., Forwarder]

LEFT = "dbtunnel_forwarder_clients_left_before_login_total"
CLIENTS = "dbtunnel_forwarder_clients"

BLOCKED = b"\x44\0\0\0\xff\x69\x04Host '10.0.0.1' is blocked because of many connection errors; unbloc"
"""MySQL's error 1129 in place of a greeting."""


def mysql(start_forwarder: StartForwarder, port: int, probe_mode: str = "Disabled") -> Forwarder:
    forwarder = start_forwarder(port, engine=Engine.MYSQL, probe_mode=probe_mode)
    forwarder.wait_for("authentication", "Succeeded")
    return forwarder


def greeted(forwarder: Forwarder) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", forwarder.port), 10)
    assert client.recv(1)
    return client


def told(forwarder: Forwarder) -> list[dict[str, object]]:
    return [event for event in forwarder.events() if event["event"] == "client left before its login"]


def test_those_who_leave_after_the_greeting_are_counted_and_told_of_once_a_minute(
    start_forwarder: StartForwarder, mariadb: MariaDBServer
) -> None:
    forwarder = mysql(start_forwarder, mariadb.port)
    for number in range(1, 6):
        greeted(forwarder).close()
        wait_until(lambda number=number: forwarder.metric(LEFT) == number, "it to be counted")  # type: ignore[misc]
    (event,) = told(forwarder)
    assert (event["client"], event["total"], event["level"]) == ("127.0.0.1", 1, "warning")


def test_that_they_leave_is_told_before_the_server_blocks_the_bastion(
    start_forwarder: StartForwarder, tmp_path: Path
) -> None:
    """In the message of DatabaseReachable. Of 127.0.0.1 the server never blocks anybody, hence the other address."""
    server = MariaDBServer(tmp_path / "my", settings=["max-connect-errors=3"]).start()
    with Relay(server.host, server.port, source="127.0.0.5") as relay:
        forwarder = mysql(start_forwarder, relay.port, probe_mode="Auto")
        greeted(forwarder).close()
        fact = forwarder.wait(lambda status: bool(leavers(status.database.seen)), "it to be told").database
        assert (fact.status, fact.reason) == ("True", "Succeeded")
        assert "as 127.0.0.1 did" in fact.seen
        assert told(forwarder)
        log_in(forwarder)  # nobody is blocked yet
        for _ in range(3):
            greeted(forwarder).close()
        wait_until(lambda: forwarder.metric(LEFT) == 4, "all to be counted")
        with pytest.raises(pymysql.OperationalError, match="1129"):
            log_in(forwarder)
        forwarder.wait_for("database", "HostBlocked")
    server.stop()


def log_in(forwarder: Forwarder, password: str = PASSWORD) -> None:
    pymysql.connect(host="127.0.0.1", port=forwarder.port, user=USER, password=password, database=DATABASE).close()


def test_those_who_log_in_or_try_to_are_not(start_forwarder: StartForwarder, mariadb: MariaDBServer) -> None:
    forwarder = mysql(start_forwarder, mariadb.port)
    for password in (PASSWORD, "wrong"):
        with contextlib.suppress(pymysql.OperationalError):
            log_in(forwarder, password)
    wait_until(lambda: forwarder.metric(CLIENTS) == 0, "the clients to be gone")
    assert forwarder.metric("dbtunnel_forwarder_clients_total") == 2
    assert forwarder.metric(LEFT) == 0


def test_those_whom_the_server_refuses_are_not(start_forwarder: StartForwarder) -> None:
    with FaultServer(lambda peer: peer.sendall(BLOCKED)) as server:
        forwarder = mysql(start_forwarder, server.port)
        greeted(forwarder).close()
        wait_until(lambda: forwarder.metric(CLIENTS) == 0, "the client to be gone")
        assert forwarder.metric(LEFT) == 0


def test_those_whose_connection_is_cut_are_not(
    start_forwarder: StartForwarder, bastion: Bastion, mariadb: MariaDBServer
) -> None:
    forwarder = mysql(start_forwarder, mariadb.port)
    with greeted(forwarder) as client:
        bastion.kill_sessions()
        client.recv(4096)
        with pytest.raises(ConnectionResetError):
            client.recv(4096)
    wait_until(lambda: forwarder.metric(CLIENTS) == 0, "the client to be gone")
    assert forwarder.metric(LEFT) == 0
    assert told(forwarder) == []


def test_a_server_that_gives_up_waiting_counts_as_well(start_forwarder: StartForwarder) -> None:
    """It is an interrupted handshake, whoever interrupts it."""
    greeting = b"\x4a\0\0\0\x0a8.0.40\0" + bytes(66)

    def treat(peer: socket.socket) -> None:
        peer.sendall(greeting)
        peer.shutdown(socket.SHUT_RDWR)

    with FaultServer(treat) as server:
        forwarder = mysql(start_forwarder, server.port)
        with greeted(forwarder) as client:
            while client.recv(4096):
                pass
        wait_until(lambda: forwarder.metric(LEFT) == 1, "it to be counted")
