"""An application that runs is moved to a tunnel and back, as docs/existing-connections.md says, and binds to one."""

import base64
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.bastion import Bastion
from tests.support.clients import Endpoint
from tests.support.cluster import Cluster
from tests.support.pages import follow
from tests.support.private_network import PrivateNetwork, service_of_machine
from tests.support.processes import wait_until
from tests.support.relay import Relay
from tests.support.traffic import Traffic
from tests.support.tunnels import (
    Manifest,
    apply,
    condition,
    example,
    find,
    make_namespace,
    patch,
    remove_namespace,
    start_tunnel,
)

PAGE = "existing-connections"


@pytest.fixture
def direct(installed: Cluster, private_network: PrivateNetwork) -> Iterator[tuple[Relay, str]]:
    """A way to the database that pods have without a tunnel, and its name in the cluster."""
    server = private_network.servers["orders"]
    namespace = make_namespace(installed, "direct")
    with Relay(server.host, server.port, host=installed.host_address) as relay:
        apply(installed, *service_of_machine(namespace, "orders", server.port, relay.host, relay.port))
        yield relay, f"orders.{namespace}.svc.cluster.local"
    remove_namespace(installed, namespace)


def write_manifests(directory: Path, namespace: str, bastion: Bastion, host: str) -> None:
    """The two that the page speaks of."""
    tunnel = example(namespace, "orders")
    pins = {"fingerprints": list(bastion.fingerprints.values())}
    tunnel["spec"]["tunnel"] |= {"host": bastion.host, "port": bastion.port, "hostKey": pins}
    tunnel["spec"]["service"] = {"name": "orders-db"}
    metadata = {"name": "orders-db", "namespace": namespace}
    service = {"apiVersion": "v1", "kind": "Service", "metadata": metadata}
    service["spec"] = {"type": "ExternalName", "externalName": host}
    (directory / "orders-tunnel.yaml").write_text(yaml.safe_dump(tunnel))
    (directory / "orders-db.yaml").write_text(yaml.safe_dump(service))


def kind_of_service(cluster: Cluster, namespace: str) -> str | None:
    """ExternalName or ClusterIP; None where there is none."""
    found: Manifest = find(cluster, namespace, "service/orders-db") or {}
    kind: str | None = found.get("spec", {}).get("type")
    return kind


def sessions(relay: Relay, seconds: float = 1.0) -> int:
    """How many take the direct way in so long; the application makes one every 50 ms."""
    before = relay.accepted
    time.sleep(seconds)
    return relay.accepted - before


def test_an_application_is_moved_to_the_tunnel_and_back(
    installed: Cluster, shop: str, bastion: Bastion, direct: tuple[Relay, str], tmp_path: Path
) -> None:
    relay, host = direct
    write_manifests(tmp_path, shop, bastion, host)
    installed.kubectl("apply", "-f", str(tmp_path / "orders-db.yaml"))
    endpoint = Endpoint(f"orders-db.{shop}.svc", 5432, "", "")
    with Traffic(installed, shop, endpoint) as traffic:
        follow(PAGE, installed, shop, tmp_path, "-f orders-tunnel.yaml")
        assert condition(installed, shop, "Ready")["reason"] == "NameConflict"
        assert kind_of_service(installed, shop) == "ExternalName"
        assert relay.accepted > 0

        follow(PAGE, installed, shop, tmp_path, "kubectl label")
        assert kind_of_service(installed, shop) == "ClusterIP"
        wait_until(lambda: not sessions(relay), "sessions through the tunnel alone", 40)

        follow(PAGE, installed, shop, tmp_path, "kubectl replace")
        assert kind_of_service(installed, shop) == "ExternalName"
        wait_until(lambda: sessions(relay), "sessions that go directly again", 40)
    assert kind_of_service(installed, shop) == "ExternalName", "nobody has turned it again"
    outcome = traffic.outcome
    print(f"\n{outcome.served} sessions served, {len(outcome.errors)} refused while nodes learned of the endpoint")
    assert outcome.served > 40
    assert all("No route to host" in error or "refused" in error for error in outcome.errors), outcome.errors
    assert len(outcome.errors) < outcome.served / 2


def binding_of(cluster: Cluster, namespace: str) -> tuple[str, dict[str, str]]:
    """The name of the Secret that the status names, and what is in it."""
    name: str = cluster.get("databasetunnel", "bound", "-n", namespace)["status"]["binding"]["name"]
    data = cluster.get("secret", name, "-n", namespace)["data"]
    return name, {key: base64.b64decode(value).decode() for key, value in data.items()}


def test_a_workload_binds_to_a_tunnel(installed: Cluster, shop: str, bastion: Bastion) -> None:
    start_tunnel(installed, shop, "bound", bastion, serviceBinding="Enabled")
    first, data = binding_of(installed, shop)
    wanted = {"type": "postgresql", "provider": "dbtunnel", "host": f"bound.{shop}.svc", "port": "5432"}
    assert data == {**wanted, "tls-server-name": "orders.internal"}

    patch(installed, shop, "databasetunnel/bound", {"spec": {"service": {"port": 6543}}})
    wait_until(lambda: binding_of(installed, shop)[0] != first, "another Secret")
    second, data = binding_of(installed, shop)
    assert data["port"] == "6543"
    assert find(installed, shop, f"secret/{first}"), "workloads may have it mounted"

    installed.kubectl("delete", "databasetunnel", "bound", "-n", shop)
    for name in (first, second):
        wait_until(lambda name=name: find(installed, shop, f"secret/{name}") is None, f"the end of {name}", 30)  # type: ignore[misc]
