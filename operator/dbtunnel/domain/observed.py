"""What the operator has seen, as values that decisions take."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Self

from dbtunnel.api.forwarder import ForwarderStatus, LayerFact, LayerStatus
from dbtunnel.api.reasons import PASSING_SECONDS, REASONS, Reason
from dbtunnel.api.resource import API_VERSION, KIND, DatabaseTunnel
from dbtunnel.domain.diagnosis import quoted
from dbtunnel.domain.forwarding import FIRST_REPLICAS
from dbtunnel.domain.names import MANAGED_BY_LABEL, MANAGER, REVISION_LABEL, TUNNEL_LABEL

_PASSING = timedelta(seconds=PASSING_SECONDS)

_HEADLESS = (
    "is headless (clusterIP: None), which no edit changes: clients would be led to ports at which no pod listens"
)
"""Said of a Service: its name resolves to the pods, and its ports are not translated."""


@dataclass(frozen=True)
class Problem:
    """Why a child could not be made as wanted."""

    reason: Reason
    seen: str


@dataclass(frozen=True)
class Pod:
    """What counts of a forwarder's pod."""

    uid: str
    name: str
    revision: str
    ip: str
    is_ending: bool
    problem: Problem | None
    running_since: datetime | None = None
    """When its container started; None while it does not run."""
    is_ready: bool = False
    """Whether its Service leads to it."""

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Self:
        """The facts of a Pod as the API server has it."""
        metadata, status = manifest["metadata"], manifest.get("status", {})
        return cls(
            uid=metadata["uid"],
            name=metadata["name"],
            revision=metadata.get("labels", {}).get(REVISION_LABEL, ""),
            ip=status.get("podIP", ""),
            is_ending="deletionTimestamp" in metadata or status.get("phase") in ("Succeeded", "Failed"),
            problem=_pod_problem(status),
            running_since=_running_since(status),
            is_ready=any(one["type"] == "Ready" and one["status"] == "True" for one in status.get("conditions", ())),
        )


@dataclass(frozen=True)
class Outage:
    """A failure that was told, until its layer has worked for PASSING_SECONDS."""

    failed: ForwarderStatus
    works_since: datetime | None = None
    """Since when the layer that failed works again."""
    has_worked: bool = False
    """Whether it had worked for a moment when it failed anew."""
    has_relapsed: bool = False
    """Whether it has worked for a moment, failed anew, and that was told: until then a recovery counts at once."""

    def heard(self, status: ForwarderStatus, now: datetime, *, is_told: bool) -> "Outage | None":
        """The outage after an answer; None where it is over, or a layer after it fails, which is progress. `is_told`:
        whether what was heard before counts.
        """
        if self.works_since and now >= self.works_since + _PASSING:
            return None
        obstacle, works = first_obstacle(status), _working_layers(status) > _working_layers(self.failed)
        if obstacle and obstacle.status is LayerStatus.FALSE:
            has_worked = self.has_worked or self.works_since is not None
            return None if works else Outage(replace(status, sequence=0), None, has_worked, self.has_relapsed)
        if not works or self.works_since:
            return self
        return Outage(self.failed, now, has_relapsed=self.has_relapsed or (self.has_worked and is_told))


@dataclass(frozen=True)
class Report:
    """What was last read from a forwarder's /status, and since when reading fails."""

    status: ForwarderStatus | None = None
    failing_since: datetime | None = None
    failure: str = ""
    trouble_since: datetime | None = None
    """Since when it tells of something that may mend by itself; None while it tells of nothing, or of something else.
    """
    outage: Outage | None = None
    """What it was last told for."""

    def heard(self, status: ForwarderStatus, now: datetime) -> "Report":
        """The report after this one: an answer has come."""
        fact = first_obstacle(status)
        is_worse = fact is not None and (may_pass(fact) or (_is_on_the_way(fact) and self._was_up()))
        outage = self._outage_until(now)
        return Report(
            status,
            trouble_since=(self.trouble_since or now) if is_worse else None,
            outage=outage and outage.heard(status, now, is_told=not self.is_passing(now)),
        )

    def unheard(self, failure: str, now: datetime) -> "Report":
        """The report after this one: none could be had. A silence is dated from its beginning."""
        return replace(self, failing_since=self.failing_since or now, failure=self.failure or failure)

    def is_passing(self, now: datetime) -> bool:
        """Whether its trouble may be over before anybody needs to hear of it: it changes no condition yet."""
        return self.trouble_since is not None and now < self.trouble_since + _PASSING

    @property
    def settles_at(self) -> datetime | None:
        """When its trouble counts, or a recovery after a relapse; None where there is neither."""
        since = self.trouble_since
        if since is None and self.outage and self.outage.has_relapsed:
            since = self.outage.works_since
        return since and since + _PASSING

    def counted(self, now: datetime) -> "Report":
        """The report as it counts: after a relapse the failure stays until a recovery has lasted."""
        if self.outage is None or not self.outage.has_relapsed:
            return self
        is_over = self.outage.works_since is not None and now >= self.outage.works_since + _PASSING
        return self if is_over else replace(self, status=self.outage.failed, trouble_since=None)

    def _outage_until(self, now: datetime) -> Outage | None:
        if self.outage or self.status is None or self.is_passing(now):
            return self.outage
        fact = first_obstacle(self.status)
        return Outage(replace(self.status, sequence=0)) if fact and fact.status is LayerStatus.FALSE else None

    def _was_up(self) -> bool:
        """Whether all was well before its trouble, so that a layer that is only being reached again is part of that."""
        return self.trouble_since is not None or (self.status is not None and first_obstacle(self.status) is None)


def first_obstacle(status: ForwarderStatus) -> LayerFact | None:
    """The first layer of a forwarder that does not work; None where each does, or is not probed."""
    found = next((fact for fact in _facts(status) if fact.status is not LayerStatus.TRUE), None)
    return None if found and found.reason == Reason.NOT_PROBED else found


def _facts(status: ForwarderStatus) -> tuple[LayerFact, ...]:
    return status.key, status.transport, status.authentication, status.database


def _working_layers(status: ForwarderStatus) -> int:
    """How many layers stand before the first that does not work."""
    obstacle = first_obstacle(status)
    return len(_facts(status)) if obstacle is None else _facts(status).index(obstacle)


def may_pass(fact: LayerFact) -> bool:
    """Whether a failure may mend by itself. One that this version does not know is told at once."""
    known = REASONS.get(Reason(fact.reason)) if fact.reason in set(Reason) else None
    return fact.status is LayerStatus.FALSE and known is not None and known.may_pass


def _is_on_the_way(fact: LayerFact) -> bool:
    return fact.status is LayerStatus.UNKNOWN and fact.reason == Reason.PROGRESSING


@dataclass(frozen=True)
class Observation:
    """All that a tunnel's status is decided from, beside its spec."""

    deployment: Mapping[str, Any] | None = None
    cluster_ip: str | None = None
    pods: tuple[Pod, ...] = ()
    reports: Mapping[str, Report] = field(default_factory=dict)
    """By pod uid."""
    problem: Problem | None = None
    """The first that came up while children were written."""
    binding: str | None = None
    """Name of the Secret that workloads bind to, once it is there."""


def most_forwarders(deployment: Mapping[str, Any] | None, reports: Iterable[Report]) -> int | None:
    """How many may run, by the Deployment and what its current pods report: one, and those that do, until an SSH server
    lets one in. None: as many as are wanted."""
    if any(one.status and one.status.authentication.status is LayerStatus.TRUE for one in reports):
        return None
    return max(FIRST_REPLICAS, deployment["spec"].get("replicas", 1) if deployment else 0)


_WAITING = {
    "ImagePullBackOff": Reason.IMAGE_PULL_FAILED,
    "ErrImagePull": Reason.IMAGE_PULL_FAILED,
    "ErrImageNeverPull": Reason.IMAGE_PULL_FAILED,
    "InvalidImageName": Reason.IMAGE_PULL_FAILED,
    "CrashLoopBackOff": Reason.CRASH_LOOPING,
    "CreateContainerConfigError": Reason.CRASH_LOOPING,
    "CreateContainerError": Reason.CRASH_LOOPING,
    "RunContainerError": Reason.CRASH_LOOPING,
}
"""Reasons of a waiting container (kubelet) that are more than a start in progress."""


def _pod_problem(status: Mapping[str, Any]) -> Problem | None:
    for condition in status.get("conditions", ()):
        if condition["type"] == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return Problem(Reason.UNSCHEDULABLE, condition.get("message", ""))
    for container in status.get("containerStatuses", ()):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("reason") in _WAITING:
            return Problem(_WAITING[waiting["reason"]], _waiting_text(container, waiting))
    return None


def _running_since(status: Mapping[str, Any]) -> datetime | None:
    for container in status.get("containerStatuses", ()):
        running = container.get("state", {}).get("running")
        if running and running.get("startedAt"):
            return datetime.fromisoformat(running["startedAt"])
    return None


_LAST_WORDS = 400
"""Characters of what a container that has ended said."""


def _waiting_text(container: Mapping[str, Any], waiting: Mapping[str, Any]) -> str:
    ended = container.get("lastState", {}).get("terminated", {})
    last = f"; last ended with {ended.get('reason')} (exit code {ended.get('exitCode')})" if ended else ""
    # a container's last words are of its log, which holds those of servers
    said = ended.get("message") or waiting.get("message")  # which has a registry's words
    told = quoted(said, _LAST_WORDS) if said else ""
    return f"{waiting['reason']}{last}{': ' if told else ''}{told}"


_QUOTA_TEXTS = ("exceeded quota", "failed quota", "usage per Container", "usage per Pod", "limit to request ratio per")
"""What the admission plugins ResourceQuota and LimitRanger say; the second does not name itself."""


def deployment_problem(deployment: Mapping[str, Any] | None) -> Problem | None:
    """Why a Deployment cannot make its pods: a quota, or an admission policy."""
    for condition in (deployment or {}).get("status", {}).get("conditions", ()):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            text = condition.get("message", "")
            is_quota = any(words in text for words in _QUOTA_TEXTS)
            return Problem(Reason.QUOTA_EXCEEDED if is_quota else Reason.REJECTED, text)
    return None


def standing(live: Mapping[str, Any], tunnel: DatabaseTunnel) -> Problem | None:
    """Why an object of a child's name is not to be touched; None where it is the tunnel's.

    One with the tunnel's labels and no controller was orphaned, or restored from a backup, and is taken up. A headless
    Service is not, whosever it is.
    """
    metadata, what = live["metadata"], f"{live['kind']} {live['metadata']['name']}"
    owner = next((one for one in metadata.get("ownerReferences") or () if one.get("controller")), None)
    if owner is None:
        labels = metadata.get("labels") or {}
        is_ours = (labels.get(MANAGED_BY_LABEL), labels.get(TUNNEL_LABEL)) == (MANAGER, tunnel.metadata.name)
    else:
        is_ours = owner["uid"] == tunnel.metadata.uid
    if is_ours and "deletionTimestamp" in metadata:
        return Problem(Reason.PROGRESSING, f"Waits until {what} is deleted, to make it anew.")
    of_name = (API_VERSION, KIND, tunnel.metadata.name)
    if owner and not is_ours and (owner["apiVersion"], owner["kind"], owner["name"]) == of_name:
        return Problem(Reason.PROGRESSING, f"Waits until {what} of the deleted tunnel of this name is gone.")
    if _is_headless(live):
        return Problem(Reason.NAME_CONFLICT, f"{what} {_HEADLESS}")
    if is_ours:
        return None
    labels = f"{MANAGED_BY_LABEL}={MANAGER} and {TUNNEL_LABEL}={tunnel.metadata.name}"
    foreign = f"{what} exists and does not belong to this tunnel (it is handed over by the labels {labels})"
    return Problem(Reason.NAME_CONFLICT, foreign)


def _is_headless(live: Mapping[str, Any]) -> bool:
    return bool(live["kind"] == "Service" and live.get("spec", {}).get("clusterIP") == "None")
