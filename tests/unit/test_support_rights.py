"""What is made of an audit log: the rights that operators used, and those that are too many or too few."""

import re
from pathlib import Path
from typing import Any

import pytest

from dbtunnel.api.resource import GROUP
from tests.support.cluster.base import AuditLog
from tests.support.rights import STATUS, Right, Uses, granted

OPERATOR = "system:serviceaccount:dbtunnel-system:dbtunnel"


def event(
    verb: str, resource: str, group: str = "", user: str = OPERATOR, decision: str = "allow", by: str = "", **about: str
) -> Any:
    reason = f'RBAC: allowed by {by} "dbtunnel" of ClusterRole "dbtunnel" to ServiceAccount "dbtunnel"' if by else ""
    return {
        "verb": verb,
        "user": {"username": user},
        "objectRef": {"resource": resource, **({"apiGroup": group} if group else {}), **about},
        "annotations": {"authorization.k8s.io/decision": decision, "authorization.k8s.io/reason": reason},
    }


STATUS_WRITTEN = event("patch", "databasetunnels", GROUP, subresource="status")


def uses_of(*events: Any) -> Uses:
    log, uses = AuditLog(), Uses()
    log.reads = list(events)
    uses.take(log)
    return uses


def test_only_what_operators_did_counts() -> None:
    uses = uses_of(
        STATUS_WRITTEN,
        event("list", "databasetunnels", GROUP),
        event("list", "databasetunnels", GROUP, user="kubernetes-admin"),
        event("delete", "databasetunnels", GROUP, user="system:serviceaccount:kube-system:namespace-controller"),
        event("watch", "databasetunnels", GROUP, user="system:serviceaccount:binding:controller"),
        event("create", "configmaps", user="system:serviceaccount:shop:maker"),
    )

    assert uses.used == {Right(GROUP, "databasetunnels", "list"): 1, STATUS: 1}


def test_one_that_stands_by_is_known_by_the_lease() -> None:
    uses = uses_of(event("get", "leases", "coordination.k8s.io", name="dbtunnel-operator"))

    assert uses.used == {Right("coordination.k8s.io", "leases", "get"): 1}


def test_a_right_that_nobody_used_is_a_fault() -> None:
    uses = Uses()
    uses.used.update(granted() - {Right("", "services", "delete")})

    assert list(uses.faults()) == ["granted and never used: delete services"]


def test_a_right_that_nobody_grants_is_a_fault_where_it_is_asked_for() -> None:
    uses = uses_of(STATUS_WRITTEN, event("get", "secrets", decision="forbid"))
    uses.used.update(granted())

    assert list(uses.faults()) == ["refused 1 times: get secrets"]


@pytest.mark.parametrize(
    "there",
    [
        event("patch", "pods", namespace="shop", by="RoleBinding"),
        event("patch", "pods", namespace="other", by="ClusterRoleBinding"),
    ],
    ids=["in the namespace", "in all of them"],
)
def test_what_is_granted_may_be_refused_where_the_rights_have_come_or_gone(there: Any) -> None:
    gone = event("patch", "pods", decision="forbid", namespace="shop")

    assert uses_of(STATUS_WRITTEN, there, gone).refused == {}


@pytest.mark.parametrize(
    "there",
    [
        event("patch", "pods", namespace="other", by="RoleBinding"),
        event("patch", "services", namespace="shop"),
        event("list", "pods", namespace="shop"),
        event("list", "pods", by="ClusterRoleBinding"),
        event("patch", "pods", namespace="shop", user="system:serviceaccount:other:operator"),
        event("patch", "pods", namespace="shop", decision="forbid"),
    ],
    ids=["another namespace", "another resource", "another verb", "another verb in all", "another operator", "refused"],
)
def test_a_granted_right_is_a_fault_where_it_was_never_had(there: Any) -> None:
    uses = uses_of(STATUS_WRITTEN, there, event("patch", "pods", decision="forbid", namespace="shop"))
    uses.used.update(granted())

    assert any(re.fullmatch("refused [12] times: patch pods", fault) for fault in uses.faults())


def test_a_right_from_elsewhere_is_a_fault() -> None:
    uses = uses_of(STATUS_WRITTEN, event("get", "configmaps"))
    uses.used.update(granted())

    assert list(uses.faults()) == ["used though not granted by the operator's own rules: get configmaps"]


def test_the_logs_of_several_clusters_count_together(tmp_path: Path) -> None:
    together = Uses()
    for number in range(2):
        one = uses_of(STATUS_WRITTEN, event("get", "nodes", decision="forbid"))
        one.write(tmp_path / f"{number}.json")
        together.read(tmp_path / f"{number}.json")

    assert together.used == {STATUS: 2}
    assert together.refused == {Right("", "nodes", "get"): 2}
