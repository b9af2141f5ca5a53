"""The operator's process beside a real API server: outages, a leader and its successor, some namespaces alone."""

import json
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dbtunnel.api.reasons import Reason
from tests.support.cluster import Cluster
from tests.support.gate import Gate
from tests.support.images import OPERATOR
from tests.support.installation import helm, provide_image
from tests.support.operator import Operator, installed_operators_rest, lone_operator
from tests.support.processes import wait_until
from tests.support.relay import Relay
from tests.support.tunnels import apply, condition, find, remove_namespace, tunnel_manifest, wait_for_reason


@pytest.fixture(scope="module")
def quiet(crd_installed: Cluster) -> Iterator[Cluster]:
    """The cluster while no installed operator runs."""
    with installed_operators_rest(crd_installed):
        yield crd_installed


def liveness(operator: Operator) -> dict[str, float]:
    url = f"http://127.0.0.1:{operator.liveness_port}/healthz"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=5) as response:
        document: dict[str, dict[str, float]] = json.load(response)
        return document["reconcile"]


# --- outages ----------------------------------------------------------------------------------------------------


@pytest.fixture
def road(quiet: Cluster) -> Iterator[Relay]:
    """What lies between the operator and the API server."""
    with (
        Gate(quiet, "none", 0, lambda: None, after=False) as gate,
        Relay("127.0.0.1", urlsplit(gate.url).port or 0) as relay,
    ):
        yield relay


def test_what_happened_while_the_api_server_was_away_is_made_up_for(
    quiet: Cluster, namespace: str, tmp_path: Path, road: Relay
) -> None:
    apply(quiet, tunnel_manifest(namespace), tunnel_manifest(namespace, "billing"))
    operator = Operator(quiet, tmp_path)
    operator.connect_to(f"http://127.0.0.1:{road.port}")
    operator.start()
    try:
        operator.wait_until_quiet(namespace)
        old = find(quiet, namespace, "service/orders")
        pid = operator.process.pid

        road.stall()
        quiet.kubectl("delete", "service", "orders", "-n", namespace)
        quiet.kubectl("delete", "databasetunnel", "billing", "-n", namespace)
        apply(quiet, tunnel_manifest(namespace, "later"))
        assert liveness(operator)["queueDepth"] == 0
        road.drop()
        road.flow()

        wait_until(lambda: find(quiet, namespace, "service/later"), "the new tunnel's Service")
        again = wait_until(lambda: find(quiet, namespace, "service/orders"), "the deleted Service")
        assert again
        assert old
        assert again["metadata"]["uid"] != old["metadata"]["uid"]
        assert condition(quiet, namespace, "Ready", "later")["status"] == "Unknown"
        operator.wait_until_quiet(namespace)
        assert operator.process.pid == pid
        assert operator.faults() == []
    finally:
        operator.process.stop()


def test_a_deletion_that_no_watch_told_of_is_made_up_for(quiet: Cluster, namespace: str, tmp_path: Path) -> None:
    apply(quiet, tunnel_manifest(namespace))
    with lone_operator(quiet, tmp_path, resync_seconds="10") as operator:
        operator.wait_until_quiet(namespace)
        # nothing runs, so nothing is heard
        operator.process.signal(signal.SIGSTOP)
        quiet.kubectl("delete", "deployment", "orders-tunnel", "-n", namespace)
        operator.process.signal(signal.SIGCONT)

        wait_until(lambda: find(quiet, namespace, "deployment/orders-tunnel"), "the Deployment")


# --- the end ----------------------------------------------------------------------------------------------------


def test_it_ends_in_time_while_its_metrics_are_being_read(quiet: Cluster, tmp_path: Path) -> None:
    with lone_operator(quiet, tmp_path) as operator:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{operator.metrics_port}/metrics", timeout=5) as response:
            operator.process.signal(signal.SIGTERM)

            assert operator.process.wait(10) == 0
            assert b"dbtunnel_operator_queue_depth" in response.read()


# --- outside the cluster ----------------------------------------------------------------------------------------


def test_it_reads_forwarders_through_the_api_server(quiet: Cluster, namespace: str, tmp_path: Path) -> None:
    image = {"forwarder_image": provide_image(quiet, OPERATOR), "forwarder_image_pull_policy": "IfNotPresent"}
    with lone_operator(quiet, tmp_path, **image):
        key = {"keySecretRef": {"name": "none"}}
        apply(quiet, tunnel_manifest(namespace, tunnel={"host": "127.0.0.9", **key}))

        found = wait_for_reason(quiet, namespace, "orders", Reason.SECRET_NOT_FOUND)

    ready = next(one for one in found["status"]["conditions"] if one["type"] == "Ready")
    assert "none" in ready["message"]


# --- some namespaces --------------------------------------------------------------------------------------------


def test_it_serves_the_named_namespaces_alone(quiet: Cluster, namespace: str, tmp_path: Path) -> None:
    named = [f"{namespace}-{number}" for number in (1, 2)]
    for one in named:
        quiet.kubectl("create", "namespace", one)
    for one in (*named, namespace):
        apply(quiet, tunnel_manifest(one))
    with lone_operator(quiet, tmp_path, name="limited", namespaces=",".join(named)) as operator:
        for one in named:
            operator.wait_until_quiet(one)
            assert find(quiet, one, "deployment/orders-tunnel")
            quiet.kubectl("delete", "service", "orders", "-n", one)
            wait_until(lambda one=one: find(quiet, one, "service/orders"), "the Service")  # type: ignore[misc]
        assert operator.writes(namespace) == []
        assert find(quiet, namespace, "service/orders") is None
        assert [line for line in operator.logs() if line["level"] == "error"] == []

        quiet.kubectl("delete", "namespace", named[0], timeout_seconds=100)
        quiet.kubectl("delete", "deployment", "orders-tunnel", "-n", named[1])
        wait_until(lambda: find(quiet, named[1], "deployment/orders-tunnel"), "the Deployment")
        assert operator.stop() == 0
        operator.start()
        quiet.kubectl("delete", "service", "orders", "-n", named[1])
        wait_until(lambda: find(quiet, named[1], "service/orders"), "the Service")
        remove_namespace(quiet, named[1])


# --- the chart --------------------------------------------------------------------------------------------------


def test_upgrades_change_the_number_of_replicas(crd_installed: Cluster) -> None:
    """Beside the release that has the definition; no node has the image, so nothing of it runs."""
    release = ("counted", "--namespace", "counted")
    values = ("crds.enabled=false", "image.repository=localhost/none", "image.pullPolicy=Never")
    flags = [word for value in values for word in ("--set", value)]
    try:
        for count in (1, 2, 1, 2, 0):
            options = ("--create-namespace", "--set", f"replicaCount={count}", *flags)
            helm(crd_installed, "upgrade", "--install", *release, "charts/dbtunnel-operator", *options)
            (deployment,) = crd_installed.get("deployments", "-n", "counted")["items"]
            assert deployment["spec"]["replicas"] == count
    finally:
        helm(crd_installed, "uninstall", *release)
        remove_namespace(crd_installed, "counted")
