"""A tunnel that cannot log in harms none that shares its address: sshd's penalties never reach their threshold.

sshd_config(5), PerSourcePenalties, as of OpenSSH 9.8: 5 s for a failed login, 1 s for a connection that ends without
one, turned away from 15 s on.
"""

import heapq
import random
from collections.abc import Callable

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.pace import pause_seconds

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


def worst_penalty(reason: Reason, replicas: int, pace: Pace = pause_seconds) -> float:
    """The highest penalty within a day; all replicas begin at the same moment."""
    failure = Failure(REASONS[reason].type, reason)
    attempts = [(0.0, number, 0) for number in range(replicas)]
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


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("reason", COSTS)
def test_a_bad_tunnel_stays_below_the_threshold(reason: Reason, replicas: int) -> None:
    assert worst_penalty(reason, replicas) < THRESHOLD


def test_every_failed_login_is_in_the_table() -> None:
    assert {reason for reason, info in REASONS.items() if info.type is ConditionType.AUTHENTICATED} <= set(COSTS)


def test_a_faster_pace_would_reach_it() -> None:
    assert worst_penalty(Reason.KEY_REJECTED, 1, lambda *_: 2.0) >= THRESHOLD
    assert worst_penalty(Reason.HOST_KEY_MISMATCH, 1, lambda *_: 1.0) >= THRESHOLD
