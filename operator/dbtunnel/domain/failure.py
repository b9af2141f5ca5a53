"""Which failure is news after another, since when it is the case, and when a person must act."""

from datetime import datetime

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import LayerStatus
from dbtunnel.api.reasons import OUTAGE_GRACE, REASONS, SUPPLY_GRACE, Reason, ReasonInfo
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import Condition, LastFailure


def info_of(reason: str) -> ReasonInfo | None:
    """What is declared of a reason; None for one of another version's."""
    return REASONS.get(Reason(reason)) if reason in set(Reason) else None


def needs_person(reason: str) -> bool:
    """Whether a failure does not mend by itself, as far as is known."""
    known = info_of(reason)
    return known is None or known.grace_seconds not in (OUTAGE_GRACE, None)


def is_other(before: str, after: str) -> bool:
    """Whether a failure is news after another: not where both may mend by themselves and are of one layer, since such
    take turns while an outage lasts."""
    known = [info_of(reason) for reason in (before, after)]
    kinds = {(info.type, info.grace_seconds) if info else None for info in known}
    take_turns = len(kinds) == 1 and all(info and info.grace_seconds == OUTAGE_GRACE for info in known)
    return before != after and not take_turns


def last_failure(tunnel: DatabaseTunnel, failed: Condition | None, time: str) -> LastFailure | None:
    """The failure that Ready tells of, if it does, and since when it is the case; else the one before it.

    `failed`: the condition that Ready is False for; `time`: now.
    """
    known, before = tunnel.status.last_failure, {one.type: one for one in tunnel.status.conditions or ()}
    if failed is None or failed.reason in (Reason.PROGRESSING, Reason.SUSPENDED):
        return known
    if known and not _is_new(before.get(ConditionType.READY), failed):
        return known
    layer = before.get(failed.type)
    # a condition's own time is that of its status
    is_same_layer = layer is not None and layer.status == LayerStatus.FALSE and _is_new(layer, failed)
    since = time if is_same_layer else failed.last_transition_time
    return LastFailure(time=since, reason=failed.reason, message=failed.message)


def _is_new(before: Condition | None, failed: Condition) -> bool:
    return before is None or before.status != LayerStatus.FALSE or is_other(before.reason, failed.reason)


def is_stalled(failed: Condition | None, now: datetime) -> bool:
    """Whether a person must act: the grace of what failed is over."""
    grace = grace_seconds(failed.reason) if failed else None
    return failed is not None and grace is not None and age_seconds(failed, now) >= grace


def retry_seconds(reason: str) -> int:
    """When the operator itself tries again; the forwarders' own retries show in their reports."""
    known = info_of(reason)
    return known.retry_seconds if known and known.type is ConditionType.WORKLOAD_READY else 0


def grace_seconds(reason: str) -> int | None:
    """How long a failure is Reconciling before it is Stalled; None: it is never Stalled."""
    known = info_of(reason)
    return known.grace_seconds if known else SUPPLY_GRACE


def age_seconds(condition: Condition, now: datetime) -> float:
    """How long ago a condition's time is."""
    return (now - datetime.fromisoformat(condition.last_transition_time)).total_seconds()
