"""Clients on which nothing happens: how long that may last, and what becomes of them when the process ends."""

import asyncio
from collections.abc import Callable, Collection, Iterable

from dbtunnel.api.engines import WireProtocol
from dbtunnel.forwarder.client import Client
from dbtunnel.forwarder.metrics import SESSIONS_IDLE, Metrics

SILENT_SECONDS = 60.0
"""For how long a client may say nothing at all. No server waits longer for a login by default: this is PostgreSQL's
authentication_timeout (its manual, "Connections and Authentication"), which hears of no client before its first byte.
"""

LOOKS = 10
"""How often clients are looked at within the time that they have: they are ended that part of it later at most."""

_DRAIN_LOOK_SECONDS = 0.5
"""How often they are while the process drains."""


class Quiet:
    """Looks at all clients now and then."""

    def __init__(
        self,
        clients: Collection[Client],
        protocol: WireProtocol,
        limit: float | None,
        metrics: Metrics,
        refuse: Callable[[Client, str], None],
    ) -> None:
        """`limit`: seconds of idleness after which a session is ended. `refuse`: has no place for a client."""
        self._clients, self._protocol, self._limit = clients, protocol, limit
        self._metrics, self._refuse = metrics, refuse
        self._loop = asyncio.get_running_loop()
        self._seen: dict[Client, tuple[int, float]] = {}
        """How many bytes each had moved when it was looked at, and when it was first seen to be that many."""

    async def run(self) -> None:
        """Ends idle sessions, and clients that say nothing or have vanished, until cancelled."""
        patience = min(self._limit or SILENT_SECONDS, SILENT_SECONDS)
        while True:
            await asyncio.sleep(patience / LOOKS)
            for client in list(self._clients):
                client.end_if_lost()
            for client, seconds in self._look(client for client in self._clients if self._limit or _is_silent(client)):
                if _is_silent(client) and seconds >= patience:
                    self._refuse(client, "Silent")
                elif self._limit and seconds >= self._limit:
                    self._metrics.add(SESSIONS_IDLE)
                    client.refuse("idle")

    async def end(self, left: float) -> None:
        """Ends sessions that are at rest and have been quiet for as long as is left of so many seconds: those of pools,
        which would not end by themselves, go first, and what runs goes last. Before all go those who say nothing.
        """
        end = self._loop.time() + left
        while left > 0:
            for client, seconds in self._look(self._clients):
                if self._may_end(client, seconds, left):
                    client.refuse("forwarder ended")
            await asyncio.sleep(min(_DRAIN_LOOK_SECONDS, left))
            left = end - self._loop.time()

    def _may_end(self, client: Client, seconds: float, left: float) -> bool:
        if _is_silent(client):
            return seconds >= _DRAIN_LOOK_SECONDS
        return seconds >= left and client.has_all() and client.talk.is_over(self._protocol, client.sent)

    def forget(self, client: Client) -> None:
        """It is gone."""
        self._seen.pop(client, None)

    def _look(self, clients: Iterable[Client]) -> list[tuple[Client, float]]:
        """Those that are served or have said nothing, each with the seconds for which nothing was seen to pass."""
        now = self._loop.time()
        looked_at = [client for client in clients if client.was_joined or _is_silent(client)]
        for client in looked_at:
            moved = client.moved()
            if self._seen.get(client, (-1, now))[0] != moved:
                self._seen[client] = moved, now
        return [(client, now - self._seen[client][1]) for client in looked_at]


def _is_silent(client: Client) -> bool:
    """Whether it has not said a byte of those without which nobody asks for its channel."""
    return client.asked_at is None
