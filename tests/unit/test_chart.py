"""The chart's objects as the real helm renders them."""

import re
from collections.abc import Iterable, Mapping
from itertools import product

import pytest
import yaml

from dbtunnel.api.crd import crd
from dbtunnel.cli.manifests import parse_tunnel
from dbtunnel.controller.rbac import LEADER_RULES, cluster_role
from tests.support.chart import (
    CHART,
    NAMESPACE,
    Manifest,
    container,
    environment_of,
    helm,
    render,
    settings_of,
    template,
    the_one,
)

# --- what is installed ------------------------------------------------------------------------------------------


def test_helm_lint_has_no_complaint() -> None:
    done = helm("lint", "--strict", str(CHART))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


def test_the_default_installation_is_complete() -> None:
    kinds = sorted(manifest["kind"] for manifest in render())

    assert kinds == [
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Deployment",
        "Service",
        "ServiceAccount",
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"replicaCount": 0},
        {"metrics": {"enabled": False}},
        {"metrics": {"annotations": {"prometheus.io/scrape": "true"}}},
        {"serviceAccount": {"create": False, "name": "given"}},
        {"imagePullSecrets": [{"name": "registry"}]},
        {"nodeSelector": {"kubernetes.io/os": "linux"}, "tolerations": [{"operator": "Exists"}]},
        {"affinity": {"nodeAffinity": {}}, "priorityClassName": "system-cluster-critical"},
        {"podAnnotations": {"a": "b"}, "podLabels": {"team": "data"}},
        {"settings": {"namespaces": ["shop", "billing"], "egressAddresses": ["203.0.113.0/24", "2001:db8::1"]}},
        {"settings": {"workers": None}},
        {"image": {"repository": "registry.example.com:5000/dbtunnel", "tag": "1.2.3", "pullPolicy": "Always"}},
    ],
)
def test_other_values_render_to_objects_with_names_and_labels(values: Manifest) -> None:
    for manifest in render(values):
        assert manifest["metadata"]["name"]
        if manifest["kind"] != "CustomResourceDefinition":
            assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == "tunnels"


def test_rendering_twice_gives_the_same() -> None:
    assert template().stdout == template().stdout


@pytest.mark.parametrize("release", ["dbtunnel-operator", "x", "a" * 53])
def test_names_fit_for_every_release_name(release: str) -> None:
    names = [manifest["metadata"]["name"] for manifest in render(release=release)]

    assert all(len(name) <= 63 and not name.endswith("-") for name in names)


def test_an_old_cluster_is_refused() -> None:
    assert "1.30" in template(None, "--kube-version", "1.30.9").stderr
    assert template(None, "--kube-version", "1.31.0-eks-1234").returncode == 0


# --- the definition ---------------------------------------------------------------------------------------------


def test_the_definition_is_the_codes_and_stays_on_uninstall() -> None:
    definition = the_one(render(), "CustomResourceDefinition")

    assert definition["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert definition == crd()


def test_the_definition_can_be_left_out() -> None:
    kinds = {manifest["kind"] for manifest in render({"crds": {"enabled": False}})}

    assert "Deployment" in kinds
    assert "CustomResourceDefinition" not in kinds


# --- rights -----------------------------------------------------------------------------------------------------


def _granted(manifests: list[Manifest], kind: str) -> list[set[tuple[str, ...]]]:
    """The rules of each role of a kind as (group, resource, verb), one set a role."""
    return [_flat(manifest["rules"]) for manifest in manifests if manifest["kind"] == kind]


def _flat(rules: Iterable[Mapping[str, list[str]]]) -> set[tuple[str, ...]]:
    parts = [product(rule["apiGroups"], rule["resources"], rule["verbs"]) for rule in rules]
    assert all(set(rule) == {"apiGroups", "resources", "verbs"} for rule in rules)
    return {triple for part in parts for triple in part}


@pytest.mark.parametrize("namespaces", [[], ["shop", "billing"]])
def test_the_rights_are_those_that_the_operator_uses(namespaces: list[str]) -> None:
    manifests = render({"settings": {"namespaces": namespaces}})

    assert _granted(manifests, "ClusterRole") == [_flat(cluster_role("any")["rules"])]
    assert _granted(manifests, "Role") == []


def test_rights_to_the_lease_are_granted_to_operators_that_elect_a_leader() -> None:
    two = render({"replicaCount": 2})

    assert _granted(two, "Role") == [_flat(LEADER_RULES)]
    assert the_one(two, "Role")["metadata"]["namespace"] == NAMESPACE
    binding = the_one(two, "RoleBinding")
    assert binding["metadata"]["namespace"] == NAMESPACE
    assert binding["roleRef"]["name"] == the_one(two, "Role")["metadata"]["name"]


def test_every_binding_is_of_the_operators_service_account_to_a_role_of_the_release() -> None:
    manifests = render({"replicaCount": 2, "settings": {"namespaces": ["shop"]}})
    roles = {(one["kind"], one["metadata"]["name"]) for one in manifests if one["kind"] in ("Role", "ClusterRole")}
    account = the_one(manifests, "ServiceAccount")["metadata"]
    bindings = [one for one in manifests if one["kind"].endswith("Binding")]

    assert {(one["roleRef"]["kind"], one["roleRef"]["name"]) for one in bindings} == roles
    for one in bindings:
        assert one["subjects"] == [
            {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
        ]


def test_no_secret_can_be_read() -> None:
    rules = [rule for manifest in render({"replicaCount": 2}) for rule in manifest.get("rules", ())]

    assert [rule["verbs"] for rule in rules if "secrets" in rule["resources"]] == [["create"]]
    assert not [rule for rule in rules if "*" in rule["resources"] + rule["verbs"] + rule["apiGroups"]]


def test_named_namespaces_limit_the_rights_to_them() -> None:
    manifests = render({"settings": {"namespaces": ["shop", "billing"]}})
    bindings = [manifest for manifest in manifests if manifest["kind"] == "RoleBinding"]
    granted = {one["metadata"]["namespace"] for one in bindings if one["roleRef"]["kind"] == "ClusterRole"}

    assert granted == {"shop", "billing"}
    assert not [manifest for manifest in manifests if manifest["kind"] == "ClusterRoleBinding"]


# --- the pod ----------------------------------------------------------------------------------------------------


def test_the_pod_meets_the_restricted_standard() -> None:
    pod = the_one(render(), "Deployment")["spec"]["template"]["spec"]

    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "volumes" not in pod


def test_ports_are_those_on_which_the_operator_listens() -> None:
    settings = settings_of(environment_of())
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}

    assert ports == {"liveness": settings.liveness_port, "metrics": settings.metrics_port}
    assert the_one(render(), "Service")["spec"]["ports"][0]["targetPort"] == "metrics"


def test_labels_of_the_pod_never_replace_the_selectors() -> None:
    deployment = the_one(render({"podLabels": {"app.kubernetes.io/name": "other", "team": "data"}}), "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]

    assert labels == {**deployment["spec"]["selector"]["matchLabels"], "team": "data"}


def test_two_replicas_elect_a_leader_and_one_is_never_doubled() -> None:
    one, two = (the_one(render({"replicaCount": count}), "Deployment")["spec"] for count in (1, 2))

    assert one["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert two["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert {spec["strategy"]["type"] for spec in (one, two)} == {"RollingUpdate"}, "a change of the type is refused"
    assert not settings_of(environment_of({"replicaCount": 1})).leader_election
    assert settings_of(environment_of({"replicaCount": 2})).leader_election


# --- images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "forwarder", "wanted"),
    [
        ({}, {}, ("localhost/dbtunnel:0.1.0", "localhost/dbtunnel:0.1.0")),
        ({"repository": "r", "tag": "2"}, {}, ("r:2", "r:2")),
        ({"repository": "r", "tag": "2"}, {"tag": "1"}, ("r:2", "r:1")),
        ({"repository": "r"}, {"repository": "s"}, ("r:0.1.0", "s:0.1.0")),
    ],
)
def test_the_forwarders_image_is_the_operators_unless_given(
    image: Manifest, forwarder: Manifest, wanted: tuple[str, str]
) -> None:
    values = {"image": image, "forwarder": {"image": forwarder}}

    assert (container(values)["image"], settings_of(environment_of(values)).forwarder_image) == wanted


def test_the_forwarders_pull_policy_is_the_operators_unless_given() -> None:
    policies = [
        settings_of(environment_of({"image": {"pullPolicy": "Always"}, "forwarder": {"image": forwarder}}))
        for forwarder in ({}, {"pullPolicy": "Never"})
    ]

    assert [settings.forwarder_image_pull_policy for settings in policies] == ["Always", "Never"]


# --- what is said after the installation ------------------------------------------------------------------------


def _notes(values: object = None) -> str:
    done = helm("install", "tunnels", str(CHART), "--namespace", NAMESPACE, "--dry-run=client", values=values or {})
    assert done.returncode == 0, done.stderr
    return done.stdout.split("NOTES:")[1]


def test_the_notes_have_a_manifest_that_is_accepted() -> None:
    found = re.search(r"^ +apiVersion: (?:.*\n)+?(?=\n)", _notes(), re.MULTILINE)

    assert found
    manifest = yaml.safe_load("\n".join(line[5:] for line in found[0].splitlines()))
    assert parse_tunnel(manifest, "NOTES.txt", "default").metadata.name == "orders"


def test_the_notes_tell_what_is_left_open() -> None:
    assert "forwarder.image.tag is not set" in _notes()
    assert "settings.egressAddresses" in _notes()
    assert "dbtunnel crd | kubectl apply" in _notes({"crds": {"enabled": False}})

    settled = {"forwarder": {"image": {"tag": "1"}}, "settings": {"egressAddresses": ["203.0.113.7"]}}
    assert "is not set" not in _notes(settled)
    assert "egressAddresses" not in _notes(settled)
