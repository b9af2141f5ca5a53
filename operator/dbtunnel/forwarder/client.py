"""A client's TCP connection, joined with its channel: bytes, ends and resets are passed on both ways."""

import asyncio
import socket
import struct
from typing import Protocol

from dbtunnel.forwarder.channel import Address, Channel, Opening
from dbtunnel.forwarder.evidence import SNIFFED_BYTES
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.packets import LARGEST_DATA, SLOTS
from dbtunnel.forwarder.pieces import PIECES_AT_ONCE, Waiting, after, is_lost, unacknowledged
from dbtunnel.forwarder.reserve import Visitor
from dbtunnel.forwarder.talk import Talk
from dbtunnel.forwarder.watch import READ, WRITE, watcher

EARLY_LIMIT = 16 * 1024
"""Bytes that a client may send before its channel is open: a thousand may be parked."""

_SLOT_VIEWS = [slot.data for slot in SLOTS]

_FAILURE = 8
"""epoll's EPOLLERR, which it tells of in any case: watching for it alone is watching for nothing else."""

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends a reset."""

_CLIENT_CLOSED, _CLIENT_RESET = "client closed", "client reset"
BY_CLIENT = (_CLIENT_CLOSED, _CLIENT_RESET)
_DATABASE_CLOSED, _CHANNEL_BROKEN, _CONNECTION_LOST = "database closed", "channel broken", "SSH connection lost"
"""How a session ends, as the log tells it."""


class Host(Protocol):
    """Who took the client."""

    def wants_channel(self, client: "Client") -> None:
        """It has something to say, and no channel yet."""

    def has_no_channel(self, client: "Client", error: Exception) -> None:
        """Its channel was not opened."""

    def joined(self, client: "Client") -> None:
        """Its channel is open."""

    def came_late(self, client: "Client") -> None:
        """Its channel was opened when it was gone."""

    def saw(self, client: "Client", first: bytes) -> None:
        """What the database says to it at first, as long as that is little."""

    def moved(self, *, sent: int = 0, received: int = 0) -> None:
        """So many bytes went to the database, or came from it."""

    def intrudes(self, client: "Client") -> None:
        """It is served beyond the limit, and does what only others may."""

    def gone(self, client: "Client") -> None:
        """It is no more."""


class Client:
    """One client. Before its channel is open, what it sends is kept."""

    def __init__(self, connected: socket.socket, address: Address, host: Host, number: int = 0) -> None:
        self._socket, self._fd = connected, connected.fileno()
        self.address, self.number = address, number
        self._host, self._watcher = host, watcher()
        self.link: Link | None = None
        """The SSH connection that its channel is on, or is being opened on."""
        self._channel: Channel | None = None
        self._opening: Opening | None = None
        self._early, self.talk, self._waiting = bytearray(), Talk(), Waiting()
        self.sent = self.received_bytes = self._written = 0
        self.visitor: Visitor | None = None
        """Where it is served beyond the limit."""
        self.how = ""
        """How it ended, by whoever was the first to end it."""
        self.joined_at = 0.0
        """When its channel was open, by the loop's time."""
        self.is_gone = self.was_joined = self.was_refused = self._is_parked = False
        self._client_ended = self._database_ended = self._channel_ended = False
        self._is_held = self._is_bulk = False
        self.unjudged: bytes | None = b""
        """What the database has said that alone shows nothing yet; None once it has shown something."""
        self.asked_at: float | None = None
        """When it first wanted a channel, by the loop's time."""
        self.opening_at = 0.0
        """When its channel was asked for."""
        self._events = READ
        self._watcher.watch(self._fd, READ, self._happened, self.refuse)

    @property
    def early(self) -> bytes:
        """What it has said before its channel is open."""
        return bytes(self._early)

    # --- before the channel ---------------------------------------------------------------------------------------

    def open_channel(self, link: Link, target: Address, limit_seconds: float) -> None:
        """Asks for its channel; the host hears where there is none."""
        self.link, self.opening_at = link, asyncio.get_running_loop().time()
        self._opening = Opening(link, self, target, self.address, limit_seconds)
        self._opening.on_late = lambda: self._host.came_late(self)

    def park(self, *, parked: bool) -> None:
        """While it is parked its end of sending counts as its leaving, since no client of a database says all that it
        has to say before the database has answered. Else those who gave up in an outage would all be served after it.
        """
        self._is_parked = parked
        if parked and self._client_ended:
            self.refuse()

    def _read_early(self) -> None:
        try:
            data = self._socket.recv(EARLY_LIMIT - len(self._early))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._leave()
            return
        self._early += data
        if not data:
            self._client_ended = True
            if self._is_parked:
                self.refuse()
            elif not self._early:  # it has left without a word, and the database need not know
                self._leave()
            if self.is_gone:
                return
        self._is_held = not data or len(self._early) == EARLY_LIMIT
        self._watch()
        self.ask()

    def ask(self) -> None:
        """Asks its host for a channel, once."""
        if self.asked_at is None:
            self.asked_at = asyncio.get_running_loop().time()
            self._host.wants_channel(self)

    def opened(self, channel: Channel) -> None:
        """As End."""
        self._opening, self._channel = None, channel
        self.was_joined, self.joined_at = True, asyncio.get_running_loop().time()
        self._host.joined(self)
        self._resume()

    def failed(self, error: Exception) -> None:
        """As End."""
        self._opening = None
        if not self.is_gone:
            self._host.has_no_channel(self, error)

    # --- from the client ------------------------------------------------------------------------------------------

    def _happened(self, events: int) -> None:
        if events & WRITE and self._waiting:
            self._write()
        if not events & ~WRITE or self.is_gone:
            return
        if not self._events & READ:
            self._failed_unread(events)
        elif self._channel and self.link:
            self._read(self._channel, self.link)
        elif self._channel_ended:
            self._read_in_vain()
        else:
            self._read_early()

    def _failed_unread(self, events: int) -> None:
        """A reset, or both ends of the connection: of the latter epoll would tell again and again."""
        if not events & ~(READ | WRITE):
            return  # it has been told of what it was watched for before
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._leave(_CLIENT_RESET)
        elif not self._waiting:
            self._events = 0
            self._watcher.change(self._fd, 0)

    def _read(self, channel: Channel, link: Link) -> None:
        room = channel.may_send_bytes
        if not room or link.congestion.holds(self._relieved):
            self._is_held = True
            self._watch()
            return
        largest = channel.largest_data
        try:
            if self._is_bulk and self.visitor is None and largest == LARGEST_DATA and room >= LARGEST_DATA:
                count = self._socket.recvmsg_into(_SLOT_VIEWS[: room // LARGEST_DATA])[0]
            else:
                count = self._socket.recv_into(SLOTS[0].data, min(largest, room))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._leave(_CLIENT_RESET)
            return
        if not count:
            self._end_reading()
            return
        self._is_bulk = count >= largest
        self._pass_on(channel, count, largest)

    def _pass_on(self, channel: Channel, count: int, largest: int) -> None:
        if self.visitor and not self.visitor.may_send(bytes(SLOTS[0].data[:count])):
            self._host.intrudes(self)
            return
        if self.talk.handshake:
            self.talk.handshake.said(bytes(SLOTS[0].data[:count]))
        self.sent += count
        self._host.moved(sent=count)
        for slot in SLOTS:
            size = min(count, largest)
            channel.send(slot, size)
            count -= size
            if not count:
                return

    def _end_reading(self) -> None:
        self._client_ended = True
        self._note(_CLIENT_CLOSED)
        self._watch()
        if self._channel:
            self._channel.end_sending()
        self._end_if_done()

    def _read_in_vain(self) -> None:
        """Its database has closed, and not all is written yet: closing with bytes unread would drop the rest."""
        try:
            count = self._socket.recv_into(SLOTS[0].data)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._leave()
            return
        if not count:
            self._client_ended = True
            self._watch()

    def may_send(self) -> None:
        """As End."""
        if self._is_held and not self.is_gone:
            self._resume()

    def _relieved(self) -> None:
        """Is read at once: else those who have been read meanwhile, and have more to say, would always come first."""
        self._resume()
        if self._events & READ and not self.is_gone:
            self._happened(READ)

    def _resume(self) -> None:
        """Reads the client again, after what it said early."""
        channel = self._channel
        if self.is_gone or channel is None:
            return
        self._send_early(channel)
        if self.is_gone:
            return
        self._is_held = bool(self._early)
        if self._client_ended and not self._early:
            self._note(_CLIENT_CLOSED)
            channel.end_sending()
        self._watch()

    def _send_early(self, channel: Channel) -> None:
        while self._early and channel.may_send_bytes and not self.is_gone:
            size = min(len(self._early), channel.largest_data, channel.may_send_bytes)
            SLOTS[0].data[:size] = self._early[:size]
            del self._early[:size]
            self._pass_on(channel, size, size)

    # --- to the client --------------------------------------------------------------------------------------------

    def received(self, pieces: list[memoryview]) -> None:
        """As End."""
        size = sum(map(len, pieces))
        self.talk.heard(pieces, self.sent)
        self._host.moved(received=size)
        if self.visitor:
            self.visitor.received()
        if self.received_bytes <= SNIFFED_BYTES:
            self._host.saw(self, b"".join(pieces)[:SNIFFED_BYTES])
        self.received_bytes += size
        if len(pieces) > PIECES_AT_ONCE:
            pieces = [memoryview(b"".join(pieces))]
        sent = 0 if self._waiting else self._write_now(pieces)
        if sent == size or self.is_gone:
            return
        self._waiting.add(b"".join(after(pieces, sent)))
        self._watch()

    def _write_now(self, pieces: list[memoryview]) -> int:
        try:
            sent = self._socket.send(pieces[0]) if len(pieces) == 1 else self._socket.sendmsg(pieces)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._leave(_CLIENT_RESET)
            return 0
        self._written += sent
        if self._channel:
            self._channel.taken(sent)
        return sent

    def _write(self) -> None:
        sent = self._write_now(self._waiting.first())
        if self.is_gone:
            return
        self._waiting.drop(sent)
        if not self._waiting:
            self._all_is_written()
            if not self.is_gone:
                self._watch()

    def ended_sending(self) -> None:
        """As End."""
        self._database_ended = True
        self._note(_DATABASE_CLOSED)
        if not self._waiting:
            self._all_is_written()

    def closed(self, *, whole: bool) -> None:
        """As End. Where something may be missing the client gets a reset rather than a clean end."""
        self._channel = None
        self._channel_ended = True
        if not whole:
            self.refuse(_CONNECTION_LOST if self.link and self.link.is_closing() else _CHANNEL_BROKEN)
            return
        self._note(_DATABASE_CLOSED)
        if self._waiting:
            self._is_held = False
            self._watch()
        else:
            self._leave()

    def _all_is_written(self) -> None:
        if self._channel_ended:
            self._leave()
        elif self._database_ended:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:  # it has reset the connection
                self._leave(_CLIENT_RESET)
                return
            self._end_if_done()

    # --- its end --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Has its socket watched for what can be done with it now."""
        events = WRITE if self._waiting else 0
        if not self._is_held and not self._client_ended:
            events |= READ
        if events != self._events or not events:
            self._events = events
            # for nothing: its failure is heard of all the same
            self._watcher.change(self._fd, events or _FAILURE)

    def moved(self) -> int:
        """How many bytes it has said and taken: what only waits for it, here or in the system, has not moved."""
        return self.sent + self._written - unacknowledged(self._fd)

    def has_all(self) -> bool:
        """Whether it has taken all that the database said: a reset drops nothing."""
        return not self._waiting and not unacknowledged(self._fd)

    def end_if_lost(self) -> None:
        """Ends it where its node has vanished."""
        if is_lost(self._socket):
            self._leave(_CLIENT_RESET)

    def _end_if_done(self) -> None:
        if self._client_ended and self._database_ended and not self._waiting:
            self._leave()

    def refuse(self, how: str = "refused", *, is_told: bool = False) -> None:
        """Ends the connection with a reset, which no client takes for a clean end, unless it has been told."""
        if not self.is_gone:
            self.was_refused = True
            if not is_told:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._leave(how)

    def _note(self, how: str) -> None:
        self.how = self.how or how

    def _leave(self, how: str = "") -> None:
        if self.is_gone:
            return
        self.is_gone = True
        self._note(how)
        self._watcher.forget(self._fd)
        self._socket.close()
        self._waiting.clear()
        if self._opening:
            self._opening.give_up()
        if self._channel:
            self._channel.close()
        if self.link:
            self.link.congestion.forget(self._relieved)
        self._host.gone(self)
