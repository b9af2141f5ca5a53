"""Leader election by a Lease (coordination.k8s.io): one operator works, others stand by.

The Kubernetes client's own election cannot create a Lease, has no time limit for a request, and gives nothing up.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import inf
from typing import Any
from uuid import uuid4

import aiohttp

from dbtunnel.controller.client import ApiError, Client, Kind
from dbtunnel.controller.logs import event

logger = logging.getLogger(__name__)

KIND = Kind("Lease", "coordination.k8s.io/v1", "leases")

LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS = 15, 8, 2
"""How long a lease holds after its last renewal, how long its holder goes on without one, and how often all try."""

ANSWER_SECONDS = 4
"""How long one attempt may take: begun at the last moment, it is over before the lease is."""

_FAILURES = (ApiError, aiohttp.ClientError, OSError, TimeoutError)

_REFUSALS = (401, 403)


class LeaseLostError(RuntimeError):
    """The Lease is another's, or could not be renewed in time: nobody may go on working."""


def waking_clock() -> float:
    """Seconds that go on while the machine is suspended, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Election:
    """One candidate. Time is measured by its own clock alone: it need not agree with anybody's."""

    def __init__(self, client: Client, namespace: str, name: str, clock: Callable[[], float] = waking_clock) -> None:
        """Namespace and name: of the Lease. `clock`: seconds that only grow, and that no sleep of the machine stops."""
        self.identity = f"{socket.gethostname()}_{uuid4()}"
        self._client = client
        self._namespace = namespace
        self._name = name
        self._clock = clock
        self._seen: tuple[str, float] = ("", 0.0)
        """The version of the Lease that was last seen, and since when it is the latest."""
        self._renewed = -inf
        """When the last renewal that succeeded began."""
        self._answered = -inf
        """When the API server last told who has the Lease."""

    def holds(self) -> bool:
        """Whether the Lease is surely ours. Its clock goes on while the process is stopped or the machine suspended, so
        that one that wakes up after its lease was over writes nothing, before it has asked for the Lease.
        """
        return self.seconds_left() > 0

    def seconds_left(self) -> float:
        """How long a write may take that begins now, to be over before another operator works. 0 where none may."""
        age = self._clock() - self._renewed
        return LEASE_SECONDS - age if age < RENEW_SECONDS else 0.0

    def stands_by(self) -> bool:
        """Whether it could take the Lease were that free: the API server has said so lately."""
        return self._clock() - self._answered < LEASE_SECONDS

    async def hold(self, elected: asyncio.Event) -> None:
        """Takes the Lease, sets `elected`, and renews it until cancelled. Raises LeaseLostError where it cannot, and
        ApiError where it lacks the rights. One that leads or stands by goes on without them as long as a lease holds,
        since an uninstall removes them first.
        """
        while not await self._attempt(bears_refusal=self.stands_by()):  # noqa: ASYNC110
            await asyncio.sleep(RETRY_SECONDS)
        event(logger, "elected", identity=self.identity)
        elected.set()
        try:
            await self._renew()
        except asyncio.CancelledError:
            await self._give_up()
            raise

    async def _renew(self) -> None:
        is_ours = True
        while is_ours or self.holds():
            await asyncio.sleep(RETRY_SECONDS)
            is_ours = await self._attempt(bears_refusal=True)
        raise LeaseLostError(f"the Lease {self._namespace}/{self._name} is lost")

    async def _attempt(self, *, bears_refusal: bool) -> bool:
        """Whether the Lease is ours for another while. Raises ApiError where rights are missing and must not."""
        began = self._clock()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                is_ours = await self._take()
        except _FAILURES as error:
            if isinstance(error, ApiError) and error.status in _REFUSALS and not bears_refusal:
                raise
            level = logging.DEBUG if isinstance(error, ApiError) and error.status == 409 else logging.WARNING
            event(logger, "lease not taken", level=level, error=f"{type(error).__name__}: {error}")
            return False
        self._answered = self._clock()
        # another that holds it works already
        self._renewed = began if is_ours else -inf
        return is_ours

    async def _take(self) -> bool:
        lease = await self._client.get(KIND, self._namespace, self._name)
        if lease is None:
            metadata = {"name": self._name, "namespace": self._namespace}
            document = {"apiVersion": KIND.group_version, "kind": KIND.name, "metadata": metadata}
            await self._client.create(KIND, {**document, "spec": self._spec({})})
            return True
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") not in (None, "", self.identity) and not self._is_over(lease):
            return False
        await self._client.replace(KIND, {**lease, "spec": self._spec(spec)})
        return True

    def _is_over(self, lease: Mapping[str, Any]) -> bool:
        version, now = lease["metadata"]["resourceVersion"], self._clock()
        if version != self._seen[0]:
            self._seen = version, now
        return now - self._seen[1] >= (lease["spec"].get("leaseDurationSeconds") or LEASE_SECONDS)

    def _spec(self, before: Mapping[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        is_ours = before.get("holderIdentity") == self.identity
        return {
            **before,
            "holderIdentity": self.identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": before.get("acquireTime", now) if is_ours else now,
            "renewTime": now,
            "leaseTransitions": (before.get("leaseTransitions") or 0) + (not is_ours),
        }

    async def _give_up(self) -> None:
        """Lets another take the Lease at once, where it is still ours. Whatever is still ending here writes no more."""
        self._renewed = -inf
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                lease = await self._client.get(KIND, self._namespace, self._name)
                if lease and lease["spec"].get("holderIdentity") == self.identity:
                    kept = {key: value for key, value in lease["spec"].items() if key != "holderIdentity"}
                    await self._client.replace(KIND, {**lease, "spec": kept})
        except _FAILURES as error:
            event(logger, "lease not given up", level=logging.WARNING, error=f"{type(error).__name__}: {error}")
