"""The admin port under those who open, ask and do not read: it costs the tunnel nothing, and the kubelet is served."""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from dbtunnel.forwarder.admin import MOST_CONNECTIONS
from tests.support.bastion import Bastion
from tests.support.databases import DATABASE, PASSWORD, USER, PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config
from tests.support.keys import KeyPair
from tests.support.processes import wait_until

StartForwarder = Callable[..., Forwarder]


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def connect(forwarder: Forwarder, sockets: ExitStack) -> socket.socket:
    return sockets.enter_context(socket.create_connection(("127.0.0.1", forwarder.admin_port), 10))


def open_sockets(forwarder: Forwarder) -> int:
    directory = Path(f"/proc/{forwarder.process.pid}/fd")
    return sum(map(_is_socket, directory.iterdir()))


def settled(forwarder: Forwarder) -> int:
    """How many sockets it has at rest; 0 while one of the admin port is open."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    mine = [row for row in rows if row[1].endswith(f":{forwarder.admin_port:04X}") and row[3] in ("01", "08")]
    return 0 if mine else open_sockets(forwarder)


def _is_socket(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()).startswith("socket:")
    except FileNotFoundError:  # it was closed meanwhile
        return False


def test_connections_without_end_take_no_descriptor_from_the_tunnel(
    tmp_path: Path, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair, sockets: ExitStack
) -> None:
    forwarder = Forwarder(tmp_path / "fwd", forwarder_config(bastion, postgres.port), {KEY: client_key.private})
    forwarder.start("prlimit", "--nofile=128:128")
    try:
        forwarder.wait_for("database", "Succeeded")
        before = wait_until(lambda: settled(forwarder), "earlier requests to end")
        polls = [connect(forwarder, sockets) for _ in range(200)]
        sequence = forwarder.status().sequence
        for number, connection in enumerate(polls):
            request = f"GET /status?after={sequence}&timeoutSeconds=60 HTTP/1.1\r\nHost: x\r\n\r\n" * (number % 2)
            try:
                connection.sendall(request.encode())
            except OSError:  # it was one of the oldest
                continue
        assert forwarder.get("/livez") == "ok\n"
        wait_until(lambda: open_sockets(forwarder) <= before + MOST_CONNECTIONS, "the oldest to be ended")
        bastion.restart()  # a new SSH connection needs descriptors
        forwarder.wait(lambda status: status.transport.status == "False", "the loss")
        forwarder.wait_for("database", "Succeeded")
        with psycopg.connect(
            host="127.0.0.1", port=forwarder.port, user=USER, password=PASSWORD, dbname=DATABASE
        ) as session:
            assert session.execute("select 1").fetchone() == (1,)
    finally:
        forwarder.stop()


def test_who_asks_and_does_not_read_is_cut_off(
    start_forwarder: StartForwarder, postgres: PostgresServer, sockets: ExitStack
) -> None:
    forwarder = start_forwarder(postgres.port)
    forwarder.wait_for("database", "Succeeded")
    before = wait_until(lambda: settled(forwarder), "earlier requests to end")
    greedy = connect(forwarder, sockets)
    greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    greedy.settimeout(1)
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    with pytest.raises((TimeoutError, ConnectionResetError)):  # no more room, or already cut off
        greedy.sendall(request * 1_000_000)
    wait_until(lambda: open_sockets(forwarder) == before, "the end of its connection", 30)
    assert forwarder.get("/livez") == "ok\n"


@pytest.mark.parametrize(
    "request_text",
    [b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"GET /livez HTTP/1.0\r\n\r\n"],
    ids=["close", "1.0"],
)
def test_a_connection_is_closed_where_the_client_wants_it(
    start_forwarder: StartForwarder, postgres: PostgresServer, sockets: ExitStack, request_text: bytes
) -> None:
    connection = connect(start_forwarder(postgres.port), sockets)
    connection.sendall(request_text)
    answer = b""
    while data := connection.recv(4096):
        answer += data
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close\r\n" in answer
    assert answer.endswith(b"ok\n")
