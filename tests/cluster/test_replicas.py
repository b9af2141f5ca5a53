"""Operators as the chart runs them: however many there are, and while their number changes, one writes at a time."""

import itertools
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.support.cluster import Cluster
from tests.support.images import OPERATOR as IMAGE
from tests.support.installation import NAMESPACE, image_reference, install_operator, stated_takeover
from tests.support.processes import Repeating, wait_until
from tests.support.tunnels import apply, find, patch, tunnel_manifest

NAME = "dbtunnel-dbtunnel-operator"
"""Of the Deployment, of its service account and of the Lease."""

POD = "authentication.kubernetes.io/pod-name"
"""What the API server knows of the pod whose token it is shown."""


class Changes(Repeating):
    """A tunnel that is changed again and again, so that whoever thinks it is his writes, while the context lasts."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        super().__init__(self._change, 0.4)
        self._cluster, self._namespace = cluster, namespace
        self._ports = itertools.count(7001)

    def _change(self) -> None:
        spec = {"service": {"port": next(self._ports)}}
        patch(self._cluster, self._namespace, "databasetunnel/orders", {"spec": spec})

    def writes(self) -> list[tuple[float, str]]:
        """When, and which pod: every write of the operators' that was taken, in order."""
        return sorted(
            (datetime.fromisoformat(one["requestReceivedTimestamp"]).timestamp(), one["user"]["extra"][POD][0])
            for one in self._cluster.audit_events()
            if self._is_an_operators(one) and one["responseStatus"]["code"] < 300
        )

    def writers(self) -> list[str]:
        """The pods in the order in which they wrote; one that writes after another did is named twice."""
        pods = [pod for _, pod in self.writes()]
        return [pod for number, pod in enumerate(pods) if number == 0 or pods[number - 1] != pod]

    def _is_an_operators(self, write: dict[str, Any]) -> bool:
        is_here = write["objectRef"].get("namespace") == self._namespace
        return is_here and bool(write["user"]["username"] == f"system:serviceaccount:{NAMESPACE}:{NAME}")


@pytest.fixture
def changes(installed: Cluster, namespace: str) -> Iterator[Changes]:
    """While they last the release has one operator at first, and has one again afterwards."""
    apply(installed, tunnel_manifest(namespace))
    wait_until(lambda: find(installed, namespace, "deployment/orders-tunnel"), "the Deployment", 40)
    image = image_reference(IMAGE)
    try:
        with Changes(installed, namespace) as changes:
            yield changes
    finally:
        install_operator(installed, image)


def test_one_operator_writes_at_a_time_whatever_becomes_of_them(installed: Cluster, changes: Changes) -> None:
    (first,) = wait_until(changes.writers, "its writes")
    install_operator(installed, image_reference(IMAGE), "replicaCount=2")
    assert changes.writers() == [first], "another stands by"
    killed = time.time()
    installed.kubectl("delete", "pod", first, "-n", NAMESPACE, "--grace-period=0", "--force")
    wait_until(lambda: len(changes.writers()) > 1, "another's first write", 60)
    took = next(at for at, pod in changes.writes() if pod != first) - killed

    install_operator(installed, image_reference(IMAGE), "replicaCount=1")
    installed.kubectl("rollout", "restart", "deployment", NAME, "-n", NAMESPACE)
    ended = changes.writers()
    wait_until(lambda: changes.writers()[len(ended) :], "the next pod's first write", 60)

    print(f"\nfrom the end of the leader's pod until the other's first write: {took:.1f} s; {changes.writers()}")
    assert took < stated_takeover()[1]
    assert len(set(changes.writers())) == len(changes.writers()), "none writes once another has"
