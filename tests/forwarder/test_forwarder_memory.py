"""Memory of a forwarder whose clients or bastion do not read: many of them fit into what a pod has."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dbtunnel.api.engines import Engine
from tests.support.bastion import Bastion
from tests.support.faults import FaultServer, says_nothing
from tests.support.forwarder import Forwarder, forwarder_config, hop_to
from tests.support.keys import KeyPair
from tests.support.processes import wait_until
from tests.support.relay import Relay

StartForwarder = Callable[..., Forwarder]
StartBastion = Callable[..., Bastion]

CLIENTS = 150


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def megabytes(forwarder: Forwarder) -> int:
    """What it has ever had in memory, at most."""
    lines = Path(f"/proc/{forwarder.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024


def connect_all(forwarder: Forwarder, sockets: ExitStack, count: int = CLIENTS) -> list[socket.socket]:
    clients = [sockets.enter_context(socket.create_connection(("127.0.0.1", forwarder.port), 30)) for _ in range(count)]
    wait_until(lambda: forwarder.metric("dbtunnel_forwarder_clients") == count, "the channels to open")
    return clients


def fill(client: socket.socket) -> None:
    """Sends until nothing is taken for a while."""
    client.settimeout(2)
    try:
        while True:
            client.sendall(b"x" * 65536)
    except TimeoutError:
        return


@pytest.fixture(params=["direct", "jump host"])
def way(request: pytest.FixtureRequest, further_bastions: StartBastion, client_key: KeyPair) -> dict[str, Any]:
    """The way to the bastion: what it adds to a forwarder's configuration."""
    if request.param == "direct":
        return {}
    return {"jump_hosts": (hop_to(further_bastions(None, client_key.public)),)}


def test_clients_that_do_not_read(start_forwarder: StartForwarder, way: dict[str, Any], sockets: ExitStack) -> None:
    """Each has asked for more than it takes."""
    stuck: list[bool] = []
    go = threading.Event()

    def serve(peer: socket.socket) -> None:
        fill(peer)
        stuck.append(True)
        go.wait(60)

    with FaultServer(serve) as database:
        forwarder = start_forwarder(database.port, engine=Engine.MYSQL, probe_mode="Disabled", **way)
        forwarder.wait_for("authentication", "Succeeded")
        before = megabytes(forwarder)
        for client in connect_all(forwarder, sockets):
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        wait_until(lambda: len(stuck) == CLIENTS, "the database to be stuck", 60)
        grown = megabytes(forwarder) - before
        print(f"{CLIENTS} clients that do not read: {grown} MiB more")
        assert grown < 112
        go.set()


def test_clients_that_all_send_to_a_bastion_that_does_not_read(
    start_forwarder: StartForwarder, bastion: Bastion, way: dict[str, Any], sockets: ExitStack
) -> None:
    with Relay(bastion.host, bastion.port) as relay, says_nothing() as database:
        hop = replace(forwarder_config(bastion, 1).bastion, host=relay.host, port=relay.port)
        forwarder = start_forwarder(
            database.port, engine=Engine.MYSQL, probe_mode="Disabled", bastion=hop, keepalive_count_max=60, **way
        )
        forwarder.wait_for("authentication", "Succeeded")
        clients = connect_all(forwarder, sockets)
        before = megabytes(forwarder)
        relay.stall()
        with ThreadPoolExecutor(CLIENTS) as threads:
            list(threads.map(fill, clients))
        grown = megabytes(forwarder) - before
        print(f"{CLIENTS} clients that send: {grown} MiB more")
        assert grown < 16
