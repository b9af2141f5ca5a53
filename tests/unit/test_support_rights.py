"""What is made of an audit log: the rights that operators used, and those that are too many or too few."""

from pathlib import Path
from typing import Any

import pytest

from dbtunnel.api.resource import GROUP
from tests.support.cluster.base import AuditLog
from tests.support.rights import Right, Uses, granted

OPERATOR = "system:serviceaccount:dbtunnel-system:dbtunnel"


def event(
    verb: str, resource: str, group: str = "", user: str = OPERATOR, decision: str = "allow", **about: str
) -> Any:
    return {
        "verb": verb,
        "user": {"username": user},
        "objectRef": {"resource": resource, **({"apiGroup": group} if group else {}), **about},
        "annotations": {"authorization.k8s.io/decision": decision},
        "requestReceivedTimestamp": "2026-11-26T02:00:00.000000Z",
    }


def uses_of(*events: Any) -> Uses:
    log, uses = AuditLog(), Uses()
    log.reads = list(events)
    uses.take(log)
    return uses


def test_only_what_operators_did_counts() -> None:
    uses = uses_of(
        event("list", "databasetunnels", GROUP),
        event("patch", "databasetunnels", GROUP, subresource="status"),
        event("list", "databasetunnels", GROUP, user="kubernetes-admin"),
        event("delete", "databasetunnels", GROUP, user="system:serviceaccount:kube-system:namespace-controller"),
        event("create", "configmaps", user="system:serviceaccount:shop:maker"),
    )

    assert uses.used == {Right(GROUP, "databasetunnels", "list"): 1, Right(GROUP, "databasetunnels/status", "patch"): 1}


def test_one_that_stands_by_is_known_by_the_lease() -> None:
    uses = uses_of(event("get", "leases", "coordination.k8s.io", name="dbtunnel-operator"))

    assert uses.used == {Right("coordination.k8s.io", "leases", "get"): 1}


def test_a_right_that_nobody_used_is_a_fault() -> None:
    uses = Uses()
    uses.used.update(granted() - {Right("", "services", "delete")})

    assert list(uses.faults()) == ["granted and never used: delete services"]


def test_a_right_that_nobody_grants_is_a_fault_where_it_is_asked_for() -> None:
    uses = uses_of(event("list", "databasetunnels", GROUP), event("get", "secrets", decision="forbid"))
    uses.used.update(granted())

    assert list(uses.faults()) == ["refused 1 times: get secrets"]


@pytest.mark.parametrize(("second", "refusals"), [("01", 1), ("00", 0)])
def test_refusals_are_none_where_the_namespace_had_been_deleted(second: str, refusals: int) -> None:
    log, uses = AuditLog(), Uses()
    log.reads = [event("list", "databasetunnels", GROUP), event("list", "pods", decision="forbid", namespace="shop")]
    deletion = event("delete", "namespaces", user="kubernetes-admin", name="shop")
    log.writes = [{**deletion, "requestReceivedTimestamp": f"2026-11-26T02:00:{second}.000000Z"}]
    uses.take(log)

    assert uses.refused[Right("", "pods", "list")] == refusals


def test_a_right_from_elsewhere_is_a_fault() -> None:
    uses = uses_of(event("list", "databasetunnels", GROUP), event("get", "configmaps"))
    uses.used.update(granted())

    assert list(uses.faults()) == ["used though not granted by the operator's own rules: get configmaps"]


def test_the_logs_of_several_clusters_count_together(tmp_path: Path) -> None:
    together = Uses()
    for number in range(2):
        one = uses_of(event("list", "databasetunnels", GROUP), event("get", "nodes", decision="forbid"))
        one.write(tmp_path / f"{number}.json")
        together.read(tmp_path / f"{number}.json")

    assert together.used == {Right(GROUP, "databasetunnels", "list"): 2}
    assert together.refused == {Right("", "nodes", "get"): 2}
