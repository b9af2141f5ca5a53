"""The values that decisions take: tunnels as the API server has them, pods, what forwarders report."""

from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

from dbtunnel.api.conditions import LAYERS, ConditionType
from dbtunnel.api.forwarder import ForwarderStatus, HopFact, LayerFact, LayerStatus, PublicKeyFact
from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.domain.children import Manifest, build_deployment, current_revision
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.hops import jumps_of
from dbtunnel.domain.observed import Observation, Pod, Report
from dbtunnel.domain.settings import Installation

NOW = datetime(2026, 11, 5, 12, 0, 0, 250_000, tzinfo=UTC)

INSTALLATION = Installation(forwarder_image="registry.example/dbtunnel:1", operator_namespace="dbtunnel-system")

PUBLIC_KEY = PublicKeyFact(key="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5", fingerprint="SHA256:" + "k" * 43)

FIELDS = dict(zip(LAYERS, ("key", "transport", "authentication", "database"), strict=True))
"""The name of each layer in a forwarder's document."""


def changed(document: Mapping[str, Any], changes: Mapping[str, Any]) -> Manifest:
    """A copy of `document` with values set at dotted paths; None takes a field away."""
    copy: Manifest = deepcopy(dict(document))
    for path, value in changes.items():
        *above, last = path.split(".")
        place = copy
        for name in above:
            place = place.setdefault(name, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return copy


def manifest(changes: Mapping[str, Any] | None = None, status: Mapping[str, Any] | None = None) -> Manifest:
    """The smallest DatabaseTunnel as the API server has it, with `changes` at dotted paths of the whole object."""
    smallest = {
        "apiVersion": "dbtunnel.dev/v1alpha1",
        "kind": "DatabaseTunnel",
        "metadata": {
            "name": "orders",
            "namespace": "shop",
            "uid": "tunnel-uid",
            "generation": 3,
            "resourceVersion": "100",
        },
        "spec": {
            "engine": "PostgreSQL",
            "database": {"host": "orders.internal"},
            "tunnel": {"host": "203.0.113.7"},
        },
        "status": dict(status or {}),
    }
    return changed(smallest, changes or {})


def tunnel(changes: Mapping[str, Any] | None = None, status: Mapping[str, Any] | None = None) -> DatabaseTunnel:
    """The same, parsed; `changes` at dotted paths of the spec."""
    return DatabaseTunnel.parse(manifest({f"spec.{path}": value for path, value in (changes or {}).items()}, status))


def current_pod(of: DatabaseTunnel, uid: str = "pod-1", **facts: Any) -> Pod:
    """A pod of the current template, whose container has run for a minute and which its Service leads to."""
    known: dict[str, Any] = {
        "uid": uid,
        "name": uid,
        "revision": current_revision(build_deployment(of, INSTALLATION)),
        "ip": "10.0.0.1",
        "is_ending": False,
        "problem": None,
        "running_since": NOW - timedelta(minutes=1),
        "is_ready": True,
    }
    return Pod(**{**known, **facts})


def working(of: DatabaseTunnel, uid: str = "pod-1", **facts: Any) -> ForwarderStatus:
    """What a forwarder reports when all is well."""
    true = LayerFact(status=LayerStatus.TRUE, reason=Reason.SUCCEEDED)
    layers: dict[str, Any] = dict.fromkeys(FIELDS.values(), true)
    config = forwarder_config(of, INSTALLATION.defaults)
    used = {0, *jumps_of(config)}
    hops = tuple(HopFact(active=number in used) for number in range(len(config.hops)))
    known = {"sequence": 7, "pod_uid": uid, "config_hash": config.digest(), "public_key": PUBLIC_KEY, "hops": hops}
    return ForwarderStatus(**{**known, **layers, **facts})


def failing(
    of: DatabaseTunnel, layer: ConditionType, reason: str, seen: str = "what was seen", **facts: Any
) -> ForwarderStatus:
    """What a forwarder reports when a layer fails: those before it work, those after it are not reached."""
    layers = {FIELDS[later]: LayerFact() for later in LAYERS[LAYERS.index(layer) :]}
    layers[FIELDS[layer]] = LayerFact(status=LayerStatus.FALSE, reason=reason, seen=seen)
    if layer is not ConditionType.DATABASE_REACHABLE:
        facts = {"hops": (), **facts}
    return working(of, **{**layers, **facts})


def observed(of: DatabaseTunnel, *documents: ForwarderStatus, **facts: Any) -> Observation:
    """A pod for each document, and what it reported."""
    pods = tuple(current_pod(of, f"pod-{number}") for number, _ in enumerate(documents, start=1))
    reports = {pod.uid: Report(document) for pod, document in zip(pods, documents, strict=True)}
    return Observation(**{"pods": pods, "reports": reports, **facts})
