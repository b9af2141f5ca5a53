"""What the log tells of one client, from its connection to its end."""

import os
import socket
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.bastion import Bastion
from tests.support.databases import DATABASE, PASSWORD, USER, PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config, seconds
from tests.support.keys import KeyPair
from tests.support.processes import wait_until


def of_clients(forwarder: Forwarder) -> dict[int, list[dict[str, Any]]]:
    """The events of each client, by its number."""
    found: dict[int, list[dict[str, Any]]] = {}
    for event in forwarder.events():
        if "id" in event:
            found.setdefault(event["id"], []).append(event)
    return found


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def query(forwarder: Forwarder) -> str:
    """Uses the database. Returns the client's address."""
    with psycopg.connect(
        host="127.0.0.1", port=forwarder.port, user=USER, password=PASSWORD, dbname=DATABASE, sslmode="disable"
    ) as session:
        session.execute("select 1")
        with socket.socket(fileno=os.dup(session.fileno())) as connected:
            host, port = connected.getsockname()
    return f"{host}:{port}"


@pytest.fixture
def config(bastion: Bastion, postgres: PostgresServer) -> Any:
    return forwarder_config(bastion, postgres.port, seconds=seconds(parking_max=1))


def test_the_way_of_each_client_can_be_followed_by_its_number(
    tmp_path: Path, config: Any, bastion: Bastion, client_key: KeyPair
) -> None:
    forwarder = Forwarder(tmp_path / "fwd", config, {KEY: client_key.private})
    forwarder.start(arguments=["--log-level=debug"])
    try:
        forwarder.wait_for("database", "Succeeded")
        address = query(forwarder)
        wait_until(lambda: "session ended" in names(of_clients(forwarder)[1]), "the end of the session")
        bastion.stop()
        forwarder.wait(lambda status: status.transport.status == "False", "the loss")
        with socket.create_connection(("127.0.0.1", forwarder.port)) as waiting:
            waiting.sendall(b"x")
            with pytest.raises(ConnectionResetError):
                waiting.recv(1)
        with socket.create_connection(("127.0.0.1", forwarder.port)):
            pass
        wait_until(lambda: "client gone" in names(of_clients(forwarder).get(3, [])), "the end of the last")
    finally:
        forwarder.stop()

    clients = of_clients(forwarder)
    assert {number: names(events) for number, events in clients.items()} == {
        1: ["client taken", "channel asked for", "session begun", "session ended"],
        2: ["client taken", "client parked", "client refused", "client gone"],
        3: ["client taken", "client gone"],
    }
    assert {event["client"] for event in clients[1]} == {address}
    assert {event["level"] for event in clients[1][:-1]} == {"debug"}
    assert clients[2][2]["reason"] == "Parking"


def test_without_debug_the_log_has_the_end_of_each_session_alone(
    tmp_path: Path, config: Any, client_key: KeyPair
) -> None:
    forwarder = Forwarder(tmp_path / "fwd", config, {KEY: client_key.private}).start()
    try:
        forwarder.wait_for("database", "Succeeded")
        query(forwarder)
        wait_until(lambda: of_clients(forwarder), "the end of the session")
    finally:
        forwarder.stop()

    assert {number: names(events) for number, events in of_clients(forwarder).items()} == {1: ["session ended"]}
