"""The README's first tunnel, as its reader makes it, and the pictures of how it fails first and works then."""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.support.bastion import Bastion
from tests.support.certificates import server_certificate
from tests.support.clients import query, start_client
from tests.support.cluster import Cluster, ClusterError
from tests.support.databases import PASSWORD, PostgresServer
from tests.support.pages import at_a_cluster, blocks, follow
from tests.support.pictures import at_a_terminal, shown
from tests.support.private_network import AUTHORITY, config_map, free_addresses, service_of_machine
from tests.support.processes import wait_until
from tests.support.tunnels import apply, find, make_namespace, try_at_once, wait_for_reason

PAGE = "README.md"


@pytest.fixture
def bastion(cluster: Cluster, tmp_path: Path) -> Iterator[Bastion]:
    """The page's, in front of a database that offers TLS, as nearly all do that somebody provides."""
    (address,), name = free_addresses([5432]), "orders.internal"
    certificate = server_certificate(tmp_path / "tls", [name], issuer_name="Shop CA")
    server = PostgresServer(tmp_path / "database", host=address, port=5432, tls=certificate)
    bastion = Bastion(tmp_path / "bastion", host=cluster.host_address, hosts={name: address})
    with ExitStack() as stack:
        for one in (server, bastion):
            stack.callback(one.stop)
            one.start()
        yield bastion


@pytest.fixture
def address(installed: Cluster, bastion: Bastion, client_image: str) -> Iterator[str]:
    """An address at which the bastion answers on SSH's own port."""
    namespace = make_namespace(installed, "bastion")
    apply(installed, *service_of_machine(namespace, "bastion", 22, bastion.host, bastion.port))
    wait_for_route(installed, f"bastion.{namespace}", client_image, 22)
    yield installed.get("service", "bastion", "-n", namespace)["spec"]["clusterIP"]
    installed.kubectl("delete", "namespace", namespace, "--wait=false")


@pytest.fixture
def shop(installed: Cluster) -> Iterator[str]:
    """As long as the reader's, so that columns are as wide as in the pictures."""
    name = f"zq{uuid.uuid4().hex[:2]}"
    yield name
    installed.kubectl("delete", "namespace", name, "--ignore-not-found", "--wait=false")


def wait_for_route(cluster: Cluster, place: str, image: str, port: int) -> None:
    """Until the node's rules lead to a Service: on a busy machine kube-proxy makes them seconds after it is there."""
    service, namespace = place.split(".")
    apply(cluster, config_map(namespace, AUTHORITY, {}))  # which the pod mounts
    start_client(cluster, namespace, image)
    connect = f"import socket; socket.create_connection(('{service}.{namespace}.svc', {port}), 2); print('yes')"

    def leads() -> bool:
        try:
            return "yes" in query(cluster, namespace, ["python3", "-c", connect])
        except ClusterError:
            return False

    wait_until(leads, f"a way to {service}", 60)


def write_manifest(directory: Path, namespace: str, bastion: Bastion, address: str) -> None:
    """The page's, with the bastion's real host key, and its name in the pods' hosts file in place of a DNS."""
    (text,) = blocks(PAGE, "yaml")
    manifest = yaml.safe_load(text)
    manifest["metadata"]["namespace"], tunnel = namespace, manifest["spec"]["tunnel"]
    tunnel["hostKey"]["fingerprints"] = [bastion.fingerprints["ed25519"]]
    manifest["spec"]["podTemplate"] = {"hostAliases": [{"ip": address, "hostnames": [tunnel["host"]]}]}
    (directory / "orders.yaml").write_text(yaml.safe_dump(manifest))


def screen(cluster: Cluster, namespace: str) -> str:
    """Two commands and what they print."""
    lines = []
    for command in ("kubectl get databasetunnels", "kubectl dbtunnel status orders"):
        printed = at_a_terminal([*command.split(), "-n", namespace], at_a_cluster(cluster))
        lines.append(f"$ {command} -n shop\n{printed.replace(namespace, 'shop')}")
    return "\n".join(lines)


def is_told_whole(cluster: Cluster, namespace: str) -> bool:
    status = (find(cluster, namespace, "databasetunnel/orders") or {})["status"]
    keys, hops = status.get("publicKeys", []), status.get("hops", [])
    return bool(keys) and all(one.get("accepted") for one in keys) and any(one.get("cipher") for one in hops)


def test_the_first_tunnel(
    installed: Cluster,
    bastion: Bastion,
    client_image: str,
    address: str,
    shop: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    write_manifest(tmp_path, shop, bastion, address)
    handout = follow(PAGE, installed, shop, tmp_path, "handout")
    (line,) = [one for one in handout.splitlines() if one.startswith("restrict,")]
    wait_for_reason(installed, shop, "orders", "KeyRejected")
    shown("status-fails", screen(installed, shop))

    bastion.authorize(line)
    try_at_once(installed, shop, "orders")
    wait_for_route(installed, f"orders.{shop}", client_image, 5432)
    mine = {
        "--image=postgres:17": f"--image={client_image}",
        "orders.shop.svc": f"orders.{shop}.svc",
    }
    assert "(1 row)" in follow(PAGE, installed, shop, tmp_path, "kubectl run", **mine)
    wait_until(lambda: is_told_whole(installed, shop), "all of the status, some of which comes seconds later", 60)
    shown("status-works", screen(installed, shop))
