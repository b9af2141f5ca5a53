"""The part of a pod's specification that a tunnel may set, typed so that the API server refuses typing errors."""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from dbtunnel.api.base import ApiModel, Rule
from dbtunnel.api.rules import Host, ObjectName, Quantity, is_address

PRESERVE_UNKNOWN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}

LabelKey = Annotated[str, Field(max_length=317)]
LabelValue = Annotated[str, Field(max_length=63)]
AnnotationValue = Annotated[str, Field(max_length=4096)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32)]
Annotations = Annotated[dict[LabelKey, AnnotationValue], Field(max_length=32)]
ResourceList = Annotated[dict[Annotated[str, Field(max_length=63)], Quantity], Field(max_length=8)]


class Resources(ApiModel):
    """Compute resources of the forwarder's container, as in a pod."""

    limits: ResourceList | None = None
    """The most that it may use."""
    requests: ResourceList | None = None
    """What it is sure to get."""


class TolerationOperator(StrEnum):
    """How a toleration compares."""

    EQUAL = "Equal"
    EXISTS = "Exists"


class TaintEffect(StrEnum):
    """What a taint does to pods that do not tolerate it."""

    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Toleration(ApiModel):
    """A taint that the forwarder's pods tolerate, as in a pod."""

    key: LabelKey | None = None
    """The taint's key; empty with operator Exists matches all."""
    operator: TolerationOperator | None = None
    """Equal unless given."""
    value: LabelValue | None = None
    """The taint's value, for Equal."""
    effect: TaintEffect | None = None
    """The effect to tolerate; all unless given."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2**31)] | None = None
    """How long NoExecute is tolerated, in seconds."""


class UnsatisfiableAction(StrEnum):
    """What the scheduler does where a constraint cannot be met."""

    DO_NOT_SCHEDULE = "DoNotSchedule"
    SCHEDULE_ANYWAY = "ScheduleAnyway"


class TopologySpreadConstraint(ApiModel):
    """How the tunnel's pods are spread; the selector is the tunnel's own and is not given here."""

    max_skew: Annotated[int, Field(ge=1, le=100)] = 1
    """The most by which pods per domain may differ."""
    topology_key: Annotated[str, Field(min_length=1, max_length=317)]
    """The node label that makes a domain, such as topology.kubernetes.io/zone."""
    when_unsatisfiable: UnsatisfiableAction = UnsatisfiableAction.SCHEDULE_ANYWAY
    """What happens where the constraint cannot be met."""


class ImagePullSecret(ApiModel):
    """A Secret with registry credentials in the tunnel's namespace."""

    name: ObjectName
    """Name of the Secret."""


class HostAlias(ApiModel):
    """Names for an address, written into the pod's /etc/hosts."""

    ip: Annotated[
        str,
        Field(max_length=45),
        Rule("isIP(self)", is_address, "write an IPv4 or IPv6 address"),
    ]
    """The address."""
    hostnames: Annotated[tuple[Host, ...], Field(min_length=1, max_length=8)]
    """The names that stand for it."""


class SeLinuxOptions(ApiModel):
    """SELinux labels, as in a pod."""

    user: Annotated[str, Field(max_length=63)] | None = None
    """SELinux user."""
    role: Annotated[str, Field(max_length=63)] | None = None
    """SELinux role."""
    type: Annotated[str, Field(max_length=63)] | None = None
    """SELinux type."""
    level: Annotated[str, Field(max_length=63)] | None = None
    """SELinux level."""


NumericId = Annotated[int, Field(ge=1, le=2**31 - 1)]


class PodSecurity(ApiModel):
    """What an installer may set of the forwarders' security context; nothing by which it would permit more."""

    run_as_user: NumericId | None = None
    """User of the process. Default: the image's, or the one that OpenShift gives."""
    run_as_group: NumericId | None = None
    """Its group."""
    fs_group: NumericId | None = None
    """Group of mounted files."""
    supplemental_groups: Annotated[tuple[NumericId, ...], Field(max_length=16)] | None = None
    """Its further groups."""
    se_linux_options: SeLinuxOptions | None = None
    """SELinux labels."""


class PodTemplate(ApiModel):
    """What the forwarder's pods get beside what the operator sets. Every change rolls the pods.

    A field that is left out is the installer's.
    """

    labels: Labels | None = None
    """Labels of the pods. Those of the operator can't be changed."""
    annotations: Annotations | None = None
    """Annotations of the pods."""
    resources: Resources | None = None
    """Compute resources of the container. Default: the installer's."""
    node_selector: Labels | None = None
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=16)] | None = None
    """Taints that the pods tolerate."""
    affinity: Annotated[dict[str, Any], Field(json_schema_extra=PRESERVE_UNKNOWN)] | None = None
    """Affinity as in a pod; the API server checks it when the Deployment is written."""
    topology_spread_constraints: Annotated[tuple[TopologySpreadConstraint, ...], Field(max_length=4)] | None = None
    """How the pods are spread. Default: over nodes, as far as possible."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""
    image_pull_secrets: Annotated[tuple[ImagePullSecret, ...], Field(max_length=8)] | None = None
    """Registry credentials for the forwarder's image."""
    host_aliases: Annotated[tuple[HostAlias, ...], Field(max_length=8)] | None = None
    """Names that the pods resolve without DNS, for a bastion that has none."""
