"""An SSH connection through a channel of another: the way behind a jump host (RFC 4254, section 7.2)."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import asyncssh

from dbtunnel.forwarder.channel import Channel, Opening
from dbtunnel.forwarder.greeting import Greeting
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.packets import Slot
from dbtunnel.forwarder.pieces import room_for
from dbtunnel.forwarder.transport import HIGH_WATER, MOST_WAITING, READ_BYTES, Congestion, Dialer, after_what_came
from dbtunnel.forwarder.watch import watcher

_LOW_WATER = HIGH_WATER // 4

_ORIGIN = ("127.0.0.1", 0)
"""What the jump host's log shows as the client."""

_SLOT = Slot()
"""Where packets are put together: each is encrypted before the next is begun."""


class ChannelWire(asyncio.Transport):
    """The channel, as the transport of the SSH connection within. What is written leaves at the end of the pass."""

    def __init__(self, channel: Channel, carrier: Link, protocol: Greeting, congestion: Congestion, way: float) -> None:
        """`way`: how long the opening of the channel took, in seconds."""
        super().__init__()
        self._channel, self._carrier, self._way = channel, carrier, way
        self._protocol, self._congestion = protocol, congestion
        self.received = room_for(READ_BYTES)
        """As Wire's."""
        self._filled = 0
        self.consume: Callable[[int], int] = self._pass_on
        """As Wire's."""
        self._waiting: deque[memoryview] = deque()
        self._size = 0
        self._ends_pass = False
        self._is_closing = False

    # --- what is received -----------------------------------------------------------------------------------------

    def take(self, pieces: list[memoryview]) -> None:
        """Data of the channel."""
        for piece in pieces:
            at = 0
            while at < len(piece) and not self._is_closing:
                size = min(len(piece) - at, len(self.received) - self._filled)
                self.received[self._filled : self._filled + size] = piece[at : at + size]
                at += size
                self._filled = self.consume(self._filled + size)
        if not self._is_closing:
            self._channel.taken(sum(map(len, pieces)))

    def _pass_on(self, filled: int) -> int:
        self._protocol.data_received(bytes(self.received[:filled]))
        return 0

    def is_unanswered(self) -> bool:
        """As Wire's, of the connection below."""
        return self._carrier.is_unanswered()

    def round_trip_seconds(self) -> float:
        """To the server behind the jump host and back."""
        return self._way

    # --- what is sent ---------------------------------------------------------------------------------------------

    def room(self, size: int) -> memoryview:
        """Where to put the next bytes to be sent, at once."""
        piece = memoryview(bytearray(size))
        self._waiting.append(piece)
        self._size += size
        if self._size > HIGH_WATER:
            self._congestion.begin("output")
        self.send_soon()
        return piece

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """As asyncssh asks for it."""
        if self._is_closing or not data:
            return
        self.room(len(data))[:] = data
        if self._size > MOST_WAITING:
            self.abort()

    def send_soon(self) -> None:
        """Sends what may be sent, at the end of the pass."""
        if not self._ends_pass:
            self._ends_pass = True
            watcher().at_end_of_pass(self._send)

    def _send(self) -> None:
        self._ends_pass = False
        channel = self._channel
        while self._waiting and channel.is_open:
            room = min(channel.may_send_bytes, channel.largest_data)
            if not room or self._carrier.congestion.holds(self.send_soon):
                break
            channel.send(_SLOT, self._fill(room))
        if self._size <= _LOW_WATER:
            self._congestion.end("output")

    def _fill(self, room: int) -> int:
        """Moves bytes into the slot, at most so many; returns how many."""
        filled = 0
        while self._waiting and filled < room:
            piece = self._waiting.popleft()
            size = min(len(piece), room - filled)
            _SLOT.data[filled : filled + size] = piece[:size]
            filled += size
            if size < len(piece):
                self._waiting.appendleft(piece[size:])
        self._size -= filled
        return filled

    # --- its end --------------------------------------------------------------------------------------------------

    def gone(self) -> None:
        """The channel is closed."""
        if self._is_closing:
            return
        self._is_closing = True
        self._waiting.clear()
        self._carrier.congestion.forget(self.send_soon)
        after_what_came(lambda: self._protocol.connection_lost(None))

    def is_closing(self) -> bool:
        """Whether it is gone or about to go."""
        return self._is_closing or self._carrier.is_closing()

    def close(self) -> None:
        """Ends it; what waits is lost, as with abort."""
        self.abort()

    def abort(self) -> None:
        """Ends it at once."""
        if not self._is_closing:
            self._channel.close()
            self.gone()

    def get_extra_info(self, name: str, default: Any = None) -> Any:  # noqa: ARG002
        """There is no socket of its own."""
        return default


class JumpDialer(Dialer):
    """Has the jump host open the TCP connection, and passes on what comes through its channel."""

    def __init__(self, carrier: Link, limit_seconds: float) -> None:
        super().__init__()
        self._carrier, self._limit_seconds = carrier, limit_seconds
        self._loop = asyncio.get_running_loop()
        self._asked_at = self._loop.time()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._inner = cast(asyncio.Protocol, None)
        self._channel_wire = cast(ChannelWire, None)

    async def create_connection(
        self, factory: Callable[[], asyncssh.SSHClientConnection], host: str, port: int
    ) -> tuple[asyncio.BaseTransport, asyncssh.SSHClientConnection]:
        """As asyncssh asks for it. Raises TimeoutError and asyncssh.ChannelOpenError."""
        inner = factory()
        self._inner = cast(asyncio.Protocol, inner)
        opening = Opening(self._carrier, self, (host, port), _ORIGIN, self._limit_seconds)
        try:
            await self._opened
        except BaseException:
            opening.give_up()
            self.abort()
            raise
        return self._channel_wire, inner

    # --- as a channel's End ---------------------------------------------------------------------------------------

    def opened(self, channel: Channel) -> None:
        """As End."""
        self.greeting = Greeting(self._inner)
        way = self._loop.time() - self._asked_at
        self.wire = self._channel_wire = ChannelWire(channel, self._carrier, self.greeting, self.congestion, way)
        self.greeting.connection_made(self._channel_wire)
        if not self._opened.done():
            self._opened.set_result(None)

    def failed(self, error: Exception) -> None:
        """As End."""
        if not self._opened.done():
            self._opened.set_exception(error)

    def received(self, pieces: list[memoryview]) -> None:
        """As End."""
        self._channel_wire.take(pieces)

    def ended_sending(self) -> None:
        """As End."""
        self.abort()

    def may_send(self) -> None:
        """As End."""
        self._channel_wire.send_soon()

    def closed(self, *, whole: bool) -> None:  # noqa: ARG002
        """As End."""
        self._channel_wire.gone()
