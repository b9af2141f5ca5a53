"""The data path and its limits where no SSH server is needed to show them."""

import asyncio
import socket
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import asyncssh
import pytest
from asyncssh.packet import SSHPacket

from dbtunnel.forwarder.channel import FIRST_WINDOW, SMALLEST_WINDOW, Channel, Opening, _Nobody
from dbtunnel.forwarder.client import EARLY_LIMIT, Client
from dbtunnel.forwarder.link import ABANDONED_AT_MOST, OPENING_AT_ONCE, End, Link
from dbtunnel.forwarder.listener import listening_socket
from dbtunnel.forwarder.packets import Slot
from dbtunnel.forwarder.transport import Congestion

DATA, CLOSE = 94, 97
"""SSH_MSG_CHANNEL_DATA, SSH_MSG_CHANNEL_CLOSE."""


class StuckConnection:
    """An SSH connection whose server does not answer, until it is told to."""

    def __init__(self) -> None:
        self.channels: dict[int, Channel] = {}
        self.asked = self.answered = 0
        self.sent: list[int] = []

    def add_channel(self, channel: Channel) -> int:
        self.asked += 1
        self.channels[self.asked] = channel
        return self.asked

    def remove_channel(self, number: int) -> None:
        del self.channels[number]

    def send_packet(self, kind: int, *_: bytes) -> None:
        self.sent.append(kind)

    def answer(self) -> None:
        """Opens all that it was asked for."""
        begin, self.answered = self.answered + 1, self.asked
        for number in range(begin, self.answered + 1):
            self.channels[number].process_open_confirmation(number, 2**20, 2**15, SSHPacket(b""))


class Waiting(_Nobody):
    """Waits for a channel."""

    def __init__(self) -> None:
        self.outcome: Channel | Exception | None = None

    def opened(self, channel: Channel) -> None:
        self.outcome = channel

    def failed(self, error: Exception) -> None:
        self.outcome = error


def link_over(connection: StuckConnection) -> Link:
    packets = cast(Any, SimpleNamespace(channels={}))
    return Link(cast(Any, connection), lambda: False, Congestion(), End(), packets)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


def ask(link: Link, count: int, limit: float = 5) -> list[Waiting]:
    waiting = [Waiting() for _ in range(count)]
    for one in waiting:
        Opening(link, one, ("orders.internal", 5432), ("127.0.0.1", 1), limit)
    return waiting


async def abandon(link: Link, count: int) -> None:
    waiting = ask(link, count, 0.02)
    await until(lambda: all(isinstance(one.outcome, TimeoutError) for one in waiting))


async def test_openings_that_nobody_waits_for_hold_nobody_up() -> None:
    """A database that dropped packets is back: those who try now need not wait until the bastion has given up."""
    connection = StuckConnection()
    link = link_over(connection)
    await abandon(link, OPENING_AT_ONCE)
    (one,) = ask(link, 1)
    connection.answer()
    assert isinstance(one.outcome, Channel)
    assert connection.sent.count(CLOSE) == OPENING_AT_ONCE, "what comes too late is closed"


async def test_openings_on_the_bastion_are_bounded() -> None:
    connection = StuckConnection()
    link = link_over(connection)
    for _ in range(6):
        await abandon(link, OPENING_AT_ONCE)
    assert connection.asked == OPENING_AT_ONCE + ABANDONED_AT_MOST
    connection.answer()
    waiting = ask(link, 2 * OPENING_AT_ONCE)
    connection.answer()
    connection.answer()
    assert all(isinstance(one.outcome, Channel) for one in waiting)


async def test_a_link_is_unused_when_its_last_channel_is_gone() -> None:
    connection, unused = StuckConnection(), []
    link = link_over(connection)
    link.on_unused = lambda: unused.append(True)
    waiting = ask(link, 2)
    connection.answer()
    for number, channel in list(connection.channels.items()):
        assert not unused
        channel.close()
        channel.process_packet(CLOSE, number, SSHPacket(b""))
    assert unused == [True]
    assert len(waiting) == 2


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
        received.append(bytes(slot.data[:size]))

    return SimpleNamespace(
        send=send, may_send_bytes=room, largest_data=2**15, close=lambda: None, end_sending=lambda: None, taken=len
    )


async def test_what_a_client_sends_early_is_bounded_to_the_byte() -> None:
    client, peer, host = await taken()
    content = bytes(range(256)) * 4096
    peer.setblocking(False)
    rest = content[peer.send(content) :]
    await until(lambda: len(client._early) == EARLY_LIMIT)
    assert host.told == ["wants_channel"]
    received: list[bytes] = []
    client.link = link_over(StuckConnection())
    client.opened(channel_to(received))
    assert [len(piece) for piece in received] == [EARLY_LIMIT]
    await until(lambda: sum(map(len, received)) == len(content) - len(rest))
    assert content.startswith(b"".join(received))
    client.refuse()
    peer.close()


async def test_first_windows_are_cut_from_one_piece() -> None:
    """One channel has what it can use; a thousand that are not read fill no memory."""
    link = link_over(StuckConnection())
    assert Channel(link, _Nobody()).first_window == FIRST_WINDOW
    link.uses = 5000
    assert Channel(link, _Nobody()).first_window == SMALLEST_WINDOW


async def test_a_bug_in_serving_one_client_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """An exception that reaches asyncssh would end the connection of all."""
    connection = StuckConnection()
    link = link_over(connection)
    (one,) = ask(link, 1)
    connection.answer()
    channel = one.outcome
    assert isinstance(channel, Channel)

    class Broken(_Nobody):
        def received(self, pieces: list[memoryview]) -> None:
            raise RuntimeError("a bug")

    channel.end = Broken()
    assert channel.process_packet(DATA, 0, SSHPacket(b"\0\0\0\1x"))
    assert "serving a channel failed" in caplog.text
    assert connection.sent[-1] == CLOSE


async def test_a_client_that_resets_as_the_database_ends_is_its_own_affair() -> None:
    """shutdown(2) fails then with ENOTCONN."""
    client, peer, host = await taken()
    client.opened(channel_to([]))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    client.ended_sending()
    assert client.is_gone
    assert host.told[-1] == "gone"


async def test_a_server_may_send_no_more_than_its_window() -> None:
    connection = StuckConnection()
    (one,) = ask(link_over(connection), 1)
    connection.answer()
    channel = one.outcome
    assert isinstance(channel, Channel)
    assert channel.receive(memoryview(bytes(channel.first_window)))
    assert not channel.receive(memoryview(b"x"))
    with pytest.raises(asyncssh.ProtocolError):
        channel.process_packet(DATA, 0, SSHPacket(b"\0\0\0\1x"))
