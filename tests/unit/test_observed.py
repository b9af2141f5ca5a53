"""What pods, Deployments and objects of others say, as facts."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest

from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.domain.children import Manifest, build_service
from dbtunnel.domain.observed import Pod, Problem, deployment_problem, standing
from tests.support.values import changed, tunnel

METADATA = {"uid": "pod-uid", "name": "orders-tunnel-abc", "labels": {"dbtunnel.dev/revision": "0123"}}


def pod(status: Mapping[str, Any], **metadata: Any) -> Pod:
    return Pod.of({"metadata": {**METADATA, **metadata}, "status": status})


def waiting(reason: str, message: str = "", ended: Mapping[str, Any] | None = None) -> Manifest:
    container: Manifest = {"state": {"waiting": {"reason": reason, "message": message}}}
    return {"containerStatuses": [container | ({"lastState": {"terminated": ended}} if ended else {})]}


# --- pods -------------------------------------------------------------------------------------------------------------


def test_a_pod_that_runs() -> None:
    running = {
        "phase": "Running",
        "podIP": "10.0.0.1",
        "conditions": [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}],
        "containerStatuses": [{"state": {"running": {"startedAt": "2026-11-05T12:00:00Z"}}}],
    }
    assert pod(running) == Pod(
        uid="pod-uid",
        name="orders-tunnel-abc",
        revision="0123",
        ip="10.0.0.1",
        is_ending=False,
        problem=None,
        running_since=datetime(2026, 11, 5, 12, tzinfo=UTC),
    )


@pytest.mark.parametrize(("ready", "is_ready"), [("True", True), ("False", False), ("Unknown", False)])
def test_whether_the_service_leads_to_a_pod(ready: str, is_ready: bool) -> None:
    conditions = [{"type": "ContainersReady", "status": "True"}, {"type": "Ready", "status": ready}]
    assert pod({"conditions": conditions}).is_ready is is_ready


def test_a_pod_that_was_only_just_made() -> None:
    fresh = Pod.of({"metadata": {"uid": "u", "name": "n"}})
    assert fresh == Pod(uid="u", name="n", revision="", ip="", is_ending=False, problem=None)


@pytest.mark.parametrize("status", [{"phase": "Failed"}, {"phase": "Succeeded"}])
def test_a_pod_that_has_ended_is_ending(status: Manifest) -> None:
    assert pod(status).is_ending


def test_a_pod_that_is_deleted_is_ending() -> None:
    assert pod({"phase": "Running"}, deletionTimestamp="2026-11-05T12:00:00Z").is_ending
    assert not pod({"phase": "Running"}).is_ending


def test_a_container_that_waits_or_ended_does_not_run() -> None:
    assert pod(waiting("CrashLoopBackOff")).running_since is None
    assert pod({"containerStatuses": [{"state": {"terminated": {"exitCode": 1}}}]}).running_since is None


def test_a_pod_that_no_node_takes() -> None:
    status = {
        "conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no memory"}
        ]
    }
    assert pod(status).problem == Problem(Reason.UNSCHEDULABLE, "0/3 nodes: no memory")


def test_a_pod_that_waits_for_its_scheduling_gate_is_no_problem() -> None:
    status = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}
    assert pod(status).problem is None


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("ImagePullBackOff", Reason.IMAGE_PULL_FAILED),
        ("ErrImagePull", Reason.IMAGE_PULL_FAILED),
        ("ErrImageNeverPull", Reason.IMAGE_PULL_FAILED),
        ("InvalidImageName", Reason.IMAGE_PULL_FAILED),
        ("CrashLoopBackOff", Reason.CRASH_LOOPING),
        ("CreateContainerConfigError", Reason.CRASH_LOOPING),
        ("CreateContainerError", Reason.CRASH_LOOPING),
        ("RunContainerError", Reason.CRASH_LOOPING),
    ],
)
def test_a_container_that_cannot_start(why: str, reason: Reason) -> None:
    assert pod(waiting(why, "as the kubelet says")).problem == Problem(reason, f'{why}: "as the kubelet says"')


@pytest.mark.parametrize("why", ["ContainerCreating", "PodInitializing", ""])
def test_a_container_that_is_only_starting_is_no_problem(why: str) -> None:
    assert pod(waiting(why)).problem is None


def test_how_a_container_ended_is_told_before_that_it_waits() -> None:
    ended = {"reason": "OOMKilled", "exitCode": 137}
    assert pod(waiting("CrashLoopBackOff", "back-off 5m0s", ended)).problem == Problem(
        Reason.CRASH_LOOPING, 'CrashLoopBackOff; last ended with OOMKilled (exit code 137): "back-off 5m0s"'
    )
    spoke = {"reason": "Error", "exitCode": 2, "message": "DBTUNNEL_CONFIG: bad"}
    assert pod(waiting("CrashLoopBackOff", "back-off 5m0s", spoke)).problem == Problem(
        Reason.CRASH_LOOPING, 'CrashLoopBackOff; last ended with Error (exit code 2): "DBTUNNEL_CONFIG: bad"'
    )


# --- Deployments ------------------------------------------------------------------------------------------------------


def refused(message: str, status: str = "True", kind: str = "ReplicaFailure") -> Manifest:
    return {"status": {"conditions": [{"type": kind, "status": status, "message": message}]}}


@pytest.mark.parametrize(
    "message",
    [
        'pods "x" is forbidden: exceeded quota: small, requested: cpu=1, used: cpu=0, limited: cpu=0',
        'pods "x" is forbidden: failed quota: small: must specify limits.cpu for: forwarder',
        'pods "x" is forbidden: maximum memory usage per Container is 128Mi, but limit is 256Mi',
        'pods "x" is forbidden: [minimum cpu usage per Pod is 1, but request is 10m, no request]',
        'pods "x" is forbidden: memory max limit to request ratio per Container is 3, but provided ratio is 4.000000',
    ],
)
def test_pods_that_a_quota_or_limit_range_refuses(message: str) -> None:
    assert deployment_problem(refused(message)) == Problem(Reason.QUOTA_EXCEEDED, message)


@pytest.mark.parametrize(
    "message", ['pods "x" is forbidden: violates PodSecurity "restricted:latest"', "admission webhook denied", ""]
)
def test_pods_that_a_policy_refuses(message: str) -> None:
    assert deployment_problem(refused(message)) == Problem(Reason.REJECTED, message)


@pytest.mark.parametrize(
    "deployment",
    [None, {}, {"status": {}}, refused("exceeded quota", status="False"), refused("exceeded quota", kind="Available")],
)
def test_a_deployment_without_a_problem(deployment: Manifest | None) -> None:
    assert deployment_problem(deployment) is None


# --- objects that have a child's name ---------------------------------------------------------------------------------

OWN = build_service(tunnel())
OTHER_OWNER = {**OWN["metadata"]["ownerReferences"][0], "uid": "another"}
CONFLICT = Problem(Reason.NAME_CONFLICT, REASONS[Reason.NAME_CONFLICT].example)


def found(**changes: Any) -> Problem | None:
    return standing(changed(OWN, {f"metadata.{field}": value for field, value in changes.items()}), tunnel())


def test_the_tunnels_own_child() -> None:
    assert found() is None
    assert found(labels={"edited": "by somebody"}) is None, "the owner counts, whatever the labels say"


def test_an_orphan_with_the_tunnels_labels_is_taken_up() -> None:
    assert found(ownerReferences=None) is None
    assert found(ownerReferences=[{**OTHER_OWNER, "controller": False}]) is None


@pytest.mark.parametrize(
    "labels",
    [
        None,
        {},
        {"dbtunnel.dev/tunnel": "orders"},
        {"dbtunnel.dev/tunnel": "other", "app.kubernetes.io/managed-by": "dbtunnel-operator"},
        {"dbtunnel.dev/tunnel": "orders", "app.kubernetes.io/managed-by": "Helm"},
    ],
)
def test_an_object_of_somebody_else_is_a_conflict(labels: dict[str, str] | None) -> None:
    assert found(ownerReferences=None, labels=labels) == CONFLICT


@pytest.mark.parametrize(
    "owner",
    [
        {**OTHER_OWNER, "kind": "Application"},
        {**OTHER_OWNER, "apiVersion": "dbtunnel.example/v1"},
        {**OTHER_OWNER, "name": "other"},
    ],
)
def test_an_object_that_another_controls_is_a_conflict_whatever_its_labels(owner: Manifest) -> None:
    assert found(ownerReferences=[owner]) == CONFLICT


def test_a_child_of_the_deleted_tunnel_of_this_name_is_waited_for() -> None:
    assert found(ownerReferences=[OTHER_OWNER]) == Problem(
        Reason.PROGRESSING, "Waits until Service orders of the deleted tunnel of this name is gone."
    )


def test_an_own_child_that_is_being_deleted_is_waited_for() -> None:
    assert found(deletionTimestamp="2026-11-05T12:00:00Z") == Problem(
        Reason.PROGRESSING, "Waits until Service orders is deleted, to make it anew."
    )


@pytest.mark.parametrize("owner", [None, OWN["metadata"]["ownerReferences"]], ids=["handed over", "made so"])
def test_a_headless_service_is_not_taken_up(owner: list[Manifest] | None) -> None:
    headless = changed(OWN, {"spec.clusterIP": "None", "metadata.ownerReferences": owner})
    problem = standing(headless, tunnel())
    assert problem
    assert problem.reason is Reason.NAME_CONFLICT
    assert problem.seen.startswith("Service orders is headless (clusterIP: None)")


def test_a_headless_service_of_somebody_else_is_told_before_it_is_handed_over() -> None:
    foreign = changed(OWN, {"spec.clusterIP": "None", "metadata.ownerReferences": None, "metadata.labels": None})
    problem = standing(foreign, tunnel())
    assert problem
    assert "headless" in problem.seen
    assert "handed over" not in problem.seen
