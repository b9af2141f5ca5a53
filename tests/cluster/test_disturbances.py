"""What happens to tunnels that work: bastions, operators and pods come and go."""

import time

from dbtunnel.api.forwarder import Seconds
from dbtunnel.forwarder.link import OPENING_AT_ONCE
from tests.support.bastion import Bastion
from tests.support.clients import Endpoint
from tests.support.cluster import Cluster
from tests.support.installation import NAMESPACE as OPERATOR_NAMESPACE
from tests.support.processes import wait_until
from tests.support.traffic import Arrivals, Traffic
from tests.support.tunnels import condition, find, metric, pods, wait_for_ready, wait_for_reason
from tests.support.tunnels import start_tunnel as start

PARKING_SECONDS = Seconds().parking_max

CHILDREN = ("service/{}", "networkpolicy/{}-tunnel", "deployment/{}-tunnel")
OPERATOR = ("deployment", "dbtunnel-dbtunnel-operator")


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


CLIENTS, AWAY_SECONDS, BACK_SECONDS, ALL_BACK_SECONDS = 100, 8, 2, 3
"""Clients, how long the bastion is away, and within how long of its return the first and the last of those who were
parked are served: so many channels are opened at once, so that none waits for another's.
"""


def test_nobody_is_refused_while_the_bastion_is_away(installed: Cluster, shop: str, bastion: Bastion) -> None:
    """Many clients keep coming, through the Service of a single pod; `spec.parking` is as it is by default."""
    tunnel = start(installed, shop, "away", bastion)
    (pod,) = pods(installed, shop, "away")

    def told(name: str) -> float:
        return metric(installed, shop, pod, f"dbtunnel_forwarder_{name}")

    with Arrivals(installed, shop, Endpoint.of(tunnel), CLIENTS) as clients:
        wait_until(lambda: told("clients_total") > 2 * CLIENTS, "all to have come")
        bastion.stop()
        stopped = time.time()
        wait_until(lambda: time.time() > stopped + AWAY_SECONDS and told("clients_parked") == CLIENTS, "all to wait")
        bastion.start()
        returned = time.time()
        wait_until(lambda: told("clients_parked") == 0, "nobody to wait", 60)
        wait_for_ready(installed, shop, "away")
        sessions_lost = installed.kubectl("logs", pod, "-n", shop).count('"how": "SSH connection lost"')
    comings = clients.comings
    # sessions that were open when the bastion went: the database had been asked, and nobody may ask it again
    cut = [one for one in comings if one.came < stopped and not one.is_served]
    others = [one for one in comings if one not in cut]
    refused = [one.what for one in others if not one.is_served]
    parked = [one for one in others if one.came < returned < one.went]
    waited = [one.went - one.came for one in parked]
    back, *_, all_back = sorted(one.went - returned for one in parked)
    print(
        f"{len(comings)} connections of {CLIENTS} clients, the bastion away for {returned - stopped:.1f} s: "
        f"{len(refused)} refused, {len(cut)} cut with it, {len(waited)} parked at its return, the longest for "
        f"{max(waited):.1f} s; the first of them was served {back:.2f} s after it, the last {all_back:.2f} s"
    )
    assert refused == []
    assert len(waited) == CLIENTS
    assert max(waited) < PARKING_SECONDS
    assert back < BACK_SECONDS
    assert CLIENTS <= OPENING_AT_ONCE
    assert all_back < ALL_BACK_SECONDS
    assert len(cut) <= sessions_lost, "each of them had its channel"


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
