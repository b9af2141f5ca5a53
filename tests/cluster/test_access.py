"""`spec.access` on a network that enforces NetworkPolicies: who reaches a tunnel, and what becomes of it unheard."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import yaml

from dbtunnel.api.forwarder import ADMIN_PORT
from dbtunnel.api.reasons import Reason
from tests.support import produced
from tests.support.chart import render
from tests.support.clients import POD, Endpoint, first_query, query, start_client
from tests.support.cluster import Cluster, ClusterError
from tests.support.installation import NAMESPACE, RELEASE, WORKLOAD, printed_in
from tests.support.pages import blocks
from tests.support.private_network import AUTHORITY, PrivateNetwork, config_map
from tests.support.processes import wait_until
from tests.support.produced import produces
from tests.support.told_in_cluster import check_counted, events, run_check
from tests.support.traffic import Traffic, target_of
from tests.support.tunnels import (
    Manifest,
    apply,
    condition,
    make_namespace,
    patch,
    pods,
    remove_namespace,
    start_tunnel,
    wait_for_ready,
)

TUNNEL = "databasetunnel/orders"
METRICS_PORT = 8082
SELECT = ["-Atc", "select 'served'"]


@pytest.fixture(scope="module")
def elsewhere(installed: Cluster, client_image: str) -> Iterator[str]:
    """Another namespace, with a pod of clients."""
    name = make_namespace(installed, "elsewhere")
    apply(installed, config_map(name, AUTHORITY, {}))
    start_client(installed, name, client_image)
    yield name
    remove_namespace(installed, name)


@pytest.fixture(scope="module")
def tunnel(installed: Cluster, shop: str) -> Manifest:
    """A tunnel that works: so the operator reaches the port that every policy keeps for it."""
    return start_tunnel(installed, shop, "orders")


def served(cluster: Cluster, namespace: str, endpoint: Endpoint) -> bool:
    """Whether the namespace's pod of clients is; a refused one waits for nothing."""
    try:
        return query(cluster, namespace, ["psql", f"{target_of(endpoint)} connect_timeout=2", *SELECT]) == "served\n"
    except ClusterError as error:
        if "timeout expired" in str(error):
            return False
        raise


def wait_for_served(cluster: Cluster, endpoint: Endpoint, wanted: dict[str, bool]) -> None:
    """Networks follow a policy in their own time."""

    def found() -> dict[str, bool]:
        return {namespace: served(cluster, namespace, endpoint) for namespace in wanted}

    wait_until(lambda: found() == wanted, f"who is served: {wanted}", 30, describe=found)


def set_access(cluster: Cluster, namespace: str, policy: str, *peers: dict[str, Any]) -> None:
    patch(cluster, namespace, TUNNEL, {"spec": {"access": {"policy": policy, "from": list(peers) or None}}})


def test_pods_of_the_tunnels_namespace_alone_are_served(
    installed: Cluster, shop: str, elsewhere: str, tunnel: Manifest
) -> None:
    endpoint = Endpoint.of(tunnel)
    first_query(installed, shop, ["psql", target_of(endpoint), *SELECT])

    wait_for_served(installed, endpoint, {shop: True, elsewhere: False})


def test_no_application_reaches_the_admin_port(installed: Cluster, shop: str, elsewhere: str, tunnel: Manifest) -> None:
    (pod,) = pods(installed, shop, "orders")
    address = installed.get("pod", pod, "-n", shop)["status"]["podIP"]
    program = f"import socket; socket.create_connection(('{address}', {ADMIN_PORT}), 2)"

    for namespace in (shop, elsewhere):
        with pytest.raises(ClusterError, match="TimeoutError"):
            query(installed, namespace, ["python", "-c", program])


def test_selected_pods_alone_are_served(installed: Cluster, shop: str, elsewhere: str, tunnel: Manifest) -> None:
    there = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": elsewhere}}}
    chosen = {"podSelector": {"matchLabels": {"uses": "orders"}}}
    set_access(installed, shop, "Selected", {**there, **chosen})
    wait_for_served(installed, Endpoint.of(tunnel), {shop: False, elsewhere: False})

    installed.kubectl("label", "pod", POD, "uses=orders", "-n", elsewhere)
    wait_for_served(installed, Endpoint.of(tunnel), {shop: False, elsewhere: True})
    installed.kubectl("label", "pod", POD, "uses-", "-n", elsewhere)


def test_every_pod_is_served_where_access_is_unrestricted(
    installed: Cluster, shop: str, elsewhere: str, tunnel: Manifest
) -> None:
    set_access(installed, shop, "Unrestricted")
    wait_for_served(installed, Endpoint.of(tunnel), {shop: True, elsewhere: True})
    set_access(installed, shop, "SameNamespace")
    wait_for_served(installed, Endpoint.of(tunnel), {shop: True, elsewhere: False})


def test_forwarders_that_the_security_page_s_policy_keeps_to_their_bastion(
    installed: Cluster, shop: str, tunnel: Manifest, private_network: PrivateNetwork
) -> None:
    """Without it they reach what pods reach."""
    (policy,) = (yaml.safe_load(text) for text in blocks("security", "yaml"))
    policy["metadata"]["namespace"] = shop
    bastion, (way, _) = private_network.bastion, policy["spec"]["egress"]
    way["to"][0]["ipBlock"]["cidr"], way["ports"][0]["port"] = f"{bastion.host}/32", bastion.port
    in_forwarder = partial(printed_in, installed, shop, "deployment/orders-tunnel")
    elsewhere = operators_address(installed)
    assert reaches(in_forwarder, elsewhere, METRICS_PORT)
    apply(installed, policy)
    try:
        wait_until(lambda: not reaches(in_forwarder, elsewhere, METRICS_PORT), "the policy", 30)
        start_tunnel(installed, shop, "kept", bastion)
    finally:
        installed.kubectl("delete", "networkpolicy", policy["metadata"]["name"], "-n", shop)


def reaches(run: Callable[[str], str], address: str, port: int) -> bool:
    """Whether the pod in which it runs a program of Python connects there; networks drop what they do not let pass."""
    try:
        run(f"import socket; socket.create_connection(({address!r}, {port}), 1)")
    except ClusterError as error:
        if "TimeoutError" in str(error):
            return False
        raise
    return True


def operators_address(cluster: Cluster) -> str:
    (operator,) = cluster.get("pods", "-n", NAMESPACE, "-l", f"app.kubernetes.io/instance={RELEASE}")["items"]
    address: str = operator["status"]["podIP"]
    return address


def test_the_charts_policy_admits_scrapers_and_leaves_the_operator_what_it_needs(
    installed: Cluster, shop: str, elsewhere: str, private_network: PrivateNetwork
) -> None:
    values = {
        "networkPolicy": {"enabled": True, "egress": [{"to": api_servers(installed)}]},
        "settings": {"scraperNamespaces": [shop]},
    }
    (policy,) = render(values, "--show-only", "templates/networkpolicy.yaml", release=RELEASE)
    in_operator = partial(printed_in, installed, NAMESPACE, WORKLOAD)
    operator, bastion = operators_address(installed), private_network.bastion

    def found() -> list[bool]:
        readers = [
            lambda program, one=one: query(installed, one, ["python", "-c", program]) for one in (shop, elsewhere)
        ]
        scraped, read = (reaches(reader, operator, METRICS_PORT) for reader in readers)
        return [scraped, read, reaches(in_operator, bastion.host, bastion.port)]

    assert found() == [True, True, True]
    apply(installed, policy)
    try:
        wait_until(lambda: found() == [True, False, False], "the policy", 30, describe=found)
        # by the API server, and by what the forwarders tell
        start_tunnel(installed, shop, "policed")
    finally:
        installed.kubectl("delete", "networkpolicy", policy["metadata"]["name"], "-n", NAMESPACE)


def api_servers(cluster: Cluster) -> list[Manifest]:
    """Peers of a NetworkPolicy."""
    slices = cluster.get("endpointslices", "-n", "default", "-l", "kubernetes.io/service-name=kubernetes")["items"]
    addresses = [one for slice in slices for endpoint in slice["endpoints"] for one in endpoint["addresses"]]
    return [{"ipBlock": {"cidr": f"{address}/32"}} for address in addresses]


def cut_off(cluster: Cluster) -> Manifest:
    """A policy of the operator's own namespace: it reaches the API server and nothing else."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "cut-off", "namespace": NAMESPACE},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": api_servers(cluster)}]},
    }


@produces(Reason.FORWARDER_UNREACHABLE)
def test_an_operator_that_is_cut_off_says_so_and_sessions_go_on(
    installed: Cluster, shop: str, tunnel: Manifest
) -> None:
    with Traffic(installed, shop, Endpoint.of(tunnel)) as traffic:
        apply(installed, cut_off(installed))
        try:
            wait_until(
                lambda: condition(installed, shop, "WorkloadReady").get("reason") == Reason.FORWARDER_UNREACHABLE,
                "the reason",
                90,
                interval_seconds=0.5,
                describe=lambda: condition(installed, shop, "WorkloadReady"),
            )
            message = condition(installed, shop, "WorkloadReady")["message"]
            assert "NetworkPolicy" in message
            wait_until(lambda: Reason.FORWARDER_UNREACHABLE in events(installed, tunnel), "an Event", 10)
            check_counted(installed, tunnel, Reason.FORWARDER_UNREACHABLE)
            code, shown = run_check(installed, tunnel["metadata"])
            assert (code, "READY" in shown.splitlines()) == (0, True), "check asks the forwarder, which works"
            produced.note(Reason.FORWARDER_UNREACHABLE, message)
        finally:
            installed.kubectl("delete", "networkpolicy", "cut-off", "-n", NAMESPACE)
        wait_for_ready(installed, shop, "orders")

    assert traffic.outcome.errors == []
    assert traffic.outcome.served > 100
