"""SSH servers that are none, for a forwarder in virtual time: logins, and connections with their channels."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import asyncssh
from asyncssh.packet import SSHPacket

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.forwarder.channel import Channel
from dbtunnel.forwarder.failures import Failure, Loss
from dbtunnel.forwarder.keyring import Keyring
from dbtunnel.forwarder.keys import Key
from dbtunnel.forwarder.link import End, Link
from dbtunnel.forwarder.login import lost
from dbtunnel.forwarder.pace import pause_seconds
from dbtunnel.forwarder.packets import Slot
from dbtunnel.forwarder.transport import Congestion
from tests.support.virtual_time import now

ANSWER_SECONDS, SILENT_SECONDS = 0.05, 10.0
"""How long a server takes to answer, and how long nobody waits any more for one that is silent."""

_OPEN, _EOF, _CLOSE = 90, 96, 97
"""SSH_MSG_CHANNEL_... (RFC 4254, section 9)."""

_WINDOW, _PACKET = 2**20, 2**15

CANCEL = b"\0\0\0\x10\x04\xd2\x16\x2e" + bytes(8)
"""PostgreSQL's CancelRequest, which is answered by the end of the connection."""

_REJECTED = Failure(ConditionType.AUTHENTICATED, Reason.KEY_REJECTED)


def let_stream(link: Link) -> None:
    """A stream of data goes over it, as far as it can tell."""
    for _ in range(2):
        link.carried(2**20)


class _Packets:
    """As a Link's: what is sent vanishes, but for a CancelRequest."""

    why_not = ""
    is_over = False

    def __init__(self, cancelled: Callable[[int], None]) -> None:
        """`cancelled`: told the channel's number."""
        self.channels: dict[int, Channel] = {}
        self._cancelled = cancelled

    def send_data(self, number: int, slot: Slot, size: int) -> None:
        """The database takes it."""
        if bytes(slot.data[:size]) == CANCEL:
            asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._cancelled, number)

    def send_adjust(self, *_: object) -> None:
        """The server has nothing more to send anyhow."""


class Connection:
    """An SSH connection, as asyncssh's for its Link, and what became of it.

    The server opens each channel that it is asked for, and closes it when the client has ended.
    """

    def __init__(self, hop: int, key: Key, carrier: "Connection | None" = None) -> None:
        """`carrier`: that to the jump host before, over which it goes."""
        self.hop, self.key, self.carrier = hop, key, carrier
        self.within: list[Connection] = []
        """Those that go over it."""
        self.made_at = now()
        self.ended_at: float | None = None
        self.is_closed = self.had_users = False
        """Whether the forwarder closed it, and whether it had users then."""
        self.drops = False
        """Whether packets on the way to it are lost."""
        self._channels: dict[int, Channel] = {}
        self._last = 0
        me, packets = cast(Any, self), cast(Any, _Packets(self._close))
        self.link = Link(me, lambda: not self.stands, Congestion(), End(hop), packets, key)
        self.link.is_unanswered = lambda: self.drops
        if carrier:
            self.link.carrier = carrier.link
            carrier.within.append(self)
            carrier.link.enter()

    @property
    def stands(self) -> bool:
        """Whether neither side has ended it."""
        return not self.is_closed and self.ended_at is None

    @property
    def users(self) -> int:
        """Of it, and of those that go over it."""
        return self.link.uses - len(self.within) + sum(one.users for one in self.within)

    def end(self, by: End | None = None) -> None:
        """It is gone, with `by` if that is what it went over; channels hear of that first."""
        if self.ended_at is not None:
            return
        self.ended_at = now()
        for channel in list(self._channels.values()):
            channel.process_connection_close(None)
        if by:
            self.link.end.happen(by.reason, by.at, Loss.JUMP_HOST)
        else:
            self.link.end.happen("reset")
        for one in list(self.within):
            one.end(self.link.end)
        if self.carrier:
            self.carrier.within.remove(self)
            self.carrier.link.leave()
            self.carrier.link.close()

    # --- as asyncssh's --------------------------------------------------------------------------------------------

    def abort(self) -> None:
        """The forwarder closes it."""
        if self.stands:
            self.is_closed, self.had_users = True, self.users > 0
            asyncio.get_running_loop().call_soon(self.end)

    def says(self, words: bytes, channel: Channel) -> None:
        """The database says something to a client."""
        if self.stands and channel.receive(memoryview(words)):
            channel.deliver()

    def add_channel(self, channel: Channel) -> int:
        """Its number. Raises asyncssh.ChannelOpenError."""
        if not self.stands:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "SSH connection closed")
        self._last += 1
        self._channels[self._last] = channel
        return self._last

    def remove_channel(self, number: int) -> None:
        """It is no more."""
        self._channels.pop(number)

    def send_packet(self, kind: int, *parts: bytes) -> None:
        """The server answers after a moment, if it hears of it."""
        if self.drops:
            return
        packet = SSHPacket(b"".join(parts))
        if kind == _OPEN:
            packet.get_string()
        answer = {_OPEN: self._confirm, _EOF: self._close, _CLOSE: self._close}[kind]
        asyncio.get_running_loop().call_later(ANSWER_SECONDS, answer, packet.get_uint32())

    def _confirm(self, number: int) -> None:
        if self.stands:
            self._channels[number].process_open_confirmation(number, _WINDOW, _PACKET, SSHPacket(b""))

    def _close(self, number: int) -> None:
        if self.stands and number in self._channels:
            self._channels[number].process_packet(_CLOSE, 0, SSHPacket(b""))


@dataclass
class Attempt:
    """An attempt to log in, and what came of it."""

    hop: int
    seen: int
    """Number of the state of the Secret that the forwarder knew."""
    files: int
    """Number of that which it tries: the same, but for a server whose turn comes in the middle of a round."""
    began: float
    round_began: float
    """When the first server of the same way was tried."""
    ended: float | None = None
    failure: Failure | None = None
    made: Connection | None = None


class Server:
    """An SSH server; stands for the Login there."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.keyring = cast(Keyring, None)
        self.fails: Reason | None = None
        """What it does to everybody."""
        self.rejected: set[str] = set()
        """Fingerprints of keys that it does not know."""
        self.on_attempt: Callable[[Attempt], None] = lambda _: None
        self.files: Callable[[], int] = lambda: 0

    async def connect(self, _: object, carrier: Link | None = None) -> Link:
        """As Login's."""
        attempt = Attempt(self.number, self.files(), self.files(), now(), now())
        self.on_attempt(attempt)
        try:
            attempt.made = await self._made(carrier)
        except Failure as failure:
            attempt.failure = failure
            raise
        finally:
            attempt.ended = now()
        return attempt.made.link

    async def _made(self, carrier: Link | None) -> Connection:
        fails = self.fails
        await self.keyring.keys.ready()
        offers = self.keyring.offers(now())
        await asyncio.sleep(SILENT_SECONDS if fails is Reason.CONNECT_TIMEOUT else ANSWER_SECONDS)
        if carrier and carrier.is_closing():
            raise lost(carrier)
        if fails:
            raise Failure(REASONS[fails].type, fails, hop=self.number)
        for key in offers:
            if key.fingerprint not in self.rejected:
                return Connection(self.number, key, cast(Connection, carrier.connection) if carrier else None)
            self.rest(key, _REJECTED)
        raise Failure(_REJECTED.layer, _REJECTED.reason, hop=self.number)

    def rest(self, key: Key, failure: Failure) -> None:
        """As Login's."""
        self.keyring.refused(key, failure, now() + pause_seconds(_REJECTED, 0, 1))
