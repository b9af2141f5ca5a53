"""The health script, as Argo CD's own command runs it without a cluster, on what operators wrote and would write."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from tests.support.health_cases import FOLDER, judged, write_settings
from tests.support.processes import ROOT


def test_each_state_has_its_health_and_message(tmp_path: Path) -> None:
    settings, folder = write_settings(tmp_path / "argocd-cm.yaml"), ROOT / FOLDER
    tests = yaml.safe_load((folder / "health_test.yaml").read_text())["tests"]
    assert {one["healthStatus"]["status"] for one in tests} == {"Healthy", "Progressing", "Degraded", "Suspended"}

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(lambda one: judged(folder / one["inputPath"], settings), tests))

    assert told == ["STATUS: {status}\nMESSAGE: {message}\n".format(**one["healthStatus"]) for one in tests]
