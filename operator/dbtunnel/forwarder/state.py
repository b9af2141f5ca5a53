"""What the forwarder knows, as the document at /status; whoever waits for a change is woken."""

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from dbtunnel.api.conditions import LAYERS, ConditionType
from dbtunnel.api.forwarder import (
    ForwarderConfig,
    ForwarderStatus,
    HopFact,
    LayerFact,
    LayerStatus,
    NextKeyFact,
    PublicKeyFact,
)
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.diagnosis import Subject, explain, printable
from dbtunnel.domain.hops import ends_of, hop_name, jumps_of
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

_KeyFacts = tuple[PublicKeyFact | None, NextKeyFact | None]

NOT_REACHED = LayerFact()
"""A layer that is not known, since one before it does not work yet."""


class State:
    """The current facts. Every change grows `sequence`."""

    def __init__(self, config: ForwarderConfig, pod_uid: str) -> None:
        hops = (HopFact(),) * len(config.hops)
        self.status = ForwarderStatus(sequence=0, pod_uid=pod_uid, config_hash=config.digest(), hops=hops)
        self._config = config
        self._end = 0
        """Number of the bastion or fallback that clients go through, or went last."""
        self._shared: dict[int, _KeyFacts] = {}
        """What each hop that has the tunnel's key tells of it, by number."""
        self._changed = asyncio.Event()
        self._budgets = {name: Budget(_LOGGED_A_MINUTE, 60) for name in _FIELDS.values()}

    def set(self, **facts: Any) -> None:
        """Replaces facts by name."""
        if all(getattr(self.status, name) == value for name, value in facts.items()):
            return
        before = dict(self.layers())
        self.status = replace(self.status, **facts, sequence=self.status.sequence + 1)
        for name, fact in self.layers():
            if (fact.status, fact.reason) != (before[name].status, before[name].reason):
                self._log(name, fact)
        self._changed.set()
        self._changed = asyncio.Event()

    def _log(self, layer: str, fact: LayerFact) -> None:
        if not self._budgets[layer].allows(time.monotonic()):
            return
        message = self._explained(fact) if fact.status == LayerStatus.FALSE else fact.seen
        event(_LOG, "layer changed", layer=layer, status=fact.status, reason=fact.reason, message=message)

    def _explained(self, fact: LayerFact) -> str:
        return explain(
            fact.reason, fact.seen, Subject(self._config, (), self.status.public_key, self.status.hops), fact.hop
        )

    # --- single SSH servers ---------------------------------------------------------------------------------------

    def set_hop(self, number: int, **facts: Any) -> None:
        """Replaces facts about a hop by name."""
        hops = list(self.status.hops)
        hops[number] = replace(hops[number], **facts)
        self.set(hops=tuple(hops))

    def set_keys(self, number: int, public: PublicKeyFact | None, following: NextKeyFact | None) -> None:
        """Tells of the keys for a hop, its own or the tunnel's, and of the one that is to replace it."""
        if self._config.hops[number].key:
            _log_next_key(self.status.hops[number].next_key, following)
            self.set_hop(number, public_key=public, next_key=following)
        else:
            self._shared[number] = public, following
            self._set_shared_keys()

    def _set_shared_keys(self) -> None:
        """The tunnel's key is accepted where each server accepts it that clients go through; others are not asked."""
        numbers = [number for number in sorted(self._shared) if self.status.hops[number].active]
        facts = [self._shared[number] for number in numbers or sorted(self._shared)]
        if not facts:
            return
        public, following = _agreed(facts)
        _log_next_key(self.status.next_key, following)
        self.set(public_key=public, next_key=following)

    def uses(self, number: int | None) -> None:
        """Clients go through this bastion or fallback from now on; None: through none."""
        self._end = self._end if number is None else number
        used = set() if number is None else {number, *jumps_of(self._config)}
        hops = (replace(fact, active=place in used) for place, fact in enumerate(self.status.hops))
        self.set(hops=tuple(hops))
        self._set_shared_keys()

    def passed_over(self, number: int, failure: Failure | None) -> None:
        """Why a bastion or fallback cannot be used, where others may do in its place; None where it can."""
        known, fact = self.status.hops[number].failure, self._fact(failure) if failure else None
        self.set_hop(number, failure=fact)
        if fact and len(ends_of(self._config)) > 1 and (known is None or known.reason != fact.reason):
            message = self._explained(fact)
            event(_LOG, "passed over", hop=hop_name(self._config, number), reason=fact.reason, message=message)

    # --- layers ---------------------------------------------------------------------------------------------------

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
        facts[_FIELDS[failure.layer]] = self._fact(failure)
        for layer in _before(failure.layer):
            facts[_FIELDS[layer]] = LayerFact(status=LayerStatus.TRUE, reason=Reason.SUCCEEDED)
        self.set(**facts)

    def _fact(self, failure: Failure) -> LayerFact:
        seen = printable(failure.seen, _SEEN_LIMIT)
        hop = self._end if failure.hop is None else failure.hop
        return LayerFact(status=LayerStatus.FALSE, reason=failure.reason, seen=seen, hop=hop)

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


def _agreed(facts: Sequence[_KeyFacts]) -> _KeyFacts:
    """What several SSH servers say of one key and the next: that one's word counts which is furthest from the next."""
    order = (LayerStatus.FALSE, LayerStatus.UNKNOWN, LayerStatus.TRUE)
    public, following = min(facts, key=lambda one: order.index(one[1].fact.status) if one[1] else len(order))
    known = [[key for key in (one, other.public_key if other else None) if key] for one, other in facts]
    if following:
        following = replace(following, public_key=_accepted(following.public_key, known))
    return _accepted(public, known), following


def _accepted(key: PublicKeyFact | None, known: Sequence[Sequence[PublicKeyFact]]) -> PublicKeyFact | None:
    """The key with the verdict of all servers, of each of which the keys are given."""
    if key is None:
        return None
    verdicts = [[one.accepted for one in keys if one.fingerprint == key.fingerprint] for keys in known]
    refused = any(False in one for one in verdicts)
    return replace(key, accepted=False if refused else True if all(map(any, verdicts)) else None)


def _log_next_key(before: NextKeyFact | None, following: NextKeyFact | None) -> None:
    if following and following.fact.status == LayerStatus.FALSE and following != before:
        fact = following.fact
        event(_LOG, "next key cannot be used", key=following.name, reason=fact.reason, seen=fact.seen)
