"""A real Prometheus that scrapes processes of the tests, and its promtool."""

import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from tests.support.debian import ensure_packages
from tests.support.processes import Process, free_port, wait_until

PACKAGES = {"prometheus": "scrapes the processes, tests the alert rules"}

SCRAPE_SECONDS = 1

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Target:
    """A port with /metrics, and the labels that its series get, as a monitor of the chart would set them."""

    port: int
    labels: Mapping[str, str] = field(default_factory=dict)


class Prometheus:
    """One server. Use it as a context manager."""

    def __init__(
        self,
        directory: Path,
        targets: Sequence[Target] = (),
        rules: object = None,
        jobs: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """`rules`: the document of a rule file; `jobs`: what is scraped beside `targets`, as in `scrape_configs`."""
        ensure_packages(PACKAGES)
        directory.mkdir(parents=True, exist_ok=True)
        found = [{"targets": [f"127.0.0.1:{one.port}"], "labels": dict(one.labels)} for one in targets]
        job = {"job_name": "dbtunnel", "honor_labels": True, "static_configs": found}
        every = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
        configuration: dict[str, Any] = {"global": every, "scrape_configs": [job, *jobs]}
        if rules is not None:
            (directory / "rules.yaml").write_text(yaml.safe_dump(rules))
            configuration["rule_files"] = [str(directory / "rules.yaml")]
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
        self._port = free_port()
        command = [
            "prometheus",
            f"--config.file={directory / 'prometheus.yaml'}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        self._process = Process(command, directory / "prometheus.log", cwd=directory)

    def __enter__(self) -> Self:
        self._process.start()
        self._process.wait_until(self._is_ready, "Prometheus was ready")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The labels and values of an instant query. Raises AssertionError with what is wrong with it."""
        answer = self._get("query", {"query": expression})
        assert answer["status"] == "success", answer
        return [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes, with `health` and `lastError`."""
        found: list[dict[str, Any]] = self._get("targets", {})["data"]["activeTargets"]
        return found

    def metadata(self) -> dict[str, dict[str, str]]:
        """Type and help of each metric, by its name."""
        found: dict[str, list[dict[str, str]]] = self._get("metadata", {})["data"]
        return {name: told[0] for name, told in found.items()}

    def rules(self) -> list[dict[str, Any]]:
        """The alert rules with their `health` and `alerts`."""
        return [rule for group in self._get("rules", {})["data"]["groups"] for rule in group["rules"]]

    def wait_for(self, expression: str, timeout_seconds: float = 40) -> list[tuple[dict[str, str], float]]:
        """What a query gives once it gives something."""
        return wait_until(lambda: self.query(expression), expression, timeout_seconds, describe=self._process.log_end)

    def _is_ready(self) -> bool:
        try:
            return bool(_OPENER.open(f"http://127.0.0.1:{self._port}/-/ready", timeout=10).status == 200)
        except OSError:  # of which refusals by HTTP are a kind
            return False

    def _get(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with _OPENER.open(url, timeout=10) as response:
                answer: dict[str, Any] = json.load(response)
        except urllib.error.HTTPError as error:
            answer = json.load(error)
        return answer


def promtool(*arguments: str | Path, input: str | None = None) -> subprocess.CompletedProcess[str]:
    """What promtool answers."""
    ensure_packages(PACKAGES)
    command = ["promtool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, input=input, timeout=60, check=False)
