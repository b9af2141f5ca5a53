"""What kubectl's verbs do to a tunnel, and that the operator follows: as docs/kubectl.md tells it."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.binaries import binary
from tests.support.cluster import Cluster, ClusterError
from tests.support.operator import Operator
from tests.support.processes import Process, wait_until
from tests.support.tunnels import (
    CHILDREN,
    Manifest,
    apply,
    condition,
    find,
    make_namespace,
    remove_namespace,
    tunnel_manifest,
    wait_for_children,
)

TUNNEL = "databasetunnel/orders"

GARBAGE_SECONDS = 60
"""The cluster's garbage collector learns of a new definition every 30 s, and collects at once from then on."""


@pytest.fixture(scope="module")
def home(operator: Operator) -> Iterator[str]:
    """A namespace with the tunnel `orders`, which all tests change."""
    name = make_namespace(operator.cluster, "kubectl")
    apply(operator.cluster, tunnel_manifest(name))
    wait_for_children(operator.cluster, name)
    yield name
    remove_namespace(operator.cluster, name)


@pytest.fixture
def kubectl(operator: Operator, home: str) -> Callable[..., str]:
    """kubectl in that namespace."""

    def run(*arguments: str, document: Manifest | None = None) -> str:
        text = json.dumps(document) if document else None
        return operator.cluster.kubectl(*arguments, "-n", home, input=text)

    return run


Kubectl = Callable[..., str]


def refused(kubectl: Kubectl, *arguments: str, document: Manifest | None = None) -> str:
    """What kubectl says where it fails."""
    with pytest.raises(ClusterError) as failure:
        kubectl(*arguments, document=document)
    return str(failure.value)


def wait_for_replicas(cluster: Cluster, namespace: str, count: int) -> None:
    """The operator has followed: so many are wanted. Until one is let in a single one starts."""

    def found() -> Any:
        return (find(cluster, namespace, TUNNEL) or {}).get("status", {}).get("replicas")

    wait_until(lambda: found() == count, f"{count} replicas", describe=found)
    assert (find(cluster, namespace, "deployment/orders-tunnel") or {})["spec"]["replicas"] == 1


def uids(cluster: Cluster, namespace: str) -> dict[str, str]:
    """Of the children that are there."""
    found = {child: find(cluster, namespace, child) for child in CHILDREN}
    return {child: one["metadata"]["uid"] for child, one in found.items() if one}


def wait_for_other_children(cluster: Cluster, namespace: str, old: dict[str, str]) -> None:
    """All of them are there, and none of the old."""

    def are_new() -> bool:
        new = uids(cluster, namespace)
        return len(new) == len(CHILDREN) and not set(new.values()) & set(old.values())

    wait_until(are_new, "other children", GARBAGE_SECONDS, describe=lambda: uids(cluster, namespace))


def test_apply_changes_what_is_changed_and_takes_away_what_is_left_out(operator: Operator, home: str) -> None:
    def applied(**spec: Any) -> str:
        return operator.cluster.kubectl("apply", "-f", "-", input=json.dumps(tunnel_manifest(home, **spec)))

    assert applied(replicas=2).endswith("configured\n")
    wait_for_replicas(operator.cluster, home, 2)
    assert applied(replicas=2).endswith("unchanged\n"), "the status that was written since changes nothing"

    applied()
    wait_for_replicas(operator.cluster, home, 1)
    assert "replicas" not in (find(operator.cluster, home, TUNNEL) or {})["spec"]


def test_server_side_apply_meets_no_conflict_with_the_operator(kubectl: Kubectl, operator: Operator, home: str) -> None:
    def applied(manager: str, *options: str, **spec: Any) -> tuple[str, ...]:
        return ("apply", "--server-side", f"--field-manager={manager}", *options, "-f", "-")

    document = tunnel_manifest(home, replicas=2)
    kubectl(*applied("first"), "--force-conflicts", document=document)
    wait_for_replicas(operator.cluster, home, 2)

    said = refused(kubectl, *applied("second"), document=tunnel_manifest(home, replicas=3))
    assert 'conflict with "first": .spec.replicas' in said
    fields = json.loads(kubectl("get", TUNNEL, "--show-managed-fields", "-o", "json"))["metadata"]["managedFields"]
    others = [one for one in fields if one.get("subresource") == "status"]
    assert [set(one["fieldsV1"]) for one in others] == [{"f:status"}], "the operator owns the status alone"
    assert not [one for one in fields if "f:status" in one["fieldsV1"] and one not in others]


def test_diff_shows_the_change_and_nothing_else(kubectl: Kubectl, home: str) -> None:
    document = json.loads(kubectl("get", TUNNEL, "-o", "json"))
    spec = document["spec"]
    same = {**tunnel_manifest(home), "spec": spec}

    assert kubectl("diff", "--server-side", "--force-conflicts", "-f", "-", document=same) == ""
    changed = {**same, "spec": {**spec, "replicas": 7}}
    said = refused(kubectl, "diff", "--server-side", "--force-conflicts", "-f", "-", document=changed)
    lines = [line for line in said.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert [line.strip() for line in lines if "generation" not in line] == [
        f"-  replicas: {spec['replicas']}",
        "+  replicas: 7",
    ]


def test_replace_takes_the_document_whole_and_never_a_status_or_an_old_version(
    kubectl: Kubectl, operator: Operator, home: str
) -> None:
    operator.wait_until_quiet(home)  # whose writes make it an old version, too
    old = json.loads(kubectl("get", TUNNEL, "-o", "json"))
    new = {**old, "spec": {**old["spec"], "replicas": 1}, "status": {"replicas": 99}}

    kubectl("replace", "-f", "-", document=new)
    wait_for_replicas(operator.cluster, home, 1)

    assert condition(operator.cluster, home, "Ready")
    assert (find(operator.cluster, home, TUNNEL) or {})["status"]["replicas"] != 99
    assert "the object has been modified" in refused(kubectl, "replace", "-f", "-", document=old)


def test_patch_by_merge_and_by_json(kubectl: Kubectl, operator: Operator, home: str) -> None:
    kubectl("patch", TUNNEL, "--type=merge", "-p", '{"spec": {"replicas": 2}}')
    wait_for_replicas(operator.cluster, home, 2)
    kubectl("patch", TUNNEL, "--type=json", "-p", '[{"op": "replace", "path": "/spec/replicas", "value": 1}]')
    wait_for_replicas(operator.cluster, home, 1)
    kubectl("patch", TUNNEL, "--type=merge", "-p", '{"spec": {"replicas": null}}')
    assert "replicas" not in (find(operator.cluster, home, TUNNEL) or {})["spec"]


def test_a_change_that_breaks_a_rule_is_refused_with_the_field(kubectl: Kubectl, home: str) -> None:
    assert "spec.replicas" in refused(kubectl, "patch", TUNNEL, "--type=merge", "-p", '{"spec": {"replicas": -1}}')
    said = refused(kubectl, "apply", "-f", "-", document=tunnel_manifest(home, replica=1))
    assert 'unknown field "spec.replica"' in said
    assert "application/strategic-merge-patch" in refused(kubectl, "patch", TUNNEL, "-p", '{"spec": {"replicas": 1}}')


def edit(cluster: Cluster, namespace: str, script: Path, commands: str) -> subprocess.CompletedProcess[str]:
    """`kubectl edit` with an editor that a script plays."""
    script.write_text(f"#!/bin/sh\n{commands}\n")
    script.chmod(0o755)
    command = [str(binary("kubectl")), "edit", TUNNEL, "-n", namespace]
    environment = {**cluster.environment(), "KUBE_EDITOR": str(script)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_edit_saves_what_the_editor_wrote(operator: Operator, home: str, tmp_path: Path) -> None:
    done = edit(operator.cluster, home, tmp_path / "editor", 'sed -i "s/^spec:/spec:\\n  replicas: 2/" "$1"')

    assert (done.returncode, done.stdout) == (0, "databasetunnel.dbtunnel.dev/orders edited\n"), done.stderr
    wait_for_replicas(operator.cluster, home, 2)


def test_edit_shows_what_is_wrong_in_the_editor_again(operator: Operator, home: str, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    script = f'cp "$1" {seen}; grep -q "^# .*was not valid" "$1" || sed -i "s/replicas: 2/replicas: -2/" "$1"'
    done = edit(operator.cluster, home, tmp_path / "editor", script)

    assert done.returncode == 1
    assert "spec.replicas" in seen.read_text().split("\napiVersion:", 1)[0], "told in the comment at the top"
    assert (find(operator.cluster, home, TUNNEL) or {})["spec"]["replicas"] == 2


def test_wait_for_a_condition_of_this_generation(kubectl: Kubectl, operator: Operator, home: str) -> None:
    """No node has the image of these tests."""
    kubectl("patch", TUNNEL, "--type=merge", "-p", '{"spec": {"replicas": 1}}')
    kubectl("wait", "--for=condition=Ready=False", TUNNEL, "--timeout=30s")
    found = find(operator.cluster, home, TUNNEL) or {}
    assert condition(operator.cluster, home, "Ready")["observedGeneration"] == found["metadata"]["generation"]

    reason = '--for=jsonpath={.status.conditions[?(@.type=="Ready")].reason}=ImagePullFailed'
    kubectl("wait", reason, TUNNEL, "--timeout=40s")
    assert "timed out waiting" in refused(kubectl, "wait", "--for=condition=Ready", TUNNEL, "--timeout=1s")


def test_get_w_shows_each_change_of_the_status(kubectl: Kubectl, operator: Operator, home: str, tmp_path: Path) -> None:
    command = [str(binary("kubectl")), "get", "databasetunnels", "-n", home, "--watch", "--no-headers"]
    watch = Process(command, tmp_path / "watch.log", env=operator.cluster.environment()).start()
    try:
        watch.wait_until(lambda: "ImagePullFailed" in watch.log_end(), "the tunnel as it is")
        kubectl("patch", TUNNEL, "--type=merge", "-p", '{"spec": {"suspend": true}}')
        watch.wait_until(lambda: "Suspended" in watch.log_end(), "the tunnel as it becomes")
    finally:
        watch.stop()
        kubectl("patch", TUNNEL, "--type=merge", "-p", '{"spec": {"suspend": null}}')
    assert watch.log_end().splitlines()[-1].split()[:2] == ["orders", "PostgreSQL"]


def test_children_that_are_left_behind_are_taken_up_by_the_next_tunnel(
    kubectl: Kubectl, operator: Operator, home: str
) -> None:
    wait_for_replicas(operator.cluster, home, 1)
    before = uids(operator.cluster, home)

    kubectl("delete", TUNNEL, "--cascade=orphan")
    kubectl("wait", "--for=delete", TUNNEL, "--timeout=20s")
    assert uids(operator.cluster, home) == before
    left = [find(operator.cluster, home, child) or {} for child in CHILDREN]
    assert [one["metadata"].get("ownerReferences") for one in left] == [None] * len(CHILDREN)

    apply(operator.cluster, tunnel_manifest(home))
    tunnel = find(operator.cluster, home, TUNNEL) or {}

    def owners() -> list[str]:
        found = [find(operator.cluster, home, child) or {} for child in CHILDREN]
        return [owner["uid"] for one in found for owner in one["metadata"].get("ownerReferences", ())]

    wait_until(lambda: owners() == [tunnel["metadata"]["uid"]] * len(CHILDREN), "the new owner", describe=owners)
    assert uids(operator.cluster, home) == before, "nothing was made anew, so no session ends"


@pytest.mark.parametrize("cascade", ["foreground", "background"])
def test_the_other_ways_to_delete_take_the_children_along(
    kubectl: Kubectl, operator: Operator, home: str, cascade: str
) -> None:
    kubectl("delete", TUNNEL, f"--cascade={cascade}")
    wait_until(lambda: not uids(operator.cluster, home), "their end", GARBAGE_SECONDS)

    apply(operator.cluster, tunnel_manifest(home))
    wait_for_children(operator.cluster, home)


def test_a_forced_replace_makes_another_tunnel_with_children_of_its_own(
    kubectl: Kubectl, operator: Operator, home: str
) -> None:
    before = uids(operator.cluster, home)

    kubectl("replace", "--force", "-f", "-", document=tunnel_manifest(home))

    wait_for_other_children(operator.cluster, home, before)
    assert condition(operator.cluster, home, "Ready")
