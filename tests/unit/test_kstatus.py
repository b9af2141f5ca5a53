"""What kstatus, and tools that wait by it, make of each status that the operator decides."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from dbtunnel.api.conditions import LAYERS, ConditionType
from dbtunnel.api.crd import resource_schema
from dbtunnel.api.forwarder import ForwarderStatus, LayerFact
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.api.status import DatabaseTunnelStatus
from dbtunnel.domain.observed import Observation, Problem
from dbtunnel.domain.status import decide, rejected
from tests.support.kstatus import Verdict, verdict
from tests.support.values import INSTALLATION, NOW, failing, manifest, observed, tunnel, working

ORDERS = tunnel()


def after(document: ForwarderStatus | None, seconds: float, **facts: Any) -> DatabaseTunnelStatus:
    """The status some seconds after the first time that this was observed."""
    seen = observed(ORDERS, document, **facts) if document else Observation(**facts)
    first = decide(ORDERS, seen, INSTALLATION, NOW).status
    return decide(tunnel(None, first.document()), seen, INSTALLATION, NOW + timedelta(seconds=seconds)).status


def seen_of(reason: Reason, seconds: float) -> DatabaseTunnelStatus:
    """The status some seconds after a failure began."""
    kind = REASONS[reason].type
    if kind in LAYERS:
        return after(failing(ORDERS, kind, reason), seconds)
    return after(None, seconds, problem=Problem(reason, "what was seen"))


def judged(status: DatabaseTunnelStatus) -> Verdict:
    return verdict(manifest(None, status.document()))


def ends() -> Iterator[tuple[Reason, float, Verdict]]:
    for reason, info in REASONS.items():
        if reason in (Reason.PROGRESSING, Reason.SUSPENDED, Reason.NOT_PROBED):
            continue
        assert info.grace_seconds is not None, "what fails is Failed one day"
        if info.grace_seconds:
            yield reason, 0, Verdict.IN_PROGRESS
            yield reason, info.grace_seconds - 1, Verdict.IN_PROGRESS
        yield reason, info.grace_seconds, Verdict.FAILED
        yield reason, 10**6, Verdict.FAILED


@pytest.mark.parametrize(("reason", "seconds", "expected"), list(ends()))
def test_a_failure_is_in_progress_and_then_failed(reason: Reason, seconds: float, expected: Verdict) -> None:
    assert judged(seen_of(reason, seconds)) is expected


def test_a_tunnel_that_works_is_current() -> None:
    assert judged(after(working(ORDERS), 0)) is Verdict.CURRENT


def test_a_tunnel_of_which_nothing_is_known_is_in_progress_and_never_failed() -> None:
    assert judged(after(None, 0)) is Verdict.IN_PROGRESS
    starting = working(ORDERS, transport=LayerFact(), authentication=LayerFact(), database=LayerFact())
    assert judged(after(starting, 10**6)) is Verdict.IN_PROGRESS


def test_a_database_that_is_not_probed_is_current() -> None:
    passive = LayerFact(reason=Reason.NOT_PROBED, seen="passive")
    assert judged(after(working(ORDERS, database=passive), 0)) is Verdict.CURRENT


def test_a_spec_that_was_not_observed_yet_is_in_progress() -> None:
    status = after(working(ORDERS), 0)
    assert verdict(manifest({"metadata.generation": 4}, status.document())) is Verdict.IN_PROGRESS


def test_a_spec_that_cannot_be_read_is_failed_at_once() -> None:
    assert judged(rejected(3, DatabaseTunnelStatus(), "spec: no", NOW)) is Verdict.FAILED


def test_a_tunnel_that_no_operator_has_seen_is_in_progress() -> None:
    """kstatus takes an object without a status for done: so the definition gives each one a status."""
    assert verdict(manifest()) is Verdict.CURRENT
    default = resource_schema()["properties"]["status"]["default"]
    assert verdict(manifest(None, default)) is Verdict.IN_PROGRESS


def test_the_first_status_has_every_condition() -> None:
    assert {one.type for one in after(None, 0).conditions or ()} == set(ConditionType)


def test_both_at_once_would_be_found() -> None:
    both = [{"type": kind, "status": "True"} for kind in ("Reconciling", "Stalled")]
    with pytest.raises(ValueError, match="both True"):
        verdict(manifest(None, {"conditions": both}))
