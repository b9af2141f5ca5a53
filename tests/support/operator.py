"""The operator as a process of this machine, with the rights that the chart grants and no more."""

import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from dbtunnel.controller.rbac import cluster_role, leader_rules
from dbtunnel.controller.settings import PodAccess
from tests.support.cluster import Cluster
from tests.support.processes import Process, free_port, wait_until
from tests.support.rights import LEASE

FORWARDER_IMAGE = "localhost/none:1"
"""An image that no node has: pods come into being and never start."""


class Operator:
    """`dbtunnel operator` against a cluster; `writes()` is what it wrote, by the API server's audit log."""

    def __init__(self, cluster: Cluster, directory: Path, name: str = "operator", **settings: str) -> None:
        """`settings`: by flag, with underscores; given namespaces have to exist. Each `name` is a user of its own."""
        self.cluster = cluster
        self.user = f"system:serviceaccount:default:{name}"
        self._kubeconfig = directory / f"{name}.kubeconfig"
        self.liveness_port, self.metrics_port = free_port(), free_port()
        given = {
            "forwarder_image": FORWARDER_IMAGE,
            "forwarder_image_pull_policy": "Never",
            "listen_address": "127.0.0.1",
            "liveness_port": str(self.liveness_port),
            "metrics_port": str(self.metrics_port),
            "pod_access": PodAccess.PROXY,
            "operator_namespace": "default",
            "log_level": "DEBUG",
            **settings,
        }
        flags = [word for key, value in given.items() for word in (f"--{key.replace('_', '-')}", value)]
        self._grant(name, settings.get("namespaces", ""))
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        environment = {**kept, "KUBECONFIG": str(self._kubeconfig), "HOME": str(directory)}
        command = [sys.executable, "-m", "dbtunnel.cli.main", "operator", *flags]
        self.process = Process(command, directory / f"{name}.log", env=environment)

    def start(self) -> Self:
        """Starts it and returns once it watches."""
        self.launch()
        self.process.wait_until(self.is_watching, "the operator's start", 20)
        return self

    def launch(self) -> Self:
        """Starts it and returns at once."""
        self.process.start()
        return self

    def connect_to(self, server: str) -> None:
        """Reaches the API server at this URL from its next start on."""
        document = yaml.safe_load(self._kubeconfig.read_text())
        document["clusters"][0]["cluster"] = {"server": server}
        self._kubeconfig.write_text(yaml.safe_dump(document))

    def is_watching(self) -> bool:
        """Whether it has got so far, in its latest run."""
        return any(line.get("event") == "started" and line["pid"] == self.process.pid for line in self.logs())

    def stop(self) -> int:
        """Ends it as the kubelet would. Returns its exit code."""
        self.process.stop(15)
        return self.process.wait(1)

    def logs(self) -> list[dict[str, Any]]:
        """Its log, every line of which is JSON; one that is being written is left out."""
        text = self.process.log.read_text() if self.process.log.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def faults(self) -> list[dict[str, Any]]:
        """What it logged of errors in the code, its own or Kopf's."""
        return [line for line in self.logs() if "exception" in line]

    def reconciles(self, namespace: str) -> list[str]:
        """How the reconciles of a namespace's tunnels ended, in its latest run."""
        logs = self.logs()
        start = max(number for number, line in enumerate(logs) if line.get("event") == "started")
        latest = [line for line in logs[start:] if line.get("namespace") == namespace]
        return [line["result"] for line in latest if line["event"] == "reconciled"]

    def metrics(self, _: Cluster) -> str:
        """What it tells at /metrics."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as response:
            return str(response.read().decode())

    def writes(self, namespace: str | None = None) -> list[str]:
        """Its successful writes as `verb resource/name`, all or of a namespace."""
        return [
            f"{one['verb']} {_resource(one['objectRef'])}"
            for one in self.cluster.audit_events()
            if one["user"]["username"] == self.user
            and one["objectRef"].get("resource") not in ("leases", "selfsubjectreviews")
            and namespace in (None, one["objectRef"].get("namespace"))
            and one["responseStatus"]["code"] < 300
        ]

    def wait_until_quiet(self, namespace: str, *, seconds: float = 2, timeout_seconds: float = 40) -> list[str]:
        """Its writes in a namespace, once there was no other for some time."""
        state = {"writes": self.writes(namespace), "since": 0.0}

        def is_quiet() -> bool:
            writes = self.writes(namespace)
            state["since"] = 0.0 if writes != state["writes"] else float(str(state["since"])) + 0.1
            state["writes"] = writes
            return float(str(state["since"])) >= seconds

        wait_until(is_quiet, "a fixpoint", timeout_seconds, interval_seconds=0.1, describe=lambda: state["writes"])
        return self.writes(namespace)

    def _grant(self, name: str, namespaces: str) -> None:
        """A service account with exactly the operator's rights, everywhere or in the given namespaces alone, and a
        kubeconfig with its token."""
        subject = {"kind": "ServiceAccount", "name": name, "namespace": "default"}
        role = cluster_role(f"test-{name}", PodAccess.PROXY)
        metadata = {"name": f"test-{name}", "namespace": "default"}
        rbac = "rbac.authorization.k8s.io"
        reference = {"apiGroup": rbac, "name": f"test-{name}"}
        documents: list[dict[str, Any]] = [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": "default"}},
            role,
            {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": metadata, "rules": list(leader_rules(LEASE))},
        ]
        bindings = [("RoleBinding", "Role", "default")]
        bindings += [("RoleBinding", "ClusterRole", one) for one in namespaces.split(",") if one]
        bindings += [] if namespaces else [("ClusterRoleBinding", "ClusterRole", "default")]
        for number, (kind, role_kind, namespace) in enumerate(bindings):
            binding = {"kind": kind, "subjects": [subject], "roleRef": {**reference, "kind": role_kind}}
            named = {"name": f"test-{name}-{number}", "namespace": namespace}
            documents.append({"apiVersion": f"{rbac}/v1", "metadata": named, **binding})
        self.cluster.kubectl("apply", "-f", "-", input=yaml.safe_dump_all(documents))
        token = self.cluster.kubectl("create", "token", name, "--duration=2h").strip()
        document = yaml.safe_load(self.cluster.kubeconfig.read_text())
        document["users"] = [{"name": document["contexts"][0]["context"]["user"], "user": {"token": token}}]
        self._kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        self._kubeconfig.write_text(yaml.safe_dump(document))
        self._kubeconfig.chmod(0o600)


def _resource(reference: dict[str, str]) -> str:
    subresource = f"/{reference['subresource']}" if "subresource" in reference else ""
    return f"{reference['resource']}{subresource}/{reference.get('name', '')}"


@contextmanager
def installed_operators_rest(cluster: Cluster) -> Iterator[None]:
    """None that is installed in the cluster runs meanwhile."""
    selector = "app.kubernetes.io/name=dbtunnel-operator"
    installed = cluster.get("deployments", "--all-namespaces", "-l", selector)["items"]
    counts = {(one["metadata"]["namespace"], one["metadata"]["name"]): one["spec"]["replicas"] for one in installed}
    for (namespace, name), replicas in counts.items():
        if replicas:
            cluster.kubectl("scale", "deployment", name, "-n", namespace, "--replicas=0")
            gone = ("wait", "--for=delete", "pod", "-l", selector, "--timeout=60s")
            cluster.kubectl(*gone, "-n", namespace, timeout_seconds=70)
    try:
        yield
    finally:
        for (namespace, name), replicas in counts.items():
            cluster.kubectl("scale", "deployment", name, "-n", namespace, f"--replicas={replicas}")
            done = ("rollout", "status", "deployment", name, "--timeout=60s")
            cluster.kubectl(*done, "-n", namespace, timeout_seconds=70)


@contextmanager
def lone_operator(cluster: Cluster, directory: Path, **settings: str) -> Iterator[Operator]:
    """An operator of this machine as the only one."""
    with installed_operators_rest(cluster):
        operator = Operator(cluster, directory, **settings)
        try:
            yield operator.start()
        finally:
            operator.process.stop()
