"""Clients of one SSH connection beside each other: who has much to move takes no more than a share from the others."""

import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any, Self

import psycopg
import pytest

from tests.support.bastion import Bastion
from tests.support.databases import PostgresServer
from tests.support.faults import FaultServer
from tests.support.forwarder import Forwarder, hop_to
from tests.support.in_process import DataPath
from tests.support.keys import KeyPair
from tests.support.postgres_words import copy_data, query, startup
from tests.support.processes import wait_until

StartForwarder = Callable[..., Forwarder]
Session = psycopg.Connection[tuple[Any, ...]]

CLIENTS = 64

MEASURED_BYTES = 512 * 2**20
"""Of all together."""


def count(peer: socket.socket, counted: Callable[[int], None]) -> None:
    room = bytearray(256 * 1024)
    while size := peer.recv_into(room):
        counted(size)


def pour(peer: socket.socket) -> None:
    while True:
        peer.sendall(bytes(65536))


def bear(what: Callable[[], None]) -> None:
    try:
        what()
    except OSError:
        return  # it is over


@pytest.mark.parametrize("way", ["up", "down"])
def test_each_client_gets_its_share(bastion: Bastion, client_key: KeyPair, way: str) -> None:
    """Without turns some of them got a thousandth of what others did."""
    shares = [0] * CLIENTS

    def add(number: int, size: int) -> None:
        shares[number] += size

    def treat(peer: socket.socket) -> None:
        number = peer.recv(1)[0]
        peer.sendall(b"!")
        if way == "up":
            count(peer, partial(add, number))
        else:
            pour(peer)

    with (
        FaultServer(treat) as server,
        DataPath(hop_to(bastion), server.port, key=client_key.private) as path,
        ExitStack() as stack,
    ):
        clients = [stack.enter_context(path.connect()) for _ in range(CLIENTS)]
        for number, client in enumerate(clients):
            client.sendall(bytes([number]))
            assert client.recv(1) == b"!"
        for number, client in enumerate(clients):
            work = partial(pour, client) if way == "up" else partial(count, client, partial(add, number))
            threading.Thread(target=bear, args=(work,), daemon=True).start()
        wait_until(lambda: sum(shares) > MEASURED_BYTES // 4, "the load to begin")
        before = list(shares)
        wait_until(lambda: sum(shares) - sum(before) > MEASURED_BYTES, "the load", 60)
        measured = [after - share for after, share in zip(list(shares), before, strict=True)]
        for client in clients:
            client.shutdown(socket.SHUT_RDWR)
    mean = sum(measured) / CLIENTS
    print(f"{way}: each of {CLIENTS} got {min(measured) / mean:.2f} to {max(measured) / mean:.2f} times the mean")
    assert min(measured) > mean / 2
    assert max(measured) < mean * 2


# --- small queries beside a COPY --------------------------------------------------------------------------------------

QUERIES = 100

USUAL_BYTES, MOST_BYTES = 16 * 2**20, 48 * 2**20
"""Of the COPY, that may pass while a query is answered: in nine of ten cases, and in any."""

LINES = (b"x" * 8191 + b"\n") * 8

WORDS = {
    "out": "copy (select repeat('x', 8191) from generate_series(1, 10000000)) to stdout",
    "in": "copy orders (item) from stdin where false",
}
"""COPY in each direction: more than anybody waits for, and nothing that stays."""


class Copy:
    """A COPY by a client of its own. Use it as a context manager."""

    def __init__(self, port: int, way: str, postgres: PostgresServer) -> None:
        self.bytes = 0
        """How many the client has got, or given away."""
        self._way = way
        self._may_read = threading.Event()
        self._may_read.set()
        self._client = socket.create_connection(("127.0.0.1", port), 20)
        self._client.sendall(startup() + query(WORDS[way]))
        with postgres.connect(autocommit=True) as other:
            find = "select pid from pg_stat_activity where query = %s"
            row = wait_until(lambda: other.execute(find, [WORDS[way]]).fetchone(), "the COPY to begin")
        self._backend = int(row[0]) if row else 0
        self._thread = threading.Thread(target=bear, args=(self._run,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_on()
        self._client.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._client.close()

    def _run(self) -> None:
        message, room = copy_data(LINES), bytearray(256 * 1024)
        while self._way == "in":
            self._client.sendall(message)
            self.bytes += len(message)
        while self._may_read.wait() and (size := self._client.recv_into(room)):
            self.bytes += size

    def stand_still(self) -> None:
        """Its far end takes no more: the client, or the database. Returns once nothing moves."""
        if self._way == "out":
            self._may_read.clear()
        else:
            os.kill(self._backend, signal.SIGSTOP)
        seen = [-1]

        def rests() -> bool:
            seen.append(self.bytes)
            return seen[-1] == seen[-2]

        wait_until(rests, "all buffers to be full", interval_seconds=0.3)

    def go_on(self) -> None:
        """Ends that."""
        self._may_read.set()
        os.kill(self._backend, signal.SIGCONT)


def passed(copy: Copy, session: Session) -> list[int]:
    """How many bytes of the COPY passed during each of some small queries, the least first."""
    shares = []
    for _ in range(QUERIES):
        before = copy.bytes
        assert session.execute("select 1").fetchone() == (1,)
        shares.append(copy.bytes - before)
    return sorted(shares)


@pytest.mark.timeout(120)  # what never comes is waited for
@pytest.mark.parametrize("way", WORDS)
def test_small_queries_go_on_beside_a_copy(
    start_forwarder: StartForwarder, open_postgres: PostgresServer, way: str
) -> None:
    """Those that come after one that is at full speed, and after one that stands still with all buffers full."""
    forwarder = start_forwarder(open_postgres.port)
    forwarder.wait_for("database", "Succeeded")
    with open_postgres.connect(port=forwarder.port, autocommit=True) as session, ExitStack() as stack:
        copy = stack.enter_context(Copy(forwarder.port, way, open_postgres))
        wait_until(lambda: copy.bytes > MOST_BYTES, "the COPY to be at full speed", 60)
        shares = passed(copy, session)
        usual, most = shares[QUERIES * 9 // 10], shares[-1]
        print(f"{way}: {sum(shares) / 2**20:.0f} MiB beside {QUERIES} queries; in one {usual=} {most=}")
        assert usual < USUAL_BYTES
        assert most < MOST_BYTES
        copy.stand_still()
        assert sum(passed(copy, session)) == 0
        before = copy.bytes
        copy.go_on()
        wait_until(lambda: copy.bytes > before + MOST_BYTES, "the COPY to go on", 60)
    assert forwarder.metric("dbtunnel_forwarder_ssh_connects_total") == 1, "all of it on one connection"
