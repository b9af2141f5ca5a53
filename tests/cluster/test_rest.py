"""What a working tunnel costs: writes to the API server until it rests and after, and memory."""

import re
import time

from tests.support.cluster import Cluster
from tests.support.installation import NAMESPACE, WORKLOAD, printed_in, wait_for_way
from tests.support.private_network import BASTION, PrivateNetwork
from tests.support.processes import wait_until
from tests.support.tunnels import apply, example, wait_for_ready

OPERATOR = f"system:serviceaccount:{NAMESPACE}:dbtunnel-dbtunnel-operator"

MOST_WRITES = 7
"""Three children, two changes of the status and an Event; and one of the status more where a slow machine takes longer
than the operator waits for the layers to come up together."""

RESTS_AFTER_SECONDS, REST_SECONDS = 30, 10


def writes(cluster: Cluster, namespace: str) -> list[str]:
    """What the installed operator wrote in a namespace, in order."""
    found = []
    for one in cluster.audit_events():
        about = one["objectRef"]
        if one["user"]["username"] == OPERATOR and about.get("namespace") == namespace:
            found.append(f"{one['verb']} {about['resource']}{'/status' if about.get('subresource') else ''}")
    return found


def test_a_tunnel_takes_few_writes_until_it_rests_and_none_then(
    installed: Cluster, private_network: PrivateNetwork, namespace: str
) -> None:
    private_network.publish(installed, namespace)
    wait_for_way(installed, f"{BASTION}.{namespace}.svc", 22)
    apply(installed, example(namespace, "orders"))
    wait_for_ready(installed, namespace, "orders")
    rest = _Rest(installed, namespace)

    wait_until(rest.has_come, f"{REST_SECONDS} s without a write", RESTS_AFTER_SECONDS + REST_SECONDS)

    print(f"\nwrites until the tunnel rests: {len(rest.writes)}: {', '.join(rest.writes)}; after that: 0")
    assert len(rest.writes) <= MOST_WRITES, rest.writes


class _Rest:
    """Whether nothing was written for a while."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster, self._namespace = cluster, namespace
        self.writes: list[str] = []
        self._asked_in_vain = 0.0

    def has_come(self) -> bool:
        """To be asked every 50 ms or less often."""
        now, found = time.monotonic(), writes(self._cluster, self._namespace)
        if found != self.writes or not self._asked_in_vain:
            self.writes, self._asked_in_vain = found, now
        return now - self._asked_in_vain >= REST_SECONDS


def memory_mib(cluster: Cluster, namespace: str, target: str) -> float:
    """Resident memory of a pod's process."""
    printed = printed_in(cluster, namespace, target, "print(open('/proc/1/status').read())")
    found = re.search(r"VmRSS:\s+(\d+) kB", printed)
    assert found
    return int(found[1]) / 1024


def test_operator_and_forwarder_rest_within_what_they_request(
    installed: Cluster, private_network: PrivateNetwork, namespace: str
) -> None:
    private_network.publish(installed, namespace)
    apply(installed, example(namespace, "orders"))
    wait_for_ready(installed, namespace, "orders")

    operator = memory_mib(installed, NAMESPACE, WORKLOAD)
    forwarder = memory_mib(installed, namespace, "deployment/orders-tunnel")

    print(f"\nmemory at rest: operator {operator:.0f} MiB, forwarder {forwarder:.0f} MiB")
    assert operator < 96
    assert forwarder < 64
