"""Which failure is news after another, and since when it is the case."""

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import LayerStatus
from dbtunnel.api.reasons import OUTAGE_GRACE, REASONS, Reason, ReasonInfo
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import Condition, LastFailure


def info_of(reason: str) -> ReasonInfo | None:
    """What is declared of a reason; None for one of another version's."""
    return REASONS.get(Reason(reason)) if reason in set(Reason) else None


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
