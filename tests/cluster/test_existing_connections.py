"""An application that runs is moved to a tunnel and back, as docs/existing-connections.md says, and binds to one."""

import base64
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.bastion import Bastion
from tests.support.binaries import binary
from tests.support.clients import Endpoint, first_query, start_client
from tests.support.cluster import Cluster
from tests.support.databases import DATABASE, PASSWORD, USER
from tests.support.pages import at_a_cluster, blocks, follow
from tests.support.private_network import PrivateNetwork, secret, service_of_machine
from tests.support.processes import run, wait_until
from tests.support.relay import Relay
from tests.support.traffic import Held, Outcome, Traffic, target_of
from tests.support.tunnels import (
    Manifest,
    apply,
    condition,
    find,
    make_namespace,
    patch,
    remove_namespace,
    start_tunnel,
    try_at_once,
)

PAGE = "existing-connections"


@dataclass(frozen=True)
class Old:
    """How the application reaches the database before there is a tunnel."""

    kind: str
    """The Service's type."""
    service: Manifest
    relay: Relay
    endpoints: Manifest | None = None
    """Its EndpointSlice, where it has one of its own."""


@pytest.fixture
def stranger(installed: Cluster, namespace: str, client_image: str, private_network: PrivateNetwork) -> str:
    """A namespace with a pod of clients, and no key that a bastion knows."""
    private_network.publish(installed, namespace)
    installed.kubectl("delete", "secret", "orders-ssh", "-n", namespace)
    start_client(installed, namespace, client_image)
    return namespace


@pytest.fixture(params=["ExternalName", "EndpointSlice"])
def old(
    installed: Cluster, stranger: str, private_network: PrivateNetwork, request: pytest.FixtureRequest
) -> Iterator[Old]:
    """The Service `orders-db`, one way and the other; it leads to a relay."""
    server = private_network.servers["orders"]
    namespace = make_namespace(installed, "direct")
    with Relay(server.host, server.port, host=installed.host_address) as relay:
        if request.param == "ExternalName":
            apply(installed, *service_of_machine(namespace, "orders", server.port, relay.host, relay.port))
            yield Old("ExternalName", named_service(stranger, f"orders.{namespace}.svc.cluster.local"), relay)
        else:
            service, endpoints = service_of_machine(stranger, "orders-db", server.port, relay.host, relay.port)
            # as the tunnel calls it, so that both lead on until one is deleted
            for ports in (service["spec"]["ports"], endpoints["ports"]):
                ports[0]["name"] = "database"
            yield Old("ClusterIP", service, relay, endpoints)
    remove_namespace(installed, namespace)


def named_service(namespace: str, host: str) -> Manifest:
    """The Service whose name leads to another name."""
    metadata = {"name": "orders-db", "namespace": namespace}
    spec = {"type": "ExternalName", "externalName": host}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def write_manifests(directory: Path, namespace: str, bastion: Bastion, old: Old) -> None:
    """The page's tunnel, as the reader changes it, and what there is before it."""
    tunnel: Manifest = yaml.safe_load(blocks(PAGE, "yaml")[0])
    tunnel["metadata"]["namespace"] = namespace
    pins = {"fingerprints": [bastion.fingerprints["ed25519"]]}
    tunnel["spec"]["tunnel"] |= {"host": bastion.host, "port": bastion.port, "hostKey": pins}
    (directory / "orders-tunnel.yaml").write_text(yaml.safe_dump(tunnel))
    (directory / "orders-db.yaml").write_text(yaml.safe_dump(old.service))
    (directory / "orders-db-endpoints.yaml").write_text(yaml.safe_dump(old.endpoints))


def take_manifests(cluster: Cluster, namespace: str, directory: Path, old: Old) -> None:
    """From the cluster, in the place of those that were applied."""
    follow(PAGE, cluster, namespace, directory, "--dry-run=client")
    if old.endpoints:
        slice_ = {"service orders-db": "endpointslice orders-db", "orders-db.yaml": "orders-db-endpoints.yaml"}
        follow(PAGE, cluster, namespace, directory, "--dry-run=client", **slice_)
    assert "uid" not in (directory / "orders-db.yaml").read_text()


def is_the_tunnels(cluster: Cluster, namespace: str) -> bool:
    """Whether the Service leads to the tunnel's pods."""
    found: Manifest = find(cluster, namespace, "service/orders-db") or {}
    selector = found["spec"].get("selector") or {}
    return bool(selector.get("dbtunnel.dev/tunnel") == "orders")


def slices(cluster: Cluster, namespace: str) -> list[str]:
    """The names of the Service's EndpointSlices."""
    path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
    listed = cluster.request("GET", f"{path}?labelSelector=kubernetes.io/service-name=orders-db") or {}
    return [one["metadata"]["name"] for one in listed["items"]]


def annotations(cluster: Cluster, namespace: str) -> dict[str, str]:
    """What tools are told of the Service."""
    found: Manifest = find(cluster, namespace, "service/orders-db") or {}
    words = ("helm.sh/", "argocd.")
    return {name: value for name, value in found["metadata"].get("annotations", {}).items() if name.startswith(words)}


def kind_of_service(cluster: Cluster, namespace: str) -> str:
    """ExternalName or ClusterIP."""
    kind: str = (find(cluster, namespace, "service/orders-db") or {})["spec"]["type"]
    return kind


def sessions(relay: Relay, seconds: float = 1.0) -> int:
    """How many take the direct way in so long; the application makes one every 50 ms."""
    before = relay.accepted
    time.sleep(seconds)
    return relay.accepted - before


def let_in(cluster: Cluster, namespace: str, bastion: Bastion, handout: str) -> None:
    """Adds the line that was handed out, without which the bastion rejects the tunnel's key."""
    rejected = {"status": "False", "reason": "KeyRejected"}
    wait_until(lambda: rejected.items() <= condition(cluster, namespace, "Authenticated").items(), "KeyRejected", 60)
    (line,) = re.findall("^restrict.*$", handout, re.MULTILINE)
    bastion.authorize(*bastion.authorized(), line)
    try_at_once(cluster, namespace, "orders")


def test_an_application_is_moved_to_the_tunnel_and_back(
    installed: Cluster, stranger: str, bastion: Bastion, old: Old, tmp_path: Path
) -> None:
    write_manifests(tmp_path, stranger, bastion, old)

    def step(word: str, *, of_endpoints: bool = False) -> str:
        """Of the page. `of_endpoints`: for whom there is an EndpointSlice."""
        skipped = of_endpoints and not old.endpoints
        return "" if skipped else follow(PAGE, installed, stranger, tmp_path, word)

    apply(installed, *filter(None, (old.service, old.endpoints)))
    endpoint = Endpoint(f"orders-db.{stranger}.svc", 5432, "", "")
    with Traffic(installed, stranger, endpoint) as traffic, Held(installed, stranger, endpoint) as before:
        take_manifests(installed, stranger, tmp_path, old)
        let_in(installed, stranger, bastion, step("-f orders-tunnel.yaml"))
        step("condition=DatabaseReachable")
        wait_until(lambda: condition(installed, stranger, "Ready")["reason"] == "NameConflict", "NameConflict")
        assert kind_of_service(installed, stranger) == old.kind
        assert old.relay.accepted > 0

        step("kubectl annotate")
        step("kubectl label")
        assert is_the_tunnels(installed, stranger)
        assert len(annotations(installed, stranger)) == 2, "what tools are told outlasts the turn"
        step("kubectl delete -f orders-db-endpoints.yaml", of_endpoints=True)
        wait_until(lambda: not sessions(old.relay), "sessions through the tunnel alone", 40)
        assert old.relay.connections == 1, "the session of before stays on the old way"

        with Held(installed, stranger, endpoint) as between:
            step("kubectl apply -f orders-db-endpoints.yaml", of_endpoints=True)
            step("kubectl replace")
            assert not annotations(installed, stranger)
            assert len(slices(installed, stranger)) > bool(old.endpoints), "those that led to the tunnel stay"
            step("kubectl delete endpoints ", of_endpoints=True)
            assert not is_the_tunnels(installed, stranger)
            wait_until(lambda: sessions(old.relay), "sessions that go directly again", 40)
        if old.endpoints:
            wait_until(lambda: slices(installed, stranger) == ["orders-db"], "nothing that leads to the tunnel")
    assert kind_of_service(installed, stranger) == old.kind, "nobody has turned it again"
    check(traffic.outcome)
    assert before.printed > between.printed > 10, "each session went on to its end"


def check(outcome: Outcome) -> None:
    """Nothing but a moment without a way is seen from outside."""
    refused = [round(seconds, 2) for seconds in outcome.outages]
    print(f"\n{outcome.served} sessions served, {len(outcome.errors)} refused, in {refused} s")
    assert outcome.served > 40
    assert all("No route to host" in error or "refused" in error for error in outcome.errors), outcome.errors
    assert len(outcome.outages) <= 2, "one of each switch"
    assert max(outcome.outages, default=0) < 3


def test_helm_keeps_a_service_that_it_was_told_to_keep(installed: Cluster, shop: str, tmp_path: Path) -> None:
    templates = tmp_path / "chart" / "templates"
    templates.mkdir(parents=True)
    (tmp_path / "chart" / "Chart.yaml").write_text("{apiVersion: v2, name: shop, version: 0.1.0}")
    chart = templates / "orders-db.yaml"
    command: list[str | Path] = [binary("helm"), "upgrade", "--install", "shop", tmp_path / "chart", "-n", shop]

    def release(manifest: Manifest | None) -> bool:
        """Whether the Service is there once a release with it, or without, has been made."""
        chart.write_text(yaml.safe_dump(manifest) if manifest else "")
        run(command, env=at_a_cluster(installed), timeout_seconds=60)
        return find(installed, shop, "service/orders-db") is not None

    service = named_service(shop, "orders.example.com")
    assert release(service)
    assert not release(None), "which is why the page has it told"
    assert release(service)
    follow(PAGE, installed, shop, tmp_path, "kubectl annotate")
    assert release(None)
    installed.kubectl("delete", "service", "orders-db", "-n", shop)


@pytest.fixture(scope="module")
def bound(installed: Cluster, shop: str, bastion_of_file: Bastion) -> Manifest:
    """A tunnel that workloads bind to."""
    return start_tunnel(installed, shop, "bound", bastion_of_file, serviceBinding="Enabled")


def binding_of(cluster: Cluster, namespace: str) -> tuple[str, dict[str, str]]:
    """The name of the Secret that the status names, and what is in it."""
    name: str = cluster.get("databasetunnel", "bound", "-n", namespace)["status"]["binding"]["name"]
    data = cluster.get("secret", name, "-n", namespace)["data"]
    return name, {key: base64.b64decode(value).decode() for key, value in data.items()}


def pod_of_page(namespace: str, image: str, binding: str) -> Manifest:
    """The page's that mounts a binding, where Pod Security is `restricted`."""
    documents: list[Manifest] = [yaml.safe_load(one) for one in blocks(PAGE, "yaml")]
    (pod,) = (one for one in documents if one["kind"] == "Pod")
    pod["metadata"]["namespace"] = namespace
    pod["spec"]["securityContext"] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    pod["spec"]["volumes"][0]["secret"]["secretName"] = binding
    drop = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    pod["spec"]["containers"][0] |= {"image": image, "imagePullPolicy": "IfNotPresent", "securityContext": drop}
    return pod


def test_a_pod_reads_from_files_where_the_database_is(
    installed: Cluster, shop: str, client_image: str, bound: Manifest, tmp_path: Path
) -> None:
    orders = {"databasetunnel orders": "databasetunnel bound"}
    binding = follow(PAGE, installed, shop, tmp_path, "status.binding.name", **orders)
    login = {"PGUSER": USER, "PGPASSWORD": PASSWORD, "PGDATABASE": DATABASE}
    first_query(installed, shop, ["psql", target_of(Endpoint.of(bound)), "-c", "select 1"])

    apply(installed, secret(shop, "orders-login", login), pod_of_page(shop, client_image, binding))

    ended = ("wait", "--for=jsonpath={.status.phase}=Succeeded", "pod/report", "--timeout=40s")
    installed.kubectl(*ended, "-n", shop, timeout_seconds=50)
    assert "count" in installed.kubectl("logs", "report", "-n", shop)


def test_a_binding_follows_the_tunnel_and_goes_with_it(installed: Cluster, shop: str, bound: Manifest) -> None:
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
