"""The operator's process: everything is made here and runs until the first part of it ends."""

import asyncio
import logging
import os
import random
import time
from collections.abc import Awaitable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import aiohttp
import kopf
from kubernetes.aio.client import ApiClient

from dbtunnel.api.conditions import ConditionType
from dbtunnel.controller import forwarders as pods
from dbtunnel.controller import metrics as prometheus
from dbtunnel.controller.client import TUNNEL, ApiError, Client, load_configuration
from dbtunnel.controller.cluster import Cluster
from dbtunnel.controller.handlers import WATCHED, StuckError, build_registry
from dbtunnel.controller.leader import hold_lease
from dbtunnel.controller.logs import event
from dbtunnel.controller.queue import TunnelKey, WorkQueue
from dbtunnel.controller.reconcile import Reconciler
from dbtunnel.controller.rollouts import Rollouts
from dbtunnel.controller.settings import PodAccess, Settings
from dbtunnel.controller.store import Store
from dbtunnel.domain.names import CHILD_SELECTOR

logger = logging.getLogger(__name__)

NEWS_SECONDS = 0.3
"""How long after a forwarder's news a tunnel is reconciled: the layers of a connection come up one after the other."""

STUCK_SECONDS = 600
"""After this time with waiting tunnels and no finished reconcile the operator reports itself unhealthy."""

_API_FAILURES = (ApiError, aiohttp.ClientError, OSError, TimeoutError)


class NotServedError(RuntimeError):
    """The API server has no DatabaseTunnels."""


class Operator:
    """The parts and how they hang together."""

    def __init__(self, settings: Settings, client: Client, metrics: prometheus.Metrics, read: pods.Read) -> None:
        self._settings = settings
        self._client = client
        self._metrics = metrics
        self._finished = time.monotonic()
        self.store = Store()
        self.queue = WorkQueue()
        self.forwarders = pods.Forwarders(read, lambda key: self.queue.add(key, NEWS_SECONDS), _now)
        self.reconciler = Reconciler(
            Cluster(client, self.store, metrics),
            self.store,
            self.forwarders,
            Rollouts(settings.rollouts, time.monotonic),
            settings.installation(),
        )
        metrics.queue_depth.read = lambda: {(): self.queue.depth}
        metrics.tunnels.read = self._tunnels_by_readiness
        metrics.last_reconcile.read = lambda: {(): self._idle_seconds()}

    async def resync(self) -> None:
        """Compares what is known with fresh lists, and enqueues what differs. Raises NotServedError."""
        for kind in WATCHED:
            selector = "" if kind is TUNNEL else CHILD_SELECTOR
            for namespace in self._settings.namespaces or ("",):
                try:
                    items, at = await self._client.list(kind, namespace, selector)
                except ApiError as error:
                    if kind is TUNNEL and error.status == 404:
                        raise NotServedError(_NOT_SERVED) from error
                    raise
                for key in self.store.replace(kind.name, items, at, [namespace] if namespace else []):
                    self.queue.add(key)

    async def resync_forever(self) -> None:
        """Resyncs now and then, at no two operators' same time."""
        while True:
            await asyncio.sleep(self._settings.resync_seconds * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                await self.resync()
            except _API_FAILURES as error:
                event(logger, "resync failed", level=logging.WARNING, error=_brief(error))

    async def handle(self, key: TunnelKey) -> float | None:
        """One reconcile, with its log line and its metrics."""
        began, result = time.monotonic(), "failed"
        try:
            requeue = await self.reconciler.reconcile(key, _now())
            result = "succeeded"
        except _API_FAILURES as error:
            result = "conflict" if isinstance(error, ApiError) and error.status == 409 else "refused"
            self._log(key, logging.DEBUG if result == "conflict" else logging.WARNING, result, error=_brief(error))
            raise
        except Exception as error:
            logger.exception("reconcile failed", extra={"fields": {"namespace": key.namespace, "tunnel": key.name}})
            raise error
        finally:
            self._finished = time.monotonic()
            self._metrics.reconciles.add(result)
            self._metrics.reconcile_seconds.add(amount=self._finished - began)
        self._log(key, logging.DEBUG, result, seconds=round(self._finished - began, 4), requeue_seconds=requeue)
        return requeue

    async def watch(self) -> None:
        """Runs Kopf until it is told to end. Raises where a watch ends for good."""
        namespaces = self._settings.namespaces
        port = self._settings.liveness_port
        await kopf.operator(
            registry=build_registry(self.store, self.queue, self.health, self.forwarders.close),
            clusterwide=not namespaces,
            namespaces=namespaces,
            liveness_endpoint=f"http://{_bracketed(self._settings.listen_address)}:{port}/healthz",
            # its own way of finding one fails under a random user id
            identity="operator",  # type: ignore[arg-type]
        )

    def health(self) -> dict[str, float]:
        """For the liveness endpoint. Raises StuckError."""
        idle = self._idle_seconds()
        if self.queue.depth and idle > STUCK_SECONDS:
            raise StuckError(f"{self.queue.depth} tunnels wait, and none was reconciled for {idle:.0f} s")
        return {"lastReconcileAgeSeconds": round(idle, 3), "queueDepth": self.queue.depth}

    def _idle_seconds(self) -> float:
        return time.monotonic() - self._finished

    def _tunnels_by_readiness(self) -> Mapping[tuple[str, ...], float]:
        counts: dict[tuple[str, ...], float] = {(status,): 0 for status in ("True", "False", "Unknown")}
        for tunnel in self.store.tunnels():
            conditions = (tunnel.get("status") or {}).get("conditions") or ()
            ready = [one["status"] for one in conditions if one["type"] == ConditionType.READY]
            counts[(ready[0] if ready else "Unknown",)] += 1
        return counts

    def _log(self, key: TunnelKey, level: int, result: str, **fields: object) -> None:
        event(logger, f"reconcile {result}", level=level, namespace=key.namespace, tunnel=key.name, **fields)


_NOT_SERVED = (
    f"the API server has no {TUNNEL.plural}.{TUNNEL.group}: install the CustomResourceDefinition"
    " (the chart does so unless crds.enabled is false; or: dbtunnel crd | kubectl apply -f -)"
)


async def run_operator(settings: Settings) -> None:
    """Runs the operator until it gets SIGTERM or SIGINT. Raises where it cannot go on."""
    metrics = prometheus.Metrics()
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(ApiClient(await load_configuration()))
        session = await stack.enter_async_context(pods.open_session())
        client = Client(api, metrics)
        read = pods.direct_reader(session) if settings.pod_access is PodAccess.DIRECT else pods.proxy_reader(client)
        operator = Operator(settings, client, metrics, read)
        address = settings.listen_address, settings.metrics_port
        server = await prometheus.serve(address, "/metrics", metrics.text, prometheus.CONTENT_TYPE)
        stack.push_async_callback(server.cleanup)
        lease = [await _become_leader(settings, api)] if settings.leader_election else []
        await operator.resync()
        event(logger, "started", pid=os.getpid(), tunnels=len(operator.store.tunnels()), namespaces=settings.namespaces)
        workers = [operator.queue.work(operator.handle) for _ in range(settings.workers)]
        await _until_first_ends(operator.watch(), operator.resync_forever(), *workers, *lease)
    event(logger, "ended")


async def _become_leader(settings: Settings, api: ApiClient) -> asyncio.Task[None]:
    """Waits for the Lease, alive but idle. Returns the task that holds it and fails once it is lost."""
    elected = asyncio.Event()
    lease = asyncio.create_task(hold_lease(api, settings.operator_namespace, elected), name="lease")
    address = settings.listen_address, settings.liveness_port
    standby = await prometheus.serve(address, "/healthz", lambda: '{"standby": true}', "application/json")
    waiting = asyncio.create_task(elected.wait())
    try:
        await asyncio.wait({lease, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        await standby.cleanup()
    return lease


async def _until_first_ends(*parts: Awaitable[object]) -> None:
    """Runs all parts until one returns, which ends the others, or raises, which is raised."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


def _now() -> datetime:
    return datetime.now(UTC)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _brief(error: Exception) -> str:
    return pods.describe(error)
