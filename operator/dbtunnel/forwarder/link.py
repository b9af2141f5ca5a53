"""An SSH connection that stands, as those see it who open channels on it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import asyncssh

from dbtunnel.forwarder.transport import Congestion

OPENING_AT_ONCE = 128
"""Channels being opened at the same time: a flood of clients waits here, not on the bastion."""

ABANDONED_AT_MOST = 384
"""Openings that nobody waits for any more and that do not hold up others. Each is still a socket of the bastion's."""

Opening = asyncio.Future[tuple[asyncssh.SSHTCPChannel[bytes], asyncssh.SSHTCPSession[bytes]]]


class End:
    """The end of a connection: it happens once, and its follower hears of it before anybody else."""

    def __init__(self) -> None:
        self.happened = asyncio.Event()
        self.reason = ""
        self.on_end: Callable[[], None] = lambda: None

    def happen(self, reason: str) -> None:
        """The connection is gone."""
        self.reason = reason
        self.happened.set()
        self.on_end()


class Openings:
    """Lets a number of channels be opened at the same time.

    The SSH server answers an opening only once it knows, which takes two minutes for a database that drops packets.
    Those whose client has given up make room, else the database would be out of reach for that long after its return.
    """

    def __init__(self) -> None:
        self._room = asyncio.Semaphore(OPENING_AT_ONCE)
        self._abandoned: set[Opening] = set()

    async def room(self) -> None:
        """Waits until one more may be opened."""
        await self._room.acquire()

    def ended(self, opening: Opening) -> None:
        """The server has answered."""
        if opening in self._abandoned:
            self._abandoned.discard(opening)
        else:
            self._room.release()

    def abandon(self, opening: Opening) -> None:
        """Nobody waits for it any more."""
        if not opening.done() and len(self._abandoned) < ABANDONED_AT_MOST:
            self._abandoned.add(opening)
            self._room.release()


@dataclass(eq=False)
class Link:
    """One SSH connection, and who uses it."""

    connection: asyncssh.SSHClientConnection
    is_closing: Callable[[], bool]
    """Whether the connection is gone or about to go: channels that end now end with it."""
    congestion: Congestion
    end: End
    openings: Openings = field(default_factory=Openings)
    on_unused: Callable[[], None] = field(default=lambda: None)
    """Called whenever the last channel has ended."""
    uses: int = 0
    """Channels that are open or being opened."""

    @property
    def lost(self) -> asyncio.Event:
        """Set when the connection is gone."""
        return self.end.happened

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
