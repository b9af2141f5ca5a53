"""One tunnel, from what is seen to what is done. Idempotent: it may be ended and begun anew at any point."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import REASONS
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import DatabaseTunnelStatus
from dbtunnel.controller.client import DEPLOYMENT, POD, SERVICE
from dbtunnel.controller.cluster import Cluster, NamespaceEndingError
from dbtunnel.controller.forwarders import Forwarders, Target
from dbtunnel.controller.pace import Pace
from dbtunnel.controller.queue import TunnelKey
from dbtunnel.controller.rollouts import Rollouts
from dbtunnel.controller.secrets import Secrets
from dbtunnel.controller.store import Store, version
from dbtunnel.domain import names
from dbtunnel.domain.children import Manifest, desired_children, is_written_for, kept_template, pods_revision
from dbtunnel.domain.drift import controller_uid, merge_patch
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.news import all_news
from dbtunnel.domain.observed import Observation, Pod, Problem, Report, most_forwarders
from dbtunnel.domain.settings import Installation
from dbtunnel.domain.status import Decision, decide, rejected

logger = logging.getLogger(__name__)

RETRY_SECONDS = 5.0
"""When a child that could not be made is tried again at the latest, unless its reason says otherwise."""

ENDING_SECONDS = 5.0
"""How long a namespace that is being deleted is left alone: each of its children that goes would be made anew, and the
refusals of a thousand would keep the tunnels of others waiting."""

SETTLE_SECONDS = 3.0
"""How long a change of the status that leaves status and reason of Ready and the like as they are waits for others, so
that a start is a few writes and not a dozen."""

_WAITED_FOR = frozenset({ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED})

REFRESH_SECONDS = 4.0
"""The least time between two refreshes of a tunnel's mounts."""

REFRESHES = 20.0
"""How many tunnels' mounts are refreshed in a second at most. With a thousand that wait for a Secret each has its turn
about as often as the kubelet looks by itself."""


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
        """When the mounts of each tunnel that waits for a Secret were last refreshed."""
        self._ending: dict[str, datetime] = {}
        """When a namespace was last found to be on its way out."""
        self._pace = Pace()
        self._secrets = Secrets(cluster)

    async def reconcile(self, key: TunnelKey, now: datetime) -> float | None:
        """Brings a tunnel closer to what is wanted. Returns the seconds after which to look again."""
        try:
            again = await self._bring_closer(key, now)
        finally:
            # a status that is written is told of, whatever fails after it
            unposted = await self._cluster.post_events(key)
        return _earliest(again, unposted)

    async def _bring_closer(self, key: TunnelKey, now: datetime) -> float | None:
        manifest = self._store.tunnel(key)
        if manifest is None or "deletionTimestamp" in manifest["metadata"]:
            self._leave_alone(key)
            return None
        if self._is_ending(key, now):
            return ENDING_SECONDS
        try:
            tunnel = DatabaseTunnel.parse(manifest)
        except ValidationError as error:
            await self._reject(key, manifest, error, now)
            return None
        installation = self._installation_for(key, tunnel)
        try:
            manifest, tunnel = await self._announce(key, manifest, tunnel, installation, now)
            problem = await self._write_children(key, tunnel, installation, now)
        except NamespaceEndingError:
            self._ending[key.namespace] = now
            return ENDING_SECONDS
        pods = self._follow(key, tunnel, installation)
        decision = decide(tunnel, self._observe(key, tunnel, pods, problem, now), installation, now)
        settle = await self._publish(key, manifest, decision.status, now)
        await self._refresh(key, decision, pods, now)
        is_waiting = installation.kept or installation.forwarder_image != self._installation.forwarder_image
        waits = RETRY_SECONDS if is_waiting else None
        return _earliest(decision.requeue_seconds, settle, waits, _retry_seconds(problem))

    # --- the steps ------------------------------------------------------------------------------------------------

    def _leave_alone(self, key: TunnelKey) -> None:
        """A tunnel that goes: the garbage collector deletes what it owns."""
        self._forwarders.follow(key, set())
        self._cluster.forget(key)
        self._unsettled.pop(key, None)
        self._refreshed.pop(key, None)
        self._secrets.forget(key)
        self._pace.forget(key)

    def _is_ending(self, key: TunnelKey, now: datetime) -> bool:
        since = self._ending.get(key.namespace)
        if since is None:
            return False
        is_recent = 0 <= (now - since).total_seconds() < ENDING_SECONDS
        if not is_recent:
            del self._ending[key.namespace]
        return is_recent

    def _installation_for(self, key: TunnelKey, tunnel: DatabaseTunnel) -> Installation:
        """The installation, with the image that the tunnel's pods have now while it waits for its turn to roll, or with
        all that they have, and with how many of them may run.
        """
        deployment = self._owned(tunnel, DEPLOYMENT.name, names.workload_name(tunnel))
        chosen = self._chosen(key, tunnel, deployment)
        reports = self._current_reports(key, pods_revision(tunnel, chosen))
        return replace(chosen, most_forwarders=most_forwarders(deployment, reports))

    def _current_reports(self, key: TunnelKey, revision: str) -> list[Report]:
        """Of pods with this template: that those before it were let in says nothing of the keys and servers in it."""
        known = self._forwarders.reports(key)
        pods = (Pod.of(manifest) for _, manifest in self._store.of_tunnel(key, POD.name))
        return [known[pod.uid] for pod in pods if pod.uid in known and pod.revision == revision]

    def _chosen(self, key: TunnelKey, tunnel: DatabaseTunnel, deployment: Manifest | None) -> Installation:
        wanted = self._installation
        installation = self._rollouts.installation_for(key, deployment, wanted)
        kept = kept_template(deployment) if deployment else None
        if deployment is None or kept is None:
            return wanted
        if pods_revision(tunnel, installation) == kept.revision:
            return installation
        # neither somebody's edit waits, nor what the tunnel's owner changed
        if not is_written_for(deployment, tunnel) or self._rollouts.may_roll(key, wanted.forwarder_image):
            return wanted
        return replace(wanted, kept=kept)

    async def _reject(self, key: TunnelKey, manifest: Manifest, error: ValidationError, now: datetime) -> None:
        metadata, previous = manifest["metadata"], DatabaseTunnelStatus.known(manifest.get("status"))
        problems = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        await self._publish(key, manifest, rejected(metadata.get("generation", 0), previous, problems, now), now)

    async def _announce(
        self, key: TunnelKey, manifest: Manifest, tunnel: DatabaseTunnel, installation: Installation, now: datetime
    ) -> tuple[Manifest, DatabaseTunnel]:
        """Gives a new tunnel its conditions before anything else: one without Ready counts as done (kstatus).

        Returns the tunnel as it is then.
        """
        if any(one.type == ConditionType.READY for one in tunnel.status.conditions or ()):
            return manifest, tunnel
        status = decide(tunnel, Observation(), installation, now).status
        self._pace.written(key, now)
        answer = await self._write(manifest, status)
        return answer, DatabaseTunnel.parse(answer)

    async def _write_children(
        self, key: TunnelKey, tunnel: DatabaseTunnel, installation: Installation, now: datetime
    ) -> Problem | None:
        has_pods = self._owned(tunnel, DEPLOYMENT.name, names.workload_name(tunnel)) is not None
        problem = await self._secrets.make_key(key, tunnel, now, deployment_exists=has_pods)
        wanted = desired_children(tunnel, installation)
        made = [child for child in wanted if child["kind"] != DEPLOYMENT.name or not installation.kept]
        problem = await self._cluster.ensure(tunnel, made) or problem
        problem = await self._secrets.make_binding(key, tunnel, now) or problem
        if problem is None:
            # what replaces it is there
            await self._cluster.prune(tunnel, wanted)
        return problem

    def _follow(self, key: TunnelKey, tunnel: DatabaseTunnel, installation: Installation) -> list[Pod]:
        """The tunnel's pods; the forwarders in the current ones are listened to from now on."""
        kept = installation.kept
        config_hash = kept.config_hash if kept else forwarder_config(tunnel, installation.defaults).digest()
        pods = [Pod.of(manifest) for _, manifest in self._store.of_tunnel(key, POD.name)]
        revision = pods_revision(tunnel, installation)
        known = self._forwarders.reports(key)
        # one that has not run yet cannot answer, and its start is heard of
        current = [
            pod
            for pod in pods
            if pod.ip and not pod.is_ending and pod.revision == revision and (pod.running_since or pod.uid in known)
        ]
        targets = {Target(key.namespace, pod.name, pod.uid, pod.ip, config_hash) for pod in current}
        self._forwarders.follow(key, targets)
        return pods

    def _observe(
        self, key: TunnelKey, tunnel: DatabaseTunnel, pods: list[Pod], problem: Problem | None, now: datetime
    ) -> Observation:
        service = self._owned(tunnel, SERVICE.name, names.service_name(tunnel))
        return Observation(
            deployment=self._owned(tunnel, DEPLOYMENT.name, names.workload_name(tunnel)),
            cluster_ip=service["spec"].get("clusterIP") if service else None,
            pods=tuple(pods),
            reports={uid: report.counted(now) for uid, report in self._forwarders.reports(key).items()},
            problem=problem,
            binding=self._secrets.binding(key, tunnel),
        )

    async def _publish(
        self, key: TunnelKey, manifest: Manifest, status: DatabaseTunnelStatus, now: datetime
    ) -> float | None:
        """Writes the status where it differs. Returns the seconds after which to do so, where it had better wait.

        `manifest` is the tunnel from which the status was decided: on any other version it is not written.
        """
        current = self._store.tunnel(key)
        if current is None or version(current) != version(manifest):
            # whatever changed it has asked for another reconcile
            return None
        before, after = DatabaseTunnelStatus.known(manifest.get("status")).document(), status.document()
        if not merge_patch(before, after):
            self._unsettled.pop(key, None)
            return None
        waited = (now - self._unsettled.setdefault(key, now)).total_seconds()
        if _outline(before) == _outline(after) and 0 <= waited < SETTLE_SECONDS:
            return SETTLE_SECONDS - waited
        pause = self._pace.wait_seconds(key, now)
        if pause:
            return pause
        self._pace.written(key, now)
        await self._write(manifest, status)
        self._unsettled.pop(key, None)
        return None

    async def _write(self, manifest: Manifest, status: DatabaseTunnelStatus) -> Manifest:
        """Writes the status, and has news of what it changes. Returns the tunnel as it is then."""
        answer = await self._cluster.write_status(manifest, status.document())
        for news in all_news(manifest, status):
            self._cluster.add_event(manifest, *news)
        return answer

    async def _refresh(self, key: TunnelKey, decision: Decision, pods: list[Pod], now: datetime) -> None:
        if not decision.refresh_mounts:
            self._refreshed.pop(key, None)
            return
        last = self._refreshed.get(key)
        pause = max(REFRESH_SECONDS, len(self._refreshed) / REFRESHES)
        if last is None or (now - last).total_seconds() >= pause:
            self._refreshed[key] = now
            await self._cluster.refresh_mounts(key, [pod.name for pod in pods if not pod.is_ending], now)

    def _owned(self, tunnel: DatabaseTunnel, kind: str, name: str) -> Manifest | None:
        live = self._store.get(kind, tunnel.metadata.namespace, name)
        return live if live and controller_uid(live) == tunnel.metadata.uid else None


def _outline(status: Mapping[str, Any]) -> set[tuple[object, ...]]:
    """What people and tools wait for; Ready sums the layers up."""
    conditions = [one for one in status.get("conditions") or () if one["type"] in _WAITED_FOR]
    return {(one["type"], one["status"], one["reason"], one.get("observedGeneration")) for one in conditions}


def _retry_seconds(problem: Problem | None) -> float | None:
    return (REASONS[problem.reason].retry_seconds or RETRY_SECONDS) if problem else None


def _earliest(*seconds: float | None) -> float | None:
    return min((one for one in seconds if one is not None), default=None)
