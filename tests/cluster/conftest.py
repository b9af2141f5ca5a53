"""What all cluster tests share: one cluster for each process of the run, and a namespace of its own for each test."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from dbtunnel.api.crd import crd
from tests.support import rights
from tests.support.bastion import Bastion
from tests.support.binaries import binary
from tests.support.clients import start_client
from tests.support.cluster import Cluster, ExistingCluster, start_cluster
from tests.support.images import CLIENT, OPERATOR
from tests.support.installation import NAMESPACE, image_reference, provide_image
from tests.support.monitoring import CRDS
from tests.support.operator import Operator, lone_operator
from tests.support.pages import follow
from tests.support.private_network import PrivateNetwork
from tests.support.processes import ROOT
from tests.support.tunnels import apply, make_namespace, remove_namespace, tunnel_manifest, wait_for_children

_LONGEST = ("test_upgrade", "test_failures", "test_plugin", "test_disturbances")
"""Of the files with the installed operator: what runs last is short, so that no cluster idles at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with operators of their own come first, while there is none installed that would have to stop for them."""
    later = {item.path for item in items if "installed" in getattr(item, "fixturenames", ())}
    ranks = {name: rank for rank, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: (item.path in later, ranks.get(item.path.stem, len(ranks))))


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster, for the whole test run. What its operators did is written down for `tests.support.rights`."""
    cluster = start_cluster(f"test{os.environ.get('PYTEST_XDIST_WORKER', '')}")
    yield cluster
    if not isinstance(cluster, ExistingCluster):
        rights.keep(cluster)
    cluster.stop()


@pytest.fixture(scope="session")
def crd_installed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster with the chart installed, as docs/installation.md says, and no operator running."""
    repository, _, tag = image_reference(OPERATOR).rpartition(":")
    values = {"REGISTRY/dbtunnel": repository, "TAG": tag}
    directory = tmp_path_factory.mktemp("clone")
    write_resting_chart(directory / "charts")
    follow("installation", cluster, "", directory, "image.repository", **values)
    follow("installation", cluster, "", directory, "pod-security")
    cluster.kubectl("wait", "--for=condition=Established", f"crd/{crd()['metadata']['name']}", "--timeout=20s")
    return cluster


def write_resting_chart(directory: Path) -> None:
    """The clone's, whose operator does not run by default."""
    shutil.copytree(ROOT / "charts", directory)
    values = directory / "dbtunnel-operator" / "values.yaml"
    text = values.read_text()
    assert "\nreplicaCount: 1\n" in text
    values.write_text(text.replace("\nreplicaCount: 1\n", "\nreplicaCount: 0\n"))


@pytest.fixture(scope="session")
def installed(crd_installed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster with the operator, as the README installs it."""
    repository, _, tag = provide_image(crd_installed, OPERATOR).rpartition(":")
    values = {"registry.example.com/dbtunnel": repository, "image.tag=0.1.0": f"image.tag={tag}"}
    follow("README.md", crd_installed, "", tmp_path_factory.mktemp("clone"), "helm upgrade", **values)
    crd_installed.kubectl("rollout", "status", "deployment", "-n", NAMESPACE, "--timeout=120s", timeout_seconds=130)
    return crd_installed


@pytest.fixture(scope="session")
def prometheus_operator_kinds(cluster: Cluster) -> Iterator[None]:
    """The real definitions of ServiceMonitor, PodMonitor and PrometheusRule; those that are there stay."""
    if "servicemonitors.monitoring.coreos.com" in cluster.kubectl("get", "crd", "-o", "name"):
        yield
        return
    files = [word for name in CRDS for word in ("-f", str(binary(name)))]
    cluster.kubectl("create", *files)
    cluster.kubectl("wait", "--for=condition=Established", *files, "--timeout=20s")
    yield
    cluster.kubectl("delete", *files, "--wait=false")


@pytest.fixture(scope="session")
def client_image(cluster: Cluster) -> str:
    """An image with real database clients, which the nodes have."""
    return provide_image(cluster, CLIENT)


@pytest.fixture(scope="session")
def private_network(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateNetwork]:
    """A bastion that pods reach, and a database of each engine that only it reaches."""
    network = PrivateNetwork(tmp_path_factory.mktemp("private-network"), cluster.host_address)
    yield network.start()
    network.stop()


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of the test's own, deleted afterwards without waiting."""
    name = make_namespace(cluster, request.node.name)
    yield name
    remove_namespace(cluster, name)


@pytest.fixture(scope="module")
def operator(crd_installed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """The operator as the only one, for the tests of a file."""
    with lone_operator(crd_installed, tmp_path_factory.mktemp("operator")) as operator:
        yield operator
        assert operator.faults() == []


@pytest.fixture
def tunnel(operator: Operator, namespace: str) -> str:
    """A tunnel whose children are there; its namespace."""
    apply(operator.cluster, tunnel_manifest(namespace))
    wait_for_children(operator.cluster, namespace)
    operator.wait_until_quiet(namespace)
    return namespace


@pytest.fixture(scope="module")
def shop(
    installed: Cluster, client_image: str, private_network: PrivateNetwork, request: pytest.FixtureRequest
) -> Iterator[str]:
    """A namespace with what the tunnels of `examples/` need and a pod of clients, for the tests of a file."""
    name = make_namespace(installed, request.module.__name__.rpartition(".")[2])
    private_network.publish(installed, name)
    start_client(installed, name, client_image)
    yield name
    remove_namespace(installed, name)


@pytest.fixture
def bastion(private_network: PrivateNetwork, shop: str, tmp_path: Path) -> Iterator[Bastion]:
    """Another bastion that pods reach, for one test to change as it likes; the keys of `shop` are authorized there."""
    with private_network.another_bastion(tmp_path / "bastion", *private_network.authorized) as bastion:
        yield bastion


@pytest.fixture(scope="module")
def bastion_of_file(
    private_network: PrivateNetwork, shop: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bastion]:
    """The same, for the tests of a file."""
    with private_network.another_bastion(tmp_path_factory.mktemp("bastion"), *private_network.authorized) as bastion:
        yield bastion
