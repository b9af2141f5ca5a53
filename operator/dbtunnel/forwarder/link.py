"""An SSH connection that stands, as those see it who open channels on it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import asyncssh

from dbtunnel.forwarder.transport import Congestion

_OPENING_AT_ONCE = 128
"""Channels being opened at the same time: a flood of clients waits here, not on the bastion."""


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


@dataclass(eq=False)
class Link:
    """One SSH connection, and who uses it."""

    connection: asyncssh.SSHClientConnection
    congestion: Congestion
    end: End
    uses: int = 0
    """Clients' channels that are open or being opened."""
    opening: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_OPENING_AT_ONCE))

    @property
    def lost(self) -> asyncio.Event:
        """Set when the connection is gone."""
        return self.end.happened

    def close(self) -> None:
        """Ends it with all its channels."""
        self.connection.abort()
