"""How a reset on one side reaches the other, as far as SSH can tell of it (RFC 4254, section 5.3)."""

import socket
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from dbtunnel.api.engines import Engine
from tests.support.databases import PostgresServer
from tests.support.faults import FaultServer
from tests.support.forwarder import Forwarder
from tests.support.postgres_words import lock_table
from tests.support.processes import wait_until

StartForwarder = Callable[..., Forwarder]

PROMPTLY_SECONDS = 2.0
"""On a busy machine."""


def connect(forwarder: Forwarder) -> socket.socket:
    return socket.create_connection(("127.0.0.1", forwarder.port), 20)


def reset(connection: socket.socket) -> float:
    """When it was."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    return time.monotonic()


def waits(peer: socket.socket) -> None:
    """A database that is at rest hears of the end; whom it tells of it is gone as well."""
    peer.sendall(b"x")
    assert peer.recv(1) == b""
    sends(peer)


def sends(peer: socket.socket) -> None:
    """One that has an endless answer."""
    while True:
        peer.sendall(bytes(65536))


@pytest.mark.parametrize("serve", [waits, sends])
def test_a_clients_reset_ends_the_databases_side_both_ways(
    start_forwarder: StartForwarder, serve: Callable[[socket.socket], None]
) -> None:
    """sshd closes its socket: unlike where a client has ended its sending, what the database says then is reset."""
    ends: list[tuple[float, OSError]] = []

    def treat(peer: socket.socket) -> None:
        peer.settimeout(20)
        try:
            serve(peer)
        except OSError as error:
            ends.append((time.monotonic(), error))

    with FaultServer(treat) as server:
        forwarder = start_forwarder(server.port, engine=Engine.MYSQL, probe_mode="Disabled")
        client = connect(forwarder)
        assert client.recv(1)
        began = reset(client)
        wait_until(lambda: ends, "the database's side to end")
        ((at, error),) = ends
        assert isinstance(error, ConnectionError)
        assert at - began < PROMPTLY_SECONDS
        assert how_sessions_ended(forwarder) == ["client reset"]


def test_a_clients_reset_frees_what_it_had_locked(
    start_forwarder: StartForwarder, open_postgres: PostgresServer
) -> None:
    forwarder = start_forwarder(open_postgres.port, probe_mode="Disabled")
    client = connect(forwarder)
    lock_table(client)
    assert open_postgres.is_locked()
    began = reset(client)
    wait_until(lambda: not open_postgres.is_locked(), "the lock to be free")
    assert time.monotonic() - began < PROMPTLY_SECONDS
    wait_until(lambda: open_postgres.sessions() == 0, "the database's session to end")
    assert how_sessions_ended(forwarder) == ["client reset"]


def test_a_databases_reset_is_an_end_to_its_client(start_forwarder: StartForwarder) -> None:
    """sshd does not say more: it ends its sending and closes the channel either way."""

    def treat(peer: socket.socket) -> None:
        peer.sendall(b"x")
        peer.recv(1)
        reset(peer)

    with FaultServer(treat) as server:
        forwarder = start_forwarder(server.port, engine=Engine.MYSQL, probe_mode="Disabled")
        with connect(forwarder) as client:
            assert client.recv(1) == b"x"
            client.sendall(b"go")
            assert client.recv(1) == b""
        assert how_sessions_ended(forwarder) == ["database closed"]


def how_sessions_ended(forwarder: Forwarder) -> list[Any]:
    wait_until(lambda: forwarder.metric("dbtunnel_forwarder_clients") == 0, "the channel to be closed")
    return [event["how"] for event in forwarder.events() if event["event"] == "session ended"]
