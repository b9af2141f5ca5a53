"""Packets of our own against a real sshd: keys exchanged anew under load, bytes that arrive as they were, damage."""

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from dbtunnel.api.engines import Engine
from dbtunnel.forwarder.boxes import Box
from tests.support.bastion import HARDENED, Bastion
from tests.support.faults import FaultServer
from tests.support.forwarder import Forwarder, hop_to
from tests.support.in_process import DataPath
from tests.support.keys import KeyPair
from tests.support.processes import wait_until
from tests.support.relay import Relay
from tests.support.streams import Exchange

StartForwarder = Callable[..., Forwarder]

MEBIBYTE = 2**20

IDENTITY_MEBIBYTES = int(os.environ.get("DBTUNNEL_IDENTITY_MEBIBYTES", "1024"))
"""How much goes each way in the test of identity: a GiB, and ten in `make soak`."""

CIPHERS: dict[str, dict[str, Any]] = {
    "own": {},
    "chacha": {"encryption_algs": ["chacha20-poly1305@openssh.com"]},
    "asyncssh": {},
}
"""asyncssh's options by which its own packets carry the data, or ours."""


@contextmanager
def far_end(exchanges: list[Exchange]) -> Iterator[int]:
    """A server that exchanges bytes with each client as it asks for, by a number, once it is told to; its port."""

    def treat(peer: socket.socket) -> None:
        number = peer.recv(1)
        peer.sendall(number)
        if peer.recv(1):
            exchanges[number[0]].serve(peer)

    with FaultServer(treat) as server:
        yield server.port


def exchange(exchanges: list[Exchange], connect: Callable[[], socket.socket]) -> None:
    """Runs all of them at the same time, once all are connected; what fails shows in the exchange."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect()) for _ in exchanges]
        for number, client in enumerate(clients):
            client.sendall(bytes([number]))
            assert client.recv(1) == bytes([number])
        for client in clients:
            client.sendall(b"!")
        with ThreadPoolExecutor(len(exchanges)) as threads:
            list(threads.map(Exchange.run, exchanges, clients))


def plain(start_forwarder: StartForwarder, port: int, **changes: object) -> Forwarder:
    """A forwarder that minds only its clients' bytes."""
    forwarder = start_forwarder(port, engine=Engine.MYSQL, probe_mode="Disabled", **changes)
    forwarder.wait_for("authentication", "Succeeded")
    return forwarder


def client_of(forwarder: Forwarder) -> Callable[[], socket.socket]:
    return lambda: socket.create_connection(("127.0.0.1", forwarder.port), 20)


# --- identity ---------------------------------------------------------------------------------------------------------


def test_bytes_arrive_as_they_were_sent(start_forwarder: StartForwarder, bastion: Bastion) -> None:
    """Both ways at once, four clients, in pieces of 1 byte to 256 KiB; sshd exchanges keys every 256 MiB."""
    bastion.set_config("RekeyLimit 256M", *HARDENED)
    shares = [IDENTITY_MEBIBYTES * MEBIBYTE * tenths // 10 for tenths in (4, 3, 2, 1)]
    exchanges = [Exchange(up, down, seed) for seed, (up, down) in enumerate(zip(shares, reversed(shares), strict=True))]
    with far_end(exchanges) as port:
        forwarder = plain(start_forwarder, port)
        began = time.monotonic()
        exchange(exchanges, client_of(forwarder))
        print(f"{IDENTITY_MEBIBYTES} MiB each way in {time.monotonic() - began:.1f} s")
        assert all(each.is_whole for each in exchanges), exchanges
        assert forwarder.metric("dbtunnel_forwarder_ssh_own_packets") == 1
        assert forwarder.metric("dbtunnel_forwarder_ssh_connects_total") == 1
        for way in ("sent", "received"):
            moved = forwarder.metric(f'dbtunnel_forwarder_bytes_total{{direction="{way}"}}')
            assert moved == sum(shares) + len(shares) * (2 if way == "sent" else 1)


@pytest.mark.parametrize("way", CIPHERS)
@pytest.mark.parametrize("hot", [True, False], ids=["hot", "plain"])
def test_each_way_of_packets_and_each_loop_gives_the_same_bytes(
    bastion: Bastion, client_key: KeyPair, way: str, hot: bool
) -> None:
    exchanges = [Exchange(12 * MEBIBYTE, 9 * MEBIBYTE, 1), Exchange(5, 7 * MEBIBYTE, 2), Exchange(3 * MEBIBYTE, 0, 3)]
    own, options = way != "asyncssh", CIPHERS[way]
    with (
        far_end(exchanges) as port,
        DataPath(
            hop_to(bastion), port, key=client_key.private, own=own, hot=hot, rekey_bytes=MEBIBYTE, **options
        ) as path,
    ):
        assert bool(path.link.packets.why_not) is (way != "own")
        exchange(exchanges, path.connect)
        assert all(each.is_whole for each in exchanges), exchanges
        assert path.key_exchanges >= 8


def test_packets_that_come_in_crumbs(bastion: Bastion, client_key: KeyPair) -> None:
    """TCP may part bytes anywhere: in a packet's length, in its tag, in the middle of a key exchange."""
    crumbs = random.Random(4)

    def part(target: socket.socket, data: bytes) -> None:
        at = 0
        while at < len(data):
            size = crumbs.choice((1, 2, 3, 4, 5, 7, 16, 20, 21, 1500))
            target.sendall(data[at : at + size])
            at += size

    bastion.set_config("RekeyLimit 1M", *HARDENED)
    exchanges = [Exchange(MEBIBYTE // 2, 5 * MEBIBYTE // 2, 9)]
    with crumbling(bastion, part) as port, far_end(exchanges) as target:
        hop = hop_to(bastion, host="127.0.0.1", port=port)
        with DataPath(hop, target, key=client_key.private) as path:
            exchange(exchanges, path.connect)
            assert exchanges[0].is_whole
            assert path.key_exchanges >= 2


@contextmanager
def crumbling(bastion: Bastion, part: Callable[[socket.socket, bytes], None]) -> Iterator[int]:
    """A relay to the bastion that writes what it says as `part` does, without joining it; its port."""

    def treat(peer: socket.socket) -> None:
        with socket.create_connection((bastion.host, bastion.port), 20) as target:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=pass_on, args=(peer, target), daemon=True).start()
            while data := target.recv(65536):
                part(peer, data)

    def pass_on(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    with FaultServer(treat) as relay:
        yield relay.port


def test_a_bastion_with_an_address_of_ipv6(tmp_path: Path, client_key: KeyPair) -> None:
    server = Bastion(tmp_path / "six", host="::1")
    server.authorize(client_key.public)
    server.start()
    exchanges = [Exchange(2 * MEBIBYTE, 3 * MEBIBYTE, 1)]
    try:
        with far_end(exchanges) as target, DataPath(hop_to(server), target, key=client_key.private) as path:
            assert path.link.packets.why_not == ""
            exchange(exchanges, path.connect)
            assert exchanges[0].is_whole
    finally:
        server.stop()


# --- key exchanges ----------------------------------------------------------------------------------------------------


def under_load(path: DataPath, exchanges: list[Exchange]) -> None:
    exchange(exchanges, path.connect)
    assert all(each.is_whole for each in exchanges), (exchanges, path.metrics.text())
    assert not path.lost.is_set()
    assert isinstance(path.connection._send_encryption, Box)
    assert isinstance(path.connection._recv_encryption, Box)
    assert not path.link.congestion.is_on


def test_sshd_asks_for_new_keys_by_bytes(bastion: Bastion, client_key: KeyPair) -> None:
    bastion.set_config("RekeyLimit 1M", *HARDENED)
    exchanges = [Exchange(40 * MEBIBYTE, 30 * MEBIBYTE, 1), Exchange(10 * MEBIBYTE, 20 * MEBIBYTE, 2)]
    with far_end(exchanges) as port, DataPath(hop_to(bastion), port, key=client_key.private) as path:
        assert path.connection._strict_kex
        under_load(path, exchanges)
        assert path.key_exchanges >= 20


def test_the_forwarder_asks_for_new_keys_by_bytes(bastion: Bastion, client_key: KeyPair) -> None:
    exchanges = [Exchange(40 * MEBIBYTE, 30 * MEBIBYTE, 1), Exchange(10 * MEBIBYTE, 20 * MEBIBYTE, 2)]
    with (
        far_end(exchanges) as port,
        DataPath(hop_to(bastion), port, key=client_key.private, rekey_bytes=MEBIBYTE) as path,
    ):
        under_load(path, exchanges)
        assert path.key_exchanges >= 20


def test_both_ask_for_new_keys_at_once(bastion: Bastion, client_key: KeyPair) -> None:
    """By so few bytes that a key exchange is under way most of the time, and often asked for by both."""
    bastion.set_config("RekeyLimit 128K", *HARDENED)
    exchanges = [Exchange(6 * MEBIBYTE, 7 * MEBIBYTE, seed) for seed in range(4)]
    with (
        far_end(exchanges) as port,
        DataPath(hop_to(bastion), port, key=client_key.private, rekey_bytes=128 * 1024) as path,
    ):
        under_load(path, exchanges)
        assert path.key_exchanges >= 40


@pytest.mark.parametrize("asks", ["sshd", "forwarder"])
def test_new_keys_are_asked_for_by_time(bastion: Bastion, client_key: KeyPair, asks: str) -> None:
    """Every second, also of a connection whose bytes never stop; for what we ask, with the next sign of life."""
    options: dict[str, Any] = {}
    if asks == "sshd":
        bastion.set_config("RekeyLimit 4G 1", *HARDENED)
    else:
        options["rekey_seconds"] = 1
    go_on = threading.Event()

    def serve(peer: socket.socket) -> None:
        while not go_on.is_set():
            peer.sendall(bytes(65536))

    def drain(client: socket.socket) -> None:
        while client.recv(65536):
            pass

    with (
        FaultServer(serve) as server,
        DataPath(hop_to(bastion), server.port, key=client_key.private, **options) as path,
    ):
        with path.connect() as client:
            draining = threading.Thread(target=drain, args=(client,))
            draining.start()
            wait_until(lambda: path.key_exchanges >= 2, "two key exchanges")
            assert not path.lost.is_set()
            go_on.set()
            client.shutdown(socket.SHUT_WR)
            draining.join(20)
        exchanges = [Exchange(MEBIBYTE, MEBIBYTE, 1)]
    with far_end(exchanges) as port, DataPath(hop_to(bastion), port, key=client_key.private, **options) as path:
        under_load(path, exchanges)


def test_new_keys_while_nothing_can_be_sent(bastion: Bastion, client_key: KeyPair) -> None:
    """Clients fill the connection, which stands still, and a key exchange is due; then all goes on."""
    exchanges = [Exchange(8 * MEBIBYTE, MEBIBYTE, seed) for seed in range(6)]
    with Relay(bastion.host, bastion.port) as relay, far_end(exchanges) as port:
        hop = hop_to(bastion, host=relay.host, port=relay.port)
        options: dict[str, Any] = {"rekey_bytes": 4 * MEBIBYTE, "keepalive_count_max": 60}
        with DataPath(hop, port, key=client_key.private, **options) as path:
            running = threading.Thread(target=exchange, args=(exchanges, path.connect))
            running.start()
            for number in range(1, 6):
                wait_until(lambda number=number: path.key_exchanges >= number, "a key exchange")  # type: ignore[misc]
                relay.stall()
                wait_until(lambda: path.link.congestion.is_on, "clients to be held")
                relay.flow()
            running.join(60)
            assert all(each.is_whole for each in exchanges), exchanges
            assert not path.link.congestion.is_on


# --- damage -----------------------------------------------------------------------------------------------------------


class Damage:
    """Changes one chunk on its way, after so many bytes in that direction; then nothing any more."""

    def __init__(self, to_client: bool, change: Callable[[bytes], bytes], after: int = 3 * MEBIBYTE) -> None:
        self._to_client, self._change, self._left = to_client, change, after
        self.is_done = False

    def __call__(self, data: bytes, to_client: bool) -> bytes:
        if self.is_done or to_client is not self._to_client:
            return data
        self._left -= len(data)
        if self._left > 0 or len(data) < 64:
            return data
        self.is_done = True
        return self._change(data)


def flip(at: float) -> Callable[[bytes], bytes]:
    """Changes one bit."""

    def change(data: bytes) -> bytes:
        place = int(at * (len(data) - 1))
        return data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]

    return change


CHANGES = {
    "a bit in the middle": flip(0.5),
    "a bit at the end": flip(1),
    "a byte is missing": lambda data: data[:30] + data[31:],
    "a byte too many": lambda data: data[:30] + b"\0" + data[30:],
    "the rest of a chunk is missing": lambda data: data[: len(data) // 2],
    "random bytes": lambda data: os.urandom(len(data)),
}


@pytest.mark.parametrize("to_client", [True, False], ids=["received", "sent"])
@pytest.mark.parametrize("change", CHANGES)
def test_damaged_packets_end_the_connection_and_nothing_wrong_is_passed_on(
    start_forwarder: StartForwarder, bastion: Bastion, to_client: bool, change: str
) -> None:
    damage = Damage(to_client, CHANGES[change])
    exchanges = [Exchange(16 * MEBIBYTE, 16 * MEBIBYTE, seed) for seed in range(3)]
    with ExitStack() as stack:
        relay = stack.enter_context(Relay(bastion.host, bastion.port))
        port = stack.enter_context(far_end(exchanges))
        hop = hop_to(bastion, host=relay.host, port=relay.port)
        forwarder = plain(start_forwarder, port, bastion=hop)
        relay.damage = damage
        exchange(exchanges, client_of(forwarder))
        assert damage.is_done
        assert all(each.is_sound and not each.is_whole for each in exchanges), exchanges
        again = [Exchange(MEBIBYTE, MEBIBYTE, 5)]
        exchanges[:] = again
        exchange(again, client_of(forwarder))
        assert again[0].is_whole
        assert forwarder.metric("dbtunnel_forwarder_ssh_connects_total") == 2
        assert forwarder.metric("dbtunnel_forwarder_clients") == 0
        assert [event["event"] for event in forwarder.events()].count("connection lost") == 1
    assert "Traceback" not in forwarder.log.read_text()


@pytest.mark.parametrize("kept", [1, 3, 20, 40])
def test_a_connection_that_ends_within_a_packet(start_forwarder: StartForwarder, bastion: Bastion, kept: int) -> None:
    exchanges = [Exchange(16 * MEBIBYTE, 16 * MEBIBYTE, 1)]
    with ExitStack() as stack:
        relay = stack.enter_context(Relay(bastion.host, bastion.port))
        port = stack.enter_context(far_end(exchanges))
        forwarder = plain(start_forwarder, port, bastion=hop_to(bastion, host=relay.host, port=relay.port))
        damage = Damage(True, lambda data: data[:kept])
        relay.damage = lambda data, to_client: b"" if damage.is_done and to_client else damage(data, to_client)
        running = threading.Thread(target=exchange, args=(exchanges, client_of(forwarder)))
        running.start()
        wait_until(lambda: damage.is_done, "the damage")
        relay.damage = lambda data, _: data
        relay.reset()
        running.join(20)
        assert exchanges[0].is_sound
        assert not exchanges[0].is_whole
        forwarder.wait_for("authentication", "Succeeded")
    assert "Traceback" not in forwarder.log.read_text()


def test_sshd_hears_why_a_connection_ends(start_forwarder: StartForwarder, bastion: Bastion) -> None:
    """The message of the end leaves before the socket is closed (RFC 4253, section 11.1)."""
    exchanges = [Exchange(0, 1024, 1)]  # of more some might be unread when the socket is closed, which is a reset then
    with Relay(bastion.host, bastion.port) as relay, far_end(exchanges) as port:
        forwarder = plain(start_forwarder, port, bastion=hop_to(bastion, host=relay.host, port=relay.port))
        relay.damage = Damage(True, flip(0.5), after=0)
        exchange(exchanges, client_of(forwarder))
        wait_until(lambda: "MAC verification failed" in bastion.log_text(), "sshd to hear of it")
