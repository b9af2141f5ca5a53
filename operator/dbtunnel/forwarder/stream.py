"""A channel that a probe speaks over: written to at once, read as it comes."""

import asyncio
import time

from dbtunnel.api.forwarder import ForwarderConfig
from dbtunnel.forwarder.channel import Channel, Opening
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.packets import SLOTS

_ORIGIN = ("127.0.0.1", 0)
"""What the bastion's log shows as the client of a probe."""


class Stream:
    """A channel that is read as it comes."""

    def __init__(self) -> None:
        self._channel: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
        self._received: asyncio.Queue[bytes] = asyncio.Queue()

    async def open(self, link: Link, config: ForwarderConfig) -> None:
        """Returns once it is open. Raises what the opening failed with."""
        target = config.database_host, config.database_port
        opening = Opening(link, self, target, _ORIGIN, config.seconds.connect_timeout)
        try:
            await self._channel
        finally:
            opening.give_up()
        link.probed_at = time.monotonic()

    def opened(self, channel: Channel) -> None:
        """As End."""
        if not self._channel.done():
            self._channel.set_result(channel)

    def failed(self, error: Exception) -> None:
        """As End."""
        if not self._channel.done():
            self._channel.set_exception(error)

    def received(self, pieces: list[memoryview]) -> None:
        """As End."""
        for piece in pieces:
            self._received.put_nowait(bytes(piece))
        self._channel.result().taken(sum(map(len, pieces)))

    def ended_sending(self) -> None:
        """As End."""
        self._received.put_nowait(b"")
        self._channel.result().end_sending()

    def may_send(self) -> None:
        """As End."""

    def closed(self, *, whole: bool) -> None:  # noqa: ARG002
        """As End."""
        self._received.put_nowait(b"")

    def write(self, data: bytes) -> None:
        """Sends; what comes too late for the other end is dropped, and its end is read next."""
        channel, slot = self._channel.result(), SLOTS[0]
        if channel.is_open and len(data) <= channel.may_send_bytes:
            slot.data[: len(data)] = data
            channel.send(slot, len(data))

    async def read(self) -> bytes:
        """The next bytes; none at the end."""
        return await self._received.get()

    def close(self) -> None:
        """Ends it once all is sent."""
        self._channel.result().close()
