"""What Argo CD's health script is tried with: tunnels with the status that the operator's own code decides."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import yaml

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import ForwarderStatus, HopFact, HostKeyFact, LayerFact
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.domain.observed import Observation, Problem
from dbtunnel.domain.status import decide, rejected
from tests.support.values import INSTALLATION, NOW, changed, failing, manifest, observed, tunnel, working

FOLDER = "contrib/argocd/resource_customizations/dbtunnel.dev/DatabaseTunnel"
"""As in Argo CD's own repository, below `contrib/argocd`."""

SCRIPT = f"{FOLDER}/health.lua"

Manifest = dict[str, Any]


@dataclass(frozen=True)
class HealthCase:
    """An object, and what Argo CD should make of it."""

    manifest: Manifest
    status: str
    message: str


def _after(seconds: float, document: ForwarderStatus | None = None, **facts: Any) -> Manifest:
    """The tunnel some seconds after the first time that this was observed."""
    of = tunnel()
    seen = observed(of, document) if document else Observation(**facts)
    first = decide(of, seen, INSTALLATION, NOW).status.document()
    later = decide(tunnel(None, first), seen, INSTALLATION, NOW + timedelta(seconds=seconds))
    return manifest(None, later.status.document())


def _failing(reason: Reason, seconds: float, *host_keys: HostKeyFact) -> Manifest:
    hops = (HopFact(host_keys=host_keys),)
    return _after(seconds, failing(tunnel(), REASONS[reason].type, reason, REASONS[reason].example, hops=hops))


def _message(of: Manifest) -> str:
    ready = next(one for one in of["status"]["conditions"] if one["type"] == ConditionType.READY)
    is_failure = ready["status"] == "False" and ready["reason"] != Reason.SUSPENDED
    return f"{ready['reason']}: {ready['message']}" if is_failure else str(ready["message"])


def _suspended() -> Manifest:
    of = tunnel({"suspend": True})
    status = decide(of, Observation(), INSTALLATION, NOW).status
    return manifest({"spec.suspend": True}, status.document())


def _rejected() -> Manifest:
    return manifest(None, rejected(3, tunnel().status, "spec.engine: no such engine", NOW).document())


def _cases() -> Iterator[tuple[str, HealthCase]]:
    """By name; each tunnel is in the state that the name tells."""
    works = _after(0, working(tunnel()))
    other = HostKeyFact(algorithm="ssh-ed25519", fingerprint="SHA256:" + "e" * 43)
    passive = LayerFact(reason=Reason.NOT_PROBED)
    waits = "Waiting for the operator"
    yield "progressing_new", HealthCase(changed(manifest(), {"status": None}), "Progressing", waits)
    changing = changed(works, {"metadata.generation": 4})
    yield "progressing_changed", HealthCase(changing, "Progressing", f"{waits} to take up the change")
    told: tuple[tuple[str, str, Manifest], ...] = (
        ("progressing_starting", "Progressing", _after(0)),
        ("progressing_bastion_down", "Progressing", _failing(Reason.CONNECTION_REFUSED, 59)),
        ("progressing_secret_missing", "Progressing", _failing(Reason.SECRET_NOT_FOUND, 299)),
        ("healthy", "Healthy", works),
        ("healthy_not_probed", "Healthy", _after(0, working(tunnel(), database=passive))),
        ("degraded_bastion_down", "Degraded", _failing(Reason.CONNECTION_REFUSED, 60)),
        ("degraded_host_key_mismatch", "Degraded", _failing(Reason.HOST_KEY_MISMATCH, 0, other)),
        ("degraded_name_taken", "Degraded", _after(0, problem=Problem(Reason.NAME_CONFLICT, "Service orders"))),
        ("degraded_rejected", "Degraded", _rejected()),
        ("suspended", "Suspended", _suspended()),
    )
    yield from ((name, HealthCase(of, status, _message(of))) for name, status, of in told)


CASES: Mapping[str, HealthCase] = dict(_cases())


def _tests() -> str:
    """`health_test.yaml`, as Argo CD's own tests read it."""
    tests = [
        {"healthStatus": {"status": one.status, "message": one.message}, "inputPath": f"testdata/{name}.yaml"}
        for name, one in CASES.items()
    ]
    return yaml.safe_dump({"tests": tests}, sort_keys=False, width=10**6)


def _object(name: str) -> str:
    return yaml.safe_dump(CASES[name].manifest, sort_keys=False, width=10**6)


HEALTH_FILES: Mapping[str, Callable[[], str]] = {
    f"{FOLDER}/health_test.yaml": _tests,
    **{f"{FOLDER}/testdata/{name}.yaml": partial(_object, name) for name in CASES},
}
"""Each file beside the script, and what makes its text."""
