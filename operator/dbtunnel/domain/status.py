"""The status of a tunnel, decided from what was observed."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from dbtunnel.api.conditions import CAUSAL_ORDER, LAYERS, ConditionType
from dbtunnel.api.forwarder import ForwarderStatus, LayerFact, LayerStatus
from dbtunnel.api.reasons import SUPPLY_GRACE, Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import Condition, DatabaseTunnelStatus
from dbtunnel.domain.children import pods_revision
from dbtunnel.domain.database import leavers
from dbtunnel.domain.diagnosis import MESSAGE_LIMIT, Subject, explain, explain_next, printable
from dbtunnel.domain.facts import build_status, hop_fact, next_key, users_of
from dbtunnel.domain.failure import (
    age_seconds,
    grace_seconds,
    info_of,
    is_stalled,
    last_failure,
    needs_person,
    retry_seconds,
)
from dbtunnel.domain.forwarding import forwarder_config, replicas, started_replicas
from dbtunnel.domain.hops import ends_of, hop_name
from dbtunnel.domain.observed import Observation, Pod, Report, deployment_problem
from dbtunnel.domain.settings import Installation

TRUE, FALSE, UNKNOWN = LayerStatus.TRUE, LayerStatus.FALSE, LayerStatus.UNKNOWN

_EXEMPT = frozenset({Reason.NOT_PROBED})
"""Reasons of an Unknown condition that do not hold Ready back."""

_MOUNT_REASONS = frozenset(
    {
        Reason.SECRET_NOT_FOUND,
        Reason.SECRET_KEY_MISSING,
        Reason.PRIVATE_KEY_INVALID,
        Reason.PUBLIC_KEY_GIVEN,
        Reason.PASSPHRASE_REQUIRED,
        Reason.PASSPHRASE_WRONG,
        Reason.KNOWN_HOSTS_INVALID,
    }
)
"""What a person mends in a mounted object. The kubelet shows the change after about a minute, unless told to look."""

_REFRESH_SECONDS = 5
"""How often the kubelet is told to look while a mounted object is awaited."""

Verdicts = Mapping[ConditionType, "Verdict"]


@dataclass(frozen=True)
class Verdict:
    """A condition before it has times: its status, why, and the sentence for people."""

    status: LayerStatus
    reason: str = Reason.SUCCEEDED
    message: str = ""


@dataclass(frozen=True)
class Decision:
    """What follows from an observation."""

    status: DatabaseTunnelStatus
    requeue_seconds: float | None = None
    """When to look again although nothing changed; None: not before something does."""
    refresh_mounts: bool = False
    """Whether the kubelet should read mounted Secrets anew."""


def decide(tunnel: DatabaseTunnel, seen: Observation, installation: Installation, now: datetime) -> Decision:
    """The tunnel's status, and what else to do."""
    current = _current_pods(tunnel, seen, installation)
    reports = [seen.reports.get(pod.uid, Report()) for pod in current]
    documents = [report.status for report in reports if report.status]
    subject = _subject(tunnel, documents, installation)
    verdicts = {ConditionType.WORKLOAD_READY: _workload(tunnel, seen, current, reports, installation, now, subject)}
    is_rolled = len(current) == sum(not pod.is_ending for pod in seen.pods)
    verdicts |= _layers(tunnel, reports, subject, now, is_rolled=is_rolled)
    conditions = _conditions(tunnel, verdicts, any(pod.is_ready for pod in current), now)
    failed = _failed_layer(tunnel, conditions, now)
    last = last_failure(tunnel, failed, _stamp(now))
    refresh = _wants_refresh(failed, now)
    deadlines = _deadlines(current, reports, installation)
    return Decision(
        status=build_status(tunnel, seen, documents, subject, tuple(conditions.values()), last, installation),
        requeue_seconds=_requeue_seconds(failed, refresh, deadlines, now),
        refresh_mounts=refresh,
    )


def rejected(
    manifest_generation: int, previous: DatabaseTunnelStatus, error: str, now: datetime
) -> DatabaseTunnelStatus:
    """The status of an object whose spec this version cannot read, whatever schema let it pass."""
    message = (
        f"This version of the operator cannot read the spec: {printable(error)}. Correct it, or update the operator."
    )
    time = _stamp(now)
    before = {condition.type: condition for condition in previous.conditions or ()}
    wanted = {
        ConditionType.READY: Verdict(FALSE, Reason.REJECTED, message),
        ConditionType.RECONCILING: Verdict(FALSE, Reason.REJECTED, message),
        ConditionType.STALLED: Verdict(TRUE, Reason.REJECTED, message),
    }
    conditions = tuple(_dated(kind, verdict, before, manifest_generation, time) for kind, verdict in wanted.items())
    return previous.model_copy(update={"observed_generation": manifest_generation, "conditions": conditions})


def needs_generated_key(tunnel: DatabaseTunnel, deployment_exists: bool) -> bool:
    """Whether to create the key's Secret: before the first Deployment, and when forwarders miss it."""
    if tunnel.spec.tunnel.key_secret_ref is not None:
        return False
    return not deployment_exists or _condition_reason(tunnel, ConditionType.KEY_READY) == Reason.SECRET_NOT_FOUND


def _current_pods(tunnel: DatabaseTunnel, seen: Observation, installation: Installation) -> list[Pod]:
    revision = pods_revision(tunnel, installation)
    return [pod for pod in seen.pods if pod.revision == revision and not pod.is_ending]


def _subject(tunnel: DatabaseTunnel, documents: Sequence[ForwarderStatus], installation: Installation) -> Subject:
    config = forwarder_config(tunnel, installation.defaults)
    return Subject(
        config=config,
        egress_addresses=installation.egress_addresses,
        public_key=next((document.public_key for document in documents if document.public_key), None),
        next_key=next_key([document.next_key for document in documents]),
        hops=tuple(hop_fact(documents, number) for number in range(len(config.hops))),
    )


# --- the conditions ---------------------------------------------------------------------------------------------


def _workload(
    tunnel: DatabaseTunnel,
    seen: Observation,
    current: Sequence[Pod],
    reports: Sequence[Report],
    installation: Installation,
    now: datetime,
    subject: Subject,
) -> Verdict:
    if seen.problem:
        return _failed(seen.problem.reason, seen.problem.seen, subject)
    if tunnel.spec.suspend:
        return _failed(Reason.SUSPENDED, "", subject)
    problems = [pod.problem for pod in current if pod.problem]
    if problem := next(iter(problems), None) or deployment_problem(seen.deployment):
        alike = sum(other.reason is problem.reason for other in problems)
        return _failed(problem.reason, problem.seen, subject, (alike, len(current)))
    latest = now - timedelta(seconds=installation.unreachable_after_seconds)
    silences = [(_silent_since(pod, report), report) for pod, report in zip(current, reports, strict=True)]
    if silent := [report.failure for since, report in silences if since and since <= latest]:
        return _failed(Reason.FORWARDER_UNREACHABLE, silent[0], subject, (len(silent), len(current)))
    wanted, started = replicas(tunnel, installation.defaults), started_replicas(tunnel, installation)
    answering = sum(report.status is not None for report in reports)
    told = f"{answering} of {wanted} forwarders run and answer."
    if answering >= wanted:
        return Verdict(TRUE, Reason.SUCCEEDED, told)
    # nothing is known to be wrong, and a tunnel that rolls goes on working
    waits = " More start once an SSH server has let one in." if answering >= started else ""
    return Verdict(UNKNOWN, Reason.PROGRESSING, told + waits)


def _silent_since(pod: Pod, report: Report) -> datetime | None:
    """Since when the pod should have answered and did not; a container that does not run cannot answer."""
    if report.failing_since is None or pod.running_since is None:
        return None
    return max(report.failing_since, pod.running_since)


def _failed(reason: Reason, seen: str, subject: Subject, count: tuple[int, int] = (1, 1)) -> Verdict:
    """`count`: how many pods of how many are concerned."""
    return Verdict(FALSE, reason, _counted(explain(reason, seen, subject), *count))


def _counted(message: str, alike: int, total: int) -> str:
    """The message, with how many of several pods it is of, if it is of pods."""
    return f"{alike} of {total} pods: {message}" if alike and total > 1 else message


def _layers(
    tunnel: DatabaseTunnel, reports: Sequence[Report], subject: Subject, now: datetime, *, is_rolled: bool
) -> dict[ConditionType, Verdict]:
    """A forwarder whose trouble may be over in a moment does not count; where none counts, all stays as it was."""
    if tunnel.spec.suspend:
        suspended = Verdict(UNKNOWN, Reason.SUSPENDED, explain(Reason.SUSPENDED, "", subject))
        return dict.fromkeys(LAYERS, suspended)
    answers = [report.status for report in reports if report.status]
    documents = [report.status for report in reports if report.status and not report.is_passing(now)]
    if answers and not documents:
        if known := _known(tunnel, is_rolled=is_rolled):
            return known
        documents = answers
    facts = [_facts(document) for document in documents]
    verdicts = {layer: _worst([fact[layer] for fact in facts], len(answers), subject) for layer in LAYERS}
    transport = verdicts[ConditionType.TRANSPORT_READY]
    if transport.status is TRUE and (told := _detour(documents, subject) or _missing(documents, subject)):
        verdicts[ConditionType.TRANSPORT_READY] = replace(transport, message=told)
    return verdicts | _next_keys(verdicts, subject)


def _known(tunnel: DatabaseTunnel, *, is_rolled: bool) -> dict[ConditionType, Verdict]:
    """What the conditions say of the layers; nothing where they may speak of what another spec led to, which is while
    forwarders of that are there yet."""
    known = {one.type: one for one in tunnel.status.conditions or ()}
    generation = None if is_rolled else tunnel.metadata.generation
    if any(layer not in known or generation not in (None, known[layer].observed_generation) for layer in LAYERS):
        return {}
    return {
        layer: Verdict(LayerStatus(one.status), one.reason, one.message) for layer in LAYERS if (one := known[layer])
    }


def _next_keys(verdicts: Verdicts, subject: Subject) -> dict[ConditionType, Verdict]:
    """The conditions that work and tell of a next key that does not."""
    told: dict[ConditionType, Verdict] = {}
    for number in reversed(range(len(subject.config.hops))):
        following = subject.keys(number)[1]
        if following and following.fact.status is FALSE:
            layer = _layer_of(following.fact.reason)
            if verdicts[layer].status is TRUE:
                told[layer] = replace(verdicts[layer], message=explain_next(following, subject, number))
    return told


def _layer_of(reason: str) -> ConditionType:
    """The condition that speaks of a key with this reason."""
    known = info_of(reason)
    return known.type if known and known.type in LAYERS else ConditionType.AUTHENTICATED


def _detour(documents: Sequence[ForwarderStatus], subject: Subject) -> str:
    """Which fallback is in use, and why; nothing where none is."""
    for number in ends_of(subject.config)[1:]:
        users = users_of(documents, number)
        if not users:
            continue
        failure = next((document.hops[0].failure for document in users), None)
        why = f" {explain(failure.reason, failure.seen, subject, failure.hop)}" if failure else ""
        count = "" if len(documents) == 1 else f" ({len(users)} of {len(documents)} pods)"
        return f"New connections go through {hop_name(subject.config, number)}{count}, not through the bastion.{why}"
    return ""


def _missing(documents: Sequence[ForwarderStatus], subject: Subject) -> str:
    """How many SSH connections there are, where several are wanted and some do not stand."""
    wanted = len(documents) * (subject.config.connections or 1)
    standing = sum(document.connections for document in documents)
    several = subject.config.connections is not None and standing < wanted
    return f"{standing} of {wanted} SSH connections stand; what is missing is being made." if several else ""


def _facts(document: ForwarderStatus) -> dict[ConditionType, LayerFact]:
    return dict(
        zip(
            LAYERS,
            (document.key, document.transport, document.authentication, document.database),
            strict=True,
        )
    )


def _worst(facts: Sequence[LayerFact], total: int, subject: Subject) -> Verdict:
    """One layer over all forwarders: the worst is told, with how many see it of those that answer."""
    for status in (FALSE, UNKNOWN, TRUE):
        found = [fact for fact in facts if fact.status is status]
        if found:
            alike = Counter(fact.reason for fact in found)
            first = found[0]
            if status is TRUE:
                # one may have more to tell: of what its own clients do
                first = max(found, key=lambda fact: len(fact.seen))
            elif status is FALSE:
                # what waits for a person hides behind no outage that mends by itself, however many see that
                first = max(found, key=lambda fact: (needs_person(fact.reason), alike[fact.reason]))
            return _told(first, alike[first.reason], total, subject)
    return Verdict(UNKNOWN, Reason.PROGRESSING, "Waits for a forwarder to report.")


def _told(fact: LayerFact, count: int, total: int, subject: Subject) -> Verdict:
    if fact.status is TRUE:
        return Verdict(TRUE, Reason.SUCCEEDED, printable(fact.seen, MESSAGE_LIMIT))
    without_details = "" if fact.status is FALSE else "Waits for the layer before it."
    message = explain(fact.reason, fact.seen or without_details, subject, fact.hop)
    return Verdict(fact.status, fact.reason, _counted(message, count, total))


def _conditions(
    tunnel: DatabaseTunnel, verdicts: Verdicts, is_served: bool, now: datetime
) -> dict[ConditionType, Condition]:
    """All conditions with their times; a time changes only with the condition's status."""
    before = {condition.type: condition for condition in tunnel.status.conditions or ()}
    generation, time = tunnel.metadata.generation, _stamp(now)

    def dated(kind: ConditionType, verdict: Verdict) -> Condition:
        return _dated(kind, verdict, before, generation, time)

    conditions = {kind: dated(kind, verdicts[kind]) for kind in CAUSAL_ORDER}
    ready = dated(ConditionType.READY, _ready(verdicts, is_served))
    conditions[ConditionType.READY] = ready
    for kind, verdict in _kstatus(ready, _failed_layer(tunnel, conditions, now), now).items():
        conditions[kind] = dated(kind, verdict)
    return conditions


def _ready(verdicts: Verdicts, is_served: bool) -> Verdict:
    """`is_served`: whether the Service leads to a forwarder; who waits for Ready and then connects must be served."""
    ordered = [verdicts[kind] for kind in CAUSAL_ORDER]
    for status in (FALSE, UNKNOWN):
        for verdict in ordered:
            if verdict.status is status and not (status is UNKNOWN and verdict.reason in _EXEMPT):
                return verdict
    if not is_served:
        return Verdict(UNKNOWN, Reason.PROGRESSING, "The tunnel is up, and its Service does not lead to it yet.")
    transport, database = (
        verdicts[kind].message for kind in (ConditionType.TRANSPORT_READY, ConditionType.DATABASE_REACHABLE)
    )
    return Verdict(TRUE, Reason.SUCCEEDED, " ".join(filter(None, ("The tunnel works.", transport, leavers(database)))))


def _failed_layer(
    tunnel: DatabaseTunnel, conditions: Mapping[ConditionType, Condition], now: datetime
) -> Condition | None:
    """The condition that Ready is False for, with the time since when it is so for this reason: Ready may have been
    False for another before, and so may the condition."""
    failed = next((conditions[kind] for kind in CAUSAL_ORDER if conditions[kind].status == FALSE), None)
    last = last_failure(tunnel, failed, _stamp(now))
    if failed is None or last is None or last.time is None:
        return failed
    return failed.model_copy(update={"last_transition_time": max(failed.last_transition_time, last.time)})


def _kstatus(ready: Condition, failed: Condition | None, now: datetime) -> dict[ConditionType, Verdict]:
    """Reconciling and Stalled, abnormal-true and never both True."""
    stalled = is_stalled(failed, now)
    reconciling = ready.status != TRUE and not stalled and ready.reason != Reason.SUSPENDED
    return {
        ConditionType.RECONCILING: Verdict(TRUE if reconciling else FALSE, ready.reason, ready.message),
        ConditionType.STALLED: Verdict(TRUE if stalled else FALSE, ready.reason, ready.message),
    }


def _dated(
    kind: ConditionType, verdict: Verdict, before: Mapping[str, Condition], generation: int, time: str
) -> Condition:
    earlier = before.get(kind)
    unchanged = earlier is not None and earlier.status == verdict.status
    return Condition(
        type=kind,
        status=verdict.status,
        reason=verdict.reason,
        message=verdict.message,
        last_transition_time=earlier.last_transition_time if earlier and unchanged else time,
        observed_generation=generation,
    )


# --- when to look again -----------------------------------------------------------------------------------------


def _wants_refresh(failed: Condition | None, now: datetime) -> bool:
    return failed is not None and failed.reason in _MOUNT_REASONS and age_seconds(failed, now) < SUPPLY_GRACE


def _deadlines(current: Sequence[Pod], reports: Sequence[Report], installation: Installation) -> list[datetime]:
    """When a silence or a trouble begins to count."""
    limit = timedelta(seconds=installation.unreachable_after_seconds)
    silences = filter(None, map(_silent_since, current, reports))
    return [*(since + limit for since in silences), *(report.settles_at for report in reports if report.settles_at)]


def _requeue_seconds(
    failed: Condition | None, refresh: bool, deadlines: Iterable[datetime], now: datetime
) -> float | None:
    """The earliest time at which the same observation would lead to another decision."""
    times: list[float] = [_REFRESH_SECONDS] if refresh else []
    if failed:
        grace, retry = grace_seconds(failed.reason), retry_seconds(failed.reason)
        remaining = (grace or 0) - age_seconds(failed, now)
        times += [remaining] if remaining > 0 else []
        times += [retry] if retry else []
    times += [(deadline - now).total_seconds() for deadline in deadlines]
    return max(min(times), 0.5) if (times := [time for time in times if time > 0]) else None


def _condition_reason(tunnel: DatabaseTunnel, kind: ConditionType) -> str | None:
    return next((condition.reason for condition in tunnel.status.conditions or () if condition.type == kind), None)


def _stamp(now: datetime) -> str:
    """RFC 3339 with seconds, as metav1.Time is written."""
    return now.replace(microsecond=0).isoformat().replace("+00:00", "Z")
