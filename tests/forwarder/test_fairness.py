"""Clients that all have more to send, or to receive, than the connection takes: each gets its share."""

import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import pytest

from tests.support.bastion import Bastion
from tests.support.faults import FaultServer
from tests.support.forwarder import hop_to
from tests.support.in_process import DataPath
from tests.support.keys import KeyPair
from tests.support.processes import wait_until

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
