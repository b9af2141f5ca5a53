"""The conditions that follow from an observation: which is told, whether a person must act, since when."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import pytest

from dbtunnel.api.conditions import CAUSAL_ORDER, LAYERS, ConditionType
from dbtunnel.api.forwarder import ForwarderStatus, LayerFact, LayerStatus
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import Condition, DatabaseTunnelStatus
from dbtunnel.domain.observed import Observation, Problem, Report
from dbtunnel.domain.status import Decision, decide, rejected
from tests.support.values import FIELDS, INSTALLATION, NOW, current_pod, failing, observed, tunnel, working

ORDERS = tunnel()
UNKNOWN = LayerFact()
NOT_PROBED = LayerFact(status=LayerStatus.UNKNOWN, reason=Reason.NOT_PROBED, seen="passive")


def conditions(
    seen: Observation, of: DatabaseTunnel = ORDERS, now: datetime = NOW
) -> Mapping[ConditionType, Condition]:
    return by_type(decide(of, seen, INSTALLATION, now))


def by_type(decision: Decision | DatabaseTunnelStatus) -> Mapping[ConditionType, Condition]:
    status = decision.status if isinstance(decision, Decision) else decision
    return {ConditionType(condition.type): condition for condition in status.conditions or ()}


def told(condition: Condition) -> tuple[str, str]:
    return condition.status, condition.reason


def with_status(status: DatabaseTunnelStatus, changes: Mapping[str, Any] | None = None) -> DatabaseTunnel:
    """The tunnel once a status was written."""
    return tunnel(changes, status.document())


def later(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def outlook(document: ForwarderStatus, seconds: float) -> tuple[str, str]:
    """Reconciling and Stalled, some seconds after a failure began."""
    first = decide(ORDERS, observed(ORDERS, document), INSTALLATION, NOW)
    seen = conditions(observed(ORDERS, document), with_status(first.status), later(seconds))
    return seen[ConditionType.RECONCILING].status, seen[ConditionType.STALLED].status


# --- all is well, and nothing is known --------------------------------------------------------------------------------


def test_a_tunnel_that_works() -> None:
    seen = conditions(observed(ORDERS, working(ORDERS)))
    assert list(seen) == list(ConditionType), "all, in causal order"
    for kind in (*CAUSAL_ORDER, ConditionType.READY):
        assert told(seen[kind]) == ("True", "Succeeded")
    assert seen[ConditionType.RECONCILING].status == seen[ConditionType.STALLED].status == "False"
    assert seen[ConditionType.WORKLOAD_READY].message == "1 of 1 forwarders run and answer."


def test_a_tunnel_that_its_service_does_not_lead_to_yet_is_not_ready() -> None:
    """Whoever waits for Ready and then connects would be refused."""
    pods = (current_pod(ORDERS, is_ready=False),)
    seen = conditions(Observation(pods=pods, reports={"pod-1": Report(working(ORDERS))}))
    assert {seen[kind].status for kind in CAUSAL_ORDER} == {"True"}
    assert told(seen[ConditionType.READY]) == ("Unknown", "Progressing")
    assert seen[ConditionType.RECONCILING].status == "True"


def test_what_failed_is_told_also_where_the_service_leads_nowhere() -> None:
    pods = (current_pod(ORDERS, is_ready=False),)
    report = Report(failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_REFUSED))
    seen = conditions(Observation(pods=pods, reports={"pod-1": report}))
    assert told(seen[ConditionType.READY]) == ("False", "ConnectionRefused")


def test_a_new_tunnel_is_ready_unknown_and_reconciling() -> None:
    seen = conditions(Observation())
    for kind in (*CAUSAL_ORDER, ConditionType.READY):
        assert told(seen[kind]) == ("Unknown", "Progressing")
    assert seen[ConditionType.READY].message == "0 of 1 forwarders run and answer."
    assert (seen[ConditionType.RECONCILING].status, seen[ConditionType.STALLED].status) == ("True", "False")


def test_every_condition_speaks_of_the_generation_that_was_read() -> None:
    for condition in conditions(Observation()).values():
        assert condition.observed_generation == 3
        assert condition.last_transition_time == "2026-11-05T12:00:00Z"


# --- precedence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_ready_takes_the_layer_that_failed(layer: ConditionType) -> None:
    reason = next(reason for reason, info in REASONS.items() if info.type is layer)
    seen = conditions(observed(ORDERS, failing(ORDERS, layer, reason)))
    assert told(seen[ConditionType.READY]) == ("False", reason)
    assert seen[ConditionType.READY].message == seen[layer].message
    assert [seen[kind].status for kind in CAUSAL_ORDER] == [
        *["True"] * CAUSAL_ORDER.index(layer),
        "False",
        *["Unknown"] * (len(LAYERS) - CAUSAL_ORDER.index(layer)),
    ]


def test_the_first_false_goes_before_a_later_false_and_before_an_earlier_unknown() -> None:
    key_unknown = failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_REFUSED, key=UNKNOWN)
    assert conditions(observed(ORDERS, key_unknown))[ConditionType.READY].reason == "ConnectionRefused"
    later_fact = LayerFact(status=LayerStatus.FALSE, reason=Reason.DATABASE_REFUSED, seen="x")
    two = failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_REFUSED, database=later_fact)
    assert conditions(observed(ORDERS, two))[ConditionType.READY].reason == "ConnectionRefused"


def test_without_a_false_the_first_unknown_is_told() -> None:
    starting = working(ORDERS, transport=UNKNOWN, authentication=UNKNOWN, database=NOT_PROBED)
    ready = conditions(observed(ORDERS, starting))[ConditionType.READY]
    assert told(ready) == ("Unknown", "Progressing")
    assert ready.message == "Waits for the layer before it."


def test_what_is_not_probed_holds_nothing_back() -> None:
    seen = conditions(observed(ORDERS, working(ORDERS, database=NOT_PROBED)))
    assert told(seen[ConditionType.DATABASE_REACHABLE]) == ("Unknown", "NotProbed")
    assert told(seen[ConditionType.READY]) == ("True", "Succeeded")
    assert seen[ConditionType.RECONCILING].status == "False"


def test_what_is_not_probed_hides_nothing() -> None:
    refused = failing(ORDERS, ConditionType.AUTHENTICATED, Reason.KEY_REJECTED, database=NOT_PROBED)
    assert conditions(observed(ORDERS, refused))[ConditionType.READY].reason == "KeyRejected"
    starting = working(ORDERS, authentication=UNKNOWN, database=NOT_PROBED)
    assert told(conditions(observed(ORDERS, starting))[ConditionType.READY]) == ("Unknown", "Progressing")


def test_a_suspended_tunnel_is_neither_in_progress_nor_stalled() -> None:
    of = tunnel({"suspend": True})
    seen = conditions(Observation(), of)
    assert told(seen[ConditionType.READY]) == told(seen[ConditionType.WORKLOAD_READY]) == ("False", "Suspended")
    assert [told(seen[layer]) for layer in LAYERS] == [("Unknown", "Suspended")] * 4
    assert seen[ConditionType.RECONCILING].status == seen[ConditionType.STALLED].status == "False"
    decision = decide(
        with_status(decide(of, Observation(), INSTALLATION, NOW).status, {"suspend": True}),
        Observation(),
        INSTALLATION,
        later(10**6),
    )
    assert by_type(decision)[ConditionType.STALLED].status == "False"
    assert decision.requeue_seconds is None


def test_a_suspended_tunnel_forgets_what_ending_pods_report() -> None:
    of = tunnel({"suspend": True})
    seen = conditions(observed(of, failing(of, ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST)), of)
    assert told(seen[ConditionType.TRANSPORT_READY]) == ("Unknown", "Suspended")


# --- the workload -----------------------------------------------------------------------------------------------------

PROBLEM = Problem(Reason.NAME_CONFLICT, "Service orders exists and does not belong to this tunnel")
POD_PROBLEM = Problem(Reason.CRASH_LOOPING, "CrashLoopBackOff")
QUOTA = {"status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: small"}]}}


def test_a_child_that_could_not_be_made_is_told_first() -> None:
    pods = (current_pod(ORDERS, problem=POD_PROBLEM),)
    ready = conditions(Observation(problem=PROBLEM, pods=pods, deployment=QUOTA))[ConditionType.READY]
    assert ready.reason == "NameConflict"
    assert ready.message.startswith("Service orders exists and does not belong to this tunnel; it is left as it is.")


def test_even_a_suspended_tunnel_tells_of_a_child_that_could_not_be_made() -> None:
    seen = conditions(Observation(problem=PROBLEM), tunnel({"suspend": True}))
    assert seen[ConditionType.READY].reason == "NameConflict"


def test_a_pod_that_does_not_start_is_told() -> None:
    pods = (current_pod(ORDERS), current_pod(ORDERS, "pod-2", problem=POD_PROBLEM))
    seen = conditions(Observation(pods=pods, deployment=QUOTA))
    assert told(seen[ConditionType.WORKLOAD_READY]) == ("False", "CrashLooping")
    assert seen[ConditionType.WORKLOAD_READY].message.startswith("1 of 2 pods: The forwarder's container keeps ending")
    assert "kubectl logs -l dbtunnel.dev/tunnel=orders --previous -n" in seen[ConditionType.WORKLOAD_READY].message


def test_pods_that_cannot_be_made_are_told() -> None:
    seen = conditions(Observation(deployment=QUOTA))
    assert told(seen[ConditionType.WORKLOAD_READY]) == ("False", "QuotaExceeded")
    assert "refuses the forwarder's pod: exceeded quota: small" in seen[ConditionType.WORKLOAD_READY].message


def test_while_a_new_template_rolls_out_nothing_is_said_to_be_wrong() -> None:
    of = tunnel({"replicas": 2})
    seen = conditions(observed(of, working(of)), of)
    assert told(seen[ConditionType.WORKLOAD_READY]) == ("Unknown", "Progressing")
    assert seen[ConditionType.READY].message == "1 of 2 forwarders run and answer."


def test_pods_of_another_template_and_ending_ones_are_not_believed() -> None:
    refused = failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_REFUSED)
    pods = (
        current_pod(ORDERS, "old", revision="0123456789abcdef", problem=POD_PROBLEM),
        current_pod(ORDERS, "ending", is_ending=True, problem=POD_PROBLEM),
        current_pod(ORDERS, "new"),
    )
    reports = {"old": Report(refused), "ending": Report(refused), "new": Report(working(ORDERS, "new"))}
    seen = conditions(Observation(pods=pods, reports=reports))
    assert told(seen[ConditionType.READY]) == ("True", "Succeeded")


# --- hysteresis -------------------------------------------------------------------------------------------------------


def silent(seconds: float, status: ForwarderStatus | None, running: float | None = 3600) -> Observation:
    """A forwarder that has not answered for some seconds; its container runs since `running` seconds."""
    since = None if running is None else NOW - timedelta(seconds=running)
    pod = current_pod(ORDERS, running_since=since)
    report = Report(status, failing_since=NOW - timedelta(seconds=seconds), failure="no answer in time")
    return Observation(pods=(pod,), reports={pod.uid: report})


def test_known_facts_hold_while_a_forwarder_is_silent_for_a_moment() -> None:
    decision = decide(ORDERS, silent(19.5, working(ORDERS)), INSTALLATION, NOW)
    assert told(by_type(decision)[ConditionType.READY]) == ("True", "Succeeded")
    assert decision.requeue_seconds == 0.5, "looked at again when the time is up"


def test_a_forwarder_that_stays_silent_is_told() -> None:
    seen = conditions(silent(20, working(ORDERS)))
    assert told(seen[ConditionType.READY]) == ("False", "ForwarderUnreachable")
    assert "cannot read the forwarder's status: no answer in time." in seen[ConditionType.READY].message
    assert told(seen[ConditionType.AUTHENTICATED]) == ("True", "Succeeded"), "the last known facts stay"


def test_a_forwarder_that_never_answered_is_in_progress_at_first() -> None:
    assert told(conditions(silent(5, None))[ConditionType.READY]) == ("Unknown", "Progressing")
    assert conditions(silent(20, None))[ConditionType.READY].reason == "ForwarderUnreachable"


@pytest.mark.parametrize(
    ("running", "reason"), [(None, "Progressing"), (19, "Progressing"), (20, "ForwarderUnreachable")]
)
def test_a_container_that_only_just_runs_is_not_silent_yet(running: float | None, reason: str) -> None:
    assert conditions(silent(600, None, running))[ConditionType.READY].reason == reason


def test_one_silent_forwarder_of_two_is_told() -> None:
    of = tunnel({"replicas": 2})
    pods = (current_pod(of, "a"), current_pod(of, "b"))
    quiet = Report(working(of, "b"), failing_since=NOW - timedelta(seconds=30), failure="refused")
    seen = conditions(Observation(pods=pods, reports={"a": Report(working(of, "a")), "b": quiet}), of)
    assert seen[ConditionType.READY].message.startswith("1 of 2 pods: The operator cannot read")


# --- several replicas -------------------------------------------------------------------------------------------------

THREE = tunnel({"replicas": 3})


def test_replicas_that_agree() -> None:
    lost = failing(THREE, ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST, "reset")
    seen = conditions(observed(THREE, lost, lost, lost), THREE)
    told_of = "3 of 3 pods: bastion 203.0.113.7:22: the SSH connection was lost: reset. "
    assert seen[ConditionType.TRANSPORT_READY].message.startswith(told_of)


def test_of_replicas_that_disagree_the_worst_is_told_with_how_many_see_it() -> None:
    lost = failing(THREE, ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST, "reset")
    starting = working(THREE, transport=UNKNOWN, authentication=UNKNOWN, database=UNKNOWN)
    seen = conditions(observed(THREE, working(THREE), starting, lost), THREE)
    assert told(seen[ConditionType.TRANSPORT_READY]) == ("False", "ConnectionLost")
    assert seen[ConditionType.TRANSPORT_READY].message.startswith("1 of 3 pods: ")
    assert told(seen[ConditionType.AUTHENTICATED]) == ("Unknown", "Progressing")
    assert seen[ConditionType.AUTHENTICATED].message.startswith("2 of 3 pods: ")
    assert told(seen[ConditionType.READY]) == ("False", "ConnectionLost")
    assert told(seen[ConditionType.KEY_READY]) == ("True", "Succeeded")


def test_only_replicas_that_see_the_same_are_counted_together() -> None:
    lost = failing(THREE, ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST)
    refused = failing(THREE, ConditionType.TRANSPORT_READY, Reason.CONNECTION_REFUSED)
    seen = conditions(observed(THREE, lost, refused, working(THREE)), THREE)
    assert told(seen[ConditionType.TRANSPORT_READY]) == ("False", "ConnectionLost")
    assert seen[ConditionType.TRANSPORT_READY].message.startswith("1 of 3 pods: ")


def test_a_lone_forwarder_is_not_counted() -> None:
    lost = failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST)
    assert " pods: " not in conditions(observed(ORDERS, lost))[ConditionType.TRANSPORT_READY].message


# --- what is told -----------------------------------------------------------------------------------------------------


def test_a_failure_of_which_nothing_was_seen_says_so() -> None:
    refused = failing(ORDERS, ConditionType.DATABASE_REACHABLE, Reason.DATABASE_REFUSED, "")
    message = conditions(observed(ORDERS, refused))[ConditionType.DATABASE_REACHABLE].message
    assert "refused the connection: no details." in message


def test_a_forwarders_text_is_shown_as_printable_text() -> None:
    loud = "\x1b[2J\nReady"
    lost = failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST, loud)
    assert conditions(observed(ORDERS, lost))[ConditionType.READY].message.isprintable()
    fact = LayerFact(status=LayerStatus.TRUE, reason=Reason.SUCCEEDED, seen=loud)
    shown = conditions(observed(ORDERS, working(ORDERS, database=fact)))
    assert shown[ConditionType.DATABASE_REACHABLE].message == r"\x1b[2J\nReady"


def test_a_newer_forwarders_reason_is_passed_on_and_stalls_after_the_longest_grace() -> None:
    newer = failing(ORDERS, ConditionType.AUTHENTICATED, "Quantum")
    assert told(conditions(observed(ORDERS, newer))[ConditionType.READY]) == ("False", "Quantum")
    assert outlook(newer, 299) == ("True", "False")
    assert outlook(newer, 301) == ("False", "True")


# --- does a person have to act? ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [reason for reason, info in REASONS.items() if info.type in LAYERS])
def test_a_failure_is_in_progress_during_its_grace_and_stalled_after_it(reason: Reason) -> None:
    info = REASONS[reason]
    document = failing(ORDERS, info.type, reason)
    if info.grace_seconds is None:
        assert outlook(document, 10**6) == ("True", "False")
    elif info.grace_seconds == 0:
        assert outlook(document, 0) == ("False", "True")
    else:
        assert outlook(document, 0) == ("True", "False")
        assert outlook(document, info.grace_seconds - 1) == ("True", "False")
        assert outlook(document, info.grace_seconds) == ("False", "True")


def test_what_only_a_person_can_mend_is_stalled_in_the_very_instant() -> None:
    failed = observed(ORDERS, failing(ORDERS, ConditionType.AUTHENTICATED, Reason.METHOD_NOT_OFFERED))
    assert conditions(failed, now=NOW.replace(microsecond=0))[ConditionType.STALLED].status == "True"


@pytest.mark.parametrize("seconds", [0, 61, 301])
@pytest.mark.parametrize("reason", [*REASONS, "Quantum"])
def test_never_both_reconciling_and_stalled(reason: str, seconds: int) -> None:
    info = REASONS.get(Reason(reason)) if reason in set(Reason) else None
    layer = info.type if info and info.type in LAYERS else ConditionType.DATABASE_REACHABLE
    assert outlook(failing(ORDERS, layer, reason), seconds) != ("True", "True")


def test_both_summary_conditions_carry_what_ready_says() -> None:
    seen = conditions(observed(ORDERS, failing(ORDERS, ConditionType.AUTHENTICATED, Reason.METHOD_NOT_OFFERED)))
    ready = seen[ConditionType.READY]
    for kind in (ConditionType.RECONCILING, ConditionType.STALLED):
        assert (seen[kind].reason, seen[kind].message) == (ready.reason, ready.message)


# --- since when -------------------------------------------------------------------------------------------------------


def test_a_time_changes_with_the_status_and_with_nothing_else() -> None:
    lost = failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST)
    refused = failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_REFUSED, "another message")
    steps = [(lost, 0), (refused, 10), (working(ORDERS), 20), (working(ORDERS), 30), (lost, 40)]
    status, times = DatabaseTunnelStatus(), []
    for document, seconds in steps:
        status = decide(with_status(status), observed(ORDERS, document), INSTALLATION, later(seconds)).status
        times.append(by_type(status)[ConditionType.TRANSPORT_READY].last_transition_time[-3:-1])
    assert times == ["00", "00", "20", "20", "40"]


def test_the_same_observation_leads_to_the_same_status() -> None:
    for document in (working(ORDERS), failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST)):
        first = decide(ORDERS, observed(ORDERS, document), INSTALLATION, NOW).status
        assert decide(with_status(first), observed(ORDERS, document), INSTALLATION, later(50)).status == first


# --- a spec that this version cannot read -----------------------------------------------------------------------------


def test_a_spec_that_cannot_be_read_is_stalled_at_once() -> None:
    status = rejected(4, DatabaseTunnelStatus(replicas=2), "spec.engine: {Oracle}\x1b", NOW)
    seen = by_type(status)
    assert told(seen[ConditionType.READY]) == ("False", "Rejected")
    assert told(seen[ConditionType.STALLED]) == ("True", "Rejected")
    assert told(seen[ConditionType.RECONCILING]) == ("False", "Rejected")
    assert r"cannot read the spec: spec.engine: {Oracle}\x1b. Correct it" in seen[ConditionType.READY].message
    assert {condition.observed_generation for condition in seen.values()} == {4}
    assert (status.observed_generation, status.replicas) == (4, 2), "what else is known stays"


def test_a_spec_that_still_cannot_be_read_keeps_its_times() -> None:
    first = rejected(4, DatabaseTunnelStatus(), "x", NOW)
    assert rejected(4, first, "x", later(60)) == first
    message = by_type(rejected(4, first, "y" * 10_000, later(60)))[ConditionType.READY].message
    assert len(message) < 1000


def test_fields_are_named_for_every_layer() -> None:
    assert list(FIELDS) == list(LAYERS)
