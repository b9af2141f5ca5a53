"""The chart's alert rules and dashboard, as files; its monitors, as Prometheus is configured for them."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.support.binaries import binary
from tests.support.chart import CHART, NAMESPACE, Manifest, the_one
from tests.support.cluster import Cluster
from tests.support.processes import Process, free_port, listens

ALERTS = CHART / "files" / "alerts.yaml"
DASHBOARD = CHART / "files" / "dashboard.json"


def alert_rules() -> list[dict[str, Any]]:
    """Every rule."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """The dashboard's document."""
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def expressions(**variables: str) -> list[str]:
    """The queries of all panels, with the variables' values in their places."""
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    for name, value in variables.items():
        found = [expression.replace(f"${name}", value) for expression in found]
    return found


# --- the monitors -----------------------------------------------------------------------------------------------------

CRDS = ("monitor-crds.yaml", "rule-crd.yaml")
"""Of the Prometheus operator: for what the chart makes of its kinds."""


@contextlib.contextmanager
def open_api(cluster: Cluster, directory: Path) -> Iterator[str]:
    """The API server without a login, for Prometheus: host and port on this machine."""
    port = free_port()
    command = [str(binary("kubectl")), "proxy", f"--port={port}"]
    process = Process(command, directory / "kubectl-proxy.log", env=cluster.environment()).start()
    try:
        process.wait_until(lambda: listens("127.0.0.1", port), "kubectl proxy to listen")
        yield f"127.0.0.1:{port}"
    finally:
        process.stop()


def scrape_jobs(cluster: Cluster, manifests: Sequence[Manifest], api: str) -> list[Manifest]:
    """What Prometheus scrapes for the chart's monitors, found as its operator has it found: by their selectors and
    ports, and relabeled by their rules. Debian's Prometheus knows no Kubernetes, so the targets are looked up here;
    it reaches them through the API server.
    """
    of_service, of_pods = (the_one(list(manifests), kind)["spec"] for kind in ("ServiceMonitor", "PodMonitor"))
    (endpoint,), (pod_endpoint,) = of_service["endpoints"], of_pods["podMetricsEndpoints"]
    operators = [
        target
        for service in _selected(cluster, "services", NAMESPACE, of_service["selector"]["matchLabels"])
        for port in service["spec"]["ports"]
        if port["name"] == endpoint["port"]
        for target in _targets(cluster, NAMESPACE, service["spec"]["selector"], port["targetPort"], api)
    ]
    forwarders = [
        target
        for namespace in of_pods["namespaceSelector"]["matchNames"]
        for target in _targets(cluster, namespace, of_pods["selector"]["matchLabels"], pod_endpoint["port"], api)
    ]
    return [_job("service", endpoint, operators), _job("pod", pod_endpoint, forwarders)]


def _selected(cluster: Cluster, kind: str, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
    selector = ",".join(f"{name}={value}" for name, value in labels.items())
    found: list[Manifest] = cluster.get(kind, "-n", namespace, "-l", selector)["items"]
    return found


def _targets(cluster: Cluster, namespace: str, labels: Mapping[str, str], port: str, api: str) -> Iterator[Manifest]:
    """The pods with these labels that have a port of this name, with what discovery would tell of them."""
    for pod in _selected(cluster, "pods", namespace, labels):
        name, ports = pod["metadata"]["name"], [one for it in pod["spec"]["containers"] for one in it["ports"]]
        for number in (one["containerPort"] for one in ports if one["name"] == port):
            known = {f"__meta_kubernetes_pod_label_{_name(key)}": one for key, one in pod["metadata"]["labels"].items()}
            path = f"/api/v1/namespaces/{namespace}/pods/{name}:{number}/proxy/metrics"
            own = {"namespace": namespace, "pod": name, "instance": f"{name}:{number}", "__metrics_path__": path}
            yield {"targets": [api], "labels": {**known, **own}}


def _job(name: str, endpoint: Manifest, targets: Sequence[Manifest]) -> Manifest:
    return {
        "job_name": name,
        "honor_labels": endpoint.get("honorLabels", False),
        "static_configs": list(targets),
        "relabel_configs": [_snake(one) for one in endpoint.get("relabelings", ())],
    }


def _name(label: str) -> str:
    """A label as Prometheus names it."""
    return re.sub(r"[^a-zA-Z0-9_]", "_", label)


def _snake(relabeling: Manifest) -> Manifest:
    """A relabeling as Prometheus spells it."""
    return {re.sub(r"([A-Z])", lambda found: "_" + found[1].lower(), name): one for name, one in relabeling.items()}
