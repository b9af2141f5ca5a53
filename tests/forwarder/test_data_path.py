"""Bytes arrive whole and in order both ways, slow ends hold fast ones back, and nothing is left behind."""

import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from dbtunnel.api.engines import Engine
from tests.support.bastion import HARDENED, Bastion
from tests.support.databases import PostgresServer
from tests.support.forwarder import Forwarder, forwarder_config
from tests.support.processes import wait_until
from tests.support.relay import Relay

StartForwarder = Callable[..., Forwarder]
Serve = Callable[[socket.socket], None]
StartServer = Callable[[Serve], int]

MEBIBYTE = 2**20
DELAY_SECONDS = 0.025

TAKEN = "dbtunnel_forwarder_clients_total"


@pytest.fixture
def start_server() -> Iterator[StartServer]:
    """Starts a server on the far side that treats each connection as the function says; tells its port."""
    listeners: list[socket.socket] = []

    def start(serve: Serve) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def accept() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=treat, args=(peer,), daemon=True).start()

        def treat(peer: socket.socket) -> None:
            with peer:
                try:
                    serve(peer)
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.close()


def plain(start_forwarder: StartForwarder, port: int, **changes: object) -> Forwarder:
    """A forwarder that minds only its clients' bytes."""
    forwarder = start_forwarder(port, engine=Engine.MYSQL, probe_mode="Disabled", **changes)
    forwarder.wait_for("authentication", "Succeeded")
    return forwarder


def connect(forwarder: Forwarder) -> socket.socket:
    return socket.create_connection(("127.0.0.1", forwarder.port), 20)


def receive_all(connection: socket.socket) -> bytes:
    chunks = []
    while data := connection.recv(65536):
        chunks.append(data)
    return b"".join(chunks)


def send_all(connection: socket.socket, content: bytes) -> None:
    connection.sendall(content)
    connection.shutdown(socket.SHUT_WR)


def echo(peer: socket.socket) -> None:
    while data := peer.recv(65536):
        peer.sendall(data)


def answer_with_the_digest(peer: socket.socket) -> None:
    peer.sendall(hashlib.sha256(receive_all(peer)).digest())


def is_idle(forwarder: Forwarder) -> bool:
    return forwarder.metric("dbtunnel_forwarder_clients") == 0


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_the_end_of_sending_is_passed_on(start_forwarder: StartForwarder, start_server: StartServer) -> None:
    """A client that has sent all still receives all (half-close, RFC 4254, section 5.3)."""
    forwarder = plain(start_forwarder, start_server(answer_with_the_digest))
    for size in (1, 3 * MEBIBYTE):
        content = os.urandom(size)
        with connect(forwarder) as client:
            client.sendall(content)
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == hashlib.sha256(content).digest()
    wait_until(lambda: is_idle(forwarder), "the last channel to close")


def test_a_server_that_has_sent_all_still_receives_all(
    start_forwarder: StartForwarder, start_server: StartServer
) -> None:
    received: list[bytes] = []

    def serve(peer: socket.socket) -> None:
        peer.sendall(b"bye")
        peer.shutdown(socket.SHUT_WR)
        received.append(receive_all(peer))

    forwarder = plain(start_forwarder, start_server(serve))
    with connect(forwarder) as client:
        assert receive_all(client) == b"bye"
        client.sendall(b"x" * MEBIBYTE)
        client.shutdown(socket.SHUT_WR)
        wait_until(lambda: received == [b"x" * MEBIBYTE], "the rest to arrive")


@pytest.mark.parametrize("compression", [False, True])
def test_bytes_survive_new_keys_under_load(
    start_forwarder: StartForwarder, start_server: StartServer, bastion: Bastion, compression: bool
) -> None:
    """Each MiB the server asks for new keys (RFC 4253, section 9)."""
    bastion.set_config("RekeyLimit 1M", *HARDENED)
    forwarder = plain(start_forwarder, start_server(echo), compression=compression)
    assert forwarder.metric("dbtunnel_forwarder_ssh_own_packets") == (not compression)
    (connected,) = [event for event in forwarder.events() if event["event"] == "connected"]
    assert connected["why_not_own"] == ("packets are compressed" if compression else ""), "sshd takes it up"
    content = os.urandom(8 * MEBIBYTE)
    with connect(forwarder) as client:
        sending = threading.Thread(target=send_all, args=(client, content))
        sending.start()
        assert hashlib.sha256(receive_all(client)).digest() == hashlib.sha256(content).digest()
        sending.join()
    assert forwarder.metric('dbtunnel_forwarder_bytes_total{direction="sent"}') == len(content)
    assert forwarder.metric('dbtunnel_forwarder_bytes_total{direction="received"}') == len(content)
    assert forwarder.metric("dbtunnel_forwarder_ssh_connects_total") == 1


def test_what_is_sent_before_the_channel_opens_arrives(
    start_forwarder: StartForwarder, start_server: StartServer, bastion: Bastion
) -> None:
    bastion.stop()
    forwarder = start_forwarder(start_server(echo), engine=Engine.MYSQL, probe_mode="Disabled")
    forwarder.wait_for("transport", "ConnectionRefused")
    content = os.urandom(MEBIBYTE)
    with connect(forwarder) as client:
        sending = threading.Thread(target=client.sendall, args=(content,))
        sending.start()
        wait_until(lambda: forwarder.metric("dbtunnel_forwarder_clients_parked") == 1, "the client to be parked")
        bastion.start()
        received = bytearray()
        while len(received) < len(content):
            received += client.recv(65536)
        assert received == content
        sending.join()


# --- slow ends --------------------------------------------------------------------------------------------------------


def rss(forwarder: Forwarder) -> int:
    """MiB of memory."""
    lines = Path(f"/proc/{forwarder.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


def send_until_stuck(connection: socket.socket) -> int:
    """How many bytes are taken until nothing has been for a while; at most 64 MiB."""
    connection.settimeout(1)
    sent = 0
    try:
        while sent < 64 * MEBIBYTE:
            sent += connection.send(b"x" * 65536)
    except TimeoutError:
        pass
    return sent


def test_a_client_that_does_not_read_holds_the_server_back(
    start_forwarder: StartForwarder, start_server: StartServer
) -> None:
    taken: list[int] = []

    def serve(peer: socket.socket) -> None:
        taken.append(send_until_stuck(peer))
        peer.settimeout(20)
        peer.sendall(b"end")

    forwarder = plain(start_forwarder, start_server(serve))
    with connect(forwarder) as slow:
        wait_until(lambda: taken, "the server to be stuck")
        assert taken[0] < 24 * MEBIBYTE  # three sockets' buffers and one window
        content = receive_all(slow)
        assert len(content) == taken[0] + 3
        assert content.endswith(b"xend")


def test_a_server_that_does_not_read_holds_the_client_back_and_nobody_else(
    start_forwarder: StartForwarder, start_server: StartServer
) -> None:
    go = threading.Event()
    received: list[int] = []

    def serve(peer: socket.socket) -> None:
        first = peer.recv(1)
        if first == b"e":
            echo(peer)
        go.wait(20)
        received.append(1 + len(receive_all(peer)))

    forwarder = plain(start_forwarder, start_server(serve))
    with connect(forwarder) as fast, connect(forwarder) as other:
        sent = send_until_stuck(fast)
        assert sent < 64 * MEBIBYTE, "most of it is in the sockets of four processes, whose room the system chooses"
        other.sendall(b"echo")
        assert other.recv(3, socket.MSG_WAITALL) == b"cho"
        go.set()
        fast.shutdown(socket.SHUT_WR)
        wait_until(lambda: sent in received, "all that was sent to arrive")


def test_a_stalled_bastion_stops_the_clients(
    start_forwarder: StartForwarder, start_server: StartServer, bastion: Bastion
) -> None:
    """And lets them go on later; between the two memory is bounded."""
    with Relay(bastion.host, bastion.port) as relay:
        hop = replace(forwarder_config(bastion, 1).bastion, host=relay.host, port=relay.port)
        forwarder = plain(start_forwarder, start_server(answer_with_the_digest), bastion=hop, keepalive_count_max=60)
        before = rss(forwarder)
        relay.stall()
        clients = [connect(forwarder) for _ in range(20)]
        # channels are opened only after the stall, so each client is held at what it may send early
        sent = [0] * len(clients)
        threads = [
            threading.Thread(
                target=lambda index: sent.__setitem__(index, send_until_stuck(clients[index])), args=(index,)
            )
            for index in range(len(clients))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert rss(forwarder) - before < 32
        relay.flow()
        for client, size in zip(clients, sent, strict=True):
            client.settimeout(20)
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == hashlib.sha256(b"x" * size).digest()
            client.close()


def test_uploads_over_a_bastion_that_stops_reading(
    start_forwarder: StartForwarder, start_server: StartServer, bastion: Bastion
) -> None:
    with Relay(bastion.host, bastion.port) as relay:
        hop = replace(forwarder_config(bastion, 1).bastion, host=relay.host, port=relay.port)
        forwarder = plain(start_forwarder, start_server(answer_with_the_digest), bastion=hop, keepalive_count_max=60)
        clients = [connect(forwarder) for _ in range(30)]
        wait_until(lambda: forwarder.metric("dbtunnel_forwarder_clients") == len(clients), "the channels to open")
        before = rss(forwarder)
        relay.stall()
        sent = [0] * len(clients)
        threads = [
            threading.Thread(
                target=lambda index: sent.__setitem__(index, send_until_stuck(clients[index])), args=(index,)
            )
            for index in range(len(clients))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        grown = rss(forwarder) - before
        print(f"30 stalled uploads: {grown} MiB more")
        assert grown < 24
        relay.flow()
        for client, size in zip(clients, sent, strict=True):
            client.settimeout(20)
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == hashlib.sha256(b"x" * size).digest()
            client.close()


# --- ends -------------------------------------------------------------------------------------------------------------


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("end", [reset, socket.socket.close], ids=["reset", "close"])
def test_clients_that_leave_while_their_channel_opens_leave_nothing_behind(
    start_forwarder: StartForwarder,
    bastion: Bastion,
    postgres: PostgresServer,
    end: Callable[[socket.socket], None],
) -> None:
    with Relay(bastion.host, bastion.port, delay_seconds=DELAY_SECONDS) as relay:
        hop = replace(forwarder_config(bastion, 1).bastion, host=relay.host, port=relay.port)
        forwarder = plain(start_forwarder, postgres.port, bastion=hop)
        opened = postgres.log_text().count("connection received")
        for number in range(30):
            client = connect(forwarder)
            # whoever has left before it is looked at gets no channel
            wait_until(lambda number=number: forwarder.metric(TAKEN) > number, "it to be taken", interval_seconds=0.01)  # type: ignore[misc]
            time.sleep(DELAY_SECONDS * (number % 4) / 2)  # before, while and after the channel opens
            end(client)
        wait_until(
            lambda: postgres.log_text().count("connection received") >= opened + 30, "all channels to have opened"
        )
        wait_until(lambda: is_idle(forwarder), "all channels to be closed")
        wait_until(lambda: connections_to(postgres.port) == 0, "the database's connections to end")


def connections_to(port: int) -> int:
    """How many TCP connections are established to a port of 127.0.0.1."""
    address = f"0100007F:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2] == address and row[3] == "01" for row in rows)


def test_clients_are_cut_with_their_ssh_connection(
    start_forwarder: StartForwarder, start_server: StartServer, bastion: Bastion
) -> None:
    forwarder = plain(start_forwarder, start_server(echo))
    clients = [connect(forwarder) for _ in range(10)]
    for client in clients:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    bastion.kill_sessions()
    for client in clients:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        client.close()
    with connect(forwarder) as client:
        client.sendall(b"again")
        assert client.recv(5, socket.MSG_WAITALL) == b"again"
    assert forwarder.metric("dbtunnel_forwarder_ssh_connects_total") == 2


def test_a_client_that_leaves_without_a_word_costs_the_database_nothing(
    start_forwarder: StartForwarder, postgres: PostgresServer
) -> None:
    """Health checks and port scans connect and leave; PostgreSQL's clients speak first."""
    forwarder = start_forwarder(postgres.port, probe_mode="Disabled")
    forwarder.wait_for("authentication", "Succeeded")
    before = postgres.log_text().count("connection received")
    for _ in range(20):
        with connect(forwarder) as client:
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
    with connect(forwarder) as client:
        client.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
        assert client.recv(1) in (b"N", b"S")
    wait_until(lambda: postgres.log_text().count("connection received") > before, "the one that spoke")
    assert postgres.log_text().count("connection received") == before + 1
