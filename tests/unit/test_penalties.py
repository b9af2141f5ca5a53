"""A tunnel that cannot log in harms none that shares its address: sshd's penalties never reach their threshold.

sshd_config(5), PerSourcePenalties, as of OpenSSH 9.8: 5 s for a failed login, 1 s for a connection that ends without
one, turned away while there are more than 15 s.
"""

import heapq
import random
from collections.abc import Callable

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.domain.forwarding import FIRST_REPLICAS
from dbtunnel.domain.observed import Report
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.pace import pause_seconds
from tests.support.values import failing, tunnel, working
from tests.support.world import World

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


def worst_penalty(reason: Reason, replicas: int, pace: Pace = pause_seconds, together: int = 16) -> float:
    """The highest penalty within a day; of the replicas as many as `together` begin, all at the same moment."""
    failure = Failure(REASONS[reason].type, reason)
    attempts = [(0.0, number, 0) for number in range(min(replicas, together))]
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


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 5, 16])
@pytest.mark.parametrize("reason", COSTS)
def test_a_bad_tunnel_stays_below_the_threshold(reason: Reason, replicas: int) -> None:
    assert worst_penalty(reason, replicas, together=FIRST_REPLICAS) < THRESHOLD


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


async def test_few_forwarders_start_until_one_is_let_in() -> None:
    """Else the failed logins of all of them at once would have the bastion turn the cluster's address away."""
    five = {"spec.replicas": 5}
    of = tunnel({"replicas": 5})
    world = World(five)
    await world.reconcile()
    for number in (1, 2):
        rejected = failing(of, ConditionType.AUTHENTICATED, Reason.KEY_REJECTED, pod_uid=f"pod-{number}")
        world.add_pod(rejected, f"pod-{number}", of=of)
    await world.reconcile(1)
    assert started(world) == 2
    assert world.condition("WorkloadReady") == ("Unknown", "Progressing")
    assert "2 of 5 forwarders run and answer. More start once" in str(world.status["conditions"][0])
    assert world.condition("Ready") == ("False", "KeyRejected")
    world.forwarders.known["pod-1"] = Report(working(of))
    await world.reconcile(70)
    assert started(world) == 5
    assert world.condition("Ready")[0] != "True", "three are still to come"
    world.forwarders.known["pod-1"] = world.forwarders.known["pod-2"]
    await world.reconcile(80)
    assert started(world) == 5, "none that serves ends for it"


async def test_two_forwarders_start_together() -> None:
    world = World({"spec.replicas": 2})
    await world.reconcile()
    assert started(world) == 2
