"""An SSH connection without a server: it opens channels when it is told to, and keeps what it is given."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import asyncssh
from asyncssh.packet import SSHPacket

from dbtunnel.forwarder.channel import Channel, Opening, _Nobody
from dbtunnel.forwarder.link import End, Link
from dbtunnel.forwarder.transport import Congestion

DATA, CLOSE = 94, 97
"""SSH_MSG_CHANNEL_DATA, SSH_MSG_CHANNEL_CLOSE."""


class StuckConnection:
    """An SSH connection whose server does not answer, until it is told to."""

    def __init__(self) -> None:
        self.channels: dict[int, Channel] = {}
        self.asked = self.answered = 0
        self.sent: list[int] = []
        self.is_gone = False

    def add_channel(self, channel: Channel) -> int:
        if self.is_gone:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "SSH connection closed")
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


def link_over(connection: StuckConnection, round_trip_seconds: float = 0) -> Link:
    """What those have who open channels; the adjustments of its windows are in `link.packets.adjusted`."""
    adjusted: list[int] = []
    packets = SimpleNamespace(channels={}, adjusted=adjusted, send_adjust=lambda _, growth: adjusted.append(growth))
    fields = cast(Any, connection), lambda: connection.is_gone, Congestion(), End(), cast(Any, packets)
    return Link(*fields, round_trip_seconds=lambda: round_trip_seconds)


def ask(link: Link, count: int, limit: float = 5) -> list[Waiting]:
    """Has so many channels opened."""
    waiting = [Waiting() for _ in range(count)]
    for one in waiting:
        Opening(link, one, ("orders.internal", 5432), ("127.0.0.1", 1), limit)
    return waiting


def opened(link: Link, connection: StuckConnection) -> Channel:
    """A channel that is open."""
    (one,) = ask(link, 1)
    connection.answer()
    assert isinstance(one.outcome, Channel)
    return one.outcome


async def until(condition: Callable[[], object]) -> None:
    """Returns when it is so."""
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)
