"""What the operator makes of a tunnel, keeps as it should be, and removes: a real API server, no forwarder."""

import json
from typing import Any

import pytest

from tests.support.cluster import Cluster
from tests.support.operator import Operator
from tests.support.processes import wait_until
from tests.support.tunnels import (
    CHILDREN,
    apply,
    condition,
    failure,
    find,
    patch,
    tunnel_manifest,
    wait_for_children,
)

# --- writes -----------------------------------------------------------------------------------------------------


def test_a_tunnel_takes_few_writes_and_then_none(operator: Operator, namespace: str) -> None:
    apply(operator.cluster, tunnel_manifest(namespace, tunnel={"host": "127.0.0.9", "keySecretRef": {"name": "key"}}))
    wait_for_children(operator.cluster, namespace)

    writes = operator.wait_until_quiet(namespace, seconds=5)

    print(f"\nwrites for a tunnel: {len(writes)}: {writes}")
    assert sorted(write.rpartition("/")[0] if "events" in write else write for write in writes) == [
        "create deployments/orders-tunnel",
        "create events",
        "create networkpolicies/orders-tunnel",
        "create services/orders",
        "patch databasetunnels/status/orders",
        "patch databasetunnels/status/orders",
    ]


def test_a_restarted_operator_writes_nothing(operator: Operator, tunnel: str) -> None:
    before = operator.writes(tunnel)

    assert operator.stop() == 0
    operator.start()

    assert operator.wait_until_quiet(tunnel, seconds=3) == before
    assert set(operator.reconciles(tunnel)) == {"succeeded"}


def test_the_first_write_gives_the_tunnel_its_conditions(operator: Operator, tunnel: str) -> None:
    assert operator.writes(tunnel)[0] == "patch databasetunnels/status/orders"


def test_nothing_is_written_to_the_tunnel_but_its_status(operator: Operator, tunnel: str) -> None:
    found = find(operator.cluster, tunnel, "databasetunnel/orders")

    assert found
    assert "finalizers" not in found["metadata"]
    assert set(found["metadata"]["annotations"]) == {"kubectl.kubernetes.io/last-applied-configuration"}
    assert found["metadata"]["generation"] == 1


# --- repairs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("child", CHILDREN)
def test_a_deleted_child_is_made_again(operator: Operator, tunnel: str, child: str) -> None:
    old = find(operator.cluster, tunnel, child)
    operator.cluster.kubectl("delete", child, "-n", tunnel, "--wait=false")

    def is_new() -> bool:
        found = find(operator.cluster, tunnel, child)
        return bool(old and found and found["metadata"]["uid"] != old["metadata"]["uid"])

    wait_until(is_new, f"another {child}")


POD = "/spec/template/spec"
EDITS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "replicas": ("deployment/{}-tunnel", [{"op": "replace", "path": "/spec/replicas", "value": 3}]),
    "image": (
        "deployment/{}-tunnel",
        [{"op": "replace", "path": f"{POD}/containers/0/image", "value": "example.com/other"}],
    ),
    "another container": (
        "deployment/{}-tunnel",
        [{"op": "add", "path": f"{POD}/containers/-", "value": {"name": "spy", "image": "example.com/spy"}}],
    ),
    "another volume": (
        "deployment/{}-tunnel",
        [{"op": "add", "path": f"{POD}/volumes/-", "value": {"name": "spy", "emptyDir": {}}}],
    ),
    "a service account": (
        "deployment/{}-tunnel",
        [{"op": "add", "path": f"{POD}/serviceAccountName", "value": "privileged"}],
    ),
    "a removed security context": (
        "deployment/{}-tunnel",
        [{"op": "remove", "path": f"{POD}/containers/0/securityContext"}],
    ),
    "a variable": (
        "deployment/{}-tunnel",
        [{"op": "add", "path": f"{POD}/containers/0/env/-", "value": {"name": "PYTHONPATH", "value": "/tmp"}}],
    ),
    "the Service's port": (
        "service/{}",
        [{"op": "replace", "path": "/spec/ports/0/port", "value": 1}],
    ),
    "the Service's selector": (
        "service/{}",
        [{"op": "add", "path": "/spec/selector/app", "value": "other"}],
    ),
    "a label": (
        "service/{}",
        [{"op": "replace", "path": "/metadata/labels/app.kubernetes.io~1name", "value": "other"}],
    ),
    "a removed label": (
        "service/{}",
        [{"op": "remove", "path": "/metadata/labels/dbtunnel.dev~1tunnel"}],
    ),
    "a disruption budget that lets all go": (
        "poddisruptionbudget/{}-tunnel",
        [{"op": "replace", "path": "/spec/maxUnavailable", "value": "100%"}],
    ),
    "an open policy": (
        "networkpolicy/{}-tunnel",
        [{"op": "add", "path": "/spec/ingress/-", "value": {}}],
    ),
}
"""What people and other controllers do to a child: which one, and the JSON patch."""


@pytest.mark.parametrize("when", ["while it runs", "while it is down"])
def test_every_edit_of_a_child_is_repaired(operator: Operator, namespace: str, when: str) -> None:
    """Each on a tunnel of its own."""
    cluster = operator.cluster
    names = {edit: f"edited-{number}" for number, edit in enumerate(EDITS)}
    counts = {edit: 2 if child.startswith("poddisruptionbudget") else 1 for edit, (child, _) in EDITS.items()}
    apply(cluster, *(tunnel_manifest(namespace, name, replicas=counts[edit]) for edit, name in names.items()))
    for edit, name in names.items():
        child = EDITS[edit][0].format(name)
        wait_until(lambda child=child: find(cluster, namespace, child), child)  # type: ignore[misc]
    operator.wait_until_quiet(namespace)
    wanted = {edit: find(cluster, namespace, EDITS[edit][0].format(name)) for edit, name in names.items()}
    if when == "while it is down":
        operator.stop()

    for edit, name in names.items():
        child, change = EDITS[edit]
        patch(cluster, namespace, child.format(name), change, kind="json")
    if when == "while it is down":
        operator.start()

    for edit, name in names.items():
        child = EDITS[edit][0].format(name)
        wait_until(
            lambda child=child, edit=edit: _is_as(find(cluster, namespace, child), wanted[edit]),  # type: ignore[misc]
            f"{child} as it was, after the edit: {edit}",
            describe=lambda child=child: json.dumps(find(cluster, namespace, child), indent=1),  # type: ignore[misc]
        )
    operator.wait_until_quiet(namespace)


def _is_as(found: dict[str, Any] | None, wanted: dict[str, Any] | None) -> bool:
    """The same object, with the spec and labels that it had."""
    assert found
    assert wanted
    assert found["metadata"]["uid"] == wanted["metadata"]["uid"]
    return bool(found["spec"] == wanted["spec"] and found["metadata"]["labels"] == wanted["metadata"]["labels"])


def test_labels_and_annotations_of_others_are_kept(operator: Operator, tunnel: str) -> None:
    cluster = operator.cluster
    cluster.kubectl("label", "service/orders", "-n", tunnel, "team=data")
    cluster.kubectl("annotate", "service/orders", "-n", tunnel, "example.com/note=kept")

    patch(cluster, tunnel, "databasetunnel/orders", {"spec": {"service": {"port": 6000, "labels": {"tier": "gold"}}}})
    wait_until(lambda: _service_labels(cluster, tunnel).get("tier") == "gold", "the new label")
    patch(cluster, tunnel, "databasetunnel/orders", {"spec": {"service": {"labels": None}}})
    wait_until(lambda: "tier" not in _service_labels(cluster, tunnel), "the label's end")

    service = find(cluster, tunnel, "service/orders")
    assert service
    assert service["metadata"]["labels"]["team"] == "data"
    assert service["metadata"]["annotations"]["example.com/note"] == "kept"
    assert service["spec"]["ports"][0]["port"] == 6000


def _service_labels(cluster: Cluster, namespace: str) -> dict[str, str]:
    labels: dict[str, str] = (find(cluster, namespace, "service/orders") or {})["metadata"]["labels"]
    return labels


# --- objects that are not the tunnel's --------------------------------------------------------------------------


def test_a_foreign_object_is_left_alone_and_its_name_taken_up_when_it_goes(operator: Operator, namespace: str) -> None:
    cluster = operator.cluster
    cluster.kubectl("create", "service", "clusterip", "orders", "-n", namespace, "--tcp=1234")
    before = find(cluster, namespace, "service/orders")

    apply(cluster, tunnel_manifest(namespace))
    ready = wait_until(lambda: failure(cluster, namespace, "NameConflict"), "NameConflict")
    operator.wait_until_quiet(namespace)

    assert "Service orders" in ready["message"]
    assert find(cluster, namespace, "service/orders") == before
    assert condition(cluster, namespace, "Stalled")["status"] == "True"
    cluster.kubectl("delete", "service", "orders", "-n", namespace)
    wait_until(lambda: _is_owned(cluster, namespace, "service/orders"), "the Service, taken up", 10)
    wait_until(lambda: condition(cluster, namespace, "Ready")["reason"] != "NameConflict", "another reason", 10)


def test_an_object_with_another_controller_is_a_conflict_even_with_our_labels(
    operator: Operator, namespace: str
) -> None:
    cluster = operator.cluster
    apply(cluster, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owner", "namespace": namespace}})
    owner = find(cluster, namespace, "configmap/owner")
    assert owner
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    apply(cluster, _labelled_service(namespace, ownerReferences=[{**reference, "controller": True}]))

    apply(cluster, tunnel_manifest(namespace))

    wait_until(lambda: failure(cluster, namespace, "NameConflict"), "NameConflict")


def test_an_orphan_with_our_labels_is_adopted(operator: Operator, namespace: str) -> None:
    cluster = operator.cluster
    apply(cluster, _labelled_service(namespace))
    uid = (find(cluster, namespace, "service/orders") or {})["metadata"]["uid"]

    apply(cluster, tunnel_manifest(namespace))

    wait_until(lambda: _is_owned(cluster, namespace, "service/orders"), "the owner")
    service = find(cluster, namespace, "service/orders")
    assert service
    assert service["metadata"]["uid"] == uid
    assert service["spec"]["ports"][0]["port"] == 5432


def test_a_tunnel_made_anew_takes_up_what_was_orphaned(operator: Operator, tunnel: str) -> None:
    cluster = operator.cluster
    uids = {child: (find(cluster, tunnel, child) or {})["metadata"]["uid"] for child in CHILDREN}
    cluster.kubectl("delete", "databasetunnel", "orders", "-n", tunnel, "--cascade=orphan")

    apply(cluster, tunnel_manifest(tunnel))

    for child in CHILDREN:
        wait_until(lambda child=child: _is_owned(cluster, tunnel, child), child)  # type: ignore[misc]
        assert (find(cluster, tunnel, child) or {})["metadata"]["uid"] == uids[child]


def _labelled_service(namespace: str, **metadata: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/managed-by": "dbtunnel-operator", "dbtunnel.dev/tunnel": "orders"}
    spec = {"ports": [{"port": 1, "name": "old"}]}
    named = {"name": "orders", "namespace": namespace, "labels": labels, **metadata}
    return {"apiVersion": "v1", "kind": "Service", "metadata": named, "spec": spec}


def _is_owned(cluster: Cluster, namespace: str, child: str) -> bool:
    tunnel, found = find(cluster, namespace, "databasetunnel/orders"), find(cluster, namespace, child)
    owners = (found or {}).get("metadata", {}).get("ownerReferences", ())
    return any(owner["uid"] == (tunnel or {})["metadata"]["uid"] and owner["controller"] for owner in owners)


# --- what is no longer wanted -----------------------------------------------------------------------------------


def test_what_is_no_longer_wanted_is_removed(operator: Operator, namespace: str) -> None:
    cluster = operator.cluster
    apply(cluster, tunnel_manifest(namespace, replicas=2, service={"name": "legacy-db"}))
    for child in ("service/legacy-db", "networkpolicy/orders-tunnel", "poddisruptionbudget/orders-tunnel"):
        wait_until(lambda child=child: find(cluster, namespace, child), child)  # type: ignore[misc]

    apply(cluster, tunnel_manifest(namespace, replicas=1, access={"policy": "Unrestricted"}))

    for child in ("service/legacy-db", "networkpolicy/orders-tunnel", "poddisruptionbudget/orders-tunnel"):
        wait_until(lambda child=child: find(cluster, namespace, child) is None, f"no {child}")  # type: ignore[misc]
    assert find(cluster, namespace, "service/orders")


def test_deleting_the_tunnel_leaves_the_generated_key_alone(operator: Operator, tunnel: str) -> None:
    cluster = operator.cluster
    made = {"Deployment/orders-tunnel", "NetworkPolicy/orders-tunnel", "Secret/orders-ssh", "Service/orders"}
    wait_until(lambda: made | {"ReplicaSet", "Pod"} <= _names_and_kinds(cluster, tunnel), "a pod, and all the others")
    key = find(cluster, tunnel, "secret/orders-ssh")
    cluster.kubectl("delete", "databasetunnel", "orders", "-n", tunnel, "--wait=false")

    wait_until(
        lambda: (
            find(cluster, tunnel, "databasetunnel/orders") is None
            and _names_and_kinds(cluster, tunnel) == {"Secret", "Secret/orders-ssh"}
        ),
        "nothing but the key",
        describe=lambda: _names_and_kinds(cluster, tunnel),
    )
    apply(cluster, tunnel_manifest(tunnel))
    wait_for_children(cluster, tunnel)

    again = find(cluster, tunnel, "secret/orders-ssh")
    assert key
    assert again
    assert again["data"] == key["data"]
    assert "ownerReferences" not in again["metadata"]


def _names_and_kinds(cluster: Cluster, namespace: str) -> set[str]:
    """What there is of the tunnel, whatever its kind: each `Kind/name`, and each kind."""
    kinds = cluster.kubectl("api-resources", "--namespaced", "--verbs=list,create", "-o", "name").split()
    found = cluster.get(",".join(kinds), "-n", namespace, "-l", "dbtunnel.dev/tunnel=orders")["items"]
    names = {f"{one['kind']}/{one['metadata']['name']}" for one in found}
    return names | {one["kind"] for one in found}


def test_a_tunnel_that_is_being_deleted_is_left_alone(operator: Operator, tunnel: str) -> None:
    cluster = operator.cluster
    patch(cluster, tunnel, "databasetunnel/orders", {"metadata": {"finalizers": ["example.com/hold"]}})
    cluster.kubectl("delete", "databasetunnel", "orders", "-n", tunnel, "--wait=false")
    wait_until(
        lambda: "deletionTimestamp" in (find(cluster, tunnel, "databasetunnel/orders") or {})["metadata"], "its end"
    )

    cluster.kubectl("delete", "service", "orders", "-n", tunnel)
    operator.wait_until_quiet(tunnel)

    assert find(cluster, tunnel, "service/orders") is None
    patch(cluster, tunnel, "databasetunnel/orders", {"metadata": {"finalizers": None}})
