"""When to try again what failed."""

import asyncio
import random

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.forwarder.failures import Failure

FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 30.0

_EAGER_DOUBLINGS = 2
EAGER_BACKOFF_SECONDS = FIRST_BACKOFF_SECONDS * 2**_EAGER_DOUBLINGS
"""The longest pause while those who came when the outage began may still be parked: they, and who came after them, are
served within two seconds of the server's return. And the longest while nothing was heard of a server that may just be
started again."""

RESTART_SECONDS = 600.0
"""As long as a machine takes that is started again, updated or replaced."""

_UNHEARD = {Reason.CONNECTION_REFUSED, Reason.CONNECT_TIMEOUT, Reason.NETWORK_UNREACHABLE}
"""Attempts that do not reach the SSH server, or that it leaves unanswered for all of the time that they have."""

STABLE_SECONDS = 30.0
"""A connection that stood this long resets the backoff."""

FIRST_RETURN_SECONDS = 10.0
LONGEST_RETURN_SECONDS = 300.0
"""How often a bastion is tried while a fallback serves in its place: nobody waits for it, and it is let alone."""

_NEIGHBOUR_FACTOR = 0.5
"""By how much each further replica slows the attempts that sshd penalises."""


class Pace:
    """When a server may be tried again. Times are the loop's."""

    def __init__(self, replicas: int, eager_seconds: float = 0, restart_seconds: float = 0) -> None:
        """For how long after the first failure pauses grow to EAGER_BACKOFF_SECONDS alone: for `eager_seconds`, and for
        `restart_seconds` while the server is not reached.
        """
        self._replicas, self._eager_seconds = replicas, eager_seconds
        self._restart_seconds = max(restart_seconds, eager_seconds)
        self._failing_since = 0.0
        self.attempts = 0
        """Failures since a connection to it was stable, those after which the pause did not grow left out."""
        self.not_before = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it may be tried."""
        return asyncio.get_running_loop().time() >= self.not_before

    def failed(self, failure: Failure) -> None:
        """An attempt has failed, or a connection was lost. What another has met since it began goes on to count."""
        now = asyncio.get_running_loop().time()
        self.not_before = max(self.not_before, now + pause_seconds(failure, self.attempts, self._replicas))
        if not self.attempts:
            self._failing_since = now
        eager = self._restart_seconds if failure.reason in _UNHEARD else self._eager_seconds
        if self.attempts < _EAGER_DOUBLINGS or now >= self._failing_since + eager:
            self.attempts += 1

    def stood(self) -> None:
        """A connection was stable: pauses begin anew. The one that goes on is for what another attempt met since."""
        self.attempts = 0

    def reset(self) -> None:
        """Something has changed: no reason to wait any more."""
        self.attempts, self.not_before = 0, 0.0


def pause_seconds(failure: Failure, attempts: int, replicas: int) -> float:
    """How long to wait after a failure, with jitter; `attempts` counts those before it since a stable connection."""
    if failure.layer is ConditionType.KEY_READY:
        return LONGEST_BACKOFF_SECONDS  # nothing but a change of the files helps
    usual: float = min(FIRST_BACKOFF_SECONDS * 2 ** min(attempts, 16), LONGEST_BACKOFF_SECONDS)
    slow = 0 if failure.may_pass else REASONS[failure.reason].retry_seconds
    if not slow:
        return usual * random.uniform(0.5, 1)  # noqa: S311
    # sshd penalises the source address, which neighbours share: never faster than the table says
    return slow * (1 + _NEIGHBOUR_FACTOR * (replicas - 1)) * random.uniform(1, 1.5)  # noqa: S311


def return_seconds(attempts: int) -> float:
    """How long to leave a bastion alone while a fallback serves, with jitter; the loss and the first attempt after it,
    which led to the fallback, do not count."""
    usual: float = min(FIRST_RETURN_SECONDS * 2 ** min(max(attempts - 2, 0), 16), LONGEST_RETURN_SECONDS)
    return usual * random.uniform(0.5, 1)  # noqa: S311
