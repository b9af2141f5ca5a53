"""Makes the Secrets that tunnels need. Whether one is there can't be asked: what was made is remembered instead."""

import asyncio
from collections.abc import Hashable
from datetime import datetime

from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.controller.cluster import Cluster
from dbtunnel.controller.keys import generate_key
from dbtunnel.controller.queue import TunnelKey
from dbtunnel.domain import names
from dbtunnel.domain.observed import Problem
from dbtunnel.domain.secrets import build_binding, build_key_secret
from dbtunnel.domain.status import needs_generated_key

KEY_SECONDS = 30.0
"""The least time between two attempts to make a tunnel's key: a Secret that is there and empty looks to forwarders as
if it were not."""

BINDING_SECONDS = 600.0
"""When a binding is made again, in case that somebody has deleted it: with the next comparison of everything."""


class _Memory:
    """What was last made or found to be there for each tunnel, and when."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._made: dict[TunnelKey, tuple[Hashable, datetime]] = {}

    def has(self, key: TunnelKey, what: Hashable, now: datetime) -> bool:
        """Whether that is what it was, a moment ago."""
        known, last = self._made.get(key, (None, now))
        return known == what and 0 <= (now - last).total_seconds() < self._seconds

    def last(self, key: TunnelKey) -> Hashable:
        """What it was, however long ago; None where there was nothing."""
        return self._made[key][0] if key in self._made else None

    def note(self, key: TunnelKey, what: Hashable, now: datetime) -> None:
        """It is there now."""
        self._made[key] = what, now

    def forget(self, key: TunnelKey) -> None:
        """The tunnel has gone."""
        self._made.pop(key, None)


class Secrets:
    """The Secrets of all tunnels."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._keys, self._bindings = _Memory(KEY_SECONDS), _Memory(BINDING_SECONDS)

    def forget(self, key: TunnelKey) -> None:
        """The tunnel has gone."""
        self._keys.forget(key)
        self._bindings.forget(key)

    async def make_key(
        self, key: TunnelKey, tunnel: DatabaseTunnel, now: datetime, *, deployment_exists: bool
    ) -> Problem | None:
        """The Secret of a generated key, where it is needed. One that is there is used as it is, whoever made it."""
        occasion = tunnel.metadata.uid, deployment_exists
        if self._keys.has(key, occasion, now) or not needs_generated_key(tunnel, deployment_exists):
            return None
        kind, comment = tunnel.spec.tunnel.generated_key_type, names.key_comment(tunnel)
        data = await asyncio.to_thread(generate_key, kind, comment)
        problem = await self._cluster.create_secret(tunnel, build_key_secret(tunnel, data))
        if problem is None:
            self._keys.note(key, occasion, now)
        return problem

    async def make_binding(self, key: TunnelKey, tunnel: DatabaseTunnel, now: datetime) -> Problem | None:
        """What workloads bind to, where the tunnel is to have it."""
        binding = build_binding(tunnel)
        if binding is None or self._bindings.has(key, binding["metadata"]["name"], now):
            return None
        problem = await self._cluster.create_secret(tunnel, binding)
        if problem is None:
            self._bindings.note(key, binding["metadata"]["name"], now)
        return problem

    def binding(self, key: TunnelKey, tunnel: DatabaseTunnel) -> str | None:
        """The name of what workloads bind to; None while it is not there."""
        wanted = build_binding(tunnel)
        name: str | None = wanted["metadata"]["name"] if wanted else None
        return name if name == self._bindings.last(key) else None
