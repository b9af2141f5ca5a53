"""A channel of our own to the database (RFC 4254, sections 5 and 7.2), in asyncssh's table of a connection's channels.

asyncssh's own channels forget a server's late success (asyncssh issue 823), keep what they are given without a bound
while keys are exchanged, and cost several calls a packet.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

import asyncssh
from asyncssh.packet import SSHPacket, SSHPacketHandler, String, UInt32

from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.packets import LARGEST_DATA, Slot

_LOG = logging.getLogger(__name__)

STREAM_WINDOW, LARGEST_WINDOW = 2**21, 2**25
"""Bytes that the server may send before it is told that they have been taken: for a channel that turns out to be a
stream, and on a long way, where the round trip is what limits."""

_STREAM_ADJUSTMENTS = 16
"""How often a stream has had half its window adjusted when it is known to be one."""

_OPEN, _ADJUST, _DATA, _EXTENDED_DATA, _EOF, _CLOSE, _REQUEST, _SUCCESS, _FAILURE = 90, *range(93, 101)
"""SSH_MSG_CHANNEL_... (RFC 4254, section 9)."""

Address = tuple[str, int]


class End(Protocol):
    """Who has a channel: a client, or a probe."""

    def opened(self, channel: "Channel") -> None:
        """The channel is open."""

    def failed(self, error: Exception) -> None:
        """It could not be opened. Nothing more is heard of it."""

    def received(self, pieces: list[memoryview]) -> None:
        """Data, which is to be copied or gone when this returns; `Channel.taken` is told of it then or later."""

    def ended_sending(self) -> None:
        """The database sends no more, and may still receive."""

    def may_send(self) -> None:
        """The database takes data again."""

    def closed(self, *, whole: bool) -> None:
        """The channel is gone; not `whole` where something may be missing, since its connection is gone too."""


class Channel(SSHPacketHandler):
    """One channel."""

    def __init__(self, link: Link, end: End) -> None:
        """Raises asyncssh.ChannelOpenError where the connection is gone."""
        self._link, self.end = link, end
        self._connection, self._packets = link.connection, link.packets
        self.number: int = self._connection.add_channel(cast(Any, self))
        self._theirs = 0
        """The server's number of it, once it is open."""
        self._is_opened = False
        self._pieces: list[memoryview] = []
        self._is_relieved = False
        self.first_window = link.windows.begin()
        self._window = self._full_window = self.first_window
        """Bytes that the server may still send, and that it may after it has been told so."""
        self._taken = self._grown = 0
        self._adjusted_at, self._adjusted = 0.0, 0
        self.may_send_bytes = 0
        """What the server takes now (its window)."""
        self.largest_data = 0
        """Bytes of data that a packet may have."""
        self._has_sent_eof = self._has_got_eof = self._has_closed = False

    # --- what its end asks for ------------------------------------------------------------------------------------

    def open(self, target: Address, origin: Address) -> None:
        """Asks the server to connect to the target."""
        kind = String(b"direct-tcpip") + UInt32(self.number) + UInt32(self._window) + UInt32(LARGEST_DATA)
        where = String(target[0]) + UInt32(target[1]) + String(origin[0]) + UInt32(origin[1])
        self._connection.send_packet(_OPEN, kind + where)

    @property
    def is_open(self) -> bool:
        """Whether data may be sent, as far as the window lets it."""
        return self._is_opened and not self._has_closed and not self._has_sent_eof

    def send(self, slot: Slot, size: int) -> None:
        """Sends the first bytes of a slot's data: no more than `may_send_bytes` and `largest_data`."""
        self.may_send_bytes -= size
        self._packets.send_data(self._theirs, slot, size)

    def end_sending(self) -> None:
        """Sends no more."""
        if self.is_open:
            self._has_sent_eof = True
            self._send(_EOF)

    def close(self) -> None:
        """Is done with it. What its end has not been told it will not hear."""
        self.end = _NOBODY
        self._pieces.clear()
        if self._is_opened and not self._has_closed:
            self._has_closed = True
            self._send(_CLOSE)

    def taken(self, size: int) -> None:
        """So many received bytes wait here no longer."""
        self._taken += size
        if self._taken * 2 >= self._full_window and not self._has_closed:
            self._link.carried(self._taken)
            growth = self._taken + self._growth()
            self._window += growth
            self._taken = 0
            self._packets.send_adjust(self._theirs, growth)

    def _growth(self) -> int:
        """How much wider the window gets: twice as wide for a stream, and where the server has to wait for us."""
        now = time.monotonic()
        elapsed, self._adjusted_at = now - self._adjusted_at, now
        self._adjusted += 1
        is_stream = self._full_window < STREAM_WINDOW and self._adjusted % _STREAM_ADJUSTMENTS == 0
        if not is_stream and elapsed > 2 * self._link.round_trip_seconds():
            return 0
        growth = min(self._full_window, LARGEST_WINDOW - self._full_window)
        if not self._link.windows.grow(growth):
            return 0
        self._full_window += growth
        self._grown += growth
        return growth

    def _send(self, kind: int, *arguments: bytes) -> None:
        self._connection.send_packet(kind, UInt32(self._theirs), *arguments)

    # --- as Receiver ----------------------------------------------------------------------------------------------

    def receive(self, data: memoryview) -> bool:
        """As Receiver."""
        if len(data) > self._window or self._has_got_eof:
            return False
        self._window -= len(data)
        if data and self.end is not _NOBODY:
            self._pieces.append(data)
        return True

    def widen(self, growth: int) -> bool:
        """As Receiver."""
        if self.may_send_bytes + growth > 0xFFFFFFFF:
            return False
        self._link.carried(growth)
        self.may_send_bytes += growth
        self._is_relieved = True
        return True

    def deliver(self) -> None:
        """As Receiver."""
        if self._is_relieved:
            self._is_relieved = False
            self._tell(self.end.may_send)
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            self._tell(lambda: self.end.received(pieces))

    def _tell(self, call: Callable[[], None]) -> None:
        """A bug in what its end does ends this channel, and not the connection with all channels."""
        try:
            call()
        except Exception:
            _LOG.exception("serving a channel failed")
            end = self.end
            try:
                self.close()
                end.closed(whole=False)
            except Exception:
                _LOG.exception("ending a channel failed")

    # --- what asyncssh brings -------------------------------------------------------------------------------------

    def process_open_confirmation(
        self, send_chan: int, send_window: int, send_pktsize: int, _packet: SSHPacket
    ) -> None:
        """The server has opened it. Raises asyncssh.ProtocolError where it has before."""
        if self._is_opened:
            raise asyncssh.ProtocolError("channel not being opened")
        self._theirs, self._is_opened = send_chan, True
        self.may_send_bytes, self.largest_data = send_window, min(send_pktsize, LARGEST_DATA)
        self._packets.channels[self.number] = self
        self._link.enter()
        self._tell(lambda: self.end.opened(self))

    def process_open_failure(self, code: int, reason: str, lang: str) -> None:
        """The server does not open it. Raises asyncssh.ProtocolError where it has before."""
        if self._is_opened:
            raise asyncssh.ProtocolError("channel not being opened")
        self._forget()
        error = asyncssh.ChannelOpenError(code, reason, lang)
        self._tell(lambda: self.end.failed(error))

    def process_connection_close(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The connection is gone."""
        self._forget()
        if self._is_opened:
            self._tell(lambda: self.end.closed(whole=False))
        else:
            error = asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "SSH connection closed")
            self._tell(lambda: self.end.failed(error))

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool:  # noqa: ARG002
        """A packet that took asyncssh's way. Raises asyncssh.ProtocolError where the server may not send it."""
        if not self._is_opened:
            raise asyncssh.ProtocolError("channel not open")
        handler = self._handlers.get(pkttype)
        if handler is None:
            return False
        handler(self, packet)
        return True

    def log_received_packet(self, *_: object, **__: object) -> None:
        """Is not logged."""

    def log_sent_packet(self, *_: object, **__: object) -> None:
        """Is not logged."""

    def _data(self, packet: SSHPacket) -> None:
        data = packet.get_string()
        packet.check_end()
        if not self.receive(memoryview(data)):
            raise asyncssh.ProtocolError("data after its end, or more than the window takes")
        self.deliver()

    def _extended_data(self, packet: SSHPacket) -> None:
        """Is for channels with a program's standard error (RFC 4254, section 5.2); it counts all the same."""
        packet.get_uint32()
        size = len(packet.get_string())
        packet.check_end()
        if size > self._window or self._has_got_eof:
            raise asyncssh.ProtocolError("data after its end, or more than the window takes")
        self._window -= size
        self.taken(size)

    def _adjust(self, packet: SSHPacket) -> None:
        growth = packet.get_uint32()
        packet.check_end()
        if not self.widen(growth):
            raise asyncssh.ProtocolError("window too wide")
        self.deliver()

    def _eof(self, packet: SSHPacket) -> None:
        packet.check_end()
        self._has_got_eof = True
        self._tell(self.end.ended_sending)

    def _close(self, packet: SSHPacket) -> None:
        packet.check_end()
        if not self._has_closed:
            self._has_closed = True
            self._send(_CLOSE)
        # politely closed with the connection on its way out: something may be missing all the same
        whole = not self._link.is_closing()
        self._forget()  # which may close the connection
        self._tell(lambda: self.end.closed(whole=whole))

    def _request(self, packet: SSHPacket) -> None:
        packet.get_string()
        if packet.get_boolean() and not self._has_closed:
            self._send(_FAILURE)

    def _unasked(self, packet: SSHPacket) -> None:  # noqa: ARG002
        raise asyncssh.ProtocolError("unexpected channel response")

    _handlers = {  # noqa: RUF012
        _ADJUST: _adjust,
        _DATA: _data,
        _EXTENDED_DATA: _extended_data,
        _EOF: _eof,
        _CLOSE: _close,
        _REQUEST: _request,
        _SUCCESS: _unasked,
        _FAILURE: _unasked,
    }

    def _forget(self) -> None:
        self._packets.channels.pop(self.number, None)
        self._connection.remove_channel(self.number)
        self._link.windows.end(self.first_window, self._grown)
        if self._is_opened:
            self._link.leave()


class _Nobody:
    """Has a channel that nobody waits for: not yet, or not any more."""

    def opened(self, channel: Channel) -> None:
        """As End."""

    def failed(self, error: Exception) -> None:
        """As End."""

    def received(self, pieces: list[memoryview]) -> None:
        """As End."""

    def ended_sending(self) -> None:
        """As End."""

    def may_send(self) -> None:
        """As End."""

    def closed(self, *, whole: bool) -> None:
        """As End."""


_NOBODY = _Nobody()


class Opening(_Nobody):
    """A channel that is being opened, for an end, within a time. The opening itself can't be taken back: what the
    server opens later is closed when it comes.
    """

    def __init__(self, link: Link, end: End, target: Address, origin: Address, limit_seconds: float) -> None:
        self._link, self._end = link, end
        self._target, self._origin = target, origin
        self._channel: Channel | None = None
        self._is_over = False
        self.on_late: Callable[[], None] = lambda: None
        """Called where it is opened after all, for nobody."""
        link.enter()
        self._timer = asyncio.get_running_loop().call_later(limit_seconds, self._late)
        link.openings.ask(self)

    def start(self) -> None:
        """There is room for it."""
        try:
            self._channel = Channel(self._link, self)
        except asyncssh.Error as error:
            self.failed(error)
        else:
            self._channel.open(self._target, self._origin)

    def give_up(self) -> None:
        """Its end does not wait any more."""
        if not self._is_over:
            self._is_over = True
            self._timer.cancel()
            self._link.openings.give_up(self, started=self._channel is not None)
            self._link.leave()

    def _late(self) -> None:
        self.give_up()
        self._end.failed(TimeoutError())

    def opened(self, channel: Channel) -> None:
        """As End."""
        self._link.openings.ended(self)
        if self._is_over:
            channel.close()
            self.on_late()
            return
        self._finish()
        channel.end = self._end
        self._end.opened(channel)

    def failed(self, error: Exception) -> None:
        """As End."""
        self._link.openings.ended(self)
        if not self._is_over:
            self._finish()
            self._end.failed(error)

    def _finish(self) -> None:
        self._is_over = True
        self._timer.cancel()
        self._link.leave()
