"""The TCP connection under SSH: a socket of our own, given to asyncssh as its transport."""

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Any, Protocol, cast

import asyncssh

from dbtunnel.forwarder.greeting import Greeting
from dbtunnel.forwarder.pieces import UNANSWERED_TRIES, TcpInfo, room_for, tcp_info
from dbtunnel.forwarder.watch import READ, WRITE, watcher

_LOG = logging.getLogger(__name__)

_ADDRESS_DELAY_SECONDS = 0.25
"""RFC 8305: when to try the next address while the first does not answer."""

HIGH_WATER, _LOW_WATER = 512 * 1024, 128 * 1024
"""Bytes that may wait for the SSH connection before clients are no longer read, and until they are again."""

READ_BYTES = 320 * 1024
"""Room for what is received at once, and the longest packet that asyncssh takes besides."""

_WRITE_BYTES = 1024 * 1024
"""Room for what waits: HIGH_WATER and what one client may add at once. It grows for asyncssh's own packets alone."""

MOST_WAITING = 16 * 1024 * 1024
"""Bytes at which a connection ends: clients add no more by then, but the server has us answer, and does not read it."""

_QUICKACK = getattr(socket, "TCP_QUICKACK", None)  # Linux alone has it


class Congestion:
    """Clients that are not read, since their SSH connection cannot take more now.

    asyncssh holds no writer back for it: 100 uploading clients and a stopped server grew its buffer to 196 MiB.
    """

    def __init__(self) -> None:
        self.is_on = False
        """Whether nothing more should be given to the connection."""
        self._causes: set[str] = set()
        self._held: dict[Callable[[], None], None] = {}
        """In the order in which they were held."""

    def holds(self, relieve: Callable[[], None]) -> bool:
        """Whether the client must not be read now; `relieve` is called when it may be, and reads it."""
        if self.is_on:
            self._held[relieve] = None
        return self.is_on

    def forget(self, relieve: Callable[[], None]) -> None:
        """The client is gone."""
        self._held.pop(relieve, None)

    def begin(self, cause: str) -> None:
        """There is a cause to hold clients back."""
        self.is_on = True
        self._causes.add(cause)

    def end(self, cause: str) -> None:
        """That cause is over."""
        if cause not in self._causes:
            return
        self._causes.discard(cause)
        self.is_on = bool(self._causes)
        while self._held and not self.is_on:  # they may bring it about again
            relieve = next(iter(self._held))
            del self._held[relieve]
            try:
                relieve()
            except Exception:  # a bug; the others go on, and asyncssh, which may have called
                _LOG.exception("serving a client again failed")


class AnyWire(Protocol):
    """What is under an SSH connection: a socket, or a channel of a jump host's."""

    received: memoryview
    consume: Callable[[int], int]

    def room(self, size: int) -> memoryview:
        """As Wire."""

    def round_trip_seconds(self) -> float:
        """As Wire."""

    def is_unanswered(self) -> bool:
        """As Wire."""

    def is_closing(self) -> bool:
        """As Wire."""

    def abort(self) -> None:
        """As Wire."""


_LAST_PASSES = 10
"""Of the loop: asyncssh leaves most messages of a login to a task each, which takes two or three."""


def after_what_came(call: Callable[[], None], passes: int = _LAST_PASSES) -> None:
    """Calls it once asyncssh has taken up all that it was given: a server says in its last messages why it ends the
    connection, and its end often comes with them.
    """
    if passes:
        asyncio.get_running_loop().call_soon(after_what_came, call, passes - 1)
    else:
        call()


class Wire(asyncio.Transport):
    """The socket. What is read goes to `consume`; what is written leaves at the end of the pass, in one piece."""

    def __init__(self, connected: socket.socket, protocol: Greeting, congestion: Congestion) -> None:
        super().__init__()
        self._socket, self._fd = connected, connected.fileno()
        self._protocol, self._congestion = protocol, congestion
        self._loop, self._watcher = asyncio.get_running_loop(), watcher()
        self.received = room_for(READ_BYTES)
        """What has come begins at its start."""
        self._filled = 0
        self.consume: Callable[[int], int] = self._pass_on
        """Takes the first bytes of `received`, so many, and returns how many it has left at the start."""
        self._waiting = room_for(_WRITE_BYTES)
        self._start = self._end = 0
        self._events = READ
        self._ends_pass = False
        self._delays_acknowledgement = True
        """Whether the kernel may hold acknowledgements back, to send them with data: it does so after each sending."""
        self._is_closing = self._is_ended = False

    def begin(self) -> None:
        """Reads from now on."""
        self._protocol.connection_made(self)
        self._watcher.watch(self._fd, READ, self._happened, self.abort)

    # --- what is received -----------------------------------------------------------------------------------------

    def _happened(self, events: int) -> None:
        if events & WRITE:
            self._flush()
        if events & ~WRITE and not (self._is_closing or self._is_ended):
            self._read()

    def _read(self) -> None:
        try:
            count = self._socket.recv_into(self.received[self._filled :])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._hear_end(error)
            return
        if not count:
            self._hear_end(None)
            return
        if self._delays_acknowledgement and not self._ends_pass:
            self._end_of_pass()
        self._filled = self.consume(self._filled + count)

    def _pass_on(self, filled: int) -> int:
        self._protocol.data_received(bytes(self.received[:filled]))
        return 0

    def round_trip_seconds(self) -> float:
        """The kernel's measure of the way to the server and back; 0 where it does not tell."""
        info = self._told()
        return info.round_trip_seconds if info else 0

    def is_unanswered(self) -> bool:
        """Whether the server's system has not acknowledged what it was sent, several times: packets are dropped."""
        info = self._told()
        return info is not None and info.tries >= UNANSWERED_TRIES

    def _told(self) -> TcpInfo | None:
        return None if self._is_closing else tcp_info(self._socket)

    # --- what is sent ---------------------------------------------------------------------------------------------

    def room(self, size: int) -> memoryview:
        """Where to put the next bytes to be sent, at once."""
        if self._end + size > len(self._waiting):
            self._make_room(size)
        start, self._end = self._end, self._end + size
        if not self._ends_pass:
            self._end_of_pass()
        if self._end - self._start > HIGH_WATER:
            self._congestion.begin("output")
        return self._waiting[start : self._end]

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """As asyncssh asks for it."""
        if self._is_closing:
            return
        self.room(len(data))[:] = data
        if self._end - self._start > MOST_WAITING:
            self._lose(OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS)))

    def _make_room(self, size: int) -> None:
        rest = bytes(self._waiting[self._start : self._end])
        if len(rest) + size > len(self._waiting):
            self._waiting = room_for(2 * (len(rest) + size))
        self._waiting[: len(rest)] = rest
        self._start, self._end = 0, len(rest)

    def _end_of_pass(self) -> None:
        self._ends_pass = True
        self._watcher.at_end_of_pass(self._pass_ends)

    def _pass_ends(self) -> None:
        self._ends_pass = False
        if self._is_closing:
            return
        if self._end:
            self._flush()  # which acknowledges, too
        elif self._delays_acknowledgement and _QUICKACK is not None:
            # the server's socket may be under Nagle's algorithm, and waits for it; the option lasts until we send
            self._socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
            self._delays_acknowledgement = False

    def _flush(self) -> None:
        try:
            self._start += self._socket.send(self._waiting[self._start : self._end])
            self._delays_acknowledgement = True
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._lose(error)
            return
        left = self._end - self._start
        if not left:
            self._start = self._end = 0
        events = READ | WRITE if left else READ
        if events != self._events:
            self._events = events
            self._watcher.change(self._fd, events)
        if left <= _LOW_WATER:
            self._congestion.end("output")

    # --- its end --------------------------------------------------------------------------------------------------

    def _hear_end(self, error: Exception | None) -> None:
        """The server has ended it."""
        if self.consume == self._pass_on:
            self._is_ended = True
            after_what_came(lambda: self._lose(error))
        else:
            self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if self._is_closing:
            return
        self._is_closing = True
        self._watcher.forget(self._fd)
        self._socket.close()
        self._loop.call_soon(self._protocol.connection_lost, error)

    def is_closing(self) -> bool:
        """Whether it is gone or about to go."""
        return self._is_closing

    def close(self) -> None:
        """Ends it; what waits is lost, as with abort: SSH says its goodbye before."""
        self._lose(None)

    def abort(self) -> None:
        """Ends it at once."""
        self._lose(None)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """socket, sockname, peername."""
        asked = {"sockname": self._socket.getsockname, "peername": self._socket.getpeername}
        if name == "socket":
            return self._socket
        with contextlib.suppress(OSError):
            return asked[name]() if name in asked else default
        return default


class _Carrier(asyncio.Protocol):
    """Holds a connection that asyncio has made, unread, until its socket is taken over."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).pause_reading()


class Dialer:
    """Opens the TCP connection; given to asyncssh as its `tunnel`."""

    def __init__(self) -> None:
        self.greeting: Greeting | None = None
        self.wire: AnyWire | None = None
        self.congestion = Congestion()

    async def create_connection(
        self, factory: Callable[[], asyncssh.SSHClientConnection], host: str, port: int
    ) -> tuple[asyncio.BaseTransport, asyncssh.SSHClientConnection]:
        """As asyncssh asks for it. Raises OSError."""
        inner = factory()
        carrier, _ = await asyncio.get_running_loop().create_connection(
            _Carrier, host, port, happy_eyeballs_delay=_ADDRESS_DELAY_SECONDS
        )
        connected: socket.socket = carrier.get_extra_info("socket").dup()
        carrier.abort()  # its own descriptor alone
        self.greeting = Greeting(cast(asyncio.Protocol, inner))
        self.wire = wire = Wire(connected, self.greeting, self.congestion)
        wire.begin()
        return wire, inner

    @property
    def host_key_algorithms(self) -> frozenset[str]:
        """What the server offers; none while that is not known."""
        return self.greeting.host_key_algorithms() if self.greeting else frozenset()

    def is_closing(self) -> bool:
        """Whether the connection is gone or about to go."""
        return self.wire is None or self.wire.is_closing()

    def abort(self) -> None:
        """Ends the connection at once."""
        if self.wire:
            self.wire.abort()
