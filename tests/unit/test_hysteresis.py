"""A fault that may be over in a moment changes no condition; one that lasts, and a clear one, is told."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest

from dbtunnel.api.conditions import LAYERS, ConditionType
from dbtunnel.api.forwarder import ForwarderStatus, LayerFact, LayerStatus
from dbtunnel.api.reasons import PASSING_SECONDS, REASONS, Reason
from dbtunnel.api.status import Condition
from dbtunnel.domain.observed import Observation, Pod, Report
from dbtunnel.domain.status import Decision, decide
from tests.support.values import INSTALLATION, NOW, current_pod, failing, tunnel, working

ORDERS = tunnel()
TRANSPORT, DATABASE = ConditionType.TRANSPORT_READY, ConditionType.DATABASE_REACHABLE

LOST = failing(ORDERS, TRANSPORT, Reason.CONNECTION_LOST, "reset")
REFUSED = failing(ORDERS, TRANSPORT, Reason.CONNECTION_REFUSED, "refused")
STARTING = working(ORDERS, transport=LayerFact(), authentication=LayerFact(), database=LayerFact())
BACK = working(ORDERS, database=LayerFact())
"""The connection is there again, and the database has not answered yet."""

MAY_PASS = [reason for reason, info in REASONS.items() if info.may_pass]
CLEAR = [reason for reason, info in REASONS.items() if info.type in LAYERS and info.grace_seconds is not None]
CLEAR = [reason for reason in CLEAR if reason not in MAY_PASS]


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


class Story:
    """What an operator decides of a tunnel of which it hears one thing after the other."""

    def __init__(self, replicas: int = 1) -> None:
        self.changes: dict[str, Any] = {"replicas": replicas}
        self.reports = {f"pod-{number}": Report() for number in range(1, replicas + 1)}
        self.others: tuple[Pod, ...] = ()
        self.seconds = 0.0
        self.tunnel = tunnel(self.changes)
        self._decide(Observation())  # written before anything else, as by the reconciler
        self.decision = self.look()

    def hear(self, *documents: ForwarderStatus | None, after: float = 0) -> "Story":
        """An answer of each forwarder that has one, some seconds after what was before."""
        self.seconds += after
        for (uid, report), document in zip(self.reports.items(), documents, strict=True):
            if document:
                self.reports[uid] = report.heard(document, at(self.seconds))
        self.decision = self.look()
        return self

    def wait(self, seconds: float) -> "Story":
        """Nothing is heard."""
        self.seconds += seconds
        self.decision = self.look()
        return self

    def look(self) -> Decision:
        pods = tuple(current_pod(self.tunnel, uid) for uid in self.reports)
        counted = {uid: report.counted(at(self.seconds)) for uid, report in self.reports.items()}
        return self._decide(Observation(pods=pods + self.others, reports=counted))

    def _decide(self, seen: Observation) -> Decision:
        decision = decide(self.tunnel, seen, INSTALLATION, at(self.seconds))
        self.tunnel = tunnel(self.changes, decision.status.document())
        return decision

    @property
    def conditions(self) -> Mapping[str, Condition]:
        return {one.type: one for one in self.decision.status.conditions or ()}

    def told(self, kind: str = "Ready") -> tuple[str, str]:
        return self.conditions[kind].status, self.conditions[kind].reason


def up(replicas: int = 1) -> Story:
    return Story(replicas).hear(*[working(ORDERS)] * replicas)


# --- a moment ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "documents", [[LOST], [LOST, REFUSED, LOST], [BACK], [LOST, BACK]], ids=["lost", "tried", "unseen", "back"]
)
def test_a_fault_of_a_moment_changes_no_condition(documents: Sequence[ForwarderStatus]) -> None:
    story = up()
    before = story.conditions
    for document in documents:
        assert story.hear(document, after=1).conditions == before
    assert story.hear(working(ORDERS), after=1).conditions == before


def test_the_time_runs_from_the_first_failure_and_not_from_the_last() -> None:
    story = up().hear(LOST)
    assert story.decision.requeue_seconds == PASSING_SECONDS
    assert story.hear(REFUSED, after=PASSING_SECONDS - 1).told() == ("True", "Succeeded")
    assert story.decision.requeue_seconds == 1, "looked at again when the time is up"
    assert story.wait(1).told() == ("False", "ConnectionRefused")
    assert story.told("Authenticated") == ("Unknown", "Progressing")


def test_faults_one_after_the_other_are_each_a_moment() -> None:
    story = up()
    before = story.conditions
    for _ in range(10):
        story.hear(LOST, after=1).hear(BACK, after=PASSING_SECONDS - 2).hear(working(ORDERS), after=1)
        assert story.conditions == before


def test_a_recovery_is_told_at_once_though_the_database_has_not_answered_yet() -> None:
    story = up().hear(LOST).wait(PASSING_SECONDS)
    assert story.hear(BACK, after=1).told("TransportReady") == ("True", "Succeeded")
    assert story.hear(working(ORDERS)).told() == ("True", "Succeeded")


def test_a_first_attempt_that_fails_leaves_a_new_tunnel_in_progress() -> None:
    """The Service before a bastion may be known to nodes a moment after its forwarder starts."""
    for story in (Story().hear(STARTING).hear(REFUSED, after=0.1), Story().hear(REFUSED)):
        assert story.told() == story.told("TransportReady") == ("Unknown", "Progressing")
        assert story.told("Reconciling")[0] == "True"
        assert story.wait(PASSING_SECONDS).told() == ("False", "ConnectionRefused")


def test_what_was_told_stays_told_by_an_operator_that_has_just_started() -> None:
    story = up().hear(LOST).wait(PASSING_SECONDS)
    before = story.conditions
    story.reports = {"pod-1": Report()}
    assert story.hear(LOST, after=1).conditions == before


# --- what is told at once ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", CLEAR)
def test_a_clear_failure_is_told_at_once(reason: Reason) -> None:
    document = failing(ORDERS, REASONS[reason].type, reason)
    assert up().hear(document).told() == ("False", reason)
    assert up().hear(LOST).hear(document, after=1).told() == ("False", reason)


@pytest.mark.parametrize("reason", MAY_PASS)
def test_what_may_mend_by_itself_is_told_when_it_lasts(reason: Reason) -> None:
    story = up().hear(failing(ORDERS, REASONS[reason].type, reason))
    assert story.told() == ("True", "Succeeded")
    assert story.wait(PASSING_SECONDS - 0.1).told() == ("True", "Succeeded")
    assert story.wait(0.1).told() == ("False", reason)


def test_a_reason_of_a_newer_forwarder_is_told_at_once() -> None:
    assert up().hear(failing(ORDERS, TRANSPORT, "Quantum")).told() == ("False", "Quantum")


def test_a_database_that_is_not_probed_is_no_trouble() -> None:
    passive = LayerFact(status=LayerStatus.UNKNOWN, reason=Reason.NOT_PROBED, seen="passive")
    story = up().hear(working(ORDERS, database=passive))
    assert story.told(DATABASE) == ("Unknown", "NotProbed")
    assert story.decision.requeue_seconds is None


def of_an_earlier_spec() -> Story:
    """What works, and the spec has changed since."""
    story = up()
    status = story.decision.status
    earlier = tuple(one.model_copy(update={"observed_generation": 2}) for one in status.conditions or ())
    story.tunnel = tunnel(story.changes, status.model_copy(update={"conditions": earlier}).document())
    return story


def test_a_change_that_rolls_no_forwarder_makes_no_moment_count() -> None:
    story = of_an_earlier_spec().hear(LOST)
    assert story.told() == ("True", "Succeeded")
    assert story.conditions["TransportReady"].observed_generation == 3
    assert story.wait(PASSING_SECONDS).told() == ("False", "ConnectionLost")


def test_a_condition_of_an_earlier_spec_holds_nothing_while_forwarders_roll() -> None:
    story = of_an_earlier_spec()
    story.others = (current_pod(story.tunnel, "old", revision="of the earlier spec"),)
    assert story.hear(LOST).told() == ("False", "ConnectionLost")
    ending = of_an_earlier_spec()
    ending.others = (current_pod(story.tunnel, "old", revision="of the earlier spec", is_ending=True),)
    assert ending.hear(LOST).told() == ("True", "Succeeded"), "the new one was ready before the old one had to go"


# --- several replicas -------------------------------------------------------------------------------------------------


def test_one_replica_s_moment_is_not_told_beside_one_that_works() -> None:
    story = up(2)
    before = story.conditions
    assert story.hear(LOST, None).conditions == before
    story.wait(PASSING_SECONDS)
    assert story.told() == ("False", "ConnectionLost")
    assert story.conditions["Ready"].message.startswith("1 of 2 pods: bastion 203.0.113.7:22: ")


def test_a_moment_of_one_does_not_hide_what_another_has_had_for_long() -> None:
    story = up(2).hear(REFUSED, None).wait(PASSING_SECONDS)
    assert story.hear(None, LOST, after=1).told() == ("False", "ConnectionRefused")
    assert story.conditions["Ready"].message.startswith("1 of 2 pods: ")
    assert story.hear(None, REFUSED).wait(PASSING_SECONDS).conditions["Ready"].message.startswith("2 of 2 pods: ")


def test_a_silence_keeps_a_trouble_and_its_time() -> None:
    report = Report().heard(working(ORDERS), NOW).heard(LOST, at(1)).unheard("no answer in time", at(2))
    assert (report.status, report.trouble_since, report.failing_since) == (LOST, at(1), at(2))
    assert report.unheard("refused", at(3)) == report
    assert report.heard(LOST, at(4)) == Report(LOST, trouble_since=at(1))


# --- relapses ---------------------------------------------------------------------------------------------------------

UP = working(ORDERS)
FAILED = ("False", "ConnectionLost")


def relapsed(replicas: int = 1) -> Story:
    """A bastion that was away, let in for a moment, and cut again, for long."""
    others: list[ForwarderStatus | None] = [None] * (replicas - 1)
    story = up(replicas).hear(LOST, *others).wait(PASSING_SECONDS + 1)
    assert story.told() == FAILED
    assert story.hear(UP, *others).told() == ("True", "Succeeded"), "a first recovery is told at once"
    assert story.hear(LOST, *others, after=1).told() == ("True", "Succeeded"), "this may be a moment's"
    assert story.wait(PASSING_SECONDS + 1).told() == FAILED
    return story


@pytest.mark.parametrize("back", [UP, BACK], ids=["with its database", "before it"])
@pytest.mark.parametrize("away", [1, PASSING_SECONDS + 1])
@pytest.mark.parametrize("replicas", [1, 2])
def test_a_bastion_that_lets_in_for_a_moment_again_and_again_is_told_once(
    back: ForwarderStatus, away: float, replicas: int
) -> None:
    story = relapsed(replicas)
    others: list[ForwarderStatus | None] = [None] * (replicas - 1)
    before = story.conditions
    for _ in range(5):
        assert story.hear(back, *others).conditions == before
        assert story.hear(back, *others, after=PASSING_SECONDS - 1).conditions == before
        assert story.hear(LOST, *others, after=0.5).conditions == before
        assert story.wait(away).conditions == before


def test_a_recovery_after_a_relapse_is_told_once_it_has_lasted() -> None:
    story = relapsed().hear(BACK).hear(UP, after=1)
    assert story.decision.requeue_seconds == PASSING_SECONDS - 1, "looked at again when the time is up"
    assert story.wait(PASSING_SECONDS - 1.1).told() == FAILED
    assert story.wait(0.1).told() == ("True", "Succeeded")
    assert story.hear(LOST).hear(UP, after=1).told() == ("True", "Succeeded"), "and is forgotten then"
    story.hear(LOST, after=60).wait(PASSING_SECONDS)
    assert (story.told(), story.hear(UP).told()) == (FAILED, ("True", "Succeeded"))


def test_what_a_person_mends_step_by_step_is_told_at_each_step() -> None:
    """What fails next is a layer further on: that is no relapse."""
    story = Story()
    steps = [
        (ConditionType.KEY_READY, Reason.SECRET_NOT_FOUND),
        (ConditionType.AUTHENTICATED, Reason.KEY_REJECTED),
        (DATABASE, Reason.FORWARDING_PROHIBITED),
    ]
    for layer, reason in steps:
        assert story.hear(failing(ORDERS, layer, reason), after=1).told() == ("False", reason)
        story.hear(STARTING if layer is ConditionType.KEY_READY else BACK, after=1)
        assert story.told() == ("Unknown", "Progressing")
    assert story.hear(UP).told() == ("True", "Succeeded")


def test_another_reason_after_a_relapse_is_told_at_once() -> None:
    rejected = failing(ORDERS, ConditionType.AUTHENTICATED, Reason.KEY_REJECTED)
    assert relapsed().hear(UP).hear(REFUSED, after=1).told() == ("False", "ConnectionRefused")
    assert relapsed().hear(UP).hear(rejected, after=1).told() == ("False", "KeyRejected")
    assert relapsed().hear(rejected).hear(UP, after=1).told() == ("True", "Succeeded"), "the way is there since long"


def test_a_moment_right_after_a_recovery_is_no_relapse() -> None:
    story = up().hear(LOST).wait(PASSING_SECONDS + 1).hear(UP)
    before = story.conditions
    assert before["Ready"].status == "True"
    for _ in range(3):
        assert story.hear(LOST, after=1).hear(BACK, after=PASSING_SECONDS - 2).hear(UP, after=1).conditions == before
    story.hear(LOST, after=PASSING_SECONDS).wait(PASSING_SECONDS)
    assert (story.told(), story.hear(UP).told()) == (FAILED, ("True", "Succeeded"))


def test_moments_that_were_never_told_delay_no_recovery() -> None:
    story = up()
    for _ in range(3):
        story.hear(LOST, after=1).hear(UP, after=1)
    story.hear(LOST, after=1).wait(PASSING_SECONDS)
    assert (story.told(), story.hear(UP).told()) == (FAILED, ("True", "Succeeded"))
