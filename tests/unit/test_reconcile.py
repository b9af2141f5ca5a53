"""One reconcile, step by step, with a cluster that only notes what is done to it."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import HopFact
from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.controller.client import ApiError
from dbtunnel.controller.cluster import NamespaceEndingError, problem_of
from dbtunnel.controller.forwarders import Target
from dbtunnel.controller.keys import generate_key
from dbtunnel.controller.queue import TunnelKey
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.observed import Problem, Report
from tests.support.keys import key_pair
from tests.support.values import INSTALLATION, NOW, changed, failing, working
from tests.support.world import KEY, ORDERS, World, settled

# --- the usual way ----------------------------------------------------------------------------------------------------


async def test_a_new_tunnel_is_announced_before_anything_is_made() -> None:
    world = World()
    await world.reconcile()
    assert world.cluster.done == ["status", "create orders-ssh", "ensure", "prune"]
    assert world.condition("Ready") == ("Unknown", "Progressing")
    assert world.cluster.events == []


async def test_a_tunnel_becomes_ready_when_its_forwarder_says_so() -> None:
    world = await settled()
    assert world.cluster.done == ["ensure", "prune", "status"]
    assert world.condition("Ready") == ("True", "Succeeded")
    assert world.cluster.events == [("Normal", "Ready")]
    assert world.status["endpoint"]["clusterIP"] == "10.1.0.1"
    assert world.status["observedGeneration"] == 3


async def test_at_the_fixpoint_nothing_is_written() -> None:
    world = await settled()
    for seconds in (0, 1, 1000, 10**6):
        assert await world.reconcile(seconds) is None
        assert world.cluster.done == ["ensure", "prune"]
        assert world.cluster.events == []


async def test_a_failure_is_written_at_once_with_an_event() -> None:
    world = await settled()
    world.forwarders.known["pod-1"] = Report(failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST))
    await world.reconcile(10)
    assert world.condition("Ready") == ("False", "ConnectionLost")
    assert world.cluster.events == [("Warning", "ConnectionLost")]


async def test_a_small_change_waits_for_others() -> None:
    world = await settled()
    for number, (seconds, again) in enumerate([(10, 3), (11, 2), (12.5, 0.5)]):
        hop = HopFact(cipher=f"cipher-{number}")
        world.forwarders.known["pod-1"] = Report(working(ORDERS, hops=(replace(hop, server_version="x"),)))
        assert await world.reconcile(seconds) == again
        assert "status" not in world.cluster.done
    assert await world.reconcile(13) is None
    assert world.status["hops"][0]["cipher"] == "cipher-2"
    assert world.cluster.done == ["ensure", "prune", "status"]


async def test_a_small_change_that_is_taken_back_is_not_written() -> None:
    world = await settled()
    before = world.forwarders.known["pod-1"]
    world.forwarders.known["pod-1"] = Report(working(ORDERS, hops=(HopFact(server_version="x"),)))
    await world.reconcile(10)
    world.forwarders.known["pod-1"] = before
    assert await world.reconcile(11) is None
    assert await world.reconcile(100) is None
    assert "status" not in world.cluster.done


# --- news in the midst of it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"metadata.uid": "another", "status": {}}, {"metadata.generation": 4, "spec.database.port": 6000}]
)
async def test_a_status_never_lands_on_another_version_than_it_was_decided_from(changes: Mapping[str, Any]) -> None:
    world = await settled()
    now_there = changed(world.store.tunnel(KEY) or {}, changes)
    world.cluster.meanwhile = lambda: world.cluster.put("DatabaseTunnel", now_there)
    world.forwarders.known["pod-1"] = Report(failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST))
    await world.reconcile(10)
    assert "status" not in world.cluster.done
    assert world.cluster.events == []


async def test_a_tunnel_that_goes_meanwhile_gets_no_status() -> None:
    world = World()
    world.cluster.meanwhile = lambda: world.store.remove(
        "DatabaseTunnel", changed(world.store.tunnel(KEY) or {}, {"metadata.resourceVersion": "9999"})
    )
    await world.reconcile()
    assert world.cluster.done == ["status", "create orders-ssh", "ensure", "prune"]


async def test_a_forwarder_that_changes_its_mind_all_the_time_causes_few_writes() -> None:
    world = await settled()
    lost = Report(failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST))
    works = world.forwarders.known["pod-1"]
    writes = 0
    for tick in range(1000):
        world.forwarders.known["pod-1"] = works if tick % 2 else lost
        await world.reconcile(10 + tick * 0.3)
        writes += world.cluster.done.count("status")
    assert writes <= 12 + 300 / 5
    world.forwarders.known["pod-1"] = works
    again = await world.reconcile(310)
    await world.reconcile(310 + (again or 0))
    assert world.condition("Ready") == ("True", "Succeeded"), "the last word is told"


# --- pods -------------------------------------------------------------------------------------------------------------


async def test_current_pods_with_an_address_are_followed_and_no_others() -> None:
    world = await settled()
    world.add_pod(uid="starting", changes={"status.podIP": None})
    world.add_pod(uid="ending", changes={"metadata.deletionTimestamp": "2026-11-05T12:00:00Z"})
    world.add_pod(uid="failed", changes={"status.phase": "Failed"})
    labels = {"dbtunnel.dev/tunnel": "orders", "dbtunnel.dev/revision": "0123456789abcdef"}
    world.add_pod(uid="old", changes={"metadata.labels": labels})
    await world.reconcile(1)
    config_hash = forwarder_config(ORDERS, INSTALLATION.defaults).digest()
    assert world.forwarders.targets == {Target("shop", "pod-1", "pod-1", "10.0.0.1", config_hash)}


async def test_a_pod_that_has_not_run_yet_is_not_asked_and_one_that_ran_is_asked_on() -> None:
    world = await settled()
    not_running = {"status.containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}
    world.add_pod(uid="starting", changes=not_running)
    world.add_pod(changes=not_running)
    await world.reconcile(1)
    assert {target.uid for target in world.forwarders.targets} == {"pod-1"}
    world.add_pod(uid="starting")
    await world.reconcile(2)
    assert {target.uid for target in world.forwarders.targets} == {"pod-1", "starting"}


async def test_while_a_key_is_awaited_mounts_are_refreshed_now_and_then() -> None:
    world = await settled()
    world.add_pod(uid="ending", changes={"metadata.deletionTimestamp": "2026-11-05T12:00:00Z"})
    missing = failing(ORDERS, ConditionType.KEY_READY, Reason.SECRET_KEY_MISSING)
    world.forwarders.known["pod-1"] = Report(missing)
    refreshed = []
    for seconds in (10, 11, 13.5, 14, 15, 19):
        await world.reconcile(seconds)
        refreshed += [seconds for done in world.cluster.done if done == "refresh pod-1"]
    assert refreshed == [10, 14, 19]


async def test_many_tunnels_that_wait_for_a_key_are_refreshed_more_rarely() -> None:
    world = await settled()
    missing = failing(ORDERS, ConditionType.KEY_READY, Reason.SECRET_KEY_MISSING)
    world.forwarders.known["pod-1"] = Report(missing)
    document = world.store.tunnel(KEY) or {}
    for number in range(199):
        named = {"metadata.name": f"tunnel-{number}", "metadata.uid": str(number)}
        put = world.cluster.put("DatabaseTunnel", changed(document, named))
        world.add_pod(missing, f"pod-of-{number}", of=DatabaseTunnel.parse(put))
        await world.reconciler.reconcile(TunnelKey("shop", f"tunnel-{number}"), NOW + timedelta(seconds=10))
    refreshed = []
    for seconds in range(10, 60):
        await world.reconcile(seconds)
        refreshed += [seconds for done in world.cluster.done if done == "refresh pod-1"]
    assert refreshed == [10, 20, 30, 40, 50]


# --- keys -------------------------------------------------------------------------------------------------------------


async def test_a_key_is_generated_with_the_tunnels_name_as_comment() -> None:
    world = World()
    await world.reconcile()
    assert world.cluster.secrets[0]["stringData"]["ssh-privatekey"].startswith("-----BEGIN OPENSSH PRIVATE KEY-----\n")
    assert world.cluster.secrets[0]["stringData"]["ssh-publickey"].startswith("ssh-ed25519 ")
    assert world.cluster.secrets[0]["stringData"]["ssh-publickey"].endswith(" shop/orders\n")


async def test_no_second_key_is_generated_and_none_where_a_secret_is_given() -> None:
    world = await settled()
    await world.reconcile(1)
    assert "create orders-ssh" not in world.cluster.done
    given = World({"spec.tunnel.keySecretRef": {"name": "bastion-key"}})
    await given.reconcile()
    assert "create orders-ssh" not in given.cluster.done


async def test_a_generated_key_that_is_missed_is_made_again() -> None:
    world = await settled()
    missing = failing(ORDERS, ConditionType.KEY_READY, Reason.SECRET_NOT_FOUND, public_key=None)
    world.forwarders.known["pod-1"] = Report(missing)
    await world.reconcile(40)
    await world.reconcile(41)
    assert world.cluster.done[0] == "create orders-ssh"


async def test_a_key_that_is_missed_though_it_is_there_is_not_generated_all_the_time() -> None:
    world = await settled()
    missing = failing(ORDERS, ConditionType.KEY_READY, Reason.SECRET_NOT_FOUND, public_key=None)
    world.forwarders.known["pod-1"] = Report(missing)
    generated = []
    for seconds in range(10, 80):
        await world.reconcile(seconds)
        generated += [seconds for done in world.cluster.done if done == "create orders-ssh"]
    assert generated == [11, 41, 71]


@pytest.mark.parametrize(("kind", "begins"), [("Ed25519", "ssh-ed25519"), ("ECDSA", "ecdsa-sha2-nistp256")])
def test_generated_keys_are_of_the_kind_that_was_asked_for(kind: Any, begins: str) -> None:
    first, second = generate_key(kind, "shop/orders"), generate_key(kind, "shop/orders")
    assert first.keys() == {"ssh-privatekey", "ssh-publickey"}
    assert first["ssh-publickey"].split()[0] == begins
    assert first != second
    assert key_pair().private.splitlines()[0] == first["ssh-privatekey"].splitlines()[0]


# --- what stands in the way -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{"metadata.name": "other"}, {"metadata.deletionTimestamp": "2026-11-05T12:00:00Z"}]
)
async def test_a_tunnel_that_goes_or_has_gone_is_left_alone(changes: Mapping[str, Any]) -> None:
    world = World(changes)
    world.forwarders.targets = {Target("shop", "pod", "uid", "10.0.0.1", "hash")}
    assert await world.reconcile() is None
    assert world.cluster.done == ["forget orders"]
    assert world.forwarders.targets == set()


async def test_a_spec_that_cannot_be_read_is_told_and_the_children_stay() -> None:
    world = await settled()
    world.cluster.put("DatabaseTunnel", changed(world.store.tunnel(KEY) or {}, {"spec.engine": "Oracle"}))
    assert await world.reconcile(10) is None
    assert world.cluster.done == ["status"]
    assert world.condition("Stalled") == ("True", "Rejected")
    assert world.cluster.events == [("Warning", "Rejected")]
    assert world.status["endpoint"]["host"] == "orders.shop.svc", "what else is known stays"
    assert "spec.engine: Input should be 'PostgreSQL'" in world.status["conditions"][0]["message"]
    assert await world.reconcile(11) is None
    assert world.cluster.done == []


async def test_what_a_newer_version_wrote_beside_the_status_is_no_difference() -> None:
    world = await settled()
    newer = {"status.future": {"binding": "kept"}, "status.endpoint.zone": "a"}
    world.cluster.put("DatabaseTunnel", changed(world.store.tunnel(KEY) or {}, newer))
    await world.reconcile(10)
    assert world.cluster.done == ["ensure", "prune"]


async def test_a_status_that_cannot_be_read_keeps_no_tunnel_from_being_served() -> None:
    world = World({"status": {"replicas": "two", "conditions": [{"type": "Ready"}]}})
    await world.reconcile()
    assert "ensure" in world.cluster.done
    assert world.condition("Ready") == ("Unknown", "Progressing")


async def test_neither_a_spec_nor_a_status_that_can_be_read() -> None:
    world = World({"spec.engine": "Oracle", "status": {"hops": [{"port": "twenty-two"}]}})
    await world.reconcile()
    assert world.condition("Ready") == ("False", "Rejected")


async def test_a_child_that_cannot_be_made_is_told_and_tried_again_soon() -> None:
    world = World()
    world.cluster.problem = Problem(Reason.NAME_CONFLICT, "Service orders")
    assert await world.reconcile() == 5
    assert world.condition("Ready") == ("False", "NameConflict")
    world.cluster.problem = Problem(Reason.PROGRESSING, "Waits until Service orders is deleted, to make it anew.")
    assert await world.reconcile(10) == 5
    assert world.condition("Stalled")[0] == "False"


@pytest.mark.parametrize(("reason", "seconds"), [(Reason.NAME_CONFLICT, 5), (Reason.REJECTED, 30)])
async def test_what_is_refused_is_tried_again_at_the_pace_of_its_reason(reason: Reason, seconds: float) -> None:
    world = World()
    world.cluster.problem = Problem(reason, "Deployment orders-tunnel")
    assert await world.reconcile() == seconds


async def test_nothing_is_removed_before_what_replaces_it_is_there() -> None:
    world = await settled()
    world.cluster.problem = Problem(Reason.NAME_CONFLICT, "Service other")
    await world.reconcile(10)
    assert "prune" not in world.cluster.done


async def test_in_a_namespace_that_ends_nothing_is_made_or_said() -> None:
    world = await settled()
    world.cluster.is_ending = True
    assert await world.reconcile(10) == 5
    assert world.cluster.done == []


async def test_a_namespace_that_ends_is_tried_once_in_a_while_for_all_its_tunnels() -> None:
    world = await settled()
    document = world.store.tunnel(KEY) or {}
    keys = [TunnelKey("shop", f"tunnel-{number}") for number in range(10)]
    for key in keys:
        world.cluster.put("DatabaseTunnel", changed(document, {"metadata.name": key.name, "metadata.uid": key.name}))
    world.cluster.is_ending = True
    for seconds in range(10, 20):
        for key in keys:
            await world.reconciler.reconcile(key, NOW + timedelta(seconds=seconds))
    assert world.cluster.refused == 2
    world.cluster.is_ending = False
    assert await world.reconcile(21) is None, "a namespace that was made anew is served"


# --- what the API server refuses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message", "reason"),
    [
        (403, 'services "orders" is forbidden: exceeded quota: small', Reason.QUOTA_EXCEEDED),
        (403, "admission webhook denied the request", Reason.REJECTED),
        (422, "spec.ports: Required value", Reason.REJECTED),
        (400, "strict decoding error", Reason.REJECTED),
        (413, "too large", Reason.REJECTED),
        (500, "failed calling webhook", Reason.REJECTED),
    ],
)
def test_a_refusal_that_a_person_must_know_of(status: int, message: str, reason: Reason) -> None:
    assert problem_of(ApiError(status, "x", message), "Service orders") == Problem(reason, f"Service orders: {message}")


@pytest.mark.parametrize("status", [401, 409, 410, 429, 502, 503, 504])
def test_a_refusal_after_which_to_try_again(status: int) -> None:
    error = ApiError(status, "x", "y")
    with pytest.raises(ApiError) as raised:
        problem_of(error, "Service orders")
    assert raised.value is error


@pytest.mark.parametrize("error", [ApiError(403, "Forbidden", "x", ["NamespaceTerminating"]), ApiError(404, "x", "y")])
def test_a_refusal_since_the_namespace_ends(error: ApiError) -> None:
    with pytest.raises(NamespaceEndingError):
        problem_of(error, "Service orders")
