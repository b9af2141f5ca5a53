"""A client's socket, joined with a channel that is none."""

import socket
import struct
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dbtunnel.forwarder.client import EARLY_LIMIT, Client
from dbtunnel.forwarder.listener import listening_socket
from dbtunnel.forwarder.packets import Slot
from dbtunnel.forwarder.watch import READ
from tests.support.stuck_ssh import StuckConnection, link_over, until


async def taken(target: Any = None) -> tuple[Client, socket.socket, Any]:
    """A client, its other end, and what its host was told."""
    host = SimpleNamespace(told=[])
    for name in ("wants_channel", "has_no_channel", "joined", "saw", "moved", "gone"):
        setattr(host, name, lambda *arguments, name=name, **_: host.told.append(name))
    bound = listening_socket("127.0.0.1", 0)
    peer = socket.create_connection(bound.getsockname())
    connected, address = bound.accept()
    connected.setblocking(False)
    bound.close()
    return Client(connected, address, cast(Any, host)), peer, host


def channel_to(received: list[bytes], room: int = 2**20) -> Any:
    def send(slot: Slot, size: int) -> None:
        channel.may_send_bytes -= size
        received.append(bytes(slot.data[:size]))

    channel = SimpleNamespace(send=send, may_send_bytes=room, largest_data=2**15)
    for name in ("close", "end_sending", "taken"):
        setattr(channel, name, lambda *_: None)
    return channel


async def test_what_a_client_sends_early_is_bounded_to_the_byte() -> None:
    client, peer, host = await taken()
    content = bytes(range(256)) * 4096
    peer.setblocking(False)
    rest = content[peer.send(content) :]
    await until(lambda: len(client._early) == EARLY_LIMIT)
    assert host.told == ["wants_channel"]
    received: list[bytes] = []
    client.link = link_over(StuckConnection())
    client.opened(channel_to(received, 2**30))
    assert [len(piece) for piece in received] == [EARLY_LIMIT]
    await until(lambda: sum(map(len, received)) == len(content) - len(rest))
    assert content.startswith(b"".join(received))
    client.refuse()
    peer.close()


async def test_a_client_that_resets_as_the_database_ends_is_its_own_affair() -> None:
    """shutdown(2) fails then with ENOTCONN."""
    client, peer, host = await taken()
    client.opened(channel_to([]))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    client.ended_sending()
    assert client.is_gone
    assert host.told[-1] == "gone"


async def joined(room: int = 2**20) -> tuple[Client, socket.socket, list[bytes]]:
    """A client with its channel, its other end, and what the channel was given."""
    client, peer, _ = await taken()
    received: list[bytes] = []
    client.link = link_over(StuckConnection())
    client.opened(channel_to(received, room))
    peer.settimeout(10)
    return client, peer, received


def fill(client: Client) -> int:
    """Has so much for it that some must wait; returns how much in all."""
    size = 0
    while not client._waiting:
        client.received([memoryview(bytes(65536))])
        size += 65536
    return size


def receive(peer: socket.socket) -> bytes:
    content = bytearray()
    while data := peer.recv(65536):
        content += data
    return bytes(content)


async def test_very_many_small_pieces_are_passed_on_at_once() -> None:
    """The system takes no more than 1024 in one call, and fails with EMSGSIZE."""
    client, peer, _ = await joined()
    content = [bytes([index % 256]) * 3 for index in range(5000)]
    client.received([memoryview(piece) for piece in content])
    assert not client.is_gone
    assert peer.recv(15000, socket.MSG_WAITALL) == b"".join(content)
    client.refuse()
    peer.close()


async def test_what_waits_in_small_pieces_takes_little_more_memory() -> None:
    client, peer, _ = await joined()
    fill(client)
    before = len(client._waiting)
    for _ in range(4096):
        client.received([memoryview(b"x")])
    assert len(client._waiting) <= before + 1
    client.refuse()
    peer.close()


async def test_what_waits_is_written_also_to_a_client_that_has_ended_after_the_database() -> None:
    client, peer, _ = await joined()
    size = fill(client)
    client.ended_sending()
    client.closed(whole=True)
    peer.send(b"too late")
    peer.shutdown(socket.SHUT_WR)
    peer.setblocking(False)
    received = 0

    def all_is_there() -> bool:
        nonlocal received
        try:
            received += len(peer.recv(2**20))
        except BlockingIOError:
            return False
        return received == size

    await until(all_is_there)
    await until(lambda: client.is_gone)
    peer.close()


async def test_a_reader_that_is_told_late_of_bytes_is_not_taken_for_failed() -> None:
    """One pass of the selector: the channel ends, and only then the client's bytes are told of."""
    client, peer, _ = await joined()
    size = fill(client)
    client.closed(whole=True)
    client._happened(READ)
    peer.settimeout(None)
    peer.setblocking(False)
    received: list[int] = []

    def ended() -> bool:
        try:
            received.append(len(peer.recv(2**20)))
        except BlockingIOError:
            return False
        return received[-1] == 0

    await until(ended)
    assert sum(received) == size
    peer.close()


@pytest.mark.asyncio(loop_factories=["hot"])  # of asyncio's own the failure of a socket that is not read is not heard
async def test_a_reset_is_noticed_while_the_client_is_not_read() -> None:
    client, peer, received = await joined(room=4)
    peer.sendall(b"12345678")
    await until(lambda: received == [b"1234"])
    await until(lambda: client._is_held)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    await until(lambda: client.is_gone)


async def test_packets_of_one_byte_are_what_the_server_gets_if_it_asks_for_them() -> None:
    client, peer, received = await joined()
    client._channel.largest_data = 1  # type: ignore[union-attr]
    peer.sendall(b"12345678")
    await until(lambda: received == [b"%d" % digit for digit in range(1, 9)])
    client.refuse()
    peer.close()


async def test_a_window_that_never_opens_holds_the_client_and_nothing_else() -> None:
    client, peer, received = await joined(room=0)
    peer.sendall(b"12345678")
    await until(lambda: client._is_held)
    assert received == []
    client._channel.may_send_bytes = 100  # type: ignore[union-attr]
    client.may_send()
    await until(lambda: received == [b"12345678"])
    client.refuse()
    with pytest.raises(ConnectionResetError):
        receive(peer)
    peer.close()
