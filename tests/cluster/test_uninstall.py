"""What is removed, in whatever order: nothing is left in deletion, and what is documented to stay stays."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.installation import CRD, NAMESPACE, RELEASE, helm
from tests.support.operator import Operator, installed_operators_rest
from tests.support.processes import wait_until
from tests.support.tunnels import CHILDREN, apply, find, make_namespace, tunnel_manifest, wait_for_children

GONE_SECONDS = 60
"""Until everything is gone, on a busy machine; printed is what it took."""


@pytest.fixture
def alone(crd_installed: Cluster, tmp_path: Path) -> Iterator[Operator]:
    """An operator as the only one; it need not run."""
    with installed_operators_rest(crd_installed):
        operator = Operator(crd_installed, tmp_path)
        yield operator
        operator.process.stop()


@pytest.fixture
def served(alone: Operator, request: pytest.FixtureRequest) -> str:
    """A namespace with a tunnel that has all its objects, and pods."""
    name = make_namespace(alone.cluster, request.node.name)
    alone.start()
    apply(alone.cluster, tunnel_manifest(name))
    wait_for_children(alone.cluster, name)
    alone.wait_until_quiet(name, seconds=1)
    return name


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
        helm(cluster, *name, "--values", str(values), "--set", "replicaCount=0", "--hide-notes")
        cluster.kubectl("wait", "--for=condition=Established", f"crd/{CRD}", "--timeout=20s")


def uids(cluster: Cluster, namespace: str) -> list[str]:
    found = [find(cluster, namespace, child) for child in ("databasetunnel/orders", *CHILDREN)]
    return [one["metadata"]["uid"] for one in found if one]


def test_an_uninstalled_release_leaves_definition_tunnels_and_what_they_made(
    alone: Operator, served: str, tmp_path: Path
) -> None:
    cluster, before = alone.cluster, uids(alone.cluster, served)
    with installed_again(cluster, tmp_path):
        alone.stop()
        print(helm(cluster, "uninstall", RELEASE, "--namespace", NAMESPACE, "--wait"))

        assert uids(cluster, served) == before
        assert "finalizers" not in (find(cluster, served, "databasetunnel/orders") or {})["metadata"]
        selector = f"app.kubernetes.io/instance={RELEASE}"
        kinds = "deployments,services,serviceaccounts,configmaps,roles,rolebindings,clusterroles,clusterrolebindings"
        assert cluster.get(kinds, "--all-namespaces", "-l", selector)["items"] == []
        assert cluster.get("crd", CRD)["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    alone.start()
    alone.wait_until_quiet(served, seconds=1)
    assert uids(cluster, served) == before
    cluster.kubectl("delete", "namespace", served, "--wait=false")


def tunnel_first(operator: Operator, namespace: str) -> None:
    operator.cluster.kubectl("delete", "databasetunnel", "orders", "-n", namespace)
    wait_until(lambda: uids(operator.cluster, namespace) == [], "no children", GONE_SECONDS)
    assert find(operator.cluster, namespace, "secret/orders-ssh"), "the key stays"


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
    for kind in ("namespaces", "databasetunnels", "crds"):
        found = json.loads(cluster.kubectl("get", kind, "--all-namespaces", "-o", "json"))["items"]
        named = [one["metadata"] for one in found if served in json.dumps(one["metadata"]) or kind == "crds"]
        assert [one["name"] for one in named if "deletionTimestamp" in one] == []
