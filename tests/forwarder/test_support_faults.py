"""Each fault of the tests does what it says, and ends when it should."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import faults
from tests.support.faults import BlackHole, FaultServer
from tests.support.processes import wait_until
from tests.support.relay import Relay


@contextlib.contextmanager
def _client(server: FaultServer | Relay, timeout_seconds: float = 5) -> Iterator[socket.socket]:
    with socket.create_connection((server.host, server.port), timeout_seconds) as client:
        yield client


def _echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.sendall(b"end")
    connection.shutdown(socket.SHUT_WR)


@pytest.fixture
def echo() -> Iterator[FaultServer]:
    """Says what it is told; and `end` once the client has ended its side."""
    with FaultServer(_echo) as server:
        yield server


@pytest.fixture
def relay(echo: FaultServer) -> Iterator[Relay]:
    with Relay(echo.host, echo.port) as relay:
        yield relay


# --- servers ----------------------------------------------------------------------------------------------------------


def test_one_says_nothing() -> None:
    with faults.says_nothing() as server, _client(server, 0.3) as client:
        client.sendall(b"SSH-2.0-x\r\n")
        with pytest.raises(TimeoutError):
            client.recv(1)
        assert server.accepted == 1


def test_one_says_http_to_whoever_speaks() -> None:
    with faults.says_http() as server, _client(server) as client:
        client.sendall(b"SSH-2.0-x\r\n")
        assert client.recv(1000) == faults.HTTP_ANSWER
        assert client.recv(1) == b""


@pytest.mark.parametrize("refusal", [faults.EXCEEDED_MAX_STARTUPS, faults.NOT_ALLOWED_NOW])
def test_one_refuses_before_its_version(refusal: bytes) -> None:
    with faults.says(refusal) as server, _client(server) as client:
        client.sendall(b"SSH-2.0-x\r\n")
        assert client.recv(1000) == refusal
        assert client.recv(1) == b""


def test_one_never_stops_talking() -> None:
    with faults.says_for_ever() as server, _client(server) as client:
        received = 0
        while received < 8 * 2**20:
            data = client.recv(2**20)
            assert data
            received += len(data)


def test_one_resets() -> None:
    # it may come so soon that connecting already hears of it
    with faults.resets() as server, pytest.raises(ConnectionResetError), _client(server) as client:
        client.recv(1)


def test_leaving_ends_connections_and_threads() -> None:
    before = threading.active_count()
    with faults.says_nothing() as server, _client(server) as client:
        wait_until(lambda: server.accepted == 1, "the connection")
        server.__exit__()
        assert client.recv(1) == b""
        assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), 5)


# --- the relay --------------------------------------------------------------------------------------------------------


def test_the_relay_passes_everything_on(relay: Relay) -> None:
    content = os.urandom(4 * 2**20)

    def send(client: socket.socket) -> None:
        client.sendall(content)
        client.shutdown(socket.SHUT_WR)

    with _client(relay) as client:
        sender = threading.Thread(target=send, args=(client,))
        sender.start()
        assert _everything(client) == content + b"end"
        sender.join(5)
    wait_until(lambda: relay.connections == 0, "the connection's end")


def test_the_relay_delays_in_each_direction(relay: Relay) -> None:
    relay.delay_seconds = 0.1
    with _client(relay) as client:
        begun = time.monotonic()
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        assert 0.2 <= time.monotonic() - begun < 2


def test_a_delay_costs_no_throughput(relay: Relay) -> None:
    relay.delay_seconds = 0.2
    with _client(relay) as client:
        begun = time.monotonic()
        for _ in range(20):
            client.sendall(b"x" * 1000)
            time.sleep(0.005)  # so that the chunks stay apart
        client.shutdown(socket.SHUT_WR)
        assert len(_everything(client)) == 20_003
        assert time.monotonic() - begun < 20 * 0.2


def test_the_relay_stalls_and_goes_on(relay: Relay) -> None:
    with _client(relay, 0.3) as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
        relay.stall()
        client.sendall(b"y")
        with pytest.raises(TimeoutError):
            client.recv(1)
        relay.flow()
        client.settimeout(5)
        assert client.recv(1) == b"y"


def test_the_relay_resets(relay: Relay) -> None:
    with _client(relay) as client:
        wait_until(lambda: relay.connections == 1, "the connection")
        relay.reset()
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_the_relay_drops_even_what_stalls(relay: Relay) -> None:
    with _client(relay) as client:
        wait_until(lambda: relay.connections == 1, "the connection")
        relay.stall()
        relay.drop()
        assert client.recv(1) == b""
        assert relay.connections == 0


def test_the_relay_closes_one_half(relay: Relay) -> None:
    with _client(relay) as client:
        wait_until(lambda: relay.connections == 1, "the connection")
        relay.half_close()
        assert client.recv(1) == b""
        client.sendall(b"still taken")
        assert relay.connections == 1


def test_the_relay_refuses_new_clients_alone(relay: Relay) -> None:
    with _client(relay) as client:
        wait_until(lambda: relay.connections == 1, "the connection")
        relay.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((relay.host, relay.port), 5)
        client.sendall(b"x")
        assert client.recv(1) == b"x"


# --- the black hole ---------------------------------------------------------------------------------------------------


def test_nothing_comes_back_from_a_black_hole(tmp_path: Path) -> None:
    with BlackHole(tmp_path) as hole:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            socket.create_connection((hole.host, 22), 4)  # ARP without an answer would be told after 3 s
        assert time.monotonic() - begun >= 4


_DIGS_ONE = """
import sys
from pathlib import Path
from tests.support.faults import BlackHole
with BlackHole(Path(sys.argv[1])) as hole:
    print(hole.link, flush=True)
    sys.stdin.read()
"""


def test_a_black_hole_goes_with_the_run_that_made_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _DIGS_ONE, str(tmp_path)]
    maker = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert maker.stdout is not None
    link = Path("/sys/class/net", maker.stdout.readline().strip())
    assert link.exists()
    maker.send_signal(signal.SIGKILL)
    maker.wait(10)
    wait_until(lambda: not link.exists(), "the link's end")


def _everything(client: socket.socket) -> bytes:
    received = b""
    while data := client.recv(2**20):
        received += data
    return received
