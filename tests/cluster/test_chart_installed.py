"""The chart on a real API server: each choice of values is accepted, and its rights reach as far as they should."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from dbtunnel.api.resource import GROUP, PLURAL
from dbtunnel.controller.rbac import TUNNEL_RULES, leader_rules
from tests.support.chart import Manifest, template
from tests.support.chart_matrix import WATCHED, matrix
from tests.support.cluster import Cluster, ClusterError
from tests.support.images import OPERATOR
from tests.support.installation import helm, provide_image
from tests.support.operator import installed_operators_rest
from tests.support.processes import wait_until
from tests.support.rights import Right, granted
from tests.support.tunnels import apply, find, make_namespace, remove_namespace, tunnel_manifest

Question = tuple[Right, str]
"""A right, and a namespace; empty: everywhere."""


def allowed(cluster: Cluster, user: str, questions: Iterable[Question], name: str = "") -> set[Question]:
    """What a user may do, to objects of that name or to all, by the API server's own judgement."""
    asked = list(questions)
    reviews = [_review(user, right, namespace, name) for right, namespace in asked]
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": reviews})
    answer = 'jsonpath={.status.allowed}{"\\n"}'
    answers = cluster.kubectl("create", "-f", "-", "-o", answer, input=document).split()
    return {question for question, said in zip(asked, answers, strict=True) if said == "true"}


def _review(user: str, right: Right, namespace: str, name: str) -> Manifest:
    resource, _, subresource = right.resource.partition("/")
    about = {"group": right.group, "resource": resource, "subresource": subresource, "verb": right.verb, "name": name}
    spec = {"user": user, "resourceAttributes": {**about, "namespace": namespace}}
    return {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}


# --- what is rendered -------------------------------------------------------------------------------------------


def renderings() -> Iterator[str]:
    """The documents of every row of the matrix, without their comments."""
    for values in matrix():
        done = template(values)
        assert done.returncode == 0, done.stderr
        for document in done.stdout.split("\n---\n"):
            lines = [line for line in document.splitlines() if not line.startswith(("#", "---"))]
            if lines:
                yield "\n".join(lines)


@pytest.mark.usefixtures("prometheus_operator_kinds")
def test_every_choice_of_values_gives_objects_that_the_api_server_takes(crd_installed: Cluster) -> None:
    documents = list(dict.fromkeys(renderings()))
    for namespace in WATCHED:
        crd_installed.kubectl("create", "namespace", namespace)
    try:
        strictly = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")
        printed = crd_installed.kubectl(*strictly, input="\n---\n".join(documents)).splitlines()
    finally:
        crd_installed.kubectl("delete", "namespace", *WATCHED, "--wait=false")

    kinds = Counter(re.split(r"[./]", line)[0] for line in printed)
    print(f"\nobjects shown to the API server: {len(documents)}, of {len(kinds)} kinds: {dict(kinds)}")
    assert len(printed) == len(documents) > 50
    assert all(line.endswith("(server dry run)") for line in printed)
    assert kinds.keys() >= {"servicemonitor", "podmonitor", "prometheusrule", "validatingadmissionpolicy"}


# --- rights -----------------------------------------------------------------------------------------------------


@pytest.fixture
def served(crd_installed: Cluster, namespace: str) -> Iterator[list[str]]:
    """Two namespaces that an operator in `namespace` serves; Pod Security `restricted` is enforced in all."""
    named = [make_namespace(crd_installed, f"{namespace}-{number}") for number in (1, 2)]
    repository, _, tag = provide_image(crd_installed, OPERATOR).rpartition(":")
    values = {
        "settings.namespaces": f"{{{','.join(named)}}}",
        "settings.forwarderPackets": "asyncssh",
        "crds.enabled": "false",
        "rbac.readers": "nobody",
        "rbac.writers": "nobody",
        "image.repository": repository,
        "image.tag": tag,
        "replicaCount": "2",
        "networkPolicy.enabled": "true",
    }
    flags = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
    with installed_operators_rest(crd_installed):
        release = ("scoped", "--namespace", namespace)
        helm(crd_installed, "install", *release, "charts/dbtunnel-operator", *flags, "--wait", "--timeout=60s")
        yield named
        helm(crd_installed, "uninstall", *release)
    crd_installed.kubectl("delete", "namespace", *named, "--wait=false")


def test_an_operator_of_named_namespaces_serves_them_and_has_no_right_elsewhere(
    crd_installed: Cluster, namespace: str, served: list[str]
) -> None:
    cluster, elsewhere = crd_installed, make_namespace(crd_installed, "elsewhere")
    account = "scoped-dbtunnel-operator"
    apply(cluster, *(tunnel_manifest(one) for one in (*served, elsewhere)))
    for one in served:
        wait_until(lambda one=one: find(cluster, one, "deployment/orders-tunnel"), "the Deployment")  # type: ignore[misc]
        (forwarder,) = cluster.get("deployment", "orders-tunnel", "-n", one)["spec"]["template"]["spec"]["containers"]
        assert forwarder["args"] == ["forward", "--packets=asyncssh"]
        pods = ("get", "pods", "-n", one, "-l", "dbtunnel.dev/tunnel=orders", "-o", "name")
        wait_until(lambda pods=pods: cluster.kubectl(*pods), "a pod")  # type: ignore[misc]
    assert find(cluster, elsewhere, "service/orders") is None

    user = f"system:serviceaccount:{namespace}:{account}"
    places = (*served, namespace, elsewhere, "")
    theirs, lease = granted(TUNNEL_RULES), granted(leader_rules(account))
    asked = [(right, place) for right in theirs | lease for place in places]
    of_all = {(right, one) for right in theirs for one in served}
    assert allowed(cluster, user, asked, account) == of_all | {(right, namespace) for right in lease}
    created = {(right, namespace) for right in lease if right.verb == "create"}
    assert allowed(cluster, user, asked, "other") == of_all | created, "of Leases, its own alone"
    bindings = cluster.get("clusterrolebindings")["items"]
    assert not [one for one in bindings for subject in one.get("subjects", ()) if subject["name"] == account]
    logs = cluster.kubectl("logs", f"deployment/{account}", "-n", namespace, "--all-pods", "--prefix=false")
    assert '"level": "info"' in logs
    assert '"level": "error"' not in logs
    remove_namespace(cluster, elsewhere)


def test_people_may_do_what_the_installer_chose(crd_installed: Cluster, namespace: str) -> None:
    """The chart as it is installed by default: who views reads, who edits writes."""
    for role in ("view", "edit", "admin"):
        binding = ("create", "rolebinding", role, "-n", namespace, f"--clusterrole={role}", f"--user={role}-user")
        crd_installed.kubectl(*binding)
    verbs = ("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection")
    rights = {verb: (Right(GROUP, PLURAL, verb), namespace) for verb in verbs}
    status = (Right(GROUP, f"{PLURAL}/status", "patch"), namespace)

    def may(role: str) -> set[Question]:
        return allowed(crd_installed, f"{role}-user", [*rights.values(), status])

    wait_until(lambda: may("admin") == set(rights.values()), "Kubernetes to have added the rules to its roles")
    assert may("edit") == set(rights.values())
    assert may("view") == {rights[verb] for verb in ("get", "list", "watch")}


def test_a_bad_value_fails_the_installation(crd_installed: Cluster, namespace: str) -> None:
    bad = ("--set", "settings.defaultReplicas=17", "--set", "image.digest=latest")

    with pytest.raises(ClusterError) as failure:
        helm(crd_installed, "install", "bad", "charts/dbtunnel-operator", "--namespace", namespace, *bad)

    for place in ("at '/settings/defaultReplicas'", "at '/image/digest'"):
        assert place in str(failure.value)
    assert crd_installed.get("serviceaccounts", "-n", namespace, "-l", "app.kubernetes.io/instance=bad")["items"] == []
