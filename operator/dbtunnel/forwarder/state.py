"""What the forwarder knows, as the document at /status; whoever waits for a change is woken."""

import asyncio
import logging
import time
from collections.abc import Iterator
from typing import Any

from dbtunnel.api.conditions import LAYERS, ConditionType
from dbtunnel.api.forwarder import ForwarderConfig, ForwarderStatus, LayerFact, LayerStatus
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.diagnosis import Subject, explain, printable
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.logs import Budget, event

_LOG = logging.getLogger(__name__)

_FIELDS = {
    ConditionType.KEY_READY: "key",
    ConditionType.TRANSPORT_READY: "transport",
    ConditionType.AUTHENTICATED: "authentication",
    ConditionType.DATABASE_REACHABLE: "database",
}

_SEEN_LIMIT = 1000

_LOGGED_A_MINUTE = 20
"""Changes of one layer: clients of a database that answers now so and now so could cause any number."""

NOT_REACHED = LayerFact()
"""A layer that is not known, since one before it does not work yet."""


class State:
    """The current facts. Every change grows `sequence`."""

    def __init__(self, config: ForwarderConfig, pod_uid: str) -> None:
        self.status = ForwarderStatus(sequence=0, pod_uid=pod_uid, config_hash=config.digest())
        self._config = config
        self._changed = asyncio.Event()
        self._budgets = {name: Budget(_LOGGED_A_MINUTE, 60) for name in _FIELDS.values()}

    def set(self, **facts: Any) -> None:
        """Replaces facts by name."""
        if all(getattr(self.status, name) == value for name, value in facts.items()):
            return
        before = dict(self.layers())
        self.status = self.status.model_copy(update={**facts, "sequence": self.status.sequence + 1})
        for name, fact in self.layers():
            if (fact.status, fact.reason) != (before[name].status, before[name].reason):
                self._log(name, fact)
        self._changed.set()
        self._changed = asyncio.Event()

    def _log(self, layer: str, fact: LayerFact) -> None:
        if not self._budgets[layer].allows(time.monotonic()):
            return
        message = fact.seen
        if fact.status == LayerStatus.FALSE:
            subject = Subject(self._config, (), self.status.public_key, self.status.hop.host_keys)
            message = explain(fact.reason, fact.seen, subject)
        event(_LOG, "layer changed", layer=layer, status=fact.status, reason=fact.reason, message=message)

    def succeeded(self, layer: ConditionType, seen: str = "") -> None:
        """A layer works. Does nothing while one before it does not: it was found over an earlier connection."""
        if not all(self.works(before) for before in _before(layer)):
            return
        self.set(**{_FIELDS[layer]: LayerFact(status=LayerStatus.TRUE, reason=Reason.SUCCEEDED, seen=seen)})

    def works(self, layer: ConditionType) -> bool:
        """Whether a layer is known to work."""
        fact: LayerFact = getattr(self.status, _FIELDS[layer])
        return fact.status == LayerStatus.TRUE

    def failed(self, failure: Failure) -> None:
        """A layer does not work: those before it do, those after it are not reached."""
        position = LAYERS.index(failure.layer)
        facts = {_FIELDS[layer]: NOT_REACHED for layer in LAYERS[position + 1 :]}
        seen = printable(failure.seen, _SEEN_LIMIT)
        facts[_FIELDS[failure.layer]] = LayerFact(status=LayerStatus.FALSE, reason=failure.reason, seen=seen)
        for layer in _before(failure.layer):
            facts[_FIELDS[layer]] = LayerFact(status=LayerStatus.TRUE, reason=Reason.SUCCEEDED)
        self.set(**facts)

    def layers(self) -> Iterator[tuple[str, LayerFact]]:
        """Each layer's name in the document, and its fact."""
        for name in _FIELDS.values():
            yield name, getattr(self.status, name)

    def unknown(self, layer: ConditionType, reason: Reason, seen: str) -> None:
        """Nothing is known of a layer, for a reason."""
        self.set(**{_FIELDS[layer]: LayerFact(status=LayerStatus.UNKNOWN, reason=reason, seen=seen)})

    async def after(self, sequence: int, timeout_seconds: float) -> ForwarderStatus:
        """The facts once they are other than those of `sequence`, or as they are at the timeout.

        A sequence that is yet to come is one of an earlier process of the same pod.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                while self.status.sequence == sequence:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.status


def _before(layer: ConditionType) -> tuple[ConditionType, ...]:
    return LAYERS[: LAYERS.index(layer)]
