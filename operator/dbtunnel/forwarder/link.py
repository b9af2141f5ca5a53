"""An SSH connection that stands, as those see it who open channels on it."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import asyncssh

from dbtunnel.forwarder.transport import Congestion

_OPENING_AT_ONCE = 128
"""Channels being opened at the same time: a flood of clients waits here, not on the bastion."""


@dataclass(eq=False)
class Link:
    """One SSH connection, and who uses it."""

    connection: asyncssh.SSHClientConnection
    congestion: Congestion
    lost: asyncio.Event
    """Set when the connection is gone."""
    why_lost: Callable[[], str]
    """What ended it, once it is lost."""
    uses: int = 0
    """Clients' channels that are open or being opened."""
    opening: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_OPENING_AT_ONCE))

    def close(self) -> None:
        """Ends it with all its channels."""
        self.connection.abort()
