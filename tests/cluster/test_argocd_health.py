"""The health script, as Argo CD's own command runs it without a cluster, on what the operator's own code writes."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tests.support.binaries import binary
from tests.support.health_cases import FOLDER
from tests.support.processes import ROOT
from tests.support.teams_repository import documented


def _judged(test: dict[str, Any], settings: Path) -> str:
    """What the command prints; it exits with 0 whatever it finds."""
    command = ["admin", "settings", "resource-overrides", "health", str(ROOT / FOLDER / test["inputPath"])]
    environment = {**os.environ, "ARGOCD_BINARY_NAME": "argocd", "HOME": str(settings.parent)}
    return subprocess.run(
        [binary("argocd"), *command, "--argocd-cm-path", settings],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def test_each_state_has_its_health_and_message(tmp_path: Path) -> None:
    settings = tmp_path / "argocd-cm.yaml"
    settings.write_text(yaml.safe_dump(documented("ConfigMap")["argocd-cm"]))
    tests = yaml.safe_load((ROOT / FOLDER / "health_test.yaml").read_text())["tests"]
    assert {one["healthStatus"]["status"] for one in tests} == {"Healthy", "Progressing", "Degraded", "Suspended"}

    with ThreadPoolExecutor(2) as pool:
        judged = list(pool.map(lambda one: _judged(one, settings), tests))

    expected = ["STATUS: {status}\nMESSAGE: {message}\n".format(**one["healthStatus"]) for one in tests]
    assert judged == expected
