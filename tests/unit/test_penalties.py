"""Tunnels that cannot log in harm none that shares their address: sshd's penalties do not exceed their threshold.

sshd_config(5), PerSourcePenalties, as of OpenSSH 9.8: 5 s for a failed login, 1 s for a connection that ends without
one, turned away while there are more than 15 s.
"""

import heapq
import random
from collections.abc import Callable
from typing import Any

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.domain.forwarding import FIRST_REPLICAS
from dbtunnel.domain.observed import Report
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.pace import pause_seconds
from tests.support.values import INSTALLATION, changed, failing, manifest, tunnel, working
from tests.support.world import World, settled

FAILED_LOGIN, NO_LOGIN, THRESHOLD = 5.0, 1.0, 15.0
HOST_KEY_KINDS = 3
"""Each is asked for over a connection of its own, until a pinned one is shown."""

DAY = 86_400

COSTS = {
    Reason.KEY_REJECTED: FAILED_LOGIN,
    Reason.SECOND_FACTOR_REQUIRED: FAILED_LOGIN,
    Reason.METHOD_NOT_OFFERED: FAILED_LOGIN,
    Reason.TOO_MANY_AUTH_FAILURES: FAILED_LOGIN,
    Reason.HOST_KEY_MISMATCH: HOST_KEY_KINDS * NO_LOGIN,
    Reason.HOST_KEY_UNKNOWN: HOST_KEY_KINDS * NO_LOGIN,
    Reason.HOST_KEY_REVOKED: NO_LOGIN,
    Reason.HOST_CERTIFICATE_INVALID: NO_LOGIN,
    Reason.NO_COMMON_ALGORITHM: NO_LOGIN,
}
"""What an attempt that fails for this reason costs the address."""


Pace = Callable[[Failure, int, int], float]


def worst_penalty(
    reason: Reason, replicas: int, pace: Pace = pause_seconds, together: int = 16, tunnels: int = 1
) -> float:
    """The highest penalty within a day; of each tunnel's replicas as many as `together` begin, all at one moment."""
    failure = Failure(REASONS[reason].type, reason)
    attempts = [(0.0, number, 0) for number in range(tunnels * min(replicas, together))]
    expires, worst = 0.0, 0.0
    while attempts[0][0] < DAY:
        now, number, failures = heapq.heappop(attempts)
        expires = max(expires, now) + COSTS[reason]
        worst = max(worst, expires - now)
        heapq.heappush(attempts, (now + pace(failure, failures, replicas), number, failures + 1))
    return worst


@pytest.fixture(autouse=True)
def same_jitter() -> None:
    random.seed(7)


@pytest.mark.parametrize("tunnels", [1, 2])
@pytest.mark.parametrize("replicas", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("reason", COSTS)
def test_two_bad_tunnels_stay_below_the_threshold(reason: Reason, replicas: int, tunnels: int) -> None:
    assert worst_penalty(reason, replicas, together=FIRST_REPLICAS, tunnels=tunnels) < THRESHOLD


@pytest.mark.parametrize("reason", COSTS)
def test_three_do_not_exceed_it(reason: Reason) -> None:
    assert worst_penalty(reason, 16, together=FIRST_REPLICAS, tunnels=3) <= THRESHOLD


def test_two_that_start_two_forwarders_each_or_four_that_start_one_would_exceed_it() -> None:
    assert worst_penalty(Reason.KEY_REJECTED, 2, together=2, tunnels=2) > THRESHOLD
    assert worst_penalty(Reason.KEY_REJECTED, 1, tunnels=4) > THRESHOLD


@pytest.mark.parametrize("reason", COSTS)
def test_three_that_lose_their_connections_together_do_not_exceed_it(reason: Reason) -> None:
    """As when the key of a tunnel that worked is revoked and its sessions are ended."""
    assert worst_penalty(reason, 3) <= THRESHOLD


def test_more_that_begin_together_would_exceed_it() -> None:
    assert worst_penalty(Reason.KEY_REJECTED, 4) > THRESHOLD


def test_every_failed_login_is_in_the_table() -> None:
    assert {reason for reason, info in REASONS.items() if info.type is ConditionType.AUTHENTICATED} <= set(COSTS)


def test_a_faster_pace_would_reach_it() -> None:
    assert worst_penalty(Reason.KEY_REJECTED, 1, lambda *_: 2.0) >= THRESHOLD
    assert worst_penalty(Reason.HOST_KEY_MISMATCH, 1, lambda *_: 1.0) >= THRESHOLD


# --- how many forwarders start ---------------------------------------------------------------------------------------


def started(world: World) -> int:
    """How many forwarders the Deployment asks for."""
    return int((world.store.get("Deployment", "shop", "orders-tunnel") or {})["spec"]["replicas"])


def change(world: World, spec: dict[str, Any]) -> DatabaseTunnel:
    """The tunnel changes, and a pod of its new template is there, rejected."""
    of = tunnel(spec)
    changes = {"metadata.generation": 4, **{f"spec.{path}": value for path, value in spec.items()}}
    world.cluster.put("DatabaseTunnel", manifest(changes, world.status))
    world.add_pod(failing(of, ConditionType.AUTHENTICATED, Reason.KEY_REJECTED, pod_uid="new"), "new", of=of)
    return of


async def world_of(replicas: int) -> World:
    """A tunnel with so many replicas, the first of whose forwarders is rejected."""
    of, world = tunnel({"replicas": replicas}), World({"spec.replicas": replicas})
    await world.reconcile()
    world.add_pod(failing(of, ConditionType.AUTHENTICATED, Reason.KEY_REJECTED, pod_uid="pod-1"), of=of)
    await world.reconcile(1)
    return world


@pytest.mark.parametrize("replicas", [2, 5])
async def test_one_forwarder_starts_until_it_is_let_in(replicas: int) -> None:
    """Else the failed logins of all of them at once would have the bastion turn the cluster's address away."""
    world = await world_of(replicas)
    assert started(world) == 1
    assert world.condition("WorkloadReady") == ("Unknown", "Progressing")
    assert f"1 of {replicas} forwarders run and answer. More start once" in str(world.status["conditions"][0])
    assert world.condition("Ready") == ("False", "KeyRejected")
    rejected = world.forwarders.known["pod-1"]
    world.forwarders.known["pod-1"] = Report(working(tunnel({"replicas": replicas})))
    await world.reconcile(70)
    assert started(world) == replicas
    assert world.condition("Ready")[0] != "True", "others are still to come"
    world.forwarders.known["pod-1"] = rejected
    await world.reconcile(80)
    assert started(world) == replicas, "none that serves ends for it"


@pytest.mark.parametrize("status", [None, {}], ids=["known", "fresh"])
async def test_those_that_run_go_on_whatever_the_operator_has_heard(status: dict[str, Any] | None) -> None:
    """As after its restart, or where the tunnel's status was lost while the bastion was away."""
    world = await world_of(3)
    world.forwarders.known["pod-1"] = Report(working(tunnel({"replicas": 3})))
    await world.reconcile(70)
    world.forwarders.known.clear()
    world.reconciler = world.reconciler_with(INSTALLATION)
    world.cluster.put("DatabaseTunnel", manifest({"spec.replicas": 3}, world.status if status is None else status))
    await world.reconcile(80)
    assert started(world) == 3


async def test_no_more_start_than_run_until_one_is_let_in() -> None:
    """Where somebody has scaled the Deployment of a tunnel that is rejected, or another version has started more."""
    world = await world_of(5)
    live = world.store.get("Deployment", "shop", "orders-tunnel") or {}
    for count, then in ((2, 2), (9, 5), (0, 1)):
        world.cluster.put("Deployment", changed(live, {"spec.replicas": count}))
        await world.reconcile(90)
        assert started(world) == then


async def test_that_earlier_pods_were_let_in_says_nothing_of_another_key() -> None:
    """Of replicas that are added with it only one tries it."""
    world = await settled()
    of = change(world, {"replicas": 5, "tunnel.keySecretRef": {"name": "other"}})
    await world.reconcile(10)
    assert started(world) == 1
    world.forwarders.known["new"] = Report(working(of, "new"))
    await world.reconcile(20)
    assert started(world) == 5


async def test_a_suspended_tunnel_begins_with_one() -> None:
    world = await world_of(3)
    world.forwarders.known["pod-1"] = Report(working(tunnel({"replicas": 3})))
    for number, (suspend, count) in enumerate(((False, 3), (True, 0), (False, 1))):
        world.cluster.put("DatabaseTunnel", manifest({"spec.replicas": 3, "spec.suspend": suspend}, world.status))
        await world.reconcile(70 + number)
        assert started(world) == count
        if suspend:
            world.forwarders.known.clear()
