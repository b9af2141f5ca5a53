"""Two operators: one leads, the other takes over in the stated time, and nothing that the first still does lands."""

import signal
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from dbtunnel.controller.leader import LEASE_SECONDS
from tests.support.cluster import Cluster
from tests.support.gate import Gate
from tests.support.installation import stated_takeover
from tests.support.operator import Operator, installed_operators_rest
from tests.support.processes import wait_until
from tests.support.tunnels import apply, find, patch, tunnel_manifest

AT_ONCE_SECONDS, OVER_SECONDS = stated_takeover()


@pytest.fixture(scope="module")
def quiet(crd_installed: Cluster) -> Iterator[Cluster]:
    """The cluster while no installed operator runs."""
    with installed_operators_rest(crd_installed):
        yield crd_installed


@pytest.fixture
def two(quiet: Cluster, tmp_path: Path) -> Iterator[tuple[Operator, Operator]]:
    """One that will lead, and one that will stand by."""
    quiet.kubectl("delete", "lease", "dbtunnel-operator", "-n", "default", "--ignore-not-found")
    first, second = (Operator(quiet, tmp_path, name, leader_election="true") for name in ("first", "second"))
    try:
        yield first, second
    finally:
        first.process.stop()
        second.process.stop()


def lead(first: Operator, second: Operator) -> None:
    """Starts both, the first as the leader."""
    first.start()
    second.launch()
    second.process.wait_until(second.logs, "its begin", 20)


def seconds_until_first_write(operator: Operator, namespace: str, since: float) -> float:
    """From a time of this machine's clock until one that stood by has written something of a tunnel's."""
    operator.process.wait_until(lambda: operator.writes(namespace), "its first write", 60)
    first = next(one for one in operator.cluster.audit_events() if is_of(one, operator, namespace))
    return datetime.fromisoformat(first["requestReceivedTimestamp"]).timestamp() - since


@pytest.mark.parametrize(
    ("number", "stated"),
    [(signal.SIGTERM, AT_ONCE_SECONDS), (signal.SIGKILL, OVER_SECONDS)],
    ids=["told to end", "killed"],
)
def test_another_takes_over_from_a_leader_that_ends(
    two: tuple[Operator, Operator], namespace: str, number: signal.Signals, stated: float
) -> None:
    leader, other = two
    cluster = leader.cluster
    lead(leader, other)
    apply(cluster, tunnel_manifest(namespace))
    leader.wait_until_quiet(namespace)
    assert not other.is_watching()
    assert other.writes(namespace) == []

    ended = time.time()
    leader.process.signal(number)
    leader.process.wait(10)
    written = leader.writes(namespace)
    cluster.kubectl("delete", "service", "orders", "-n", namespace)
    took = seconds_until_first_write(other, namespace, ended)

    print(f"\nfrom {number.name} to the leader until the other's first write: {took:.1f} s")
    assert took < stated
    assert other.wait_until_quiet(namespace)[0] == "create services/orders"
    assert leader.writes(namespace) == written


TUNNELS = tuple(f"orders-{number}" for number in range(6))


def test_a_leader_that_was_frozen_writes_nothing(two: tuple[Operator, Operator], namespace: str) -> None:
    """It is stopped in the midst of a change, a write and a status on their way, and goes on once another has done all
    of it.
    """
    leader, other = two
    cluster, arrives = leader.cluster, threading.Event()
    frozen: list[float] = []
    on_their_way = threading.Barrier(2, lambda: leader.process.signal(signal.SIGSTOP))

    def freeze() -> None:
        on_their_way.wait(20)
        frozen.append(time.time())
        arrives.wait(60)

    with Gate(cluster, namespace, 0, freeze, after=False) as gate:
        leader.connect_to(gate.url)
        lead(leader, other)
        apply(cluster, *(tunnel_manifest(namespace, name) for name in TUNNELS))
        leader.wait_until_quiet(namespace)
        gate.hold_next("/services/", "/status")
        change(cluster, namespace, 7000)
        took = seconds_until_first_write(other, namespace, wait_until(lambda: frozen, "the leader to freeze")[0])
        change(cluster, namespace, 8000)
        wait_until(lambda: ports(cluster, namespace) == {8000}, "what the other makes of it")
        other.wait_until_quiet(namespace)
        before = attempts(leader, namespace)

        arrives.set()
        wait_until(lambda: len(attempts(leader, namespace)) >= len(before) + 2, "the late writes")
        late = attempts(leader, namespace)[len(before) :]
        leader.process.signal(signal.SIGCONT)
        assert leader.process.wait(20) == 1

    other.wait_until_quiet(namespace)
    print(f"\nfrom the leader's freezing until the other's first write: {took:.1f} s; its late writes: {late}")
    assert LEASE_SECONDS - 3 < took < OVER_SECONDS
    assert sorted(what.partition("/")[0] for what, _ in late) == ["patch databasetunnels", "update services"]
    assert [code for _, code in late] == [409, 409], "onto other versions than it had read"
    assert attempts(leader, namespace) == before + late, "nothing else was even tried"
    assert ports(cluster, namespace) == {8000}
    errors = [line["error"] for line in leader.logs() if line["event"] == "the operator ends" and "error" in line]
    assert errors == ["LeaseLostError: the Lease default/dbtunnel-operator is lost"]
    # what else it may log is asyncio's, of Kopf's watches that end with the loop
    faults = [line["event"] for line in leader.faults() if "asynchronous generator" not in line["event"]]
    assert faults == ["the operator ends"]


def change(cluster: Cluster, namespace: str, port: int) -> None:
    """Gives each tunnel's Service another port."""
    for name in TUNNELS:
        patch(cluster, namespace, f"databasetunnel/{name}", {"spec": {"service": {"port": port}}})


def ports(cluster: Cluster, namespace: str) -> set[int]:
    found = [find(cluster, namespace, f"service/{name}") or {} for name in TUNNELS]
    return {one["spec"]["ports"][0]["port"] for one in found}


def attempts(operator: Operator, namespace: str) -> list[tuple[str, int]]:
    """What it tried to write in a namespace, and the API server's answer."""

    def told(one: dict[str, Any]) -> tuple[str, int]:
        about = one["objectRef"]
        return f"{one['verb']} {about['resource']}/{about.get('name', '')}", one["responseStatus"]["code"]

    return [told(one) for one in operator.cluster.audit_events() if is_of(one, operator, namespace)]


def is_of(write: dict[str, Any], operator: Operator, namespace: str) -> bool:
    about: dict[str, str] = write["objectRef"]
    return write["user"]["username"] == operator.user and about.get("namespace") == namespace
