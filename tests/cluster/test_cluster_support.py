"""The cluster that the other tests rely on does what they rely on."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import Cluster
from tests.support.cluster.images import BUSYBOX_IMAGE, busybox_archive
from tests.support.processes import wait_until

HOST_ANSWER = b"this machine answers"


class _Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(HOST_ANSWER)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def busybox(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> str:
    cluster.load_image(busybox_archive(tmp_path_factory.mktemp("image") / "busybox.tar"), BUSYBOX_IMAGE)
    return BUSYBOX_IMAGE


@pytest.fixture
def host_port(cluster: Cluster) -> Iterator[int]:
    """A port of this machine that answers pods by HTTP."""
    with http.server.ThreadingHTTPServer((cluster.host_address, 0), _Answer) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_port
        server.shutdown()


def _pod(namespace: str, image: str, name: str = "shell", **container: Any) -> dict[str, Any]:
    """A pod that Pod Security `restricted` admits."""
    security = {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    main = {"name": "main", "image": image, "imagePullPolicy": "Never", "securityContext": security, **container}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {"containers": [main], "terminationGracePeriodSeconds": 0},
    }


def _service_for_host(namespace: str, address: str, port: int) -> list[dict[str, Any]]:
    """A Service without a selector, and where it leads."""
    metadata = {"name": "host", "namespace": namespace}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 80}]}}
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "labels": {"kubernetes.io/service-name": "host"}},
        "addressType": "IPv4",
        "ports": [{"port": port}],
        "endpoints": [{"addresses": [address]}],
    }
    return [service, endpoints]


@pytest.fixture
def shell(cluster: Cluster, namespace: str, busybox: str) -> "Shell":
    cluster.kubectl("create", "-f", "-", input=json.dumps(_pod(namespace, busybox)))
    cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/shell", "--timeout=60s", timeout_seconds=70)
    return Shell(cluster, namespace)


class Shell:
    """A running pod to call commands in."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def __call__(self, script: str) -> str:
        """What a script prints, errors too."""
        command = ["sh", "-c", f"({script}) 2>&1 || true"]
        return self.cluster.kubectl("-n", self.namespace, "exec", "shell", "--", *command)


def test_a_restricted_pod_runs_and_finds_services_by_name(shell: Shell) -> None:
    assert "uid=65532" in shell("id")
    first = shell.cluster.get("service", "kubernetes")["spec"]["clusterIP"]

    assert first in shell("nslookup kubernetes.default.svc.cluster.local")


def test_short_names_are_those_of_the_pods_namespace(shell: Shell, host_port: int) -> None:
    manifests = _service_for_host(shell.namespace, shell.cluster.host_address, host_port)
    shell.cluster.kubectl(
        "create", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})
    )

    def answer() -> str:
        return shell("wget -q -O - http://host")

    wait_until(lambda: answer() == HOST_ANSWER.decode(), "the Service leads to this machine", 20)


def test_a_pod_reaches_this_machine_on_any_port(shell: Shell, host_port: int) -> None:
    url = f"http://{shell.cluster.host_address}:{host_port}"

    assert shell(f"wget -q -O - {url}") == HOST_ANSWER.decode()


def test_a_pods_output_is_kept(cluster: Cluster, namespace: str, busybox: str) -> None:
    pod = _pod(namespace, busybox, name="once", args=["sh", "-c", "id -u"])
    pod["spec"]["restartPolicy"] = "Never"
    cluster.kubectl("create", "-f", "-", input=json.dumps(pod))
    done = "--for=jsonpath={.status.phase}=Succeeded"
    cluster.kubectl("-n", namespace, "wait", done, "pod/once", "--timeout=60s", timeout_seconds=70)

    assert cluster.kubectl("-n", namespace, "logs", "once") == "65532\n"


def test_the_audit_log_shows_each_write_with_its_user_and_object_and_no_read(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("-n", namespace, "create", "configmap", "counted", "--from-literal=a=1")
    cluster.kubectl("-n", namespace, "get", "configmap", "counted")
    cluster.kubectl("-n", namespace, "patch", "configmap", "counted", "-p", '{"data": {"a": "2"}}')

    def about() -> list[dict[str, Any]]:
        return [
            event
            for event in cluster.audit_events()
            if event["objectRef"].get("namespace") == namespace and event["objectRef"].get("name") == "counted"
        ]

    wait_until(lambda: len(about()) >= 2, "both writes are in the audit log", 20)
    assert [(event["verb"], event["responseStatus"]["code"]) for event in about()] == [("create", 201), ("patch", 200)]
    for event in about():
        assert event["stage"] == "ResponseComplete"
        assert event["user"]["username"]
        assert event["userAgent"].startswith("kubectl")
        assert event["objectRef"]["namespace"] == namespace
        assert "requestObject" not in event


def test_an_owner_whose_deletion_is_blocked_needs_a_permission(cluster: Cluster, namespace: str) -> None:
    """As on OpenShift: OwnerReferencesPermissionEnforcement is on."""
    cluster.kubectl("-n", namespace, "create", "configmap", "owner")
    cluster.kubectl("-n", namespace, "create", "serviceaccount", "maker")
    cluster.kubectl("-n", namespace, "create", "role", "maker", "--verb=create", "--resource=configmaps")
    cluster.kubectl(
        "-n", namespace, "create", "rolebinding", "maker", "--role=maker", f"--serviceaccount={namespace}:maker"
    )
    uid = cluster.get("-n", namespace, "configmap/owner")["metadata"]["uid"]

    def create_owned(name: str, *, blocks: bool) -> str:
        owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid, "blockOwnerDeletion": blocks}
        metadata = {"name": name, "namespace": namespace, "ownerReferences": [owner]}
        manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
        user = f"--as=system:serviceaccount:{namespace}:maker"
        return cluster.kubectl("create", user, "-f", "-", input=json.dumps(manifest))

    assert "created" in create_owned("free", blocks=False)
    with pytest.raises(Exception, match="cannot set blockOwnerDeletion"):
        create_owned("blocking", blocks=True)


def test_a_failed_command_says_what_kubectl_said(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r'namespaces "none" not found'):
        cluster.get("namespace", "none")
