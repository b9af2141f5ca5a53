"""What is removed, in whatever order: nothing is left in deletion, and what is documented to stay stays."""

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from dbtunnel import __version__
from tests.support.binaries import binary
from tests.support.cluster import Cluster, ClusterError
from tests.support.images import OPERATOR
from tests.support.installation import (
    CRD,
    NAMESPACE,
    RELEASE,
    helm,
    install_operator,
    provide_image,
    uninstall_operator,
)
from tests.support.operator import Operator, installed_operators_rest
from tests.support.pages import follow
from tests.support.processes import Process, wait_until
from tests.support.tunnels import (
    CHILDREN,
    apply,
    find,
    make_namespace,
    pods,
    remove_namespace,
    tunnel_manifest,
    wait_for_children,
)

NO_FORWARDER = ("forwarder.image.tag=none", "forwarder.image.pullPolicy=Never")
"""Pods that never start and need no time to end."""

GONE_SECONDS = 60
"""Until everything is gone, on a busy machine; printed is what it took."""

KEPT = "secret/orders-ssh"
"""The generated key."""


@pytest.fixture(scope="module")
def quiet(crd_installed: Cluster) -> Iterator[Cluster]:
    """The cluster while no installed operator runs."""
    with installed_operators_rest(crd_installed):
        yield crd_installed


@pytest.fixture
def alone(quiet: Cluster, tmp_path: Path) -> Iterator[Operator]:
    """An operator as the only one; it need not run."""
    operator = Operator(quiet, tmp_path)
    yield operator
    operator.process.stop()


@contextmanager
def installed_again(cluster: Cluster, tmp_path: Path) -> Iterator[None]:
    """Afterwards the release is what it was, if it was removed, and with it the definition."""
    values = tmp_path / "values.json"
    values.write_text(helm(cluster, "get", "values", RELEASE, "--namespace", NAMESPACE, "--output", "json"))
    try:
        yield
    finally:
        name = ("upgrade", "--install", RELEASE, "charts/dbtunnel-operator", "--namespace", NAMESPACE)
        # its own operators rest, and would contend with the one at hand
        helm(cluster, *name, "--create-namespace", "--values", str(values), "--set", "replicaCount=0", "--hide-notes")
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{CRD}", "--timeout=20s")


def uids(cluster: Cluster, namespace: str) -> dict[str, str]:
    """Of the tunnel, of what it has, and of its pods."""
    named = ("databasetunnel/orders", *CHILDREN, *(f"pod/{one}" for one in pods(cluster, namespace, "orders")))
    found = {one: find(cluster, namespace, one) for one in named}
    return {name: one["metadata"]["uid"] for name, one in found.items() if one}


def in_deletion(cluster: Cluster) -> list[str]:
    """What has been told to go and is there yet, of every kind that the operator and its installation have."""
    kinds = "namespaces,crds,deployments,services,networkpolicies,pods,secrets,leases,serviceaccounts,clusterroles"
    listed = cluster.get(kinds, "--all-namespaces")["items"]
    try:
        listed += cluster.get(CRD, "--all-namespaces")["items"]
    except ClusterError:
        # the definition is gone
        assert not cluster.kubectl("get", "crd", CRD, "--ignore-not-found")
    return [f"{one['kind']} {one['metadata']['name']}" for one in listed if "deletionTimestamp" in one["metadata"]]


def wait_until_nothing_is_in_deletion(cluster: Cluster) -> None:
    wait_until(
        lambda: not in_deletion(cluster),
        "the end",
        GONE_SECONDS,
        interval_seconds=0.5,
        describe=lambda: in_deletion(cluster),
    )


# --- the operator beside its tunnels --------------------------------------------------------------------------------


@pytest.fixture
def served(alone: Operator, request: pytest.FixtureRequest) -> str:
    """A namespace with a tunnel that has all its objects, and pods."""
    name = make_namespace(alone.cluster, request.node.name)
    alone.start()
    apply(alone.cluster, tunnel_manifest(name))
    wait_for_children(alone.cluster, name)
    alone.wait_until_quiet(name, seconds=1)
    return name


def tunnel_first(operator: Operator, namespace: str) -> None:
    operator.cluster.kubectl("delete", "databasetunnel", "orders", "-n", namespace)
    wait_until(lambda: uids(operator.cluster, namespace) == {}, "no children", GONE_SECONDS)
    assert find(operator.cluster, namespace, KEPT), "the key stays"


def operator_first(operator: Operator, namespace: str) -> None:
    operator.stop()
    tunnel_first(operator, namespace)


def namespace_first(operator: Operator, namespace: str) -> None:
    """The operator works on meanwhile."""
    operator.cluster.kubectl("delete", "namespace", namespace, timeout_seconds=GONE_SECONDS)


def definition_first(operator: Operator, namespace: str) -> None:
    """The operator ends, since there is nothing for it to serve."""
    operator.cluster.kubectl("delete", "crd", CRD, timeout_seconds=GONE_SECONDS)
    assert operator.process.wait(GONE_SECONDS) == 1, operator.process.log_end()
    for child in CHILDREN:
        wait_until(lambda child=child: find(operator.cluster, namespace, child) is None, child, GONE_SECONDS)  # type: ignore[misc]


ORDERS: tuple[Callable[[Operator, str], None], ...] = (
    tunnel_first,
    operator_first,
    namespace_first,
    definition_first,
)


@pytest.mark.parametrize("first", ORDERS, ids=lambda one: one.__name__)
def test_nothing_is_stuck_whatever_goes_first(
    alone: Operator, served: str, tmp_path: Path, first: Callable[[Operator, str], None]
) -> None:
    cluster, began = alone.cluster, time.monotonic()
    with installed_again(cluster, tmp_path) if first is definition_first else nullcontext():
        first(alone, served)
        alone.process.stop()
        cluster.kubectl("delete", "namespace", served, "--ignore-not-found", timeout_seconds=GONE_SECONDS)
        took = time.monotonic() - began

    print(f"\n{first.__name__}: all gone after {took:.1f} s")
    wait_until_nothing_is_in_deletion(cluster)


# --- an installation at work ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(quiet: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The operator's, for installations that these tests make in the release's place; it is back afterwards."""
    with installed_again(quiet, tmp_path_factory.mktemp("release")):
        yield provide_image(quiet, OPERATOR)


def make_tunnel(cluster: Cluster, words: str) -> tuple[str, dict[str, str]]:
    """A namespace with a tunnel for which the installed operator has made everything, and the uids of that."""
    namespace = make_namespace(cluster, words)
    apply(cluster, tunnel_manifest(namespace))
    wait_for_children(cluster, namespace)
    wait_until(lambda: pods(cluster, namespace, "orders"), "a pod")
    return namespace, uids(cluster, namespace)


@contextmanager
def operators_logs(cluster: Cluster, directory: Path) -> Iterator[Callable[[], list[list[dict[str, Any]]]]]:
    """What each installed operator logs, in full after the block, at whose end its pod must be gone."""
    selector = ("-n", NAMESPACE, "-l", "app.kubernetes.io/name=dbtunnel-operator")
    names = [one["metadata"]["name"] for one in cluster.get("pods", *selector)["items"]]
    following: list[str | Path] = [
        binary("kubectl"),
        "--kubeconfig",
        cluster.kubeconfig,
        "logs",
        "--follow",
        "-n",
        NAMESPACE,
    ]
    started = (Process([*following, name], directory / f"{name}.log", env=cluster.environment()) for name in names)
    readers = [one.start() for one in started]
    try:
        yield lambda: [[json.loads(line) for line in one.log.read_text().splitlines()] for one in readers]
        for one in readers:
            one.wait(20)
    finally:
        for one in readers:
            one.stop()


def of_release(cluster: Cluster) -> list[str]:
    """What is there of it beside its definition."""
    kinds = "deployments,services,serviceaccounts,configmaps,roles,rolebindings,clusterroles,clusterrolebindings"
    policies = "validatingadmissionpolicies,validatingadmissionpolicybindings"
    selector = ("--all-namespaces", "-l", f"app.kubernetes.io/instance={RELEASE}")
    return [one["metadata"]["name"] for one in cluster.get(f"{kinds},{policies}", *selector)["items"]]


def test_an_uninstalled_release_leaves_definition_and_tunnels_until_they_are_removed(
    quiet: Cluster, image: str, tmp_path: Path
) -> None:
    """Neither the operator that leads nor the one that stands by ends by the loss of its rights, which go first."""
    cluster = quiet
    install_operator(cluster, image, "admissionPolicies.operator.enabled=true", "replicaCount=2")
    namespace, before = make_tunnel(cluster, "uninstalled")

    with operators_logs(cluster, tmp_path) as logs:
        print(follow("installation", cluster, namespace, tmp_path, "helm uninstall"))
        wait_until_nothing_is_in_deletion(cluster)

    elected = [[line["event"] for line in log].count("elected") for log in logs()]
    assert sorted(elected) == [0, 1], "one led, the other stood by"
    for log in logs():
        assert log[-1]["event"] == "ended", log[-3:]
        assert [line for line in log if line["level"] == "error"] == []
    assert of_release(cluster) == []
    assert uids(cluster, namespace) == before
    assert "finalizers" not in (find(cluster, namespace, "databasetunnel/orders") or {})["metadata"]
    assert cluster.get("crd", CRD)["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert [one["metadata"]["name"] for one in cluster.get("leases", "-n", NAMESPACE)["items"]] == [
        "dbtunnel-dbtunnel-operator"
    ]
    settings = {"forwarder_image": image, "forwarder_image_pull_policy": "IfNotPresent"}
    check_that_another_goes_on(Operator(cluster, tmp_path, **settings), namespace)
    assert uids(cluster, namespace) == before

    follow("installation", cluster, namespace, tmp_path, "delete databasetunnels --all")
    follow("installation", cluster, namespace, tmp_path, "delete secrets")
    check_that_all_is_gone(cluster, namespace)


def check_that_another_goes_on(operator: Operator, namespace: str) -> None:
    """With what an earlier one has left: the NetworkPolicy admits it instead."""
    operator.start()
    try:
        wait_until(lambda: operator.writes(namespace), "its first write")
        operator.wait_until_quiet(namespace, seconds=1)
    finally:
        operator.process.stop()


def check_that_all_is_gone(cluster: Cluster, namespace: str) -> None:
    """The tunnel with all that it had, the definition and the operator; nothing waits."""
    wait_until(lambda: uids(cluster, namespace) == {}, "the end of the children", GONE_SECONDS)
    wait_until_nothing_is_in_deletion(cluster)
    assert of_release(cluster) == []
    assert not cluster.kubectl("get", "crd", CRD, "--ignore-not-found")
    remove_namespace(cluster, namespace)


def test_manifests_that_are_deleted_at_once_take_the_tunnels_along(quiet: Cluster, image: str, tmp_path: Path) -> None:
    """The namespace of the operator, its rights, the definition and the operator, all at the same time."""
    uninstall_operator(quiet)  # whose objects are helm's
    follow("kubectl", quiet, "", tmp_path, "make manifests")
    file = tmp_path / "build" / "install.yaml"
    # no node pulls from the registry of the page, and forwarders that never start need no time to end
    text = re.sub(r'(FORWARDER_IMAGE, value: )"[^"]+"', r"\1none", file.read_text())
    file.write_text(text.replace(f"registry.example.com/dbtunnel:{__version__}", image))
    follow("kubectl", quiet, "", tmp_path, "kubectl apply")
    namespace, _ = make_tunnel(quiet, "manifests")

    quiet.kubectl("delete", "-f", file, timeout_seconds=GONE_SECONDS)

    check_that_all_is_gone(quiet, namespace)
    assert not quiet.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found")


def test_an_operator_whose_namespace_goes_leaves_the_tunnels_and_what_is_the_clusters(
    quiet: Cluster, image: str, tmp_path: Path
) -> None:
    install_operator(quiet, image, "admissionPolicies.operator.enabled=true")
    namespace, before = make_tunnel(quiet, "homeless")

    quiet.kubectl("delete", "namespace", NAMESPACE, timeout_seconds=GONE_SECONDS)

    wait_until_nothing_is_in_deletion(quiet)
    assert uids(quiet, namespace) == before
    quiet.get("crd", CRD)
    follow("installation", quiet, namespace, tmp_path, "delete clusterroles")
    assert of_release(quiet) == []
    assert uids(quiet, namespace) == before
    remove_namespace(quiet, namespace)


def test_a_release_that_keeps_no_definition_takes_the_tunnels_along(quiet: Cluster, image: str) -> None:
    install_operator(quiet, image, "crds.keep=false", *NO_FORWARDER)
    namespace, _ = make_tunnel(quiet, "not-kept")

    helm(quiet, "uninstall", RELEASE, "--namespace", NAMESPACE, "--wait")

    check_that_all_is_gone(quiet, namespace)
    # the rights to give it up went first
    quiet.kubectl("delete", "lease", "--all", "-n", NAMESPACE)
