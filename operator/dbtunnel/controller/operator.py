"""The operator's parts at work: watch, queue, resync, and whether all of it goes on."""

import asyncio
import logging
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NoReturn

import aiohttp
import kopf

from dbtunnel.api.conditions import ConditionType
from dbtunnel.controller import forwarders as pods
from dbtunnel.controller.client import DEPLOYMENT, TUNNEL, ApiError, Client
from dbtunnel.controller.cluster import Cluster
from dbtunnel.controller.handlers import WATCHED, StuckError, build_registry
from dbtunnel.controller.logs import event
from dbtunnel.controller.metrics import (
    LAST_RECONCILE,
    QUEUE_DEPTH,
    RECONCILE_SECONDS,
    TUNNEL_READY,
    TUNNELS,
    WORKING,
    Metrics,
)
from dbtunnel.controller.queue import TunnelKey, WorkQueue
from dbtunnel.controller.reconcile import Reconciler
from dbtunnel.controller.rollouts import Rollouts
from dbtunnel.controller.settings import Settings
from dbtunnel.controller.store import Store
from dbtunnel.domain.metrics import Labels
from dbtunnel.domain.names import CHILD_SELECTOR

logger = logging.getLogger(__name__)

NEWS_SECONDS = 0.3
"""How long after a forwarder's news a tunnel is reconciled: the layers of a connection come up one after the other."""

STUCK_SECONDS = 600
"""How long a reconcile may take, or tunnels may wait with none finished, until the operator reports itself unhealthy.
Each request is given up after half a minute, so that an API server that does not answer is no reason."""

SPREAD_SECONDS = 30
"""Over which time a resync spreads the reconciles of all tunnels."""

QUIET_SECONDS = 2
"""How long no watch has to have begun anew until a resync makes up for what they did not tell."""

SOON_SECONDS = 5
"""When a resync follows the start, since what went before the watches began was heard by none, or one that failed."""

_API_FAILURES = (ApiError, aiohttp.ClientError, OSError, TimeoutError)


class NotServedError(RuntimeError):
    """The API server has no DatabaseTunnels."""

    def __init__(self) -> None:
        super().__init__(
            f"the API server has no {TUNNEL.plural}.{TUNNEL.group}: install the CustomResourceDefinition"
            " (the chart does so unless crds.enabled is false; or: dbtunnel crd | kubectl apply --server-side -f -)"
        )


class Operator:
    """The parts and how they hang together."""

    def __init__(self, settings: Settings, client: Client, metrics: Metrics, read: pods.Read) -> None:
        self._settings = settings
        self._client = client
        self._metrics = metrics
        self._finished = time.monotonic()
        self._running: dict[TunnelKey, float] = {}
        """Reconciles in progress and when each began."""
        self._listed = asyncio.Event()
        self._listed_at = 0.0
        self.is_watching = False
        """Whether the first lists are there."""
        self.begun = asyncio.Event()
        """Set by Kopf when it has begun."""
        self.store = Store()
        self.queue = WorkQueue()
        self.forwarders = pods.Forwarders(read, lambda key: self.queue.add(key, NEWS_SECONDS), _now)
        self.reconciler = Reconciler(
            Cluster(client, self.store, metrics),
            self.store,
            self.forwarders,
            Rollouts(settings.rollouts, time.monotonic, lambda: self.store.of_kind(DEPLOYMENT.name)),
            settings.installation(),
        )
        metrics.look_up(QUEUE_DEPTH, lambda: {"": self.queue.depth})
        metrics.look_up(LAST_RECONCILE, lambda: {"": round(self._idle_seconds(), 3)})
        metrics.look_up(WORKING, lambda: {"": self.is_watching})
        metrics.look_up(TUNNELS, self._tunnels_by_readiness)
        metrics.look_up(TUNNEL_READY, lambda: {one[:3]: one[3] == "True" for one in self._readiness()})

    async def start(self) -> None:
        """The first resync; waits where the API server does not answer. Raises NotServedError, ApiError if refused."""
        wait = 1.0
        while True:
            try:
                await self.resync()
            except _API_FAILURES as error:
                if isinstance(error, ApiError) and error.status < 500 and error.status not in _PASSING:
                    raise
                event(logger, "waiting for the API server", level=logging.WARNING, error=pods.describe(error))
            else:
                self.is_watching = True
                return
            await asyncio.sleep(wait)
            wait = min(wait * 2, 15)

    async def resync(self) -> None:
        """Compares what is known with fresh lists, and enqueues what differs. Raises NotServedError, ApiError."""
        refusal: ApiError | None = None
        scopes = self._settings.namespaces or ("",)
        refused = 0
        for namespace in scopes:
            try:
                await self._resync_in(namespace)
            except ApiError as error:
                if error.status != 403:
                    raise
                # a namespace that was deleted took its RoleBinding along, and must not end the others' service
                refusal, refused = error, refused + 1
                event(logger, "namespace not readable", level=logging.ERROR, namespace=namespace, error=str(error))
        if refusal and refused == len(scopes):
            raise refusal

    async def _resync_in(self, namespace: str) -> None:
        for kind in WATCHED:
            selector = "" if kind is TUNNEL else CHILD_SELECTOR
            try:
                items, at = await self._client.list(kind, namespace, selector)
            except ApiError as error:
                if kind is TUNNEL and error.status == 404:
                    raise NotServedError from error
                raise
            for key in self.store.replace(kind.name, items, at, [namespace] if namespace else []):
                self.queue.add(key)

    async def resync_forever(self) -> None:
        """Resyncs now and then, at no two operators' same time, and soon after a watch began anew.

        All tunnels are reconciled then, so that nothing depends on an event that was heard or a time that was set.
        """
        interval: float = SOON_SECONDS
        while True:
            await self._listed_or(interval * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                await self.resync()
                interval = self._settings.resync_seconds
            except _API_FAILURES as error:
                event(logger, "resync failed", level=logging.WARNING, error=pods.describe(error))
                interval = SOON_SECONDS
                continue
            for tunnel in self.store.tunnels():
                key = TunnelKey(tunnel["metadata"]["namespace"], tunnel["metadata"]["name"])
                self.queue.add(key, random.uniform(0, SPREAD_SECONDS))  # noqa: S311

    def listed(self) -> None:
        """Hears of each object of a list with which a watch begins, or begins anew."""
        self._listed.set()
        self._listed_at = asyncio.get_running_loop().time()

    async def _listed_or(self, seconds: float) -> None:
        """Waits until a watch has begun anew, which does not tell what has gone meanwhile, but at most some time."""
        try:
            async with asyncio.timeout(seconds):
                await self._listed.wait()
        except TimeoutError:
            return
        # the other watches begin anew at about the same time, and long lists take theirs
        loop = asyncio.get_running_loop()
        end = loop.time() + SPREAD_SECONDS
        while (wait := min(self._listed_at + QUIET_SECONDS, end) - loop.time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(wait)
        self._listed.clear()

    async def handle(self, key: TunnelKey) -> float | None:
        """One reconcile, with its log line and its metrics."""
        with self._measured(key) as outcome:
            try:
                requeue = await self.reconciler.reconcile(key, _now())
            except _API_FAILURES as error:
                outcome.result = "conflict" if isinstance(error, ApiError) and error.status == 409 else "refused"
                outcome.fields["error"] = pods.describe(error)
                raise
            except Exception as error:
                logger.exception("reconcile failed", extra={"fields": {"namespace": key.namespace, "tunnel": key.name}})
                raise error
            outcome.result, outcome.fields["requeue_seconds"] = "succeeded", requeue
        return requeue

    @contextmanager
    def _measured(self, key: TunnelKey) -> Iterator["_Outcome"]:
        outcome = _Outcome()
        began = self._running[key] = time.monotonic()
        try:
            yield outcome
        finally:
            del self._running[key]
            self._finished = time.monotonic()
            seconds = self._finished - began
            self._metrics.observe(RECONCILE_SECONDS, seconds, outcome.result)
            if outcome.result != "failed":
                level = logging.WARNING if outcome.result == "refused" else logging.DEBUG
                event(
                    logger,
                    "reconciled",
                    level=level,
                    namespace=key.namespace,
                    tunnel=key.name,
                    result=outcome.result,
                    seconds=round(seconds, 4),
                    **outcome.fields,
                )

    async def watch(self) -> NoReturn:
        """Runs Kopf for ever. Raises NotServedError where a watch ends for good."""
        namespaces = self._settings.namespaces
        port = self._settings.liveness_port
        await kopf.operator(
            registry=build_registry(self.store, self.queue, self.health, self.listed, self.forwarders.close),
            ready_flag=self.begun,
            clusterwide=not namespaces,
            namespaces=namespaces,
            liveness_endpoint=f"http://{_bracketed(self._settings.listens_on)}:{port}/healthz",
            # its own way of finding one fails under a random user id
            identity="operator",  # type: ignore[arg-type]
        )
        # a watch ends for good where its kind is not served any more, and nowhere else
        raise NotServedError

    def health(self) -> dict[str, float]:
        """For the liveness endpoint. Raises StuckError."""
        idle, now = self._idle_seconds(), time.monotonic()
        longest = max((now - began for began in self._running.values()), default=0.0)
        if longest > STUCK_SECONDS:
            raise StuckError(f"a reconcile has taken {longest:.0f} s so far")
        if self.queue.depth and idle > STUCK_SECONDS:
            raise StuckError(f"{self.queue.depth} tunnels wait, and none was reconciled for {idle:.0f} s")
        return {"lastReconcileAgeSeconds": round(idle, 3), "queueDepth": self.queue.depth}

    def _idle_seconds(self) -> float:
        return time.monotonic() - self._finished

    def _tunnels_by_readiness(self) -> Mapping[Labels, float]:
        counts: dict[Labels, float] = dict.fromkeys(("True", "False", "Unknown"), 0)
        for *_, status in self._readiness():
            counts[status] += 1
        return counts

    def _readiness(self) -> Iterator[tuple[str, str, str, str]]:
        """Namespace and name of each tunnel that is not on its way out, reason and status of its condition Ready."""
        for tunnel in self.store.tunnels():
            if "deletionTimestamp" in tunnel["metadata"]:
                continue
            conditions = (tunnel.get("status") or {}).get("conditions") or ()
            ready: Mapping[str, str] = next((one for one in conditions if one["type"] == ConditionType.READY), {})
            metadata = tunnel["metadata"]
            yield metadata["namespace"], metadata["name"], ready.get("reason", ""), ready.get("status", "Unknown")


_PASSING = (408, 410, 429)
"""Refusals that are no judgement: a time limit, a list that became too old between two pages, too many requests."""


class _Outcome:
    """How a reconcile ended."""

    def __init__(self) -> None:
        self.result = "failed"
        self.fields: dict[str, object] = {}


def _now() -> datetime:
    return datetime.now(UTC)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
