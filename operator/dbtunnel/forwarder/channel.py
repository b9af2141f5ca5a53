"""The data path: a client's TCP connection and its SSH channel, joined (RFC 4254, sections 5 and 7.2).

Nothing else knows how bytes are moved, so that this can be replaced by something faster.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Protocol, cast

import asyncssh

from dbtunnel.forwarder.link import Link, Opening

LARGEST_WINDOW, SMALLEST_WINDOW = 2 * 1024 * 1024, 128 * 1024
"""Bytes that the server may send on a channel before it is told that they have been taken."""

_WINDOWS = 16 * 1024 * 1024
"""What the windows of a connection's channels are cut from: all of it waits here where no client reads."""

CLIENT_HIGH_WATER = 128 * 1024
"""Bytes that may wait for a slow client before its channel is no longer read."""

EARLY_LIMIT = 16 * 1024
"""Bytes that a client may send before its channel is open: a thousand may be parked."""

OPEN_ERRORS = (OSError, asyncssh.Error, ValueError)
"""What opening a channel raises; the last is what asyncssh makes of a server's malformed answer."""

SNIFFED_BYTES = 512
"""How much of a server's first answer is looked at."""


Address = tuple[str, int]
OnFirst = Callable[[bytes], None]
OnEnd = Callable[[], None]

_CONGESTED_READ = 4096
"""Bytes that are still read from a client at once while its SSH connection is congested: a thousand may be sending."""

_RECEIVED = memoryview(bytearray(256 * 1024))
"""What sockets are read into, one after the other: it is copied before the next is read."""


class Counter(Protocol):
    """Told of the bytes that have passed."""

    def __call__(self, *, sent: int = 0, received: int = 0) -> None:
        """`sent` to the database, `received` from it."""


class Client(asyncio.BufferedProtocol):
    """A client's side. Before its channel opens, what it sends is kept."""

    def __init__(self, on_connected: Callable[["Client"], None], on_lost: Callable[["Client"], None]) -> None:
        self._on_connected, self._on_lost = on_connected, on_lost
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.is_gone = False
        self._ended_sending = False
        self._is_parked = False
        self._early = bytearray()
        self._session: Session | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=CLIENT_HIGH_WATER)
        self._on_connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """Where the next bytes go: before the channel is open there is no more room than may be kept."""
        return _RECEIVED[: self._session.room if self._session else EARLY_LIMIT - len(self._early)]

    def buffer_updated(self, nbytes: int) -> None:
        """So many have come."""
        data = bytes(_RECEIVED[:nbytes])
        if self._session:
            self._session.send(data)
            return
        self._early += data
        if len(self._early) == EARLY_LIMIT:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        """The client sends no more and may still receive."""
        self._ended_sending = True
        if self._session:
            self._session.end_sending()
        return not self._is_parked

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_gone = True
        self._on_lost(self)
        if self._session:
            self._session.client_lost(exc)

    def pause_writing(self) -> None:
        """The client is slow: its channel is no longer read, and then its window closes."""
        if self._session:
            self._session.channel.pause_reading()

    def resume_writing(self) -> None:
        """The client has taken most of it."""
        if self._session:
            self._session.channel.resume_reading()

    def park(self, *, parked: bool) -> None:
        """While it is parked its end of sending counts as its leaving, since no client of a database says all that it
        has to say before the database has answered. Else those who gave up in an outage would all be served after it.
        """
        self._is_parked = parked
        if parked and self._ended_sending:
            self.refuse()

    def join(self, session: "Session") -> None:
        """From now on bytes go to the channel. Closes the channel where the client has left meanwhile."""
        if self.transport.is_closing():
            session.channel.abort()
            return
        self._session = session
        self.transport.resume_reading()
        if self._early:
            session.send(bytes(self._early))
            self._early.clear()
        if self._ended_sending:
            session.end_sending()

    def refuse(self) -> None:
        """Ends the connection with a reset, which no client takes for a clean end."""
        reset(self.transport)


class Session(asyncssh.SSHTCPSession[bytes]):
    """The channel's side."""

    def __init__(self, client: Client, link: Link, count: Counter, on_first: OnFirst, on_end: OnEnd) -> None:
        self.channel: asyncssh.SSHTCPChannel[bytes] = cast("asyncssh.SSHTCPChannel[bytes]", None)
        self._client, self._link = client, link
        self._count, self._on_first, self._on_end = count, on_first, on_end
        self._stalled = False
        self._is_first = True

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self.channel = chan

    def session_started(self) -> None:
        """The channel is open, and nothing has come over it yet."""
        self._client.join(self)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:  # noqa: ARG002
        if self._is_first:
            self._is_first = False
            self._on_first(data[:SNIFFED_BYTES])
        self._count(received=len(data))
        if not self._client.transport.is_closing():  # else asyncio logs each piece
            self._client.transport.write(data)

    def eof_received(self) -> bool:
        """The database sends no more and may still receive."""
        if not self._client.transport.is_closing():
            try:
                self._client.transport.write_eof()
            except OSError:  # the client has reset it, and asyncio has yet to hear; raised here it ends all channels
                self._client.refuse()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is gone. If its SSH connection is too, however politely the server closed that, something may
        be missing: the client gets a reset rather than a clean end.
        """
        self._on_end()
        self._link.congestion.forget(self.relieve)
        if exc is not None or self._link.is_closing():
            self._client.refuse()
        else:
            self._client.transport.close()

    def pause_writing(self) -> None:
        """The database is slow: the client is no longer read."""
        self._stalled = True
        self._client.transport.pause_reading()

    def resume_writing(self) -> None:
        """The database has taken most of it."""
        self._stalled = False
        self.relieve()

    @property
    def room(self) -> int:
        """Bytes that may be read from the client at once."""
        return _CONGESTED_READ if self._link.congestion.is_on else len(_RECEIVED)

    def send(self, data: bytes) -> None:
        """Passes a client's bytes on; stops reading the client where the SSH connection is congested."""
        if self.channel.is_closing():
            return
        self._count(sent=len(data))
        self.channel.write(data)
        if self._link.congestion.holds(self.relieve):
            self._client.transport.pause_reading()

    def relieve(self) -> None:
        """The SSH connection is no longer congested."""
        if not self._stalled and not self._client.transport.is_closing():
            self._client.transport.resume_reading()

    def end_sending(self) -> None:
        """Passes the client's end of data on."""
        if not self.channel.is_closing():
            self.channel.write_eof()

    def client_lost(self, exc: Exception | None) -> None:
        """The client is gone: after a reset what it sent may be dropped, after a clean end not."""
        if exc is not None:
            self.channel.abort()
        else:
            self.channel.close()


async def open_channel(
    link: Link, factory: Callable[[], asyncssh.SSHTCPSession[bytes]], target: Address, origin: Address, limit: float
) -> asyncssh.SSHTCPSession[bytes]:
    """Opens a channel within `limit` seconds. Raises TimeoutError and others of OPEN_ERRORS.

    The opening itself is never cancelled: asyncssh then forgets a channel that the server opens later, and with it a
    connection to the database (asyncssh issue 823). A late success is closed when it comes.
    """
    async with asyncio.timeout(limit):
        await link.openings.room()
        opening: Opening = asyncio.ensure_future(
            link.connection.create_connection(factory, *target, *origin, window=window(link.uses))
        )
        opening.add_done_callback(link.openings.ended)
        try:
            _, session = await asyncio.shield(opening)
        except BaseException:
            link.openings.abandon(opening)
            opening.add_done_callback(_close_late)
            raise
    return session


def window(channels: int) -> int:
    """The window of one more channel."""
    return max(SMALLEST_WINDOW, min(LARGEST_WINDOW, _WINDOWS // max(channels, 1)))


def _close_late(opening: Opening) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].abort()


def reset(transport: asyncio.Transport) -> None:
    """Ends a TCP connection with a reset; closing alone would look like a clean end."""
    connection = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
