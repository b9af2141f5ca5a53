"""Flux's own controllers bring `examples/flux` from a registry and a git repository."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import yaml

from dbtunnel import __version__
from dbtunnel.domain.names import MANAGER
from tests.support.argocd import Repository
from tests.support.bastion import Bastion
from tests.support.chart import CHART
from tests.support.cluster import Cluster, ClusterError
from tests.support.flux import Flux, git_server
from tests.support.images import OPERATOR
from tests.support.installation import METRICS_SERVICE, RELEASE, helm, image_reference
from tests.support.installation import NAMESPACE as OPERATOR_NAMESPACE
from tests.support.private_network import PrivateNetwork, config_map
from tests.support.processes import ROOT, wait_until
from tests.support.registry import registry
from tests.support.release import push
from tests.support.tunnels import (
    CHILDREN,
    Manifest,
    condition,
    example,
    find,
    make_namespace,
    patch,
    remove_namespace,
    wait_for_ready,
    wait_for_reason,
)

EXAMPLES = ROOT / "examples" / "flux"
ORDERS = "databasetunnel/orders"
STRICT = ("apply", "--dry-run=server", "--validate=strict")
TUNNELS = "kustomization/shop-tunnels"
HELM_RELEASE = "helmrelease/dbtunnel"
DEPLOYMENT = f"deployment/{RELEASE}-dbtunnel-operator"


@dataclass(frozen=True)
class Team:
    """A team whose cluster has Flux, and what it keeps in git."""

    flux: Flux
    repository: Repository
    namespace: str
    bastion: Bastion
    url: str
    """Of its repository."""
    chart: str
    image: str
    values: Manifest
    """Of the HelmRelease, beside the images."""

    def tunnel(self, name: str, **spec: object) -> Manifest:
        """The example `orders` under a name, with the bastion's host keys as they are now."""
        manifest = example(self.namespace, "orders")
        manifest["metadata"]["name"] = name
        pins = {"fingerprints": list(self.bastion.fingerprints.values())}
        manifest["spec"] |= spec
        manifest["spec"]["tunnel"] |= {"host": self.bastion.host, "port": self.bastion.port, "hostKey": pins}
        return manifest

    def commit(self, *tunnels: Manifest) -> str:
        """Makes these the tunnels of the repository, and has Flux fetch it. Returns the commit."""
        used_by = config_map(self.namespace, "application", {"DATABASE_HOST": f"orders.{self.namespace}.svc"})
        files = {"tunnels/tunnels.yaml": tunnels, "applications/application.yaml": [used_by]}
        texts = {name: yaml.safe_dump_all(documents) for name, documents in files.items()}
        commit = self.repository.commit({**texts, "operator/operator.yaml": yaml.safe_dump_all(self._operator())})
        self.flux.reconcile("gitrepository/shop")
        return commit

    def examples(self) -> str:
        """What a person applies once: the repository, and the Kustomizations that it has."""
        documents = list(yaml.safe_load_all((EXAMPLES / "tunnels.yaml").read_text()))
        documents[0]["spec"]["url"] = self.url
        return yaml.safe_dump_all(documents)

    def _operator(self) -> Sequence[Manifest]:
        source, release = yaml.safe_load_all((EXAMPLES / "operator.yaml").read_text())
        source["spec"] |= {"url": self.chart, "insecure": True}
        repository, _, tag = self.image.rpartition(":")
        release["spec"]["values"] = {
            "image": {"repository": repository, "tag": tag},
            "forwarder": {"image": {"tag": tag}},
            **self.values,
        }
        return source, release

    def find(self, resource: str) -> Manifest | None:
        """An object of the team's namespace."""
        return find(self.flux.cluster, self.namespace, resource)


@pytest.fixture(scope="module")
def team(
    installed: Cluster, private_network: PrivateNetwork, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Team]:
    """The operator is there already; what Flux's HelmRelease brings is the same."""
    directory = tmp_path_factory.mktemp("flux")
    namespace = make_namespace(installed, "flux")
    private_network.publish(installed, namespace)
    flux, repository = Flux(installed, directory / "flux"), Repository(directory / "shop")
    (directory / "registry").mkdir()
    with (
        registry(directory / "registry") as address,
        git_server(repository) as url,
        private_network.another_bastion(directory / "bastion", *private_network.authorized) as bastion,
    ):
        helm(installed, "package", str(CHART), "--destination", str(directory))
        charts = f"oci://{address}/charts"
        push(directory / f"{CHART.name}-{__version__}.tgz", charts, "--plain-http")
        image = image_reference(OPERATOR)
        team = Team(flux, repository, namespace, bastion, url, f"{charts}/{CHART.name}", image, {})
        repository.commit({"README.md": "nothing yet"})
        try:
            flux.start()
            installed.kubectl("apply", "--validate=strict", "-f", "-", input=team.examples())
            yield team
        finally:
            flux.stop()
            remove_namespace(installed, namespace)


def test_fluxs_definitions_admit_the_examples(team: Team) -> None:
    said = team.flux.cluster.kubectl(*STRICT, "-f", EXAMPLES).splitlines()
    assert len(said) == 6
    assert all(line.endswith(" (server dry run)") for line in said)


def test_fluxs_definitions_would_refuse_a_typing_error(team: Team) -> None:
    wrong = (EXAMPLES / "tunnels.yaml").read_text().replace("healthCheckExprs:", "healthCheckExpr:")
    with pytest.raises(ClusterError, match=r'unknown field "spec\.healthCheckExpr"'):
        team.flux.cluster.kubectl(*STRICT, "-f", "-", input=wrong)


@dataclass(frozen=True)
class Brought(Team):
    """Once all that the examples lead to is there."""

    deployment: Manifest
    """The operator's, before Flux had anything to do with it."""
    revision: int
    """Of the release, as helm's command line had made it."""


@pytest.fixture(scope="module")
def brought(team: Team) -> Brought:
    """Flux takes over the release that helm's command line has made."""
    cluster = team.flux.cluster
    deployment = find(cluster, OPERATOR_NAMESPACE, DEPLOYMENT)
    assert deployment
    brought = Brought(**vars(team), deployment=deployment, revision=revision(cluster))
    team.commit(team.tunnel("orders"), team.tunnel("paused", suspend=True))
    team.flux.wait_for(HELM_RELEASE, "True", "Succeeded")
    team.flux.wait_for("kustomization/shop", "True")
    return brought


def revision(cluster: Cluster) -> int:
    """The latest of the release."""
    history = helm(cluster, "history", RELEASE, "--namespace", OPERATOR_NAMESPACE, "--output", "json")
    return max(int(one["revision"]) for one in json.loads(history))


def test_a_release_made_by_hand_is_taken_over_and_no_operator_restarts(brought: Brought) -> None:
    cluster = brought.flux.cluster
    assert revision(cluster) == brought.revision + 1
    after = find(cluster, OPERATOR_NAMESPACE, DEPLOYMENT)
    assert after
    for field in ("uid", "generation"):
        assert after["metadata"][field] == brought.deployment["metadata"][field]


def test_a_release_in_which_nobody_edited_anything_is_not_written(brought: Brought) -> None:
    before = brought_objects(brought.flux.cluster)
    assert len(before) >= len(("CustomResourceDefinition", "Deployment", "Service", "ServiceAccount", "ClusterRole"))

    brought.flux.reconcile(HELM_RELEASE)

    brought.flux.wait_for(HELM_RELEASE, "True")
    assert brought_objects(brought.flux.cluster) == before
    assert revision(brought.flux.cluster) == brought.revision + 1


def brought_objects(cluster: Cluster) -> dict[str, Manifest]:
    """The release's, each with its resourceVersion; where others write a status, without both."""
    manifest = helm(cluster, "get", "manifest", RELEASE, "--namespace", OPERATOR_NAMESPACE)
    listed = cluster.kubectl("get", "-f", "-", "-n", OPERATOR_NAMESPACE, "-o", "json", input=manifest)
    found = {f"{one['kind']}/{one['metadata']['name']}": one for one in json.loads(listed)["items"]}
    for one in found.values():
        if one.pop("status", None) is not None:
            del one["metadata"]["resourceVersion"]
    return found


def test_a_right_that_somebody_gives_the_operator_is_taken_back(brought: Brought) -> None:
    cluster, role = brought.flux.cluster, ("clusterrole", f"{RELEASE}-dbtunnel-operator")
    before = cluster.get(*role)
    more = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
    cluster.kubectl("patch", *role, "--type=merge", "-p", json.dumps({"rules": [*before["rules"], more]}))

    brought.flux.reconcile(HELM_RELEASE)

    wait_until(lambda: cluster.get(*role)["rules"] == before["rules"], "the rights as they were", 30)
    brought.flux.wait_for(HELM_RELEASE, "True")
    assert revision(cluster) == brought.revision + 1, "mended without another revision"


def test_each_kustomization_waits_until_the_one_before_is_healthy(brought: Team) -> None:
    cluster, namespace = brought.flux.cluster, brought.namespace
    tunnel, application = brought.find(ORDERS), brought.find("configmap/application")
    assert tunnel
    assert application
    release = brought.flux.ready(HELM_RELEASE)["object"]
    assert tunnel["metadata"]["creationTimestamp"] >= release["status"]["history"][0]["lastDeployed"]
    ready = condition(cluster, namespace, "Ready")
    assert ready["status"] == "True"
    assert application["metadata"]["creationTimestamp"] >= ready["lastTransitionTime"]
    # by the example's expressions one that is suspended holds up nobody
    assert condition(cluster, namespace, "Ready", "paused")["reason"] == "Suspended"
    assert brought.flux.ready(TUNNELS)["status"] == "True"


def test_children_are_the_tunnels_and_not_fluxs(brought: Team) -> None:
    tunnel = brought.find(ORDERS)
    assert tunnel
    assert any("fluxcd.io" in label for label in tunnel["metadata"]["labels"])
    for child in map(brought.find, CHILDREN):
        assert child
        assert [one["uid"] for one in child["metadata"]["ownerReferences"]] == [tunnel["metadata"]["uid"]]
        assert child["metadata"]["labels"]["app.kubernetes.io/managed-by"] == MANAGER
        assert "fluxcd.io" not in str({**child["metadata"]["labels"], **child["metadata"].get("annotations", {})})
    inventory = brought.flux.ready(TUNNELS)["object"]["status"]["inventory"]["entries"]
    kinds = {one["id"].rpartition("_")[2] for one in inventory}
    assert kinds == {"DatabaseTunnel"}


def test_the_examples_do_not_drift(brought: Team) -> None:
    """By kubectl's three-way comparison, and by the API server's with the fields of Flux's controller."""
    for way in ((), ("--server-side", "--force-conflicts", "--field-manager=kustomize-controller")):
        assert brought.flux.cluster.kubectl("diff", *way, "-f", "-", input=brought.examples()) == ""


def test_what_was_brought_does_not_drift(brought: Team) -> None:
    before = brought.find(ORDERS)

    brought.flux.reconcile(TUNNELS)

    assert brought.find(ORDERS) == before, "Flux has written nothing, and neither has the operator"


def test_an_edited_tunnel_is_taken_back_to_what_git_has(brought: Team) -> None:
    cluster, before = brought.flux.cluster, brought.find(ORDERS)
    assert before
    edit = {"replicas": 2, "database": {"host": "elsewhere.internal"}}
    patch(cluster, brought.namespace, ORDERS, {"spec": edit})

    assert brought.flux.reconcile(TUNNELS)["status"] == "True"

    after = brought.find(ORDERS)
    assert after
    assert after["spec"] == before["spec"]


def test_a_tunnel_that_fails_makes_its_kustomization_fail_until_git_has_the_remedy(brought: Team) -> None:
    cluster, namespace = brought.flux.cluster, brought.namespace
    brought.bastion.replace_host_keys()
    brought.bastion.kill_sessions()
    wait_for_reason(cluster, namespace, "orders", "HostKeyMismatch")

    failed = brought.flux.reconcile(TUNNELS)
    assert (failed["status"], failed["reason"]) == ("False", "HealthCheckFailed")
    assert f"DatabaseTunnel/{namespace}/orders status: 'Failed'" in failed["message"]

    remedy = brought.commit(brought.tunnel("orders"), brought.tunnel("paused", suspend=True))
    brought.flux.wait_for(TUNNELS, "True", revision=remedy)
    wait_for_ready(cluster, namespace, "orders", 1)


def test_a_tunnel_that_leaves_git_goes_with_its_children(brought: Team) -> None:
    brought.flux.wait_for(TUNNELS, "True", revision=brought.commit(brought.tunnel("paused", suspend=True)))

    for resource in (ORDERS, *CHILDREN):
        wait_until(lambda resource=resource: not brought.find(resource), f"the end of {resource}", 40)  # type: ignore[misc]
    assert brought.find("secret/orders-ssh"), "Flux did not bring it"
    assert brought.find("databasetunnel/paused")


def test_a_value_that_git_changes_arrives(brought: Brought) -> None:
    cluster, before = brought.flux.cluster, revision(brought.flux.cluster)
    service, mark = f"service/{METRICS_SERVICE}", {"example.com/team": "data"}
    brought.values["metrics"] = {"annotations": mark}

    brought.commit(brought.tunnel("paused", suspend=True))

    def annotations() -> Manifest:
        found: Manifest = (find(cluster, OPERATOR_NAMESPACE, service) or {})["metadata"].get("annotations", {})
        return found

    wait_until(lambda: annotations().items() >= mark.items(), "the annotation", 60, describe=annotations)
    brought.flux.wait_for(HELM_RELEASE, "True", "Succeeded")
    assert revision(cluster) == before + 1
    after = find(cluster, OPERATOR_NAMESPACE, DEPLOYMENT)
    assert after
    assert after["metadata"]["generation"] == brought.deployment["metadata"]["generation"], "no operator restarts"
