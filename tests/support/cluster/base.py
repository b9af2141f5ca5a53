"""What every cluster of the tests can do."""

import json
import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from kubernetes import config
from kubernetes.client import ApiClient
from urllib3.exceptions import HTTPError

from tests.support.binaries import binary, cache_directory

_ROOTS = {
    "configmap": "/api/v1",
    "secret": "/api/v1",
    "service": "/api/v1",
    "pod": "/api/v1",
    "resourcequota": "/api/v1",
    "deployment": "/apis/apps/v1",
    "networkpolicy": "/apis/networking.k8s.io/v1",
    "poddisruptionbudget": "/apis/policy/v1",
    "databasetunnel": "/apis/dbtunnel.dev/v1alpha1",
    "application": "/apis/argoproj.io/v1alpha1",
    "gitrepository": "/apis/source.toolkit.fluxcd.io/v1",
    "ocirepository": "/apis/source.toolkit.fluxcd.io/v1",
    "kustomization": "/apis/kustomize.toolkit.fluxcd.io/v1",
    "helmrelease": "/apis/helm.toolkit.fluxcd.io/v2",
}
"""Where the API has what tests look for."""

NODE_READY_SECONDS = 60
"""How long a start may take at most, on a slow machine."""


class ClusterError(RuntimeError):
    """A cluster cannot be had, or a command on it failed; the text says what to do, or what was said."""


class ClusterInUseError(ClusterError):
    """A cluster of that name belongs to another process that still runs."""


class Cluster(ABC):
    """A Kubernetes cluster with one node or more."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.directory = cache_directory() / "clusters" / name

    @property
    def kubeconfig(self) -> Path:
        """A kubeconfig with all rights."""
        return self.directory / "admin.kubeconfig"

    @property
    @abstractmethod
    def host_address(self) -> str:
        """An address of this machine that pods reach; servers of the tests listen on it."""

    def prepare(self) -> None:
        """Gets what `start` and `kubectl` need; may take minutes the first time. Raises BinaryError."""
        binary("kubectl")

    @abstractmethod
    def start(self, *, survives: bool = False) -> None:
        """Starts it and returns once a node is Ready. Raises ClusterError."""

    @abstractmethod
    def stop(self) -> None:
        """Stops it and removes what it left; does nothing where it does not run."""

    @abstractmethod
    def is_running(self) -> bool:
        """Whether it was started and not stopped."""

    @abstractmethod
    def load_image(self, archive: Path, reference: str) -> None:
        """Makes an image of a docker-archive known to the nodes."""

    @abstractmethod
    def audit_log(self) -> "AuditLog":
        """The API server's audit log so far: who did what to which object. Raises ClusterError where there is none."""

    def audit_events(self) -> list[dict[str, Any]]:
        """What was written so far, by the audit log."""
        return self.audit_log().writes

    def kubectl(self, *arguments: str | Path, input: str | None = None, timeout_seconds: float = 60) -> str:
        """What kubectl prints. Raises ClusterError with what it said where it fails."""
        done = subprocess.run(
            [binary("kubectl"), "--kubeconfig", self.kubeconfig, *map(str, arguments)],
            input=input,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
            env=self.environment(),
        )
        if done.returncode:
            raise ClusterError(f"kubectl {' '.join(map(str, arguments))}: {done.stderr or done.stdout}")
        return done.stdout

    def get(self, *arguments: str) -> dict[str, Any]:
        """An object, or a list of them, as JSON."""
        document: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return document

    def find(self, resource: str, namespace: str) -> dict[str, Any] | None:
        """An object by `kind/name`; None where it does not exist."""
        kind, _, name = resource.partition("/")
        return self.request("GET", f"{_ROOTS[kind]}/namespaces/{namespace}/{_plural(kind)}/{name}")

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
        """The object that the API server answers with; None where nothing is there. Raises ClusterError."""
        text = self.read(path, method, body)
        document: dict[str, Any] | None = None if text is None else json.loads(text)
        return document

    def read(self, path: str, method: str = "GET", body: Mapping[str, Any] | None = None) -> str | None:
        """What the API server answers, without the 60 ms of processor time of a kubectl; None where nothing is there.

        Raises ClusterError with what it said where it refuses.
        """
        headers = {"Accept": "application/json, */*", "Content-Type": "application/json"}
        settings = {"header_params": headers, "body": body, "auth_settings": ["BearerToken"]}
        answer = self._api.call_api(*self._api.param_serialize(method, path, **settings))
        text = str(answer.read().decode())  # type: ignore[no-untyped-call]
        if answer.status == 404:
            return None
        if answer.status >= 300:
            raise ClusterError(f"{method} {path}: {text}")
        return text

    @cached_property
    def _api(self) -> ApiClient:
        return config.new_client_from_config(str(self.kubeconfig))  # type: ignore[no-untyped-call, no-any-return]

    def environment(self) -> dict[str, str]:
        """For tools such as helm: the kubeconfig by its usual variable, and no proxy in between."""
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        return {**kept, "KUBECONFIG": str(self.kubeconfig)}

    def kubeconfig_of(self, account: str, namespace: str, path: Path) -> Path:
        """Writes the kubeconfig of a new service account, which may do nothing yet."""
        self.kubectl("create", "serviceaccount", account, "-n", namespace)
        token = self.kubectl("create", "token", account, "-n", namespace, "--duration=1h").strip()
        document = yaml.safe_load(self.kubeconfig.read_text())
        document["users"] = [{"name": document["contexts"][0]["context"]["user"], "user": {"token": token}}]
        path.write_text(yaml.safe_dump(document))
        return path

    def node_is_ready(self) -> bool:
        """Whether a node takes pods, and the namespace's default service account is there."""
        try:
            nodes = (self.request("GET", "/api/v1/nodes") or {})["items"]
            account = self.request("GET", "/api/v1/namespaces/default/serviceaccounts/default")
        except (ClusterError, HTTPError):
            return False
        ready = [
            condition["status"] == "True"
            for node in nodes
            if not node["spec"].get("taints")
            for condition in node["status"].get("conditions", ())
            if condition["type"] == "Ready"
        ]
        return account is not None and any(ready)


def _plural(kind: str) -> str:
    return f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"


class AuditLog:
    """The events of an audit log in JSON lines, read as it grows: those about an object. Requests about none, such as a
    POST to a path that the API server does not know, are left out.
    """

    def __init__(self) -> None:
        self.writes: list[dict[str, Any]] = []
        self.reads: list[dict[str, Any]] = []
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Takes what was written since; a line that is being written waits for its end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in filter(None, lines):
            event = json.loads(line)
            if "objectRef" in event:
                (self.reads if event["verb"] in READING else self.writes).append(event)


READING = ("get", "list", "watch")

AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: None, verbs: [get, list, watch], userGroups: ["system:serviceaccounts:kube-system"]}
- {level: Metadata, userGroups: ["system:serviceaccounts"]}
- {level: None, verbs: [get, list, watch]}
- {level: Metadata}
"""
"""Every write, with its user, verb and object. Of reads those of service accounts, but not the cluster's own."""
