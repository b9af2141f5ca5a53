"""An operator's view of a real forwarder, with no cluster: it follows its /status and decides the conditions."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta

import aiohttp

from dbtunnel.api.status import Condition
from dbtunnel.controller.forwarders import Forwarders, Target
from dbtunnel.controller.queue import TunnelKey
from dbtunnel.domain.news import transition
from dbtunnel.domain.observed import Observation
from dbtunnel.domain.status import decide
from tests.support.forwarder import Forwarder
from tests.support.told import tunnel_of
from tests.support.values import INSTALLATION, current_pod, tunnel

KEY = TunnelKey("shop", "orders")


class Following:
    """The conditions of one forwarder's tunnel, as they become."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self._tunnel = tunnel_of(forwarder.config)
        self._changed = asyncio.Event()
        self.ahead_seconds = 0.0
        """How much later than it is the decisions are made: what waits for minutes need not be waited for."""
        self.forwarders = Forwarders(self._read, lambda _: self._changed.set(), self.now)
        self.told: list[tuple[str, str]] = []
        """Status and reason of Ready, whenever they became others."""
        self.event: tuple[str, str, str] | None = None
        """Type, reason and note of the last Event that would have been posted."""
        self.times: list[float] = []
        """When that was, by the clock `time.monotonic`."""

    def now(self) -> datetime:
        """The time of decisions."""
        return datetime.now(UTC) + timedelta(seconds=self.ahead_seconds)

    async def _read(self, _: Target, path: str, limit_seconds: float) -> bytes:
        address = f"http://127.0.0.1:{self._forwarder.admin_port}/{path}"
        timeout = aiohttp.ClientTimeout(total=limit_seconds)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(address) as answer:
            return await answer.read()

    @property
    def conditions(self) -> Mapping[str, Condition]:
        """As they were last decided."""
        return {one.type: one for one in self._tunnel.status.conditions or ()}

    def decide(self) -> float | None:
        """Decides anew. Returns the seconds after which to do so again."""
        pod = current_pod(self._tunnel, "pod-1")
        now = self.now()
        reports = {uid: report.counted(now) for uid, report in self.forwarders.reports(KEY).items()}
        decision = decide(self._tunnel, Observation(pods=(pod,), reports=reports), INSTALLATION, now)
        spec = self._tunnel.spec
        self.event = transition(self._tunnel.status.document(), decision.status) or self.event
        self._tunnel = tunnel(None, decision.status.document()).model_copy(update={"spec": spec})
        ready = self.conditions["Ready"]
        if self.told[-1:] != [(ready.status, ready.reason)]:
            self.told.append((ready.status, ready.reason))
            self.times.append(time.monotonic())
        return decision.requeue_seconds

    async def until(self, reason: str, timeout_seconds: float = 30) -> float:
        """Returns once Ready has the reason: when it got it, by the clock `time.monotonic`."""
        async with asyncio.timeout(timeout_seconds):
            while True:
                wait = self.decide()
                if self.told[-1][1] == reason:
                    return self.times[-1]
                await self._change(wait)

    async def wait(self, condition: Callable[[], bool], timeout_seconds: float = 30) -> None:
        """Returns once something that was heard fulfils the condition."""
        async with asyncio.timeout(timeout_seconds):
            while not condition():
                await self._change(None)

    async def _change(self, timeout_seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                await self._changed.wait()
        self._changed.clear()


@contextlib.asynccontextmanager
async def following(forwarder: Forwarder) -> AsyncIterator[Following]:
    """Follows a forwarder."""
    view = Following(forwarder)
    view.decide()
    view.forwarders.follow(KEY, {Target("shop", "pod-1", "pod-1", "127.0.0.1", forwarder.config.digest())})
    try:
        yield view
    finally:
        await view.forwarders.close()
