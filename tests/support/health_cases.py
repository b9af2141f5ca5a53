"""What Argo CD's health script is tried with: tunnels with statuses that the installed operator has written, and for
states that take long or are hard to bring about, those that its code decides.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import ForwarderStatus, HopFact, HostKeyFact, LayerFact
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.domain.observed import Observation, Problem
from dbtunnel.domain.status import decide, rejected
from tests.support.binaries import binary
from tests.support.processes import ROOT, run
from tests.support.teams_repository import documented
from tests.support.values import INSTALLATION, NOW, changed, failing, manifest, observed, tunnel, working

FOLDER = "contrib/argocd/resource_customizations/dbtunnel.dev/DatabaseTunnel"
"""As in Argo CD's own repository, below `contrib/argocd`."""

SCRIPT = f"{FOLDER}/health.lua"

Manifest = dict[str, Any]


_TAKEN = Problem(Reason.NAME_CONFLICT, REASONS[Reason.NAME_CONFLICT].example)


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
        ("degraded_name_taken", "Degraded", _after(0, problem=_TAKEN)),
        ("degraded_rejected", "Degraded", _rejected()),
        ("suspended", "Suspended", _suspended()),
    )
    yield from ((name, HealthCase(of, status, _message(of))) for name, status, of in told)


_DECIDED: Mapping[str, HealthCase] = dict(_cases())

RECORDED: Mapping[str, str] = {
    "recorded_new": "Progressing",
    "recorded_starting": "Progressing",
    "recorded_working": "Healthy",
    "recorded_suspending": "Progressing",
    "recorded_suspended": "Suspended",
    "recorded_host_key_mismatch": "Degraded",
}
"""Health of the tunnels as the installed operator left them in `tests/cluster/test_flux.py`, which compares them with
those of every run."""


def _recorded(name: str, status: str) -> HealthCase:
    of = yaml.safe_load((ROOT / FOLDER / f"testdata/{name}.yaml").read_text())
    generation = of["status"].get("observedGeneration")
    if "conditions" not in of["status"]:
        message = "Waiting for the operator"
    elif generation != of["metadata"]["generation"]:
        message = "Waiting for the operator to take up the change"
    else:
        message = _message(of)
    return HealthCase(of, status, message)


CASES: Mapping[str, HealthCase] = {
    **_DECIDED,
    **{name: _recorded(name, status) for name, status in RECORDED.items()},
}


def record(of: Manifest, name: str) -> Path:
    """Writes a live tunnel down as it is to be recorded, as one of the namespace `shop`. Returns the file."""
    metadata = {key: of["metadata"][key] for key in ("name", "namespace", "generation")}
    text = yaml.safe_dump({**of, "metadata": metadata}, sort_keys=False, width=10**6)
    path = ROOT / f"build/health/{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace(metadata["namespace"], "shop"))
    return path


def outline(of: Manifest) -> tuple[bool, dict[str, tuple[str, str]]]:
    """What the script goes by: whether the status is of the spec at hand, and status and reason of each condition."""
    status = of["status"]
    conditions = {one["type"]: (one["status"], one["reason"]) for one in status.get("conditions") or ()}
    return status.get("observedGeneration") == of["metadata"]["generation"], conditions


def judged(path: Path, settings: Path) -> str:
    """What Argo CD's own command makes of the object in a file; it exits with 0 whatever it finds."""
    command = ("admin", "settings", "resource-overrides", "health", path, "--argocd-cm-path", settings)
    environment = {"ARGOCD_BINARY_NAME": "argocd", "HOME": str(settings.parent), "PATH": os.environ["PATH"]}
    return run([binary("argocd"), *command], env=environment)


def write_settings(path: Path) -> Path:
    """The documented argocd-cm, for `judged`."""
    path.write_text(yaml.safe_dump(documented("ConfigMap")["argocd-cm"]))
    return path


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
    **{f"{FOLDER}/testdata/{name}.yaml": partial(_object, name) for name in _DECIDED},
}
"""Each file beside the script but the recorded ones, and what makes its text."""
