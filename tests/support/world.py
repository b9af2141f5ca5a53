"""A tunnel to reconcile, with a cluster that only notes what is done to it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, cast

from dbtunnel.api.forwarder import ForwarderStatus
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import DatabaseTunnelStatus
from dbtunnel.controller.client import ApiError
from dbtunnel.controller.cluster import Cluster, NamespaceEndingError
from dbtunnel.controller.forwarders import Forwarders, Target
from dbtunnel.controller.queue import TunnelKey
from dbtunnel.controller.reconcile import Reconciler
from dbtunnel.controller.rollouts import Rollouts
from dbtunnel.controller.store import Store
from dbtunnel.domain.children import Manifest, build_deployment
from dbtunnel.domain.drift import merge_patch, signed
from dbtunnel.domain.observed import Problem, Report
from dbtunnel.domain.settings import Installation
from tests.support.values import INSTALLATION, NOW, changed, manifest, tunnel, working

KEY = TunnelKey("shop", "orders")
ORDERS = tunnel()


class FakeCluster:
    """Notes what is done, and puts what the API server would answer into the store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.done: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.news: list[tuple[str, str]] = []
        """Events that are to be posted."""
        self.drops_events = self.refuses_refresh = False
        self.secrets: list[Manifest] = []
        self.problem = self.secret_problem = cast(Problem | None, None)
        self.is_ending = False
        self.refused = 0
        """How often something was to be made in a namespace that ends."""
        self.meanwhile: Callable[[], object] = lambda: None
        """What happens while children are written."""
        self.versions = 1000

    def put(self, kind: str, document: Mapping[str, Any]) -> Manifest:
        self.versions += 1
        answer: Manifest = changed(document, {"metadata.resourceVersion": str(self.versions)})
        self.store.put(kind, answer)
        return answer

    async def ensure(self, _: DatabaseTunnel, wanted: Iterable[Manifest]) -> Problem | None:
        if self.is_ending:
            self.refused += 1
            raise NamespaceEndingError
        for child in wanted:
            live = changed(signed(child), {"metadata.uid": child["kind"]})
            if child["kind"] == "Service":
                live["spec"]["clusterIP"] = "10.1.0.1"
            self.put(child["kind"], live)
        self.done.append("ensure")
        self.meanwhile()
        return self.problem

    async def prune(self, _: DatabaseTunnel, wanted: Iterable[Manifest]) -> None:
        assert len(list(wanted)) >= 3
        self.done.append("prune")

    def forget(self, key: TunnelKey) -> None:
        self.done.append(f"forget {key.name}")

    async def create_secret(self, _: DatabaseTunnel, secret: Manifest) -> Problem | None:
        self.secrets.append(secret)
        self.done.append(f"create {secret['metadata']['name']}")
        return self.secret_problem

    async def write_status(self, read: Manifest, status: Mapping[str, Any]) -> Manifest:
        assert merge_patch(DatabaseTunnelStatus.known(read.get("status")).document(), status), "it changes nothing"
        self.done.append("status")
        return self.put("DatabaseTunnel", {**read, "status": dict(status)})

    async def refresh_mounts(self, _: TunnelKey, pods: Sequence[str], now: datetime) -> None:
        if self.refuses_refresh:
            raise ApiError(403, "Forbidden", "no")
        self.done.append(f"refresh {' '.join(pods)}")

    def add_event(self, _: Manifest, kind: str, reason: str, note: str) -> None:
        assert note
        self.news.append((kind, reason))

    async def post_events(self, _: TunnelKey) -> float | None:
        if self.news and self.drops_events:
            return 5
        self.events += self.news
        self.news.clear()
        return None


class FakeForwarders:
    """Notes which pods are followed; reports what it was told."""

    def __init__(self) -> None:
        self.targets: set[Target] = set()
        self.known: dict[str, Report] = {}

    def follow(self, _: TunnelKey, targets: set[Target]) -> None:
        self.targets = targets

    def reports(self, _: TunnelKey) -> Mapping[str, Report]:
        return self.known


class World:
    """A tunnel, what is known of it, and its reconciles."""

    def __init__(self, changes: Mapping[str, Any] | None = None) -> None:
        self.store = Store()
        self.cluster = FakeCluster(self.store)
        self.forwarders = FakeForwarders()
        self.rollouts = Rollouts(1, lambda: 0)
        self.reconciler = self.reconciler_with(INSTALLATION)
        self.store.put("DatabaseTunnel", manifest(changes))

    def reconciler_with(self, installation: Installation) -> Reconciler:
        cluster, forwarders = cast(Cluster, self.cluster), cast(Forwarders, self.forwarders)
        return Reconciler(cluster, self.store, forwarders, self.rollouts, installation)

    async def reconcile(self, seconds: float = 0) -> float | None:
        """One reconcile, some seconds after the first. `done` then says what it did."""
        self.cluster.done.clear()
        self.cluster.events.clear()
        return await self.reconciler.reconcile(KEY, NOW + timedelta(seconds=seconds))

    def add_pod(
        self,
        report: ForwarderStatus | None = None,
        uid: str = "pod-1",
        changes: Mapping[str, Any] | None = None,
        of: DatabaseTunnel = ORDERS,
    ) -> None:
        """A pod of the current template, and what its forwarder reports."""
        template = build_deployment(of, INSTALLATION)["spec"]["template"]["metadata"]
        running = {
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"state": {"running": {"startedAt": "2026-11-05T11:00:00Z"}}}],
        }
        metadata = {"namespace": "shop", "name": uid, "uid": uid, "labels": template["labels"]}
        pod = {"metadata": metadata, "status": {"podIP": "10.0.0.1", "phase": "Running", **running}}
        self.cluster.put("Pod", changed(pod, changes or {}))
        if report:
            self.forwarders.known[uid] = Report(report)

    @property
    def status(self) -> Manifest:
        status: Manifest = (self.store.tunnel(KEY) or {})["status"]
        return status

    def condition(self, kind: str) -> tuple[str, str]:
        return next((one["status"], one["reason"]) for one in self.status["conditions"] if one["type"] == kind)


async def settled(changes: Mapping[str, Any] | None = None) -> World:
    """A tunnel that works and whose status says so."""
    world = World(changes)
    await world.reconcile()
    world.add_pod(working(ORDERS))
    await world.reconcile()
    return world
