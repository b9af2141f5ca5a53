"""A real Argo CD brings operator and tunnels from git to an empty cluster, in each documented form."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial

import pytest
import yaml

from dbtunnel.api.resource import KIND
from dbtunnel.domain.names import MANAGER
from tests.support import rights
from tests.support.argocd import NAMESPACE as ARGOCD
from tests.support.argocd import ArgoCD, Repository
from tests.support.cluster import Cluster, ExistingCluster, cluster_of, start_cluster
from tests.support.images import OPERATOR
from tests.support.installation import CRD, provide_image
from tests.support.installation import NAMESPACE as OPERATOR_NAMESPACE
from tests.support.processes import ROOT, wait_until
from tests.support.teams_repository import FORMS, HELM_ANNOTATIONS, SHOP, Shop, application, documented
from tests.support.tunnels import CHILDREN, Manifest, apply, condition, find, patch

pytestmark = pytest.mark.skipif(
    isinstance(cluster_of("argocd"), ExistingCluster), reason="it removes the definition, and every tunnel with it"
)

TRACKING = dict(zip(FORMS, ("annotation", "label", "annotation+label"), strict=True))
"""How Argo CD tracks what each Application brought."""

_MARKS = {"label": "app.kubernetes.io/instance", "annotation": "argocd.argoproj.io/tracking-id"}
"""By which Argo CD knows what is an Application's."""

WORKLOADS = {form: f"{'chart' if form == 'chart' else 'dbtunnel'}-dbtunnel-operator" for form in FORMS}
"""Names of the operator's Deployment and Lease: Argo CD calls a release as the Application."""

_OTHERS = ("helm.sh/chart", *HELM_ANNOTATIONS)


@dataclass(frozen=True)
class Team:
    """A team with a cluster, an Argo CD and a repository."""

    argocd: ArgoCD
    shop: Shop
    repository: Repository
    image: str

    def waiting(self, name: str) -> str:
        """What the running sync says that it waits for."""
        operation = self.argocd.application(name).get("status", {}).get("operationState", {})
        return str(operation.get("message", "")) if operation.get("phase") == "Running" else ""


@dataclass(frozen=True)
class Brought:
    """An Application in one form, whose sync met a bastion that was down."""

    team: Team
    form: str
    waited_for: str
    without_bastion: frozenset[str]
    """Which of the objects of the waves were there meanwhile."""


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """On a cluster of its own, since it is to have nothing of ours."""
    directory = tmp_path_factory.mktemp("team")
    cluster = start_cluster(f"argocd{os.environ.get('PYTEST_XDIST_WORKER', '')}")
    argocd = ArgoCD(cluster, directory / "argocd", documented("ConfigMap")["argocd-cm"]["data"])
    shop = Shop.start(directory, cluster.host_address)
    image = provide_image(cluster, OPERATOR)
    apply(cluster, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SHOP}})
    yield Team(argocd.start(), shop, Repository(directory / "repository"), image)
    argocd.stop()
    shop.stop()
    rights.keep(cluster)
    cluster.stop()


@pytest.fixture(scope="module")
def brought(team: Team, request: pytest.FixtureRequest) -> Iterator[Brought]:
    """The Application named by the parameter, synced; gone afterwards, with the definition."""
    form, argocd = request.param, team.argocd
    team.shop.bastion.stop()
    argocd.change(application_resourceTrackingMethod=TRACKING[form])
    team.repository.commit(team.shop.files(form, team.image))
    apply(argocd.cluster, application(form, team.repository.url, team.image))
    try:
        wait_until(partial(_forwards_nothing, team), "a forwarder without a bastion", 90, describe=argocd.told(form))
        waited_for = team.waiting(form)
        there = [one for one in ("databasetunnel/orders", "configmap/application") if _is_there(team, one)]
        team.shop.bastion.start()
        argocd.wait_for(form, "Healthy")
        yield Brought(team, form, waited_for, frozenset(there))
    finally:
        _clear(team, form)


def _forwards_nothing(team: Team) -> bool:
    return bool(condition(team.argocd.cluster, SHOP, "WorkloadReady").get("status") == "True")


def _names(cluster: Cluster, kind: str) -> list[str]:
    return [one["metadata"]["name"] for one in cluster.get(kind, "-n", SHOP)["items"]]


def _is_there(team: Team, resource: str) -> bool:
    return find(team.argocd.cluster, SHOP, resource) is not None


def _clear(team: Team, form: str) -> None:
    """Removes an Application with what it brought, and what it leaves."""
    kubectl = team.argocd.cluster.kubectl
    kubectl("delete", "applications.argoproj.io", form, "-n", ARGOCD, "--ignore-not-found", timeout_seconds=90)
    kubectl("delete", "crd", CRD, "--ignore-not-found", timeout_seconds=60)


every_form = pytest.mark.parametrize("brought", FORMS, indirect=True)
one_form = pytest.mark.parametrize("brought", FORMS[:1], indirect=True)


@every_form
def test_each_wave_waits_until_the_one_before_is_healthy(brought: Brought) -> None:
    """Secret, operator, tunnel, application."""
    assert "DatabaseTunnel/orders" in brought.waited_for
    assert brought.without_bastion == {"databasetunnel/orders"}

    cluster, made = brought.team.argocd.cluster, _creations(brought.team.argocd.cluster)
    workload = WORKLOADS[brought.form]
    operator = cluster.get("deployment", workload, "-n", OPERATOR_NAMESPACE)["status"]["conditions"]
    available = _since(next(one for one in operator if one["type"] == "Available"))
    ready = _since(condition(cluster, SHOP, "Ready"))
    (secret,) = (name for name in _names(cluster, "secrets") if name.startswith("shop-ssh"))
    assert made[f"secrets/{secret}"] < made[f"deployments/{workload}"] < available
    assert available <= made["databasetunnels/orders"] < ready
    assert ready <= made["configmaps/application"]


def _creations(cluster: Cluster) -> dict[str, float]:
    """When each object of the shop's and of the operator's namespace was last created, by `resource/name`."""
    made = (one for one in cluster.audit_events() if one["responseStatus"]["code"] == 201)
    return {
        f"{about['resource']}/{about['name']}": datetime.fromisoformat(one["requestReceivedTimestamp"]).timestamp()
        for one in made
        if (about := one["objectRef"]).get("namespace") in (SHOP, OPERATOR_NAMESPACE) and "name" in about
    }


def _since(of: Manifest) -> float:
    """When a condition became what it is, in whole seconds."""
    return datetime.fromisoformat(of["lastTransitionTime"]).timestamp()


@every_form
def test_children_are_the_tunnels_and_not_the_applications(brought: Brought) -> None:
    cluster = brought.team.argocd.cluster
    tunnel = find(cluster, SHOP, "databasetunnel/orders")
    assert tunnel
    marks = {_MARKS[word] for word in TRACKING[brought.form].split("+")}
    assert {*tunnel["metadata"]["labels"], *tunnel["metadata"]["annotations"]} >= {*marks, *_OTHERS}
    for child in (find(cluster, SHOP, name) for name in CHILDREN):
        assert child
        labels, annotations = child["metadata"]["labels"], child["metadata"]["annotations"]
        assert [one["uid"] for one in child["metadata"]["ownerReferences"]] == [tunnel["metadata"]["uid"]]
        assert not {*labels, *annotations}.intersection({*_MARKS.values(), *_OTHERS})
        assert labels["app.kubernetes.io/managed-by"] == MANAGER
    tracked = brought.team.argocd.application(brought.form)["status"]["resources"]
    assert {one["kind"] for one in tracked if one.get("namespace") == SHOP} == {"Secret", "DatabaseTunnel", "ConfigMap"}


def _does_not_drift(argocd: ArgoCD, name: str) -> None:
    """By Argo CD's three-way comparison, by its dry run on the API server, and by syncs that nobody asked for."""
    syncs = len(argocd.application(name)["status"]["history"])
    for server_side in ("false", "true"):
        options = {"argocd.argoproj.io/compare-options": f"ServerSideDiff={server_side}"}
        patch(argocd.cluster, ARGOCD, f"application.argoproj.io/{name}", {"metadata": {"annotations": options}})
        argocd.refresh(name)
        status = argocd.application(name)["status"]
        assert [one for one in status["resources"] if one["status"] != "Synced"] == [], server_side
        assert len(status["history"]) == syncs


@every_form
def test_what_was_synced_does_not_drift(brought: Brought) -> None:
    _does_not_drift(brought.team.argocd, brought.form)


@pytest.fixture(scope="module")
def outage(brought: Brought) -> Iterator[None]:
    """The bastion of the tunnel `reports` is away."""
    brought.team.shop.spare.stop()
    yield
    brought.team.shop.spare.restart()


@one_form
def test_a_bastion_that_goes_shows_in_the_health(brought: Brought, outage: None) -> None:
    brought.team.argocd.wait_for(brought.form, "Progressing", timeout_seconds=30)


@one_form
def test_an_edited_child_is_repaired_without_a_fight(brought: Brought, outage: None) -> None:
    argocd, child = brought.team.argocd, "deployment/orders-tunnel"
    before = find(argocd.cluster, SHOP, child)
    assert before
    with argocd.states(brought.form) as states:
        patch(argocd.cluster, SHOP, child, {"spec": {"replicas": 3, "paused": True}})
        after = wait_until(partial(_has_spec, argocd.cluster, child, before["spec"]), "the repair")
        argocd.refresh(brought.form)
        assert len(states()) == 1, "it has seen nothing to do"
    again = find(argocd.cluster, SHOP, child)
    assert again
    assert after
    generations = [one["metadata"]["generation"] for one in (before, after, again)]
    assert generations == [generations[0], generations[0] + 2, generations[0] + 2]


def _has_spec(cluster: Cluster, resource: str, spec: Manifest) -> Manifest | None:
    found = find(cluster, SHOP, resource)
    return found if found and found["spec"] == spec else None


@one_form
def test_an_edited_tunnel_is_taken_back_to_what_git_has(brought: Brought, outage: None) -> None:
    argocd, tunnel = brought.team.argocd, "databasetunnel/orders"
    before = find(argocd.cluster, SHOP, tunnel)
    assert before
    patch(argocd.cluster, SHOP, tunnel, {"spec": {"database": {"host": "elsewhere.internal"}}})
    restored = partial(_has_spec, argocd.cluster, tunnel, before["spec"])
    wait_until(restored, "self-heal", 40, describe=argocd.told(brought.form))


@pytest.fixture(scope="module")
def examples(brought: Brought) -> Iterator[list[str]]:
    """Names of the tunnels of `examples/`, in an Application of their own, on a cluster without what they lead to."""
    team, argocd, documents = brought.team, brought.team.argocd, _examples()
    found = application(FORMS[0], team.repository.url, team.image)
    found["metadata"]["name"], found["spec"]["source"]["path"] = "examples", "examples"
    team.repository.commit(team.shop.files(brought.form, team.image) | documents)
    apply(argocd.cluster, found)
    tunnels = [one["metadata"]["name"] for one in map(yaml.safe_load, documents.values()) if one["kind"] == KIND]
    for name in tunnels:
        wait_until(partial(_has_failed, argocd.cluster, "demo", name), f"the status of {name}", 60)
    argocd.wait_for("examples", "Progressing")
    yield tunnels
    gone = ("applications.argoproj.io", "examples", "-n", ARGOCD, "--wait=false", "--ignore-not-found")
    argocd.cluster.kubectl("delete", *gone)


def _examples() -> dict[str, str]:
    return {f"examples/{path.name}": path.read_text() for path in (ROOT / "examples").glob("*.yaml")}


@one_form
def test_no_example_drifts(brought: Brought, outage: None, examples: list[str]) -> None:
    _does_not_drift(brought.team.argocd, "examples")
    for name in examples:
        _kubectl_sees_no_difference(brought.team.argocd.cluster, "demo", name)


@one_form
def test_a_tunnel_that_leaves_git_goes_and_its_generated_key_stays(
    brought: Brought, outage: None, examples: list[str]
) -> None:
    team, cluster = brought.team, brought.team.argocd.cluster
    assert find(cluster, "demo", "secret/reports-ssh")
    documents = _examples()
    del documents["examples/reports.yaml"]
    team.repository.commit(team.shop.files(brought.form, team.image) | documents)
    team.argocd.refresh("examples")

    for resource in ("databasetunnel/reports", "service/reports", "deployment/reports-tunnel"):
        wait_until(lambda resource=resource: not find(cluster, "demo", resource), f"{resource} to go", 40)  # type: ignore[misc]
    assert find(cluster, "demo", "secret/reports-ssh")


@one_form
def test_an_application_without_the_finalizer_leaves_everything(
    brought: Brought, outage: None, examples: list[str]
) -> None:
    cluster = brought.team.argocd.cluster

    def tunnels() -> list[Manifest]:
        return [one["metadata"] for one in cluster.get("databasetunnels", "-n", "demo")["items"]]

    before = [one["uid"] for one in tunnels()]
    patch(cluster, ARGOCD, "application.argoproj.io/examples", {"metadata": {"finalizers": None}})
    cluster.kubectl("delete", "applications.argoproj.io", "examples", "-n", ARGOCD, timeout_seconds=30)

    cluster.kubectl("delete", "service", "orders", "-n", "demo")
    wait_until(lambda: find(cluster, "demo", "service/orders"), "the operator's repair")
    assert [one["uid"] for one in tunnels() if "deletionTimestamp" not in one] == before
    assert len(before) == len(examples) - 1, "all but the one that has left git"


@one_form
def test_a_definition_that_leaves_git_stays(brought: Brought, outage: None) -> None:
    team, files = brought.team, brought.team.shop.files(brought.form, brought.team.image)
    operator = [one for one in yaml.safe_load_all(files["manifests/operator.yaml"]) if one]
    without = [one for one in operator if one["kind"] != "CustomResourceDefinition"]
    assert len(without) == len(operator) - 1
    team.repository.commit(files | _examples() | {"manifests/operator.yaml": yaml.safe_dump_all(without)})
    team.argocd.refresh(brought.form)

    tracked = team.argocd.application(brought.form)["status"]["resources"]
    assert {one["kind"] for one in tracked if one["status"] == "Synced"} >= {"Deployment", KIND}
    assert "CustomResourceDefinition" not in {one["kind"] for one in tracked}
    team.argocd.cluster.get("crd", CRD)


def _has_failed(cluster: Cluster, namespace: str, name: str) -> bool:
    return bool(condition(cluster, namespace, "Ready", name).get("status") == "False")


def _kubectl_sees_no_difference(cluster: Cluster, namespace: str, name: str) -> None:
    """Between the tunnel and what was applied, in either way of kubectl; it fails where there is one."""
    applied = cluster.kubectl("apply", "view-last-applied", "databasetunnel", name, "-n", namespace)
    assert yaml.safe_load(applied)["spec"]
    for way in ((), ("--server-side", "--force-conflicts", "--field-manager=argocd-controller")):
        assert cluster.kubectl("diff", *way, "-f", "-", input=applied) == ""


@one_form
def test_after_its_grace_an_outage_is_degraded_until_the_bastion_is_back(brought: Brought, outage: None) -> None:
    brought.team.argocd.wait_for(brought.form, "Degraded")
    brought.team.shop.spare.start()
    brought.team.argocd.wait_for(brought.form, "Healthy")


@every_form
def test_a_deleted_application_leaves_the_definition_and_the_namespaces(brought: Brought) -> None:
    cluster, tracked = brought.team.argocd.cluster, brought.team.argocd.application(brought.form)["status"]["resources"]
    brought_in = {(one["kind"], one.get("namespace"), one["name"]) for one in tracked}
    kinds = {f"{one['kind']}.{one['version']}.{one.get('group', '')}" for one in tracked}
    assert {"Secret", "ServiceAccount", "ClusterRole", "Role", "Deployment", KIND, "ConfigMap"} <= {
        kind for kind, *_ in brought_in
    }
    cluster.kubectl("delete", "applications.argoproj.io", brought.form, "-n", ARGOCD, timeout_seconds=90)

    there = [(one["kind"], one["metadata"]) for one in cluster.get(",".join(kinds), "--all-namespaces")["items"]]
    left = brought_in.intersection((kind, one.get("namespace"), one["name"]) for kind, one in there)
    assert left <= {("CustomResourceDefinition", None, CRD)}
    children = ("services,deployments,networkpolicies", "-n", SHOP)
    wait_until(lambda: cluster.get(*children)["items"] == [], "the end of the children", 40)
    for kind, name in (("crd", CRD), ("namespace", SHOP), ("namespace", OPERATOR_NAMESPACE)):
        assert "deletionTimestamp" not in cluster.get(kind, name)["metadata"]
    leases = {one["metadata"]["name"] for one in cluster.get("leases", "-n", OPERATOR_NAMESPACE)["items"]}
    assert WORKLOADS[brought.form] in leases
