"""An operator that is killed at any write: the next one finishes the work, and nothing is made twice."""

from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.gate import Gate
from tests.support.operator import Operator, lone_operator
from tests.support.processes import wait_until
from tests.support.tunnels import apply, condition, find, tunnel_manifest

WRITES = ("status", "the key", "the Service", "the NetworkPolicy", "the Deployment")
"""What a new tunnel takes, in this order; whatever follows is status and Events."""

CHILDREN = ("secret/orders-ssh", "service/orders", "networkpolicy/orders-tunnel", "deployment/orders-tunnel")


@pytest.mark.parametrize("number", range(1, len(WRITES) + 2), ids=[*WRITES, "the rest"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_killed_operators_work_is_finished(
    crd_installed: Cluster, namespace: str, tmp_path: Path, number: int, after: bool
) -> None:
    cluster = crd_installed
    apply(cluster, tunnel_manifest(namespace))
    with lone_operator(cluster, tmp_path / "next", start=False) as following:
        killed = Operator(cluster, tmp_path / "killed", name="killed")
        with Gate(cluster, namespace, number, killed.process.kill, after=after) as gate:
            killed.connect_to(gate.url)
            killed.launch()
            wait_until(lambda: not killed.process.is_running(), "its end", describe=killed.process.log_end)
            assert gate.writes >= number
        before = {child: find(cluster, namespace, child) for child in CHILDREN}

        following.start()
        following.wait_until_quiet(namespace)

    for child in CHILDREN:
        found = find(cluster, namespace, child)
        assert found, f"no {child}"
        earlier = before[child]
        assert earlier is None or found["metadata"]["uid"] == earlier["metadata"]["uid"]
    key = before["secret/orders-ssh"]
    assert key is None or (find(cluster, namespace, "secret/orders-ssh") or {})["data"] == key["data"]
    assert condition(cluster, namespace, "Ready")["reason"] == "Progressing"
