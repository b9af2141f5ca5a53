"""How children are written where the store is stale, names are taken, and the API server refuses."""

from collections.abc import Mapping
from typing import Any, cast

import pytest

from dbtunnel.api.reasons import Reason
from dbtunnel.controller.client import ApiError, Client, Kind
from dbtunnel.controller.cluster import Cluster
from dbtunnel.controller.metrics import Metrics
from dbtunnel.controller.store import Store
from dbtunnel.domain.children import Manifest, desired_children
from tests.support.values import INSTALLATION, changed, tunnel

ORDERS = tunnel()
WANTED = desired_children(ORDERS, INSTALLATION)
SERVICE, POLICY, DEPLOYMENT = ("Service", "orders"), ("NetworkPolicy", "orders-tunnel"), ("Deployment", "orders-tunnel")


class Api:
    """Objects by kind and name. `refusals` by kind; `done` are requests other than reads."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Manifest] = {}
        self.refusals: dict[str, ApiError] = {}
        self.done: list[str] = []
        self.version = 0

    def put(self, manifest: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Manifest:
        """Stores an object as if somebody had written it. Returns it."""
        self.version += 1
        fresh = {"metadata.resourceVersion": str(self.version), "metadata.managedFields": []}
        stored = changed(manifest, {**fresh, **(changes or {})})
        self.objects[stored["kind"], stored["metadata"]["name"]] = stored
        return stored

    async def get(self, kind: Kind, _: str, name: str) -> Manifest | None:
        return self.objects.get((kind.name, name))

    async def create(self, kind: Kind, manifest: Manifest) -> Manifest:
        self.done.append(f"create {kind.name}")
        if (kind.name, manifest["metadata"]["name"]) in self.objects:
            raise ApiError(409, "AlreadyExists", "is there")
        self._refuse(kind)
        return self.put(manifest, {"metadata.uid": f"uid-{self.version}"})

    async def replace(self, kind: Kind, manifest: Manifest) -> Manifest:
        self.done.append(f"replace {kind.name}")
        self._refuse(kind)
        self._refuse_other(kind, manifest)
        return self.put(manifest)

    async def delete(self, kind: Kind, manifest: Manifest) -> None:
        name = manifest["metadata"]["name"]
        self.done.append(f"delete {kind.name} {name}")
        self._refuse_other(kind, manifest)
        del self.objects[kind.name, name]

    def _refuse_other(self, kind: Kind, manifest: Manifest) -> None:
        live = self.objects[kind.name, manifest["metadata"]["name"]]
        if any(live["metadata"][key] != manifest["metadata"][key] for key in ("uid", "resourceVersion")):
            raise ApiError(409, "Conflict", "is another")

    def _refuse(self, kind: Kind) -> None:
        if kind.name in self.refusals:
            raise self.refusals[kind.name]


class World:
    """A tunnel's children in the API server, and what the operator knows of them."""

    def __init__(self) -> None:
        self.api, self.store = Api(), Store()
        self.cluster = Cluster(cast(Client, self.api), self.store, Metrics())

    async def ensure(self) -> Reason | None:
        self.api.done.clear()
        problem = await self.cluster.ensure(ORDERS, WANTED)
        return problem.reason if problem else None

    def edit(self, child: tuple[str, str], changes: Mapping[str, Any], *, seen: bool = True) -> None:
        live = self.api.put(self.api.objects[child], changes)
        if seen:
            self.store.put(child[0], live)


async def settled() -> World:
    world = World()
    assert await world.ensure() is None
    assert world.api.done == ["create Service", "create NetworkPolicy", "create Deployment"]
    assert await world.ensure() is None
    assert world.api.done == []
    return world


# --- stale knowledge --------------------------------------------------------------------------------------------------


async def test_a_deletion_that_was_not_heard_of_is_noticed_where_a_write_meets_it() -> None:
    world = await settled()
    world.edit(SERVICE, {"spec.type": "NodePort"})
    del world.api.objects[SERVICE]

    with pytest.raises(ApiError, match="409"):
        await world.ensure()
    assert await world.ensure() is None

    assert world.api.done == ["create Service"]


async def test_a_later_edit_that_was_not_heard_of_is_undone_as_well() -> None:
    world = await settled()
    world.edit(SERVICE, {"spec.type": "NodePort"})
    world.edit(SERVICE, {"spec.sessionAffinity": "ClientIP"}, seen=False)

    assert await world.ensure() is None

    assert world.api.done == ["replace Service"]
    assert world.api.objects[SERVICE]["spec"]["type"] == "ClusterIP"
    assert "sessionAffinity" not in world.api.objects[SERVICE]["spec"]


async def test_a_child_that_became_anothers_meanwhile_is_not_written() -> None:
    world = await settled()
    world.edit(SERVICE, {"spec.type": "NodePort"})
    other = [{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "x", "controller": True}]
    world.edit(SERVICE, {"metadata.ownerReferences": other}, seen=False)

    with pytest.raises(ApiError, match="409"):
        await world.ensure()

    assert world.api.done == []


# --- names that others hold -------------------------------------------------------------------------------------------


async def test_a_name_that_is_taken_is_looked_at_and_not_written_until_it_is_free() -> None:
    world = World()
    world.api.put(
        changed(WANTED[0], {"metadata.uid": "foreign", "metadata.labels": {}, "metadata.ownerReferences": []})
    )
    before = world.api.objects[SERVICE]
    assert await world.ensure() is Reason.NAME_CONFLICT
    assert world.api.done == ["create Service", "create NetworkPolicy", "create Deployment"]

    for _ in range(5):
        assert await world.ensure() is Reason.NAME_CONFLICT
        assert world.api.done == []
    assert world.api.objects[SERVICE] is before

    del world.api.objects[SERVICE]
    assert await world.ensure() is None
    assert world.api.done == ["create Service"]


async def test_a_headless_service_that_is_handed_over_is_left_until_it_is_deleted() -> None:
    world = World()
    handed = {"metadata.uid": "foreign", "metadata.ownerReferences": [], "spec.clusterIP": "None"}
    world.store.put("Service", world.api.put(WANTED[0], handed))

    assert await world.ensure() is Reason.NAME_CONFLICT
    assert world.api.done == ["create NetworkPolicy", "create Deployment"]
    assert world.api.objects[SERVICE]["spec"]["clusterIP"] == "None"

    world.store.remove("Service", world.api.objects.pop(SERVICE))
    assert await world.ensure() is None
    assert world.api.done == ["create Service"]


async def test_what_is_removed_is_this_tunnels_own() -> None:
    world = await settled()
    for name, uid in (("former", "tunnel-uid"), ("other", "other-uid")):
        owner = {**WANTED[0]["metadata"]["ownerReferences"][0], "uid": uid}
        changes = {"metadata.name": name, "metadata.uid": name, "metadata.ownerReferences": [owner]}
        world.store.put("Service", world.api.put(WANTED[0], changes))

    await world.cluster.prune(ORDERS, WANTED)

    assert world.api.done == ["delete Service former"]


async def test_what_somebody_has_changed_since_is_looked_at_before_it_is_removed() -> None:
    world = await settled()
    changes = {"metadata.name": "former", "metadata.uid": "former"}
    world.store.put("Service", world.api.put(WANTED[0], changes))
    kept = world.api.put(WANTED[0], {**changes, "metadata.ownerReferences": []})

    with pytest.raises(ApiError, match="409"):
        await world.cluster.prune(ORDERS, WANTED)
    assert world.api.objects["Service", "former"] == kept

    world.store.put("Service", world.api.put(kept, {"metadata.labels": {}}))
    await world.cluster.prune(ORDERS, WANTED)
    assert world.api.done == ["delete Service former"]


async def test_an_orphan_that_is_not_wanted_any_more_is_removed() -> None:
    world = await settled()
    open_to_all = [child for child in WANTED if child["kind"] != "NetworkPolicy"]
    written = {"metadata.annotations": {"dbtunnel.dev/desired": "0123456789abcdef"}}
    foreign = written | {"metadata.labels": {**WANTED[0]["metadata"]["labels"], "app.kubernetes.io/managed-by": "Helm"}}
    going = {"metadata.deletionTimestamp": "2026-11-05T12:00:00Z"}
    for name, changes in (("former", written), ("foreign", foreign), ("going", written | going), ("exposed", {})):
        named = {"metadata.name": name, "metadata.uid": name, "metadata.ownerReferences": [], **changes}
        world.store.put("Service", world.api.put(WANTED[0], named))
    world.edit(POLICY, {"metadata.ownerReferences": []})

    await world.cluster.prune(ORDERS, open_to_all)

    assert world.api.done == ["delete NetworkPolicy orders-tunnel", "delete Service former"]


# --- refusals ---------------------------------------------------------------------------------------------------------


async def test_no_pod_is_made_before_the_policy_that_limits_who_may_connect_to_it() -> None:
    world = World()
    world.api.refusals["NetworkPolicy"] = ApiError(403, "Forbidden", "denied")
    assert await world.ensure() is Reason.REJECTED
    assert world.api.done == ["create Service", "create NetworkPolicy"]

    world.api.refusals.clear()
    assert await world.ensure() is None
    assert world.api.done == ["create NetworkPolicy", "create Deployment"]


async def test_pods_that_are_there_are_kept_as_they_should_be_all_the_same() -> None:
    world = await settled()
    world.edit(POLICY, {"spec.ingress": []})
    world.edit(DEPLOYMENT, {"spec.replicas": 5})
    world.api.refusals["NetworkPolicy"] = ApiError(403, "Forbidden", "denied")

    assert await world.ensure() is Reason.REJECTED

    assert world.api.done == ["replace NetworkPolicy", "replace Deployment"]
    assert world.api.objects[DEPLOYMENT]["spec"]["replicas"] == 1


async def test_one_refusal_keeps_no_other_child_from_being_made() -> None:
    world = World()
    world.api.refusals["Service"] = ApiError(403, "Forbidden", "exceeded quota: services")
    assert await world.ensure() is Reason.QUOTA_EXCEEDED
    assert world.api.done == ["create Service", "create NetworkPolicy", "create Deployment"]
