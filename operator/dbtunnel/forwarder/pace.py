"""When to try again what failed."""

import asyncio
import random
from collections.abc import Callable

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import REASONS
from dbtunnel.forwarder.failures import Failure

FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 30.0

_EAGER_DOUBLINGS = 2
EAGER_BACKOFF_SECONDS = FIRST_BACKOFF_SECONDS * 2**_EAGER_DOUBLINGS
"""The longest pause while a client waits for the connection: it is served within two seconds of the server's return,
however long that was away.
"""

STABLE_SECONDS = 30.0
"""A connection that stood this long resets the backoff."""

FIRST_RETURN_SECONDS = 10.0
LONGEST_RETURN_SECONDS = 300.0
"""How often a bastion is tried while a fallback serves in its place: nobody waits for it, and it is let alone."""

_NEIGHBOUR_FACTOR = 0.5
"""By how much each further replica slows the attempts that sshd penalises."""


class Pace:
    """When a server may be tried again. Times are the loop's."""

    def __init__(self, replicas: int, is_awaited: Callable[[], bool] = lambda: False) -> None:
        """`is_awaited`: whether a client waits for the connection, now that it is asked."""
        self._replicas, self._is_awaited = replicas, is_awaited
        self.attempts = 0
        """Failures since a connection to it was stable."""
        self.not_before = 0.0
        """With nobody who waits."""
        self._not_before_eagerly = 0.0

    def wait_seconds(self) -> float:
        """How long until it may be tried, as things are; may be negative."""
        due = min(self.not_before, self._not_before_eagerly) if self._is_awaited() else self.not_before
        return due - asyncio.get_running_loop().time()

    @property
    def is_due(self) -> bool:
        """Whether it may be tried."""
        return self.wait_seconds() <= 0

    def failed(self, failure: Failure) -> None:
        """An attempt has failed, or a connection was lost. What another has met since it began goes on to count."""
        now, eagerly = asyncio.get_running_loop().time(), min(self.attempts, _EAGER_DOUBLINGS)
        self.not_before = max(self.not_before, now + pause_seconds(failure, self.attempts, self._replicas))
        self._not_before_eagerly = max(self._not_before_eagerly, now + pause_seconds(failure, eagerly, self._replicas))
        self.attempts += 1

    def stood(self) -> None:
        """A connection was stable: pauses begin anew. The one that goes on is for what another attempt met since."""
        self.attempts = 0

    def reset(self) -> None:
        """Something has changed: no reason to wait any more."""
        self.attempts, self.not_before, self._not_before_eagerly = 0, 0.0, 0.0


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
