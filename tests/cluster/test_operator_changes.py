"""What the operator does when a tunnel changes, when the API server refuses, and with keys: no forwarder runs."""

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import Cluster, ClusterError
from tests.support.operator import Operator
from tests.support.processes import wait_until
from tests.support.tunnels import apply, condition, failure, find, patch, tunnel_manifest


def template(cluster: Cluster, namespace: str) -> dict[str, Any]:
    deployment = find(cluster, namespace, "deployment/orders-tunnel")
    assert deployment
    found: dict[str, Any] = deployment["spec"]["template"]
    return found


# --- changes of the spec ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "MySQL"},
        {"database": {"port": 6432}},
        {"database": {"host": "other.internal"}},
        {"tunnel": {"host": "127.0.0.10"}},
        {"tunnel": {"port": 2222}},
        {"tunnel": {"user": "other"}},
    ],
    ids=str,
)
def test_a_change_of_the_way_rolls_the_pods(operator: Operator, tunnel: str, change: dict[str, Any]) -> None:
    before = template(operator.cluster, tunnel)

    patch(operator.cluster, tunnel, "databasetunnel/orders", {"spec": change})

    wait_until(lambda: template(operator.cluster, tunnel) != before, "another pod template")
    labels = template(operator.cluster, tunnel)["metadata"]["labels"]
    assert labels["dbtunnel.dev/revision"] != before["metadata"]["labels"]["dbtunnel.dev/revision"]


def test_a_change_of_the_service_rolls_nothing(operator: Operator, tunnel: str) -> None:
    before = template(operator.cluster, tunnel)

    patch(operator.cluster, tunnel, "databasetunnel/orders", {"spec": {"service": {"port": 7000}}})
    wait_until(
        lambda: (find(operator.cluster, tunnel, "service/orders") or {})["spec"]["ports"][0]["port"] == 7000, "the port"
    )
    operator.wait_until_quiet(tunnel)

    assert template(operator.cluster, tunnel) == before


def test_suspend_scales_to_zero_and_back(operator: Operator, tunnel: str) -> None:
    cluster = operator.cluster

    def replicas() -> int:
        return int((find(cluster, tunnel, "deployment/orders-tunnel") or {})["spec"]["replicas"])

    patch(cluster, tunnel, "databasetunnel/orders", {"spec": {"suspend": True}})
    wait_until(lambda: replicas() == 0, "no replicas")
    wait_until(lambda: failure(cluster, tunnel, "Suspended"), "Suspended")
    stalled, reconciling = (condition(cluster, tunnel, kind) for kind in ("Stalled", "Reconciling"))
    assert (stalled["status"], reconciling["status"]) == ("False", "False")

    patch(cluster, tunnel, "databasetunnel/orders", {"spec": {"suspend": False}})
    wait_until(lambda: replicas() == 1, "a replica")


# --- what the API server refuses --------------------------------------------------------------------------------


def test_a_typing_error_in_a_pass_through_field_is_named(operator: Operator, namespace: str) -> None:
    cluster = operator.cluster
    affinity: dict[str, Any] = {"podAntiAffinity": {"requiredDuringScheduling": []}}
    apply(cluster, tunnel_manifest(namespace, podTemplate={"affinity": affinity}))

    ready = wait_until(lambda: failure(cluster, namespace, "Rejected"), "Rejected")
    assert "requiredDuringScheduling" in ready["message"]

    patch(cluster, namespace, "databasetunnel/orders", {"spec": {"podTemplate": None}})
    wait_until(lambda: find(cluster, namespace, "deployment/orders-tunnel"), "the Deployment")


def test_an_exhausted_quota_is_told(operator: Operator, namespace: str) -> None:
    cluster = operator.cluster
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": namespace}}
    apply(cluster, {**quota, "spec": {"hard": {"services": "0"}}})
    wait_until(
        lambda: (find(cluster, namespace, "resourcequota/none") or {}).get("status", {}).get("hard"), "the quota"
    )

    apply(cluster, tunnel_manifest(namespace))

    wait_until(lambda: failure(cluster, namespace, "QuotaExceeded"), "QuotaExceeded")
    cluster.kubectl("delete", "resourcequota", "none", "-n", namespace)
    wait_until(lambda: find(cluster, namespace, "service/orders"), "the Service")


# --- keys -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text"), [("Ed25519", "ssh-ed25519"), ("ECDSA", "ecdsa-sha2-nistp256"), ("RSA", "ssh-rsa")]
)
def test_a_key_of_the_given_type_is_generated(
    operator: Operator, namespace: str, kind: str, text: str, tmp_path: Path
) -> None:
    cluster = operator.cluster
    apply(cluster, tunnel_manifest(namespace, tunnel={"host": "127.0.0.9", "generatedKeyType": kind}))

    secret = wait_until(lambda: find(cluster, namespace, "secret/orders-ssh"), "the key")

    assert secret
    assert sorted(secret["data"]) == ["ssh-privatekey", "ssh-publickey"]
    assert _public_half(secret, tmp_path).split()[0] == text
    assert "PRIVATE KEY" not in operator.process.log.read_text()


def _public_half(secret: dict[str, Any], directory: Path) -> str:
    """What ssh-keygen makes of the private half."""
    path = directory / "key"
    path.write_bytes(base64.b64decode(secret["data"]["ssh-privatekey"]))
    path.chmod(0o600)
    return subprocess.run(["ssh-keygen", "-y", "-f", path], capture_output=True, text=True, check=True).stdout


def test_the_operator_can_read_no_secret(operator: Operator) -> None:
    for verb in ("get", "list", "watch", "update", "patch", "delete"):
        question = ("auth", "can-i", verb, "secrets", "--all-namespaces", f"--as={operator.user}")
        assert not _answers_yes(operator.cluster, *question), verb
    assert _answers_yes(operator.cluster, "auth", "can-i", "create", "secrets", f"--as={operator.user}")


def _answers_yes(cluster: Cluster, *question: str) -> bool:
    try:
        return cluster.kubectl(*question).strip() == "yes"
    except ClusterError:
        return False
