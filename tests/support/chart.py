"""The chart as the real helm renders it, and what the operator makes of that."""

import argparse
import json
import subprocess
from collections.abc import Mapping
from typing import Any

import yaml

from dbtunnel.controller.settings import SETTINGS, Settings
from tests.support.binaries import binary
from tests.support.processes import ROOT

CHART = ROOT / "charts" / "dbtunnel-operator"
POD_IP = "10.1.2.3"
NAMESPACE = "dbtunnel-system"

Manifest = dict[str, Any]


def helm(*arguments: str, values: object = None) -> subprocess.CompletedProcess[str]:
    """What the real helm answers; `values` as those of a file."""
    given = ["--values", "-"] if values is not None else []
    text = json.dumps(values) if values is not None else None
    command = [str(binary("helm")), *arguments, *given]
    return subprocess.run(command, capture_output=True, text=True, input=text, timeout=60, check=False)


def template(values: object = None, *options: str, release: str = "tunnels") -> subprocess.CompletedProcess[str]:
    """What `helm template` answers."""
    return helm("template", release, str(CHART), "--namespace", NAMESPACE, *options, values=values)


def render(values: object = None, *options: str, release: str = "tunnels") -> list[Manifest]:
    """The objects of the chart."""
    done = template(values, *options, release=release)
    assert done.returncode == 0, done.stderr
    return objects(done.stdout)


def objects(rendered: str) -> list[Manifest]:
    """The documents of a rendering. The definition is long: Python's own reader would take half a second for it."""
    return [document for document in yaml.load_all(rendered, Loader=yaml.CSafeLoader) if document]


def the_one(manifests: list[Manifest], kind: str) -> Manifest:
    """The only object of a kind."""
    found = [manifest for manifest in manifests if manifest["kind"] == kind]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def container(values: object = None) -> Manifest:
    """The operator's container."""
    found: Manifest = the_one(render(values), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return found


def environment_of(values: object = None) -> dict[str, str]:
    """The container's variables, those from the pod's own fields as the kubelet would fill them."""
    fields = {"metadata.namespace": NAMESPACE, "metadata.name": "pod", "status.podIP": POD_IP}
    return {
        entry["name"]: entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in container(values)["env"]
    }


def settings_of(environment: Mapping[str, str]) -> Settings:
    """What the operator makes of its environment."""
    no_flags = argparse.Namespace(**{setting.field: None for setting in SETTINGS})
    return Settings.read(no_flags, environment)
