"""What a client's socket is like, and what is learned of what a database says to it."""

import socket
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dbtunnel.api.conditions import LAYERS
from dbtunnel.api.forwarder import DatabaseFact
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.forwarder.client import Client
from dbtunnel.forwarder.listener import Listener, listening_socket
from dbtunnel.forwarder.metrics import DATABASE_FAILURES, Metrics
from dbtunnel.forwarder.probes import Prober
from dbtunnel.forwarder.state import State
from tests.support.stuck_ssh import StuckConnection, link_over
from tests.support.values import INSTALLATION, tunnel

GREETING = b"\x4a\0\0\0\x0a8.0.40\0" + bytes(13) + b"\xff\xff\x2d\2\0\xff\xff" + bytes(46)
"""MySQL's, with every capability."""

FULL = b"E\0\0\0\x34SFATAL\0C53300\0Msorry, too many clients already\0\0"
"""PostgreSQL's error."""


def hear(engine: str, *deliveries: list[bytes]) -> tuple[State, Metrics]:
    """What is known after a database has said this to a client."""
    config = forwarder_config(tunnel({"engine": engine}), INSTALLATION.defaults)
    state, metrics = State(config, "pod-1"), Metrics()
    for layer in LAYERS[:-1]:
        state.succeeded(layer)
    connector = cast(Any, SimpleNamespace(takes_channels=lambda _: True))
    listener = Listener(config, connector, Prober(config, connector, state, metrics), metrics)
    ours, other = socket.socketpair()
    ours.setblocking(False)
    client = Client(ours, ("127.0.0.1", 1), listener)
    client.link = link_over(StuckConnection())
    for pieces in deliveries:
        client.received([memoryview(piece) for piece in pieces])
    client.refuse()
    other.close()
    return state, metrics


@pytest.mark.parametrize("cut", [1, 4, 7, 8, 9, 30, 77])
async def test_a_greeting_may_come_in_pieces(cut: int) -> None:
    known = DatabaseFact(protocol="MySQL", server_version="8.0.40", tls_offered=True)
    first, second = GREETING[:cut], GREETING[cut:]
    for deliveries in ([[first], [second]], [[first, second]], [[first], [second[:1], second[1:]]]):
        state, _ = hear("MySQL", *deliveries)
        assert state.status.database_fact == known


async def test_and_so_may_an_error() -> None:
    state, metrics = hear("PostgreSQL", [b"N"], [FULL[:3]], [FULL[3:9]], [FULL[9:]])
    assert state.status.database.reason == "TooManyConnections"
    assert state.status.database_fact.tls_offered is False
    assert metrics.get(DATABASE_FAILURES, "TooManyConnections") == 1


async def test_what_is_said_later_says_nothing_of_the_database() -> None:
    state, metrics = hear("MySQL", [GREETING], [b"\x08\0\0\2\xff\x10\x04 full"])
    assert state.status.database.status == "True"
    assert metrics.get(DATABASE_FAILURES, "TooManyConnections") == 0


async def test_all_who_wait_at_the_socket_when_it_closes_are_taken() -> None:
    config = forwarder_config(tunnel(), INSTALLATION.defaults)
    connector = cast(Any, SimpleNamespace(least_used=lambda: None))
    listener = Listener(config, connector, cast(Any, None), Metrics())
    bound = listening_socket("127.0.0.1", 0)
    listener.start(bound)
    address = bound.getsockname()
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(address)) for _ in range(200)]
        listener.refuse_new()

        assert (listener.clients, listener.is_open) == (len(clients), False)
        for client in clients:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        listener.cut()


def test_clients_are_asked_whether_they_live_and_nothing_waits_for_more() -> None:
    with listening_socket("127.0.0.1", 0) as bound, socket.create_connection(bound.getsockname()):
        client, _ = bound.accept()
        with client:
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
