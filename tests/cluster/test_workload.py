"""What keeps a tunnel's pods from running: each to its reason, and gone once it is mended."""

import json
from typing import Any

from dbtunnel.api.reasons import Reason
from tests.support import produced
from tests.support.cluster import Cluster
from tests.support.operator import Operator
from tests.support.processes import wait_until
from tests.support.produced import produces
from tests.support.told_in_cluster import check_counted, check_plugin, check_told, events, events_about
from tests.support.tunnels import (
    Manifest,
    apply,
    condition,
    failure,
    find,
    patch,
    tunnel_manifest,
    wait_for_children,
    wait_for_reason,
)


def start(cluster: Cluster, namespace: str, reason: Reason, **spec: Any) -> Manifest:
    """A tunnel, once it fails for the reason."""
    apply(cluster, tunnel_manifest(namespace, **spec))
    return wait_for_reason(cluster, namespace, "orders", reason)


def becomes_another(cluster: Cluster, namespace: str, reason: Reason) -> None:
    """The failure goes."""
    wait_until(lambda: not failure(cluster, namespace, reason), f"the end of {reason}", 40)


@produces(Reason.IMAGE_PULL_FAILED)
def test_an_image_that_no_node_has(operator: Operator, namespace: str) -> None:
    found = start(operator.cluster, namespace, Reason.IMAGE_PULL_FAILED)
    words = ["localhost/none:1", "spec.podTemplate.imagePullSecrets"]
    check_told(operator.cluster, found, Reason.IMAGE_PULL_FAILED, words, operator.metrics)


@produces(Reason.UNSCHEDULABLE)
def test_a_pod_that_no_node_takes(operator: Operator, namespace: str) -> None:
    cluster = operator.cluster
    found = start(cluster, namespace, Reason.UNSCHEDULABLE, podTemplate={"nodeSelector": {"nowhere": "yes"}})
    check_told(cluster, found, Reason.UNSCHEDULABLE, ["nodes are available", "nodeSelector"], operator.metrics)
    patch(cluster, namespace, "databasetunnel/orders", {"spec": {"podTemplate": None}})
    becomes_another(cluster, namespace, Reason.UNSCHEDULABLE)


@produces(Reason.QUOTA_EXCEEDED)
def test_a_quota_that_admits_no_pod(operator: Operator, namespace: str) -> None:
    cluster = operator.cluster
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none", "namespace": namespace}}
    apply(cluster, {**quota, "spec": {"hard": {"pods": "0"}}})
    wait_until(
        lambda: (find(cluster, namespace, "resourcequota/none") or {}).get("status", {}).get("hard"), "the quota"
    )
    found = start(cluster, namespace, Reason.QUOTA_EXCEEDED)
    check_told(cluster, found, Reason.QUOTA_EXCEEDED, ["exceeded quota: none", "Raise the quota"], operator.metrics)
    cluster.kubectl("delete", "resourcequota", "none", "-n", namespace)


@produces(Reason.NAME_CONFLICT)
def test_a_service_of_somebody_else(operator: Operator, namespace: str) -> None:
    cluster = operator.cluster
    cluster.kubectl("create", "service", "clusterip", "orders", "-n", namespace, "--tcp=1234")
    found = start(cluster, namespace, Reason.NAME_CONFLICT)
    check_told(cluster, found, Reason.NAME_CONFLICT, ["Service orders exists", "spec.service.name"], operator.metrics)
    patch(cluster, namespace, "databasetunnel/orders", {"spec": {"service": {"name": "orders-database"}}})
    becomes_another(cluster, namespace, Reason.NAME_CONFLICT)


@produces(Reason.REJECTED)
def test_a_typing_error_that_the_schema_lets_pass(operator: Operator, namespace: str) -> None:
    cluster = operator.cluster
    affinity: dict[str, Any] = {"podAntiAffinity": {"requiredDuringScheduling": []}}
    found = start(cluster, namespace, Reason.REJECTED, podTemplate={"affinity": affinity})
    check_told(cluster, found, Reason.REJECTED, ["requiredDuringScheduling", "Change the spec"], operator.metrics)
    patch(cluster, namespace, "databasetunnel/orders", {"spec": {"podTemplate": None}})
    becomes_another(cluster, namespace, Reason.REJECTED)


@produces(Reason.SUSPENDED)
def test_a_tunnel_that_is_suspended(operator: Operator, namespace: str) -> None:
    cluster = operator.cluster
    found = start(cluster, namespace, Reason.SUSPENDED, suspend=True)
    ready = next(one for one in found["status"]["conditions"] if one["type"] == "Ready")
    assert ready["message"].endswith("Set spec.suspend to false to switch the tunnel on.")
    wait_until(lambda: events_about(cluster, found), "an Event", 10)
    (event,) = events_about(cluster, found)
    assert (event["type"], event["reason"], event["note"]) == ("Normal", "Suspended", ready["message"])
    check_counted(cluster, found, Reason.SUSPENDED, operator.metrics)
    check_plugin(cluster, found, Reason.SUSPENDED)
    produced.note(Reason.SUSPENDED, ready["message"])


def test_equal_events_are_counted_in_one(operator: Operator, namespace: str) -> None:
    """The tunnel is suspended twice, and nothing else is told of it in between."""
    cluster = operator.cluster
    start(cluster, namespace, Reason.SUSPENDED, suspend=True, podTemplate={"nodeSelector": {"nowhere": "yes"}})
    found = cluster.get("databasetunnel", "orders", "-n", namespace)
    wait_until(lambda: events_about(cluster, found), "an Event", 10)
    # as if it had been ready meanwhile: the next reconcile finds the tunnel to have become suspended
    conditions = [{**one, "status": "True"} for one in found["status"]["conditions"] if one["type"] == "Ready"]
    others = [one for one in found["status"]["conditions"] if one["type"] != "Ready"]
    change = json.dumps({"status": {"conditions": [*others, *conditions]}})
    cluster.kubectl(
        "patch", "databasetunnel", "orders", "-n", namespace, "--subresource=status", "--type=merge", "-p", change
    )
    wait_until(lambda: [one.get("series") for one in events_about(cluster, found)] != [None], "another", 20)
    (event,) = events_about(cluster, found)
    assert (event["reason"], event["series"]["count"]) == ("Suspended", 2)


@produces(Reason.PROGRESSING)
def test_a_child_that_goes_is_waited_for(operator: Operator, namespace: str) -> None:
    cluster = operator.cluster
    apply(cluster, tunnel_manifest(namespace))
    wait_for_children(cluster, namespace)
    patch(cluster, namespace, "service/orders", {"metadata": {"finalizers": ["example.com/hold"]}})
    cluster.kubectl("delete", "service", "orders", "-n", namespace, "--wait=false")
    found = wait_for_reason(cluster, namespace, "orders", Reason.PROGRESSING)
    told = condition(cluster, namespace, "WorkloadReady")
    assert told["message"] == "Waits until Service orders is deleted, to make it anew."
    assert condition(cluster, namespace, "Reconciling")["status"] == "True"
    wait_until(lambda: "Progressing" in events(cluster, found), "an Event", 10)
    check_counted(cluster, found, Reason.PROGRESSING, operator.metrics)
    check_plugin(cluster, found, Reason.PROGRESSING)
    old = (find(cluster, namespace, "service/orders") or {})["metadata"]["uid"]
    patch(cluster, namespace, "service/orders", {"metadata": {"finalizers": None}})
    wait_until(
        lambda: (find(cluster, namespace, "service/orders") or {"metadata": {"uid": old}})["metadata"]["uid"] != old,
        "another Service",
    )
    becomes_another(cluster, namespace, Reason.PROGRESSING)
    produced.note(Reason.PROGRESSING, told["message"])
