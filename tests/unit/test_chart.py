"""The chart as the real helm renders it."""

import argparse
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from dbtunnel.api.crd import crd
from dbtunnel.cli.manifests import parse_tunnel
from dbtunnel.controller.rbac import LEADER_RULES, cluster_role
from dbtunnel.controller.settings import SETTINGS, Setting, Settings
from tests.support.binaries import binary

CHART = Path(__file__).parents[2] / "charts" / "dbtunnel-operator"
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
NAMESPACE = "dbtunnel-system"

SET_BY_TEMPLATES = {
    "forwarder-image",
    "forwarder-image-pull-policy",
    "leader-election",
    "listen-address",
    "liveness-port",
    "metrics-port",
    "operator-namespace",
    "pod-access",
}
"""Settings that the templates fill in or that have no other value in a cluster; all others are values."""

Manifest = dict[str, Any]


def _helm(*arguments: str, values: object = None) -> subprocess.CompletedProcess[str]:
    given = ["--values", "-"] if values is not None else []
    text = json.dumps(values) if values is not None else None
    command = [str(binary("helm")), *arguments, *given]
    return subprocess.run(command, capture_output=True, text=True, input=text, timeout=60, check=False)


def _template(values: object = None, *options: str, release: str = "tunnels") -> subprocess.CompletedProcess[str]:
    return _helm("template", release, str(CHART), "--namespace", NAMESPACE, *options, values=values)


def _render(values: object = None, *options: str, release: str = "tunnels") -> list[Manifest]:
    done = _template(values, *options, release=release)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def _one(manifests: list[Manifest], kind: str) -> Manifest:
    found = [manifest for manifest in manifests if manifest["kind"] == kind]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def _container(values: object = None) -> Manifest:
    container: Manifest = _one(_render(values), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return container


def _environment(values: object = None) -> dict[str, str]:
    """The container's variables, those from the pod's own fields as the kubelet would fill them."""
    fields = {"metadata.namespace": NAMESPACE, "metadata.name": "pod"}
    return {
        entry["name"]: entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in _container(values)["env"]
    }


def _settings(environment: Mapping[str, str]) -> Settings:
    """What the operator makes of its environment."""
    no_flags = argparse.Namespace(**{setting.field: None for setting in SETTINGS})
    return Settings.read(no_flags, environment)


def _camel_case(setting: Setting) -> str:
    first, *others = setting.name.split("-")
    return first + "".join(word.capitalize() for word in others)


# --- what is installed ------------------------------------------------------------------------------------------


def test_helm_lint_has_no_complaint() -> None:
    done = _helm("lint", "--strict", str(CHART))

    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


def test_the_default_installation_is_complete() -> None:
    kinds = sorted(manifest["kind"] for manifest in _render())

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
    for manifest in _render(values):
        assert manifest["metadata"]["name"]
        if manifest["kind"] != "CustomResourceDefinition":
            assert manifest["metadata"]["labels"]["app.kubernetes.io/instance"] == "tunnels"


def test_rendering_twice_gives_the_same() -> None:
    assert _template().stdout == _template().stdout


@pytest.mark.parametrize("release", ["dbtunnel-operator", "x", "a" * 53])
def test_names_fit_for_every_release_name(release: str) -> None:
    names = [manifest["metadata"]["name"] for manifest in _render(release=release)]

    assert all(len(name) <= 63 and not name.endswith("-") for name in names)


def test_an_old_cluster_is_refused() -> None:
    assert "1.30" in _template(None, "--kube-version", "1.30.9").stderr
    assert _template(None, "--kube-version", "1.31.0-eks-1234").returncode == 0


# --- the definition ---------------------------------------------------------------------------------------------


def test_the_definition_is_the_codes_and_stays_on_uninstall() -> None:
    definition = _one(_render(), "CustomResourceDefinition")

    assert definition["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert definition == crd()


def test_the_definition_can_be_left_out() -> None:
    kinds = {manifest["kind"] for manifest in _render({"crds": {"enabled": False}})}

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
    manifests = _render({"settings": {"namespaces": namespaces}})

    assert _granted(manifests, "ClusterRole") == [_flat(cluster_role("any")["rules"])]
    assert _granted(manifests, "Role") == []


def test_rights_to_the_lease_are_granted_to_operators_that_elect_a_leader() -> None:
    two = _render({"replicaCount": 2})

    assert _granted(two, "Role") == [_flat(LEADER_RULES)]
    assert _one(two, "Role")["metadata"]["namespace"] == NAMESPACE
    binding = _one(two, "RoleBinding")
    assert binding["metadata"]["namespace"] == NAMESPACE
    assert binding["roleRef"]["name"] == _one(two, "Role")["metadata"]["name"]


def test_every_binding_is_of_the_operators_service_account_to_a_role_of_the_release() -> None:
    manifests = _render({"replicaCount": 2, "settings": {"namespaces": ["shop"]}})
    roles = {(one["kind"], one["metadata"]["name"]) for one in manifests if one["kind"] in ("Role", "ClusterRole")}
    account = _one(manifests, "ServiceAccount")["metadata"]
    bindings = [one for one in manifests if one["kind"].endswith("Binding")]

    assert {(one["roleRef"]["kind"], one["roleRef"]["name"]) for one in bindings} == roles
    for one in bindings:
        assert one["subjects"] == [
            {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
        ]


def test_no_secret_can_be_read() -> None:
    rules = [rule for manifest in _render({"replicaCount": 2}) for rule in manifest.get("rules", ())]

    assert [rule["verbs"] for rule in rules if "secrets" in rule["resources"]] == [["create"]]
    assert not [rule for rule in rules if "*" in rule["resources"] + rule["verbs"] + rule["apiGroups"]]


def test_named_namespaces_limit_the_rights_to_them() -> None:
    manifests = _render({"settings": {"namespaces": ["shop", "billing"]}})
    bindings = [manifest for manifest in manifests if manifest["kind"] == "RoleBinding"]
    granted = {one["metadata"]["namespace"] for one in bindings if one["roleRef"]["kind"] == "ClusterRole"}

    assert granted == {"shop", "billing"}
    assert not [manifest for manifest in manifests if manifest["kind"] == "ClusterRoleBinding"]


# --- the pod ----------------------------------------------------------------------------------------------------


def test_the_pod_meets_the_restricted_standard() -> None:
    pod = _one(_render(), "Deployment")["spec"]["template"]["spec"]

    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["containers"][0]["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "volumes" not in pod


def test_ports_are_those_on_which_the_operator_listens() -> None:
    settings = _settings(_environment())
    ports = {port["name"]: port["containerPort"] for port in _container()["ports"]}

    assert ports == {"liveness": settings.liveness_port, "metrics": settings.metrics_port}
    assert _one(_render(), "Service")["spec"]["ports"][0]["targetPort"] == "metrics"


def test_labels_of_the_pod_never_replace_the_selectors() -> None:
    deployment = _one(_render({"podLabels": {"app.kubernetes.io/name": "other", "team": "data"}}), "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]

    assert labels == {**deployment["spec"]["selector"]["matchLabels"], "team": "data"}


def test_two_replicas_elect_a_leader_and_one_is_never_doubled() -> None:
    one, two = (_one(_render({"replicaCount": count}), "Deployment")["spec"] for count in (1, 2))

    assert one["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert two["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert {spec["strategy"]["type"] for spec in (one, two)} == {"RollingUpdate"}, "a change of the type is refused"
    assert not _settings(_environment({"replicaCount": 1})).leader_election
    assert _settings(_environment({"replicaCount": 2})).leader_election


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

    assert (_container(values)["image"], _settings(_environment(values)).forwarder_image) == wanted


def test_the_forwarders_pull_policy_is_the_operators_unless_given() -> None:
    policies = [
        _settings(_environment({"image": {"pullPolicy": "Always"}, "forwarder": {"image": forwarder}}))
        for forwarder in ({}, {"pullPolicy": "Never"})
    ]

    assert [settings.forwarder_image_pull_policy for settings in policies] == ["Always", "Never"]


# --- settings ---------------------------------------------------------------------------------------------------


def test_every_setting_is_a_value_with_the_codes_default() -> None:
    environment = _environment()
    filled = {name: environment[name] for name in ("DBTUNNEL_FORWARDER_IMAGE", "DBTUNNEL_OPERATOR_NAMESPACE")}
    wanted = {setting.variable for setting in SETTINGS if setting.name not in SET_BY_TEMPLATES}

    assert wanted <= set(environment)
    assert _settings(environment) == _settings(filled)


def test_settings_reach_the_operator() -> None:
    settings = _settings(
        _environment(
            {
                "settings": {
                    "egressAddresses": ["203.0.113.7", "198.51.100.0/24"],
                    "namespaces": ["shop"],
                    "defaultDrainMaxSeconds": 604800,
                    "defaultResources": {"limits": {"memory": "1Gi"}},
                    "logLevel": "DEBUG",
                }
            }
        )
    )

    assert settings.egress_addresses == ("203.0.113.7", "198.51.100.0/24")
    assert settings.namespaces == ("shop",)
    assert settings.default_drain_max_seconds == 604800
    assert settings.default_resources.document()["limits"] == {"memory": "1Gi"}
    assert settings.log_level == "DEBUG"


@pytest.mark.parametrize("setting", [one for one in SETTINGS if one.name not in SET_BY_TEMPLATES], ids=lambda s: s.name)
def test_the_schema_takes_what_the_setting_takes(setting: Setting) -> None:
    schema = SCHEMA["properties"]["settings"]["properties"][_camel_case(setting)]

    for value in schema.get("enum", []):
        setting.parse(value)
    if schema.get("type") == "integer":
        low, high = schema["minimum"], schema["maximum"]
        assert [setting.parse(str(value)) for value in (low, high)] == [low, high]
        for value in (low - 1, high + 1):
            with pytest.raises(ValueError, match="write an integer"):
                setting.parse(str(value))


# --- values -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "field", "told"),
    [
        ({"replicas": 2}, "", "replicas"),
        ({"image": {"tagg": "1"}}, "/image", "tagg"),
        ({"image": {"repository": ""}}, "/image/repository", "minLength"),
        ({"image": {"tag": 1.0}}, "/image/tag", "got number, want string"),
        ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy", "'Always', 'IfNotPresent', 'Never'"),
        ({"replicaCount": "two"}, "/replicaCount", "got string, want integer"),
        ({"replicaCount": -1}, "/replicaCount", "minimum"),
        ({"crds": {"enabled": "no"}}, "/crds/enabled", "got string, want boolean"),
        ({"imagePullSecrets": ["registry"]}, "/imagePullSecrets/0", "got string, want object"),
        ({"settings": {"egressAddresses": "203.0.113.7"}}, "/settings/egressAddresses", "want array"),
        ({"settings": {"egressAddresses": ["bastion.example.com"]}}, "/settings/egressAddresses/0", "pattern"),
        ({"settings": {"namespaces": ["Shop"]}}, "/settings/namespaces/0", "pattern"),
        ({"settings": {"defaultReplicas": 17}}, "/settings/defaultReplicas", "maximum"),
        ({"settings": {"defaultProbeMode": "auto"}}, "/settings/defaultProbeMode", "'Auto', 'Passive', 'Disabled'"),
        ({"settings": {"loglevel": "DEBUG"}}, "/settings", "loglevel"),
        ({"resources": {"limit": {}}}, "/resources", "limit"),
    ],
)
def test_a_bad_value_is_refused_with_its_place(values: Manifest, field: str, told: str) -> None:
    done = _template(values)

    assert done.returncode != 0
    assert f"at '{field}'" in done.stderr
    assert told in done.stderr


def test_no_service_account_at_all_is_refused() -> None:
    done = _template({"serviceAccount": {"create": False}})

    assert done.returncode != 0
    assert "serviceAccount.name" in done.stderr


def test_every_value_is_described_where_it_is_declared_and_in_the_schema() -> None:
    described = dict(_comments((CHART / "values.yaml").read_text()))
    in_schema = {path: node["description"] for path, node in _schema_nodes(SCHEMA) if path in described}
    values = dict(_paths(yaml.safe_load((CHART / "values.yaml").read_text())))

    assert set(values) - set(described) == _within_resources(values)
    assert described == in_schema


def test_the_schema_is_strict_everywhere() -> None:
    own = [node for _, node in _schema_nodes(SCHEMA) if "properties" in node]

    assert own
    assert all(node["additionalProperties"] is False for node in (SCHEMA, *own))


def _within_resources(values: Mapping[str, object]) -> set[str]:
    return {path for path in values if "resources." in path.lower()}


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """The path of each value that has a comment above it, and the comment."""
    parents: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        key = re.match(r"\s*([A-Za-z]+):", line)
        if line.strip().startswith("# "):
            comment.append(line.strip()[2:])
            continue
        if key:
            parents = [*((depth, name) for depth, name in parents if depth < indent), (indent, key[1])]
            if comment:
                yield ".".join(name for _, name in parents), " ".join(comment)
        comment = []


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")


def _schema_nodes(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Manifest]]:
    for name, node in schema.get("properties", {}).items():
        yield f"{prefix}{name}", node
        yield from _schema_nodes(node, f"{prefix}{name}.")


# --- what is said after the installation ------------------------------------------------------------------------


def _notes(values: object = None) -> str:
    done = _helm("install", "tunnels", str(CHART), "--namespace", NAMESPACE, "--dry-run=client", values=values or {})
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
