"""What the operator has seen, as values that decisions take."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from dbtunnel.api.forwarder import ForwarderStatus
from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import API_VERSION, KIND, DatabaseTunnel
from dbtunnel.domain.names import MANAGED_BY_LABEL, MANAGER, REVISION_LABEL, TUNNEL_LABEL


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
class Report:
    """What was last read from a forwarder's /status, and since when reading fails."""

    status: ForwarderStatus | None = None
    failing_since: datetime | None = None
    failure: str = ""


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


def _waiting_text(container: Mapping[str, Any], waiting: Mapping[str, Any]) -> str:
    ended = container.get("lastState", {}).get("terminated", {})
    last = f"; last ended with {ended.get('reason')} (exit code {ended.get('exitCode')})" if ended else ""
    return f"{waiting['reason']}{last}: {ended.get('message') or waiting.get('message', '')}"


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

    One with the tunnel's labels and no controller was orphaned, or restored from a backup, and is taken up.
    """
    metadata, what = live["metadata"], f"{live['kind']} {live['metadata']['name']}"
    owner = next((one for one in metadata.get("ownerReferences") or () if one.get("controller")), None)
    if owner is None:
        labels = metadata.get("labels") or {}
        is_ours = (labels.get(MANAGED_BY_LABEL), labels.get(TUNNEL_LABEL)) == (MANAGER, tunnel.metadata.name)
    else:
        is_ours = owner["uid"] == tunnel.metadata.uid
    if is_ours:
        is_ending = "deletionTimestamp" in metadata
        return Problem(Reason.PROGRESSING, f"Waits until {what} is deleted, to make it anew.") if is_ending else None
    if owner and (owner["apiVersion"], owner["kind"], owner["name"]) == (API_VERSION, KIND, tunnel.metadata.name):
        return Problem(Reason.PROGRESSING, f"Waits until {what} of the deleted tunnel of this name is gone.")
    return Problem(Reason.NAME_CONFLICT, what)
