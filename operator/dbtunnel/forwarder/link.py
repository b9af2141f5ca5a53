"""An SSH connection that stands, as those see it who open channels on it."""

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import asyncssh

from dbtunnel.forwarder.failures import Loss
from dbtunnel.forwarder.keys import Key
from dbtunnel.forwarder.packets import Packets
from dbtunnel.forwarder.transport import Congestion
from dbtunnel.forwarder.windows import Windows

OPENING_AT_ONCE = 128
"""Channels being opened at the same time: a flood of clients waits here, not on the bastion."""

ABANDONED_AT_MOST = 384
"""Openings that nobody waits for any more and that do not hold up others. Each is still a socket of the bastion's."""


_STREAM_BYTES, _STREAM_SECONDS = 2**20, 0.25
"""As much within so long, or as fast, is a stream: whoever shares its connection waits behind it."""

_REMEMBERED_SECONDS = 1.0
"""How long a connection counts as one with a stream after it was last seen; longer where it is told of less often."""

STREAM_CLIENTS = 64
"""As many clients a stream counts for where a new one is to go: else all would pile up on the other connections."""


class Opening(Protocol):
    """A channel to be opened."""

    def start(self) -> None:
        """There is room for it."""


class End:
    """The end of a connection: it happens once, and its follower hears of it before anybody else."""

    def __init__(self, hop: int = 0) -> None:
        self.happened = asyncio.Event()
        self.reason = ""
        self.loss: Loss | None = None
        """The same in a word: what was known first."""
        self.hop = hop
        """Number of the SSH server that the connection leads to."""
        self.at = hop
        """Number of the one that was lost: a jump host takes along what goes through it."""
        self.on_end: Callable[[], None] = lambda: None

    def happen(self, reason: str, at: int | None = None, loss: Loss = Loss.LOST) -> None:
        """The connection is gone, by that of another SSH server where one is given."""
        self.reason, self.at = reason, self.hop if at is None else at
        self.loss = self.loss or loss
        self.happened.set()
        self.on_end()


class Openings:
    """Lets a number of channels be opened at the same time.

    The SSH server answers an opening only once it knows, which takes two minutes for a database that drops packets.
    Those whose client has given up make room, else the database would be out of reach for that long after its return.
    """

    def __init__(self) -> None:
        self._room = OPENING_AT_ONCE
        self._is_starting = False
        self._waiting: dict[Opening, None] = {}
        self._abandoned: set[Opening] = set()

    def ask(self, opening: Opening) -> None:
        """Starts it, now or when there is room."""
        self._waiting[opening] = None
        self._start()

    def ended(self, opening: Opening) -> None:
        """The server has answered."""
        if opening in self._abandoned:
            self._abandoned.discard(opening)
        else:
            self._room += 1
            self._start()

    def give_up(self, opening: Opening, *, started: bool) -> None:
        """Nobody waits for it any more."""
        if not started:
            self._waiting.pop(opening, None)
        elif len(self._abandoned) < ABANDONED_AT_MOST:
            self._abandoned.add(opening)
            self._room += 1
            self._start()

    def _start(self) -> None:
        """Starts what there is room for; one that fails at once makes room for the next within this loop."""
        if self._is_starting:
            return
        self._is_starting = True
        try:
            while self._room and self._waiting:
                self._room -= 1
                first = next(iter(self._waiting))
                del self._waiting[first]
                first.start()
        finally:
            self._is_starting = False


@dataclass(eq=False)
class Link:
    """One SSH connection, and who uses it."""

    connection: asyncssh.SSHClientConnection
    is_closing: Callable[[], bool]
    """Whether the connection is gone or about to go: channels that end now end with it."""
    congestion: Congestion
    end: End
    packets: Packets
    key: Key | None = None
    """With which it logged in; None while it does."""
    carrier: "Link | None" = None
    """The connection to the jump host before, over which it goes."""
    round_trip_seconds: Callable[[], float] = field(default=lambda: 0.0)
    """The time to the server and back."""
    is_unanswered: Callable[[], bool] = field(default=lambda: False)
    """Whether packets on the way to the server are dropped, it seems. Keepalives decide whether it is lost."""
    is_doubted: bool = False
    """Whether that was so when somebody waited in vain: new clients do not take it while it is."""
    openings: Openings = field(default_factory=Openings)
    on_unused: Callable[[], None] = field(default=lambda: None)
    """Called whenever the last channel has ended."""
    uses: int = 0
    """Channels that are open or being opened."""
    probed_at: float | None = None
    """When the channel of the last probe was open; `time.monotonic`."""
    windows: Windows = field(default_factory=Windows)
    """Those of its channels, and of the other connections of the process."""
    _counted: int = 0
    _counted_since: float = -math.inf
    _streams_until: float = -math.inf

    @property
    def lost(self) -> asyncio.Event:
        """Set when the connection is gone."""
        return self.end.happened

    def logins(self) -> Iterator[tuple[int, Key]]:
        """With which keys it and those that it goes over logged in, by the number of the SSH server."""
        if self.carrier:
            yield from self.carrier.logins()
        if self.key:
            yield self.end.hop, self.key

    def fingerprints(self) -> dict[int, str]:
        """The same, for people."""
        return {number: key.fingerprint for number, key in self.logins()}

    def is_like(self, other: "Link") -> bool:
        """Whether both were made through the same servers, with the same keys and certificates."""
        mine, theirs = ({number: key.identity for number, key in one.logins()} for one in (self, other))
        return mine == theirs

    def carried(self, count: int) -> None:
        """So many bytes of one channel were taken at their end; told where a window is widened, for them together."""
        self._counted += count
        if self._counted >= _STREAM_BYTES:
            now = asyncio.get_running_loop().time()
            elapsed = now - self._counted_since
            if elapsed * _STREAM_BYTES < self._counted * _STREAM_SECONDS:
                self._streams_until = now + max(_REMEMBERED_SECONDS, 2 * elapsed)
            self._counted, self._counted_since = 0, now

    def has_stream(self) -> bool:
        """Whether bytes went over it lately as fast as those of a stream do, in either direction."""
        return asyncio.get_running_loop().time() < self._streams_until

    def burden(self) -> int:
        """What a new client would share it with: clients, and as many more for a stream."""
        return self.uses + STREAM_CLIENTS * self.has_stream()

    def is_usable(self) -> bool:
        """Whether a new client may take it."""
        self.is_doubted = self.is_doubted and self.is_unanswered()
        return not (self.is_doubted or self.is_closing())

    def first(self) -> "Link":
        """The one whose packets go over the network for all that go over it."""
        return self.carrier.first() if self.carrier else self

    def enter(self) -> None:
        """A channel is being opened, or is open."""
        self.uses += 1

    def leave(self) -> None:
        """It is not any more."""
        self.uses -= 1
        if not self.uses:
            self.on_unused()

    def close(self) -> None:
        """Ends it with all its channels."""
        self.connection.abort()
