"""What the operator does to the cluster for a tunnel: its children, its key, its status, its events."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import MOST_CONDITIONS
from dbtunnel.controller.client import (
    CHILD_KINDS,
    DEPLOYMENT,
    NETWORK_POLICY,
    POD,
    SECRET,
    TUNNEL,
    ApiError,
    Client,
    Kind,
)
from dbtunnel.controller.events import Events
from dbtunnel.controller.logs import event
from dbtunnel.controller.metrics import REPAIRS, Metrics
from dbtunnel.controller.queue import TunnelKey
from dbtunnel.controller.store import ObjectKey, Store, trimmed
from dbtunnel.domain import names
from dbtunnel.domain.children import Manifest
from dbtunnel.domain.drift import (
    controller_uid,
    desired_hash,
    essence,
    is_as_wanted,
    replacement,
    signed,
    status_patch,
)
from dbtunnel.domain.observed import Problem, standing

logger = logging.getLogger(__name__)

_REFUSALS = frozenset({400, 403, 413, 422, 500})
"""Answers that tell something about what is asked for; 500 is what a failing admission webhook gives."""


class NamespaceEndingError(Exception):
    """The tunnel's namespace is being deleted; nothing can be made in it, and nothing needs to be."""


class Cluster:
    """All access to the API server on behalf of tunnels; what it is answered goes into the store."""

    def __init__(self, client: Client, store: Store, metrics: Metrics) -> None:
        self._client = client
        self._store = store
        self._metrics = metrics
        self._events = Events(client, lambda: datetime.now(UTC))
        self._answers: dict[TunnelKey, dict[ObjectKey, tuple[str | None, str]]] = {}
        """For each written child the hash of what was wanted, and the essence of what the API server made of it."""
        self._foreign: set[ObjectKey] = set()
        """Names that others hold: looked at before a creation is tried again."""

    # --- children -------------------------------------------------------------------------------------------------

    async def ensure(self, tunnel: DatabaseTunnel, wanted: Iterable[Manifest]) -> Problem | None:
        """Makes the children as wanted, each as far as it can. Returns the first problem.

        Pods are not made before the policy that limits who may connect to them.
        """
        problems: dict[str, Problem] = {}
        for child in wanted:
            is_new = self._store.get(child["kind"], child["metadata"]["namespace"], child["metadata"]["name"]) is None
            if child["kind"] == DEPLOYMENT.name and is_new and NETWORK_POLICY.name in problems:
                continue
            problem = await self._ensure(tunnel, signed(child))
            if problem:
                problems[child["kind"]] = problem
        return next(iter(problems.values()), None)

    async def prune(self, tunnel: DatabaseTunnel, wanted: Iterable[Manifest]) -> None:
        """Deletes what this tunnel no longer wants: its children, and orphans that it would else take up."""
        kept = {(child["kind"], child["metadata"]["name"]) for child in wanted}
        key = _tunnel_key(tunnel)
        for found, live in self._store.of_tunnel(key, *CHILD_KINDS):
            if (found.kind, found.name) not in kept and _is_done_with(live, tunnel):
                await self._delete(CHILD_KINDS[found.kind], live)
                self._answers.get(key, {}).pop(found, None)

    def forget(self, key: TunnelKey) -> None:
        """Drops what is remembered of a tunnel that has gone."""
        self._answers.pop(key, None)
        self._events.forget(key)

    async def _ensure(self, tunnel: DatabaseTunnel, wanted: Manifest) -> Problem | None:
        kind, metadata = CHILD_KINDS[wanted["kind"]], wanted["metadata"]
        key = ObjectKey(kind.name, metadata["namespace"], metadata["name"])
        try:
            live = self._store.get(*key)
            if live is None:
                live = await self._create(tunnel, kind, key, wanted)
            if live is None:
                return None
            obstacle = standing(live, tunnel)
            if obstacle is None:
                await self._correct(tunnel, kind, key, live, wanted)
            elif obstacle.reason is Reason.NAME_CONFLICT:
                self._foreign.add(key)
        except ApiError as error:
            return problem_of(error, f"{kind.name} {key.name}")
        return obstacle

    async def _create(self, tunnel: DatabaseTunnel, kind: Kind, key: ObjectKey, wanted: Manifest) -> Manifest | None:
        """Makes an object. Returns what has the name already, unseen so far, or None where it was made."""
        if key in self._foreign:
            live = await self._client.get(kind, key.namespace, key.name)
            if live is not None:
                return trimmed(kind.name, live)
            self._foreign.discard(key)
        try:
            answer = await self._client.create(kind, wanted)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            live = await self._client.get(kind, key.namespace, key.name)
            if live is None:
                raise
            return trimmed(kind.name, live)
        self._remember(tunnel, key, wanted, answer, is_new=True)
        return None

    async def _correct(
        self, tunnel: DatabaseTunnel, kind: Kind, key: ObjectKey, live: Manifest, wanted: Manifest
    ) -> None:
        known = self._answers.get(_tunnel_key(tunnel), {}).get(key)
        answer = known[1] if known and known[0] == desired_hash(wanted) else None
        if is_as_wanted(live, wanted, answer):
            self._answers.setdefault(_tunnel_key(tunnel), {})[key] = (desired_hash(wanted), essence(live, wanted))
            return
        current = await self._client.get(kind, key.namespace, key.name)
        if current is None:
            # its end was not heard of
            self._store.remove(kind.name, live)
        if current is None or standing(current, tunnel):
            raise ApiError(409, "Conflict", f"{kind.name} {key.name} has changed")
        if desired_hash(live) == desired_hash(wanted):
            self._metrics.add(REPAIRS, label=kind.name)
        written = await self._client.replace(kind, replacement(current, wanted))
        self._remember(tunnel, key, wanted, written, is_new=False)

    def _remember(
        self, tunnel: DatabaseTunnel, key: ObjectKey, wanted: Manifest, answer: Manifest, *, is_new: bool
    ) -> None:
        self._store.put(key.kind, answer)
        self._answers.setdefault(_tunnel_key(tunnel), {})[key] = (desired_hash(wanted), essence(answer, wanted))
        what = "child created" if is_new else "child written"
        event(logger, what, namespace=key.namespace, tunnel=tunnel.metadata.name, kind=key.kind, name=key.name)

    async def _delete(self, kind: Kind, live: Manifest) -> None:
        metadata = live["metadata"]
        try:
            await self._client.delete(kind, live)
        except ApiError as error:
            # it has gone already; where it has changed, or another has its name, it is looked at anew
            if error.status != 404:
                raise
            return
        event(logger, "child deleted", namespace=metadata["namespace"], kind=kind.name, name=metadata["name"])

    # --- Secrets --------------------------------------------------------------------------------------------------

    async def create_secret(self, tunnel: DatabaseTunnel, secret: Manifest) -> Problem | None:
        """Makes a Secret. One of that name is left as it is."""
        name = secret["metadata"]["name"]
        try:
            await self._client.create(SECRET, secret)
        except ApiError as error:
            return None if error.reason == "AlreadyExists" else problem_of(error, f"Secret {name}")
        event(logger, "secret created", namespace=tunnel.metadata.namespace, tunnel=tunnel.metadata.name, name=name)
        return None

    # --- status and pods ------------------------------------------------------------------------------------------

    async def write_status(self, manifest: Manifest, status: Mapping[str, Any]) -> Manifest:
        """Writes what differs, onto the version that was read and no other. Returns the tunnel with it.

        What a newer version wrote beside it, in fields and conditions that this one does not know, stays.
        """
        raw = manifest.get("status")
        try:
            answer = await self._patch_status(manifest, status_patch(raw, status))
        except ApiError as error:
            if error.status != 422:
                raise
            # others' conditions may be more than the definition has places for beside the operator's own
            answer = await self._patch_status(manifest, status_patch(raw, status, MOST_CONDITIONS))
        self._store.put(TUNNEL.name, answer)
        return answer

    async def _patch_status(self, manifest: Manifest, patch: Manifest) -> Manifest:
        metadata = manifest["metadata"]
        change = {"metadata": {"resourceVersion": metadata["resourceVersion"]}, "status": patch}
        return await self._client.patch(TUNNEL, metadata["namespace"], metadata["name"], change, "status")

    async def refresh_mounts(self, key: TunnelKey, pods: Sequence[str], now: datetime) -> None:
        """Changes an annotation of the pods, which makes the kubelet read mounted Secrets and ConfigMaps anew."""
        change = {"metadata": {"annotations": {names.REFRESH_ANNOTATION: now.isoformat()}}}
        for pod in pods:
            try:
                self._store.put(POD.name, await self._client.patch(POD, key.namespace, pod, change))
            except ApiError as error:
                if error.status != 404:
                    raise

    def add_event(self, manifest: Manifest, kind: str, reason: str, note: str) -> None:
        """An Event about a tunnel, to be posted by `post_events`; `kind` is Normal or Warning."""
        self._events.add(manifest, kind, reason, note)

    async def post_events(self, key: TunnelKey) -> float | None:
        """Posts the Events about a tunnel. Returns the seconds after which to try again, where some could not be."""
        return await self._events.post(key)


def problem_of(error: ApiError, what: str) -> Problem:
    """What a person must know of a refusal. Raises where trying again is all there is to do."""
    if "NamespaceTerminating" in error.causes or error.status == 404:
        raise NamespaceEndingError from error
    if error.status not in _REFUSALS:
        raise error
    reason = Reason.QUOTA_EXCEEDED if "exceeded quota" in error.message else Reason.REJECTED
    return Problem(reason, f"{what}: {error.message}")


def _is_done_with(live: Manifest, tunnel: DatabaseTunnel) -> bool:
    """Whether an object is the tunnel's, and there. An orphan has to bear what the operator writes beside the labels:
    `kubectl expose` copies those.
    """
    return standing(live, tunnel) is None and bool(controller_uid(live) or desired_hash(live))


def _tunnel_key(tunnel: DatabaseTunnel) -> TunnelKey:
    return TunnelKey(tunnel.metadata.namespace, tunnel.metadata.name)
