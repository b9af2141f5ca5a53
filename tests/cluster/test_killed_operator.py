"""An operator that is killed at any write: the next one finishes the work, and nothing is made twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.gate import Gate
from tests.support.operator import Operator, installed_operators_rest
from tests.support.processes import wait_until
from tests.support.tunnels import apply, condition, find, tunnel_manifest

WRITES = ("status", "the key", "the Service", "the NetworkPolicy", "the Deployment")
"""What a new tunnel takes, in this order; whatever follows is status and Events."""

CHILDREN = ("secret/orders-ssh", "service/orders", "networkpolicy/orders-tunnel", "deployment/orders-tunnel")


@pytest.fixture(scope="module")
def alone(crd_installed: Cluster) -> Iterator[Cluster]:
    """The cluster with no operator but those of the tests."""
    with installed_operators_rest(crd_installed):
        yield crd_installed


@pytest.mark.parametrize(
    ("number", "after"),
    # before a write is after the one before it
    [(1, False), *((number, True) for number in range(1, len(WRITES) + 2))],
    ids=["before all", *(f"after {write}" for write in (*WRITES, "the rest"))],
)
def test_a_killed_operators_work_is_finished(
    alone: Cluster, namespace: str, tmp_path: Path, number: int, after: bool
) -> None:
    apply(alone, tunnel_manifest(namespace))
    killed = Operator(alone, tmp_path, name="killed")
    with Gate(alone, namespace, number, killed.process.kill, after=after) as gate:
        killed.connect_to(gate.url)
        killed.launch()
        wait_until(lambda: not killed.process.is_running(), "its end", describe=killed.process.log_end)
        assert gate.writes >= number
    before = {child: find(alone, namespace, child) for child in CHILDREN}

    following = Operator(alone, tmp_path).start()
    following.wait_until_quiet(namespace)
    following.process.stop()

    for child in CHILDREN:
        found = find(alone, namespace, child)
        assert found, f"no {child}"
        earlier = before[child]
        assert earlier is None or found["metadata"]["uid"] == earlier["metadata"]["uid"]
    key = before["secret/orders-ssh"]
    assert key is None or (find(alone, namespace, "secret/orders-ssh") or {})["data"] == key["data"]
    # no node has the image of these tests
    wait_until(lambda: condition(alone, namespace, "Ready")["reason"] == "ImagePullFailed", "the usual condition")
