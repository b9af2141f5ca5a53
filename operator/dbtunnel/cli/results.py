"""What a test of a tunnel has shown, as a document: `-o json` and `-o yaml`, and what the text is made of."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from pydantic import ConfigDict

from dbtunnel.api.base import ApiModel
from dbtunnel.api.conditions import LAYERS, ConditionType
from dbtunnel.api.forwarder import ForwarderConfig, ForwarderStatus, LayerStatus
from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import Condition, DatabaseStatus, DatabaseTunnelStatus, Hop
from dbtunnel.domain.authorized_keys import forward_target
from dbtunnel.domain.children import build_deployment, current_revision
from dbtunnel.domain.hops import ends_of, jumps_of, way_to
from dbtunnel.domain.observed import Observation, Pod, Report
from dbtunnel.domain.settings import Installation
from dbtunnel.domain.status import decide
from dbtunnel.forwarder.check import Findings
from dbtunnel.forwarder.steps import Step

VERSION = 1
"""Of the document. It grows when a field changes its meaning or goes; further fields may come within a version."""

_INSTALLATION = Installation(forwarder_image="none")

_STEPS: Mapping[str, Sequence[Step]] = {
    ConditionType.TRANSPORT_READY: (Step.CONNECT, Step.VERSION, Step.KEY_EXCHANGE),
    ConditionType.AUTHENTICATED: (Step.AUTHENTICATION,),
    ConditionType.DATABASE_REACHABLE: (Step.CHANNEL, Step.DATABASE),
}


_NOT_REACHED = ForwarderStatus(sequence=0, config_hash="")

Conditions = Mapping[str, Condition]
"""By type."""


class _Part(ApiModel):
    """Read by programs alone: pydantic need not search the source for docstrings."""

    model_config = ConfigDict(use_attribute_docstrings=False)


class Layer(_Part):
    """A condition of the tunnel, or of one SSH server."""

    type: str
    """KeyReady, TransportReady, Authenticated or DatabaseReachable, as in `status.conditions`."""
    status: str
    """True, False, or Unknown where it was not reached or is not probed."""
    reason: str
    """Why, in one word: one of docs/conditions.md."""
    message: str
    """What was seen, at which hop, and what to do; as the status in a cluster has it."""
    milliseconds: float | None = None
    """How long it took. Left out where it was not reached."""


class Milliseconds(_Part):
    """How long each step took at an SSH server. The last one may be the one that failed; others are left out."""

    connect: float | None = None
    """The name looked up, TCP connected; behind a jump host, until that one has opened the connection."""
    version: float | None = None
    """Until the server said its version."""
    key_exchange: float | None = None
    """Key exchange, host key verified. Of the last connection, where several were made to see all host keys."""
    authentication: float | None = None
    """Until the server accepted the key."""
    channel: float | None = None
    """Until it had connected to the database. Not of jump hosts."""
    database: float | None = None
    """Until the database had answered. Not of jump hosts."""


class CheckedHop(_Part):
    """An SSH server."""

    role: str
    """JumpHost, Bastion or Fallback."""
    host: str
    """As in the spec."""
    port: int
    """TCP port."""
    active: bool
    """Whether a forwarder would go through it now."""
    layers: tuple[Layer, ...]
    """TransportReady and Authenticated; of bastion and fallbacks DatabaseReachable too."""
    milliseconds: Milliseconds
    """How long each step took."""
    host_key_fingerprints: tuple[str, ...] | None = None
    """The host keys that it showed, with their algorithm; the one in use first."""
    server_version: str | None = None
    """Its identification string, as the server says it."""
    cipher: str | None = None
    """Cipher in use towards it."""
    mac: str | None = None
    """MAC in use towards it; an AEAD cipher has none of its own."""
    authorized_keys_line: str | None = None
    """What its administrator adds to the user's authorized_keys."""


class CheckResult(_Part):
    """The whole document."""

    version: int = VERSION
    """Of this form of document."""
    tunnel: str
    """Namespace and name."""
    engine: str
    """As in the spec."""
    database_address: str
    """Host and port of the database, as the last SSH server is asked to open them."""
    ready: bool
    """Whether clients would be served now: exit code 0 if so, else 1."""
    reason: str
    """That of the first layer that is False, else Succeeded."""
    message: str
    """What `Ready` would say in a cluster: what was seen, at which hop, and what to do."""
    milliseconds: float
    """How long the test took."""
    layers: tuple[Layer, ...]
    """KeyReady, TransportReady, Authenticated, DatabaseReachable of the way that a forwarder would take."""
    hops: tuple[CheckedHop, ...]
    """Jump hosts in their order, the bastion, the fallbacks in theirs."""
    database: DatabaseStatus | None = None
    """What was seen of the database, as in `status.database`. Left out where it was not reached or is not probed."""


def result_of(tunnel: DatabaseTunnel, config: ForwarderConfig, findings: Findings, now: datetime) -> CheckResult:
    """The document, with the conditions that the operator would write if the tunnel's forwarder reported this."""
    tunnel = _alone(tunnel)
    status = _status(tunnel, findings.status, now)
    ready = _conditions(status)[ConditionType.READY]
    hops = _Hops(tunnel, config, findings, now)
    end = next((number for number in ends_of(config) if findings.status.hops[number].active), 0)
    return CheckResult(
        tunnel=f"{config.namespace}/{config.name}",
        engine=config.engine,
        database_address=forward_target(config.database_host, config.database_port),
        ready=ready.status == LayerStatus.TRUE,
        reason=ready.reason,
        message=ready.message,
        milliseconds=_milliseconds(findings.seconds),
        layers=_layers(
            _conditions(status), LAYERS, [findings.steps[one] for one in (*way_to(config, end), end)], findings
        ),
        hops=tuple(hops.hop(number, status) for number in (*jumps_of(config), *ends_of(config))),
        database=status.database,
    )


def _alone(tunnel: DatabaseTunnel) -> DatabaseTunnel:
    """The tunnel with one forwarder that makes one connection, and of which nothing is known yet."""
    one = tunnel.spec.tunnel.model_copy(update={"connections": 1})
    spec = tunnel.spec.model_copy(update={"tunnel": one, "replicas": 1, "suspend": False})
    return tunnel.model_copy(update={"spec": spec, "status": DatabaseTunnelStatus()})


def _status(tunnel: DatabaseTunnel, document: ForwarderStatus, now: datetime) -> DatabaseTunnelStatus:
    """What the operator decides where the tunnel's only pod reports this document."""
    revision = current_revision(build_deployment(tunnel, _INSTALLATION))
    pod = Pod("check", "check", revision, ip="", is_ending=False, problem=None, running_since=now, is_ready=True)
    return decide(tunnel, Observation(pods=(pod,), reports={pod.uid: Report(document)}), _INSTALLATION, now).status


def _conditions(status: DatabaseTunnelStatus) -> Conditions:
    return {condition.type: condition for condition in status.conditions or ()}


def _layers(
    conditions: Conditions,
    kinds: Iterable[ConditionType],
    steps: Sequence[Mapping[Step, float]],
    findings: Findings | None = None,
) -> tuple[Layer, ...]:
    """`steps`: of each hop that counts. `findings`: where the keys count, too."""
    return tuple(
        Layer(
            type=kind,
            status=conditions[kind].status,
            reason=conditions[kind].reason,
            message=conditions[kind].message,
            milliseconds=_milliseconds(findings.key_seconds) if findings and kind not in _STEPS else _sum(kind, steps),
        )
        for kind in kinds
    )


def _sum(kind: ConditionType, steps: Iterable[Mapping[Step, float]]) -> float | None:
    taken = [hop[step] for hop in steps for step in _STEPS[kind] if step in hop]
    return _milliseconds(sum(taken)) if taken else None


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


class _Hops:
    """What each SSH server has to tell."""

    def __init__(self, tunnel: DatabaseTunnel, config: ForwarderConfig, findings: Findings, now: datetime) -> None:
        self._config, self._findings = config, findings
        self._ends = [_conditions(_status(tunnel, document, now)) for document in findings.ends]
        self._not_reached = _conditions(_status(tunnel, _NOT_REACHED, now))
        self._faults = [_fault(document) for document in findings.ends]
        """Number of the hop at which it failed, by that of the bastion or fallback; None where it did not."""

    def hop(self, number: int, status: DatabaseTunnelStatus) -> CheckedHop:
        """The part of the document about the hop of this number."""
        known: Hop = (status.hops or ())[number]
        steps = self._findings.steps[number]
        kinds = list(_STEPS) if number in ends_of(self._config) else list(_STEPS)[:2]
        return CheckedHop(
            **known.model_dump(exclude={"replicas"}),
            layers=_layers(self._seen(number), map(ConditionType, kinds), [steps]),
            milliseconds=Milliseconds(**{step.name.lower(): _milliseconds(taken) for step, taken in steps.items()}),
        )

    def _seen(self, number: int) -> Conditions:
        """The conditions of the way as far as they speak of this hop."""
        if number in ends_of(self._config):
            return self._ends[number] if self._faults[number] in (None, number) else self._not_reached
        if number in self._faults:
            return self._ends[self._faults.index(number)]
        is_before = self._faults[0] in way_to(self._config, number)
        return self._not_reached if is_before else _WELL


def _fault(document: ForwarderStatus) -> int | None:
    layers = (document.key, document.transport, document.authentication, document.database)
    return next((layer.hop for layer in layers if layer.status is LayerStatus.FALSE), None)


def _well(kind: ConditionType) -> Condition:
    return Condition(type=kind, status=LayerStatus.TRUE, reason=Reason.SUCCEEDED, message="", last_transition_time="")


_WELL: Conditions = {kind: _well(kind) for kind in LAYERS}
"""Of a jump host that leads further."""
