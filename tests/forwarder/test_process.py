"""The process: how it starts, waits, drains and ends, and what it needs for that."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbtunnel.api.forwarder import CONFIG_VARIABLE
from tests.support.bastion import Bastion
from tests.support.databases import DATABASE, PASSWORD, USER, PostgresServer
from tests.support.forwarder import KEY, Forwarder, as_a_stranger, forwarder_config, seconds
from tests.support.keys import KeyPair
from tests.support.processes import listens, wait_until

StartForwarder = Callable[..., Forwarder]


def connect(forwarder: Forwarder) -> "psycopg.Connection[tuple[Any, ...]]":
    return psycopg.connect(
        host="127.0.0.1", port=forwarder.port, user=USER, password=PASSWORD, dbname=DATABASE, connect_timeout=15
    )


# --- start ------------------------------------------------------------------------------------------------------------


def test_it_needs_no_environment_no_home_no_account_and_nothing_to_write_to(
    tmp_path: Path, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair
) -> None:
    forwarder = Forwarder(tmp_path / "fwd", forwarder_config(bastion, postgres.port), {KEY: client_key.private})
    forwarder.start(*as_a_stranger())
    with connect(forwarder) as session:
        assert session.execute("select count(*) from orders").fetchone() == (3,)
    assert "Uid:\t123456" in Path(f"/proc/{forwarder.process.pid}/status").read_text()
    forwarder.stop()


def run(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "dbtunnel.cli.main", "forward", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "DBTUNNEL_CONFIG: not set"),
        ({CONFIG_VARIABLE: "{"}, "DBTUNNEL_CONFIG: it is no JSON: "),
        ({CONFIG_VARIABLE: "{}"}, "DBTUNNEL_CONFIG: namespace: it is missing"),
        (
            {CONFIG_VARIABLE: '{"namespace": "shop", "name": "orders", "engine": "Oracle"}'},
            'DBTUNNEL_CONFIG: engine: found "Oracle"; write one of PostgreSQL, Redshift, AlloyDB, MySQL',
        ),
    ],
    ids=["none", "json", "empty", "engine"],
)
def test_a_configuration_that_cannot_be_used(environment: dict[str, str], said: str) -> None:
    done = run(environment)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("text", ["15432", "localhost", ":70000", ":x"])
def test_an_address_that_is_none(text: str) -> None:
    done = run({}, "--listen", text)
    assert done.returncode == 2
    assert "write HOST:PORT" in done.stderr


def test_an_address_that_is_taken(bastion: Bastion) -> None:
    config = forwarder_config(bastion, 1).to_json()
    done = run({CONFIG_VARIABLE: config}, f"--listen=127.0.0.1:{bastion.port}", "--admin-listen=127.0.0.1:0")
    assert done.returncode == 1
    assert "Address already in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_it_listens_on_ipv4_and_ipv6(tmp_path: Path, bastion: Bastion, client_key: KeyPair) -> None:
    forwarder = Forwarder(tmp_path / "fwd", forwarder_config(bastion, 1), {KEY: client_key.private})
    forwarder.start(address="")
    for address in ("127.0.0.1", *(["::1"] if Path("/proc/net/if_inet6").exists() else [])):
        for port in (forwarder.port, forwarder.admin_port):
            socket.create_connection((address, port), 5).close()
    forwarder.stop()


def test_it_is_small_and_starts_fast(start_forwarder: StartForwarder, postgres: PostgresServer) -> None:
    begun = time.monotonic()
    forwarder = start_forwarder(postgres.port)
    started = time.monotonic() - begun
    forwarder.wait_for("database", "Succeeded")
    ready = time.monotonic() - begun
    lines = Path(f"/proc/{forwarder.process.pid}/status").read_text().splitlines()
    memory = next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmRSS"))
    print(f"listens after {started:.2f} s, all layers after {ready:.2f} s, {memory} MiB at rest")
    assert memory < 48


# --- parking ----------------------------------------------------------------------------------------------------------


def test_parking_is_bounded_in_number_and_time(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    bastion.stop()
    forwarder = start_forwarder(postgres.port, parking_max_clients=2, seconds=seconds(parking_max=2))
    parked = [socket.create_connection(("127.0.0.1", forwarder.port), 10) for _ in range(2)]
    for client in parked:
        client.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
    wait_until(lambda: forwarder.metric("dbtunnel_forwarder_clients_parked") == 2, "two parked clients")
    with socket.create_connection(("127.0.0.1", forwarder.port), 10) as third:
        third.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
        with pytest.raises(ConnectionResetError):
            third.recv(1)
    assert forwarder.metric("dbtunnel_forwarder_clients_parked") == 2
    for client in parked:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        client.close()
    assert forwarder.metric('dbtunnel_forwarder_clients_refused_total{reason="Parking"}') == 3
    assert refusals(forwarder) == [("warning", "Parking", 1, "127.0.0.1")]


def refusals(forwarder: Forwarder) -> list[tuple[Any, ...]]:
    """What is logged of them: the first, however many follow within a minute."""
    names = ("level", "reason", "count", "client")
    return [tuple(map(one.get, names)) for one in forwarder.events() if one["event"] == "clients refused"]


def test_a_client_that_gives_up_while_it_is_parked_is_forgotten(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    bastion.stop()
    forwarder = start_forwarder(postgres.port)
    before = postgres.log_text().count("connection received")
    clients = [socket.create_connection(("127.0.0.1", forwarder.port), 10) for _ in range(3)]
    for client in clients:
        client.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
    wait_until(lambda: forwarder.metric("dbtunnel_forwarder_clients_parked") == 3, "three parked clients")
    for client in clients:
        client.close()
    wait_until(lambda: forwarder.metric("dbtunnel_forwarder_clients_parked") == 0, "nobody to be parked")
    bastion.start()
    forwarder.wait_for("database", "Succeeded")
    assert postgres.log_text().count("connection received") == before + 1  # the probe's


def test_more_clients_than_descriptors_are_refused_and_the_admin_port_answers(
    tmp_path: Path, bastion: Bastion, client_key: KeyPair
) -> None:
    config = forwarder_config(bastion, bastion.port, engine="MySQL", probe_mode="Disabled")
    forwarder = Forwarder(tmp_path / "fwd", config, {KEY: client_key.private})
    forwarder.start("prlimit", "--nofile=84:84")
    forwarder.wait_for("authentication", "Succeeded")
    clients = list(filter(None, (_connected(forwarder) for _ in range(100))))
    wait_until(
        lambda: forwarder.metric('dbtunnel_forwarder_clients_refused_total{reason="TooManyClients"}') == 80, "refusals"
    )
    assert sum(_is_served(client) for client in clients) == 20
    assert refusals(forwarder) == [("warning", "TooManyClients", 1, "127.0.0.1")]
    for client in clients:
        client.close()
    forwarder.stop()


def _connected(forwarder: Forwarder) -> socket.socket | None:
    """A client; None where it was refused before it knew that it was connected."""
    try:
        return socket.create_connection(("127.0.0.1", forwarder.port), 10)
    except ConnectionResetError:
        return None


def _is_served(client: socket.socket) -> bool:
    try:
        return client.recv(4, socket.MSG_WAITALL) == b"SSH-"
    except ConnectionResetError:
        return False


# --- end --------------------------------------------------------------------------------------------------------------


def test_running_sessions_finish_before_it_ends(start_forwarder: StartForwarder, postgres: PostgresServer) -> None:
    forwarder = start_forwarder(postgres.port, seconds=seconds(drain_min=4, drain_max=20))
    with connect(forwarder) as session:
        forwarder.process.signal(signal.SIGTERM)
        forwarder.wait(lambda status: status.draining, "the drain")
        connect(forwarder).close()  # endpoints lag behind: new clients are still served for a while
        wait_until(lambda: not listens("127.0.0.1", forwarder.port), "new clients to be refused")
        assert session.execute("select count(*) from orders").fetchone() == (3,)
        assert forwarder.process.is_running()
    assert forwarder.process.wait(5) == 0


def test_sessions_that_do_not_finish_are_cut(start_forwarder: StartForwarder, postgres: PostgresServer) -> None:
    forwarder = start_forwarder(postgres.port, seconds=seconds(drain_min=0, drain_max=1))
    session = connect(forwarder)
    forwarder.process.signal(signal.SIGTERM)
    assert forwarder.process.wait(5) == 0
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")


def test_a_second_signal_ends_it_at_once(start_forwarder: StartForwarder, postgres: PostgresServer) -> None:
    forwarder = start_forwarder(postgres.port, seconds=seconds(drain_min=20, drain_max=30))
    session = connect(forwarder)
    forwarder.process.signal(signal.SIGTERM)
    forwarder.wait(lambda status: status.draining, "the drain")
    forwarder.process.signal(signal.SIGINT)
    assert forwarder.process.wait(10) == 0
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")


def test_it_ends_at_once_while_nothing_is_connected(start_forwarder: StartForwarder, bastion: Bastion) -> None:
    bastion.stop()
    forwarder = start_forwarder(1, seconds=seconds(drain_max=60))
    forwarder.wait_for("transport", "ConnectionRefused")
    forwarder.process.signal(signal.SIGTERM)
    assert forwarder.process.wait(20) == 0


def test_the_log_is_events_with_fields(start_forwarder: StartForwarder, postgres: PostgresServer) -> None:
    forwarder = start_forwarder(postgres.port)
    forwarder.wait_for("database", "Succeeded")
    forwarder.stop()
    lines = forwarder.log.read_text().splitlines()
    events = forwarder.events()
    assert len(events) == len(lines)
    assert [event["event"] for event in events if event["event"] != "layer changed"] == [
        "started",
        "connected",
        "draining",
        "ended",
    ]
    layers = [(event["layer"], event["reason"]) for event in events if event["event"] == "layer changed"]
    assert layers == [(layer, "Succeeded") for layer in ("key", "transport", "authentication", "database")]
    assert all({"time", "level", "logger"} <= set(event) for event in events)
