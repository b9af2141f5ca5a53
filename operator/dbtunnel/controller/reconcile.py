"""One tunnel, from what is seen to what is done. Idempotent: it may be ended and begun anew at any point."""

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from dbtunnel.api.conditions import ConditionType, Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import Condition, DatabaseTunnelStatus
from dbtunnel.controller.client import DEPLOYMENT, POD, SERVICE
from dbtunnel.controller.cluster import Cluster, NamespaceEndingError
from dbtunnel.controller.forwarders import Forwarders, Target
from dbtunnel.controller.keys import generate_key
from dbtunnel.controller.queue import TunnelKey
from dbtunnel.controller.rollouts import Rollouts
from dbtunnel.controller.store import Store
from dbtunnel.domain import names
from dbtunnel.domain.children import Manifest, current_revision, desired_children
from dbtunnel.domain.drift import controller_uid, merge_patch
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.observed import Observation, Pod, Problem
from dbtunnel.domain.settings import Installation
from dbtunnel.domain.status import Decision, decide, needs_generated_key, rejected

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""When a child that could not be made is tried again at the latest."""

SETTLE_SECONDS = 3.0
"""How long a change of the status that leaves every condition's status and reason as they are waits for others, so
that a start is a few writes and not a dozen."""

REFRESH_SECONDS = 4.0
"""The least time between two refreshes of a tunnel's mounts."""


class Reconciler:
    """Reconciles tunnels, several at once but each by one worker at a time."""

    def __init__(
        self, cluster: Cluster, store: Store, forwarders: Forwarders, rollouts: Rollouts, installation: Installation
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._forwarders = forwarders
        self._rollouts = rollouts
        self._installation = installation
        self._unsettled: dict[TunnelKey, datetime] = {}
        """Since when a small change of the status waits."""
        self._refreshed: dict[TunnelKey, datetime] = {}

    async def reconcile(self, key: TunnelKey, now: datetime) -> float | None:
        """Brings a tunnel closer to what is wanted. Returns the seconds after which to look again."""
        manifest = self._store.tunnel(key)
        if manifest is None or "deletionTimestamp" in manifest["metadata"]:
            self._leave_alone(key)
            return None
        try:
            tunnel = DatabaseTunnel.parse(manifest)
        except ValidationError as error:
            await self._reject(key, manifest, error, now)
            return None
        deployment = self._owned(tunnel, DEPLOYMENT.name, names.workload_name(tunnel))
        installation = self._rollouts.installation_for(key, deployment, self._installation)
        try:
            tunnel = await self._announce(key, tunnel, installation, now)
            problem = await self._write_children(tunnel, installation)
        except NamespaceEndingError:
            return None
        pods = self._follow(key, tunnel, installation)
        decision = decide(tunnel, self._observe(key, tunnel, pods, problem), installation, now)
        settle = await self._publish(key, decision.status, now)
        await self._refresh(key, decision, pods, now)
        waits = installation is not self._installation
        return _earliest(decision.requeue_seconds, settle, RETRY_SECONDS if problem or waits else None)

    # --- the steps ------------------------------------------------------------------------------------------------

    def _leave_alone(self, key: TunnelKey) -> None:
        """A tunnel that goes: the garbage collector deletes what it owns."""
        self._forwarders.follow(key, set())
        self._cluster.forget(key)
        self._unsettled.pop(key, None)
        self._refreshed.pop(key, None)

    async def _reject(self, key: TunnelKey, manifest: Manifest, error: ValidationError, now: datetime) -> None:
        metadata = manifest["metadata"]
        try:
            previous = DatabaseTunnelStatus.model_validate(manifest.get("status") or {})
        except ValidationError:
            previous = DatabaseTunnelStatus()
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        await self._publish(key, rejected(metadata.get("generation", 0), previous, problems, now), now)

    async def _announce(
        self, key: TunnelKey, tunnel: DatabaseTunnel, installation: Installation, now: datetime
    ) -> DatabaseTunnel:
        """Gives a new tunnel its conditions before anything else: one without Ready counts as done (kstatus)."""
        if _condition(tunnel.status.conditions or (), ConditionType.READY):
            return tunnel
        await self._publish(key, decide(tunnel, Observation(), installation, now).status, now)
        return DatabaseTunnel.parse(self._store.tunnel(key) or {})

    async def _write_children(self, tunnel: DatabaseTunnel, installation: Installation) -> Problem | None:
        deployment = self._owned(tunnel, DEPLOYMENT.name, names.workload_name(tunnel))
        problem = None
        if needs_generated_key(tunnel, deployment_exists=deployment is not None):
            kind, comment = tunnel.spec.tunnel.generated_key_type, names.key_comment(tunnel)
            problem = await self._cluster.create_key(tunnel, await asyncio.to_thread(generate_key, kind, comment))
        wanted = desired_children(tunnel, installation)
        problem = await self._cluster.ensure(tunnel, wanted) or problem
        await self._cluster.prune(tunnel, wanted)
        return problem

    def _follow(self, key: TunnelKey, tunnel: DatabaseTunnel, installation: Installation) -> list[Pod]:
        """The tunnel's pods; the forwarders in the current ones are listened to from now on."""
        config_hash = forwarder_config(tunnel, installation.defaults).digest()
        pods = [Pod.of(manifest) for _, manifest in self._store.of_tunnel(key, POD.name)]
        revisions = {
            current_revision(child)
            for child in desired_children(tunnel, installation)
            if child["kind"] == DEPLOYMENT.name
        }
        current = [pod for pod in pods if pod.ip and not pod.is_ending and pod.revision in revisions]
        targets = {Target(key.namespace, pod.name, pod.uid, pod.ip, config_hash) for pod in current}
        self._forwarders.follow(key, targets)
        return pods

    def _observe(self, key: TunnelKey, tunnel: DatabaseTunnel, pods: list[Pod], problem: Problem | None) -> Observation:
        service = self._owned(tunnel, SERVICE.name, names.service_name(tunnel))
        return Observation(
            deployment=self._owned(tunnel, DEPLOYMENT.name, names.workload_name(tunnel)),
            cluster_ip=service["spec"].get("clusterIP") if service else None,
            pods=tuple(pods),
            reports=dict(self._forwarders.reports(key)),
            problem=problem,
        )

    async def _publish(self, key: TunnelKey, status: DatabaseTunnelStatus, now: datetime) -> float | None:
        """Writes the status where it differs. Returns the seconds after which to do so, where it had better wait."""
        manifest = self._store.tunnel(key)
        if manifest is None:
            return None
        before, after = manifest.get("status") or {}, status.document()
        if not merge_patch(before, after):
            self._unsettled.pop(key, None)
            return None
        waits = (now - self._unsettled.setdefault(key, now)).total_seconds()
        if _outline(before) == _outline(after) and waits < SETTLE_SECONDS:
            return SETTLE_SECONDS - waits
        await self._cluster.write_status(manifest, after)
        self._unsettled.pop(key, None)
        news = transition(before, status)
        if news:
            await self._cluster.post_event(manifest, *news)
        return None

    async def _refresh(self, key: TunnelKey, decision: Decision, pods: list[Pod], now: datetime) -> None:
        last = self._refreshed.get(key)
        is_due = last is None or (now - last).total_seconds() >= REFRESH_SECONDS
        if decision.refresh_mounts and is_due:
            self._refreshed[key] = now
            await self._cluster.refresh_mounts(key, [pod.name for pod in pods if not pod.is_ending], now)

    def _owned(self, tunnel: DatabaseTunnel, kind: str, name: str) -> Manifest | None:
        live = self._store.get(kind, tunnel.metadata.namespace, name)
        return live if live and controller_uid(live) == tunnel.metadata.uid else None


def transition(before: Mapping[str, Any], after: DatabaseTunnelStatus) -> tuple[str, str, str] | None:
    """Type, reason and note of the Event that a change of the status deserves, if any."""
    earlier = {one["type"]: one["status"] for one in before.get("conditions") or ()}
    ready = _condition(after.conditions or (), ConditionType.READY)
    stalled = _condition(after.conditions or (), ConditionType.STALLED)
    if ready is None or stalled is None:
        return None
    turned_ready = ready.status != earlier.get(ConditionType.READY) and ready.status != "Unknown"
    turned_stalled = stalled.status == "True" != earlier.get(ConditionType.STALLED)
    if not turned_ready and not turned_stalled:
        return None
    is_normal = ready.status == "True" or ready.reason in (Reason.SUSPENDED, Reason.PROGRESSING)
    reason = ConditionType.READY if ready.status == "True" else ready.reason
    return "Normal" if is_normal else "Warning", reason, ready.message


def _outline(status: Mapping[str, Any]) -> set[tuple[object, ...]]:
    conditions = status.get("conditions") or ()
    return {(one["type"], one["status"], one["reason"], one.get("observedGeneration")) for one in conditions}


def _condition(conditions: tuple[Condition, ...], kind: ConditionType) -> Condition | None:
    return next((one for one in conditions if one.type == kind), None)


def _earliest(*seconds: float | None) -> float | None:
    return min((one for one in seconds if one is not None), default=None)
