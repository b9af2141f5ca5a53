"""What happens to tunnels that work: bastions, operators and pods come and go."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bastion import Bastion
from tests.support.clients import Endpoint
from tests.support.cluster import Cluster
from tests.support.installation import NAMESPACE as OPERATOR_NAMESPACE
from tests.support.private_network import PrivateNetwork
from tests.support.processes import wait_until
from tests.support.traffic import Traffic
from tests.support.tunnels import Manifest, apply, condition, example, find, wait_for_ready, wait_for_reason

CHILDREN = ("service/{}", "networkpolicy/{}-tunnel", "deployment/{}-tunnel")
OPERATOR = ("deployment", "dbtunnel-dbtunnel-operator")


@pytest.fixture
def bastion(installed: Cluster, private_network: PrivateNetwork, shop: str, tmp_path: Path) -> Iterator[Bastion]:
    bastion = Bastion(tmp_path / "bastion", host=installed.host_address, hosts=private_network.addresses)
    bastion.authorize(*private_network.authorized)
    yield bastion.start()
    bastion.stop()


def start(cluster: Cluster, namespace: str, name: str, bastion: Bastion | None = None, **spec: Any) -> Manifest:
    """A tunnel that works."""
    manifest = example(namespace, "orders")
    manifest["metadata"]["name"] = name
    manifest["spec"] |= spec
    if bastion:
        pins = {"fingerprints": list(bastion.fingerprints.values())}
        manifest["spec"]["tunnel"] |= {"host": bastion.host, "port": bastion.port, "hostKey": pins}
    apply(cluster, manifest)
    return wait_for_ready(cluster, namespace, name)


def pods(cluster: Cluster, namespace: str, name: str) -> list[str]:
    """Names of a tunnel's pods that are not ending."""
    listed = cluster.get("pods", "-n", namespace, "-l", f"dbtunnel.dev/tunnel={name}")["items"]
    return [one["metadata"]["name"] for one in listed if "deletionTimestamp" not in one["metadata"]]


def versions(cluster: Cluster, namespace: str, name: str) -> list[tuple[str, str]]:
    """uid and generation of each child: what a write of its spec would change."""
    found = [find(cluster, namespace, child.format(name)) for child in CHILDREN]
    return [(one["metadata"]["uid"], str(one["metadata"].get("generation"))) for one in found if one]


def scale_operator(cluster: Cluster, replicas: int) -> None:
    """Switches the installed operator off or on, and waits until it is so."""
    cluster.kubectl("scale", *OPERATOR, "-n", OPERATOR_NAMESPACE, f"--replicas={replicas}")
    selector = "app.kubernetes.io/name=dbtunnel-operator"

    def is_so() -> bool:
        listed = cluster.get("pods", "-n", OPERATOR_NAMESPACE, "-l", selector)["items"]
        return len(listed) == replicas

    wait_until(is_so, f"{replicas} operators", 60)
    cluster.kubectl("rollout", "status", *OPERATOR, "-n", OPERATOR_NAMESPACE, "--timeout=60s", timeout_seconds=70)


def test_the_bastion_restarts_under_traffic(installed: Cluster, shop: str, bastion: Bastion) -> None:
    tunnel = start(installed, shop, "restarted", bastion)
    with Traffic(installed, shop, Endpoint.of(tunnel)) as traffic:
        bastion.stop()
        wait_for_reason(installed, shop, "restarted", "ConnectionRefused")
        bastion.start()
        found = wait_for_ready(installed, shop, "restarted")

    assert found["status"]["lastFailure"]["reason"] == "ConnectionRefused"
    outcome = traffic.outcome
    assert outcome.served > 2
    # the session that was open when the bastion went; all others waited
    assert len(outcome.errors) <= 1, outcome.errors


def test_the_operator_restarts_under_traffic(installed: Cluster, shop: str) -> None:
    tunnel = start(installed, shop, "untouched")
    before = versions(installed, shop, "untouched"), pods(installed, shop, "untouched")

    with Traffic(installed, shop, Endpoint.of(tunnel)) as traffic:
        scale_operator(installed, 0)
        scale_operator(installed, 1)

    assert (versions(installed, shop, "untouched"), pods(installed, shop, "untouched")) == before
    assert traffic.outcome.errors == []
    assert traffic.outcome.served > 10
    assert condition(installed, shop, "Ready", "untouched")["status"] == "True"


def test_a_restarted_operator_still_follows(installed: Cluster, shop: str, bastion: Bastion) -> None:
    start(installed, shop, "followed", bastion)
    scale_operator(installed, 0)
    bastion.stop()

    scale_operator(installed, 1)

    wait_for_reason(installed, shop, "followed", "ConnectionRefused")
    bastion.start()
    wait_for_ready(installed, shop, "followed")


def test_a_tunnel_is_deleted_while_no_operator_runs(installed: Cluster, shop: str) -> None:
    start(installed, shop, "deleted")
    scale_operator(installed, 0)

    installed.kubectl("delete", "databasetunnel", "deleted", "-n", shop)
    for child in CHILDREN:
        wait_until(lambda child=child: find(installed, shop, child.format("deleted")) is None, child, 60)  # type: ignore[misc]
    wait_until(lambda: not pods(installed, shop, "deleted"), "no pods", 60)

    scale_operator(installed, 1)
    start(installed, shop, "made-later")
    assert versions(installed, shop, "deleted") == []


def test_a_forwarders_pod_is_deleted_under_traffic(installed: Cluster, shop: str) -> None:
    tunnel = start(installed, shop, "replaced")
    (old,) = pods(installed, shop, "replaced")

    with Traffic(installed, shop, Endpoint.of(tunnel)) as traffic:
        installed.kubectl("delete", "pod", old, "-n", shop, "--wait=false")
        wait_until(lambda: pods(installed, shop, "replaced") not in ([], [old]), "another pod", 30)
        wait_for_ready(installed, shop, "replaced")
        gone = ("wait", "--for=delete", f"pod/{old}", "-n", shop, "--timeout=60s")
        installed.kubectl(*gone, timeout_seconds=70)

    assert traffic.outcome.errors == []
    assert traffic.outcome.served > 10
