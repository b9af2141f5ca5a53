"""Of one failure after another: which is told, and since when it is the case."""

from datetime import timedelta

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.api.status import Condition, DatabaseTunnelStatus
from dbtunnel.domain.observed import Observation, Problem
from dbtunnel.domain.status import decide
from tests.support.values import INSTALLATION, NOW, failing, observed, tunnel, working

ORDERS = tunnel()


def of_layer(reason: Reason) -> Observation:
    return observed(ORDERS, failing(ORDERS, REASONS[reason].type, reason))


class Story:
    """What is decided of one thing after the other."""

    def __init__(self) -> None:
        self.status = DatabaseTunnelStatus()

    def at(self, seconds: float, seen: Observation) -> "Story":
        now = NOW.replace(microsecond=0) + timedelta(seconds=seconds)
        decision = decide(tunnel(None, self.status.document()), seen, INSTALLATION, now)
        self.status, self.again = decision.status, decision.requeue_seconds
        return self

    def fails(self, seconds: float, reason: Reason) -> "Story":
        return self.at(seconds, of_layer(reason))

    @property
    def conditions(self) -> dict[str, Condition]:
        return {one.type: one for one in self.status.conditions or ()}

    @property
    def last(self) -> tuple[str | None, str | None]:
        """Reason and time, as minutes and seconds, of the last failure."""
        failure = self.status.last_failure
        assert failure is not None
        return failure.reason, (failure.time or "")[14:19]


# --- of several pods --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reasons", "told", "count"),
    [
        ("ConnectionRefused HostKeyMismatch ConnectionRefused", "HostKeyMismatch", 1),
        ("ConnectTimeout ConnectionRefused ConnectionRefused", "ConnectionRefused", 2),
        ("HostKeyUnknown HostKeyRevoked HostKeyRevoked", "HostKeyRevoked", 2),
        ("ConnectionRefused ConnectionRefused Quantum", "Quantum", 1),
        ("ConnectionLost ConnectionRefused ConnectTimeout", "ConnectionLost", 1),
    ],
)
def test_what_needs_a_person_is_told_before_what_may_pass_and_then_what_most_see(
    reasons: str, told: str, count: int
) -> None:
    three = tunnel({"replicas": 3})
    documents = [failing(three, ConditionType.TRANSPORT_READY, reason) for reason in reasons.split()]
    status = decide(three, observed(three, *documents), INSTALLATION, NOW).status
    ready = next(one for one in status.conditions or () if one.type == "Ready")
    assert ready.reason == told
    assert ready.message.startswith(f"{count} of 3 pods: ")


# --- its grace --------------------------------------------------------------------------------------------------------


def test_each_layer_has_a_grace_of_its_own() -> None:
    """Whoever has mended one thing after a long time has the next one's grace before them."""
    story = Story().fails(0, Reason.SECRET_NOT_FOUND).fails(600, Reason.KEY_REJECTED)
    seen = {kind: story.conditions[kind].status for kind in ("Ready", "Reconciling", "Stalled")}
    assert seen == {"Ready": "False", "Reconciling": "True", "Stalled": "False"}
    assert story.again == 300


def test_each_reason_has_a_grace_of_its_own_within_a_layer_too() -> None:
    story = Story().fails(0, Reason.CONNECTION_REFUSED).fails(360, Reason.CONNECTION_REFUSED)
    assert story.conditions["Stalled"].status == "True"
    story.fails(361, Reason.HOST_KEY_UNKNOWN)
    assert (story.conditions["Stalled"].status, story.conditions["Reconciling"].status) == ("False", "True")
    assert story.conditions["TransportReady"].last_transition_time.endswith("12:00:00Z"), "that is of its status"
    assert story.again == 300
    assert story.fails(660, Reason.HOST_KEY_UNKNOWN).again == 1
    assert story.fails(661, Reason.HOST_KEY_UNKNOWN).conditions["Stalled"].status == "True"
    story.fails(662, Reason.CONNECTION_REFUSED)
    assert story.conditions["Stalled"].status == "False", "the server has gone away only now"


def test_reasons_that_take_turns_share_one_grace() -> None:
    story = Story()
    for seconds in range(0, 60, 10):
        story.fails(seconds, Reason.CONNECTION_REFUSED).fails(seconds + 5, Reason.CONNECTION_LOST)
        assert story.conditions["Stalled"].status == "False"
    assert story.fails(60, Reason.CONNECTION_REFUSED).conditions["Stalled"].status == "True"


# --- the last failure -------------------------------------------------------------------------------------------------


def test_the_last_failure_is_the_one_that_ready_tells() -> None:
    story = Story().fails(0, Reason.CONNECTION_REFUSED)
    assert story.last == ("ConnectionRefused", "00:00")
    assert story.fails(60, Reason.HOST_KEY_MISMATCH).last == ("HostKeyMismatch", "01:00")
    assert story.status.last_failure is not None
    assert story.status.last_failure.message == story.conditions["Ready"].message
    assert story.fails(90, Reason.HOST_KEY_MISMATCH).last == ("HostKeyMismatch", "01:00")
    assert story.fails(120, Reason.KEY_REJECTED).last == ("KeyRejected", "02:00")
    assert story.at(150, observed(ORDERS, working(ORDERS))).last == ("KeyRejected", "02:00"), "it is remembered"


def test_reasons_that_take_turns_while_an_outage_lasts_are_one_failure() -> None:
    story = Story().fails(0, Reason.CONNECTION_LOST)
    for seconds, reason in ((10, Reason.CONNECTION_REFUSED), (20, Reason.CONNECT_TIMEOUT)):
        assert story.fails(seconds, reason).last == ("ConnectionLost", "00:00")
    assert story.fails(30, Reason.DATABASE_TIMEOUT).last == ("DatabaseTimeout", "00:30")


def test_a_failure_that_another_hid_is_told_with_its_own_time() -> None:
    story = Story().fails(0, Reason.CONNECTION_REFUSED)
    refused = of_layer(Reason.CONNECTION_REFUSED)
    hidden = Observation(pods=refused.pods, reports=refused.reports, problem=Problem(Reason.NAME_CONFLICT, "Service x"))
    assert story.at(100, hidden).last == ("NameConflict", "01:40")
    assert story.at(200, refused).last == ("ConnectionRefused", "00:00")
    assert story.conditions["Stalled"].status == "True"


def test_the_last_failure_is_the_last_transition_and_not_the_last_retry() -> None:
    story = Story().fails(0, Reason.CONNECTION_LOST)
    first = story.status.last_failure
    assert story.fails(10, Reason.CONNECTION_REFUSED).status.last_failure == first
    assert story.at(20, observed(ORDERS, working(ORDERS))).status.last_failure == first
    assert story.fails(30, Reason.CONNECTION_REFUSED).last == ("ConnectionRefused", "00:30")


def test_neither_waiting_nor_suspending_is_a_failure() -> None:
    waiting = Observation(problem=Problem(Reason.PROGRESSING, "Waits until Service orders is deleted."))
    assert Story().at(0, waiting).status.last_failure is None
    assert Story().at(0, observed(ORDERS, working(ORDERS))).status.last_failure is None
    suspended = decide(tunnel({"suspend": True}), Observation(), INSTALLATION, NOW).status
    assert suspended.last_failure is None
