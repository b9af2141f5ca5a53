"""The chart's objects as the real helm renders them."""

import json
import re

import pytest
import yaml

from dbtunnel.api.crd import crd
from dbtunnel.api.engines import ENGINES
from dbtunnel.cli.manifests import parse_tunnel
from dbtunnel.controller.settings import SETTINGS
from dbtunnel.domain.children import ADMIN_PORT_NAME, build_deployment
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
from tests.support.values import INSTALLATION, tunnel

# --- what is installed ------------------------------------------------------------------------------------------


EVERYTHING: Manifest = {
    "replicaCount": 2,
    "metrics": {part: {"enabled": True} for part in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")},
    "networkPolicy": {"enabled": True},
    "admissionPolicies": {"tunnels": {"enabled": True}, "operator": {"enabled": True}},
}
"""All that the chart has."""


@pytest.mark.parametrize("values", [{}, EVERYTHING], ids=["default", "everything"])
def test_helm_lint_has_no_complaint(values: Manifest) -> None:
    done = helm("lint", "--strict", str(CHART), values=values)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


def test_the_default_installation_is_complete() -> None:
    kinds = sorted(manifest["kind"] for manifest in render())

    assert kinds == [
        "ClusterRole",
        "ClusterRole",
        "ClusterRole",
        "ClusterRoleBinding",
        "CustomResourceDefinition",
        "Deployment",
        "Role",
        "RoleBinding",
        "Service",
        "ServiceAccount",
    ]


def test_what_is_installed_is_small() -> None:
    """Helm keeps each revision of a release in a Secret, and kubectl all of a definition in an annotation."""
    definition, chart, most = (
        len(text)
        for text in ((CHART / "files" / "crd.yaml").read_text(), template().stdout, template(EVERYTHING).stdout)
    )

    print(f"\nbytes: CRD {definition}; chart as rendered by default {chart}, with all that it has {most}")
    assert definition < 150_000
    assert most < 500_000


@pytest.mark.parametrize("release", ["dbtunnel-operator", "x", "a" * 53])
def test_names_fit_for_every_release_name(release: str) -> None:
    names = [manifest["metadata"]["name"] for manifest in render(release=release)]

    assert all(len(name) <= 63 and not name.endswith("-") for name in names)


def test_names_can_be_given() -> None:
    given = the_one(render({"fullnameOverride": "tunnel-operator"}), "Deployment")["metadata"]
    named = the_one(render({"nameOverride": "bridges"}), "Deployment")

    assert given["name"] == "tunnel-operator"
    assert given["labels"]["app.kubernetes.io/name"] == "dbtunnel-operator"
    assert named["metadata"]["name"] == "tunnels-bridges"
    assert named["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"] == "bridges"


def test_names_that_yaml_takes_for_no_text_stay_names() -> None:
    def rendered(place: str, name: str) -> str:
        given = dict.fromkeys(("fullnameOverride", "nameOverride", "priorityClassName"), name)
        values = {**EVERYTHING, **given, "serviceAccount": {"name": name}, "settings": {"namespaces": [place]}}
        return json.dumps(render(values, "--namespace", place, release=place))

    other = rendered("given-place", "given-name")
    assert rendered("123", "on") == other.replace("given-place", "123").replace("given-name", "on")


def test_an_old_cluster_is_refused() -> None:
    assert "1.30" in template(None, "--kube-version", "1.30.9").stderr
    assert template(None, "--kube-version", "1.31.0-eks-1234").returncode == 0


# --- the definition ---------------------------------------------------------------------------------------------


def test_the_definition_is_the_codes_and_stays_on_uninstall() -> None:
    definition = the_one(render(), "CustomResourceDefinition")

    assert definition["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert definition["metadata"].pop("labels")["app.kubernetes.io/managed-by"] == "Helm"
    assert definition == crd()


def test_the_definition_goes_with_the_release_where_that_is_asked_for() -> None:
    definition = the_one(render({"crds": {"keep": False}}), "CustomResourceDefinition")

    assert "annotations" not in definition["metadata"]


def test_the_definition_can_be_left_out() -> None:
    kinds = {manifest["kind"] for manifest in render({"crds": {"enabled": False}})}

    assert "Deployment" in kinds
    assert "CustomResourceDefinition" not in kinds


# --- admission --------------------------------------------------------------------------------------------------------


def test_admission_policies_know_the_engines_ports() -> None:
    manifests = render({"admissionPolicies": {"tunnels": {"enabled": True}}})
    variables = the_one(manifests, "ValidatingAdmissionPolicy")["spec"]["variables"]
    (database,) = [one["expression"] for one in variables if one["name"] == "database"]

    found = re.search(r"\{[^{}]*\}(?=\[object\.spec\.engine\])", database)
    assert found
    assert json.loads(found[0]) == {engine: str(info.default_port) for engine, info in ENGINES.items()}


NETWORKS = ("203.0.113.7", "0.0.0.0/0", "10.128.0.0/9", "::", "::1", "2001:DB8::8000/113", "1:2:3:4:5:6:7::", "::/0")

EGRESS_ADDRESSES = next(one for one in SETTINGS if one.name == "egress-addresses")

NO_NETWORKS = (
    *("10.0.0.0/33", "10.0.0.0/99", "10.0.0/8", "999.1.1.1", "1.2.3", "10.128.0.0/8", "203.0.113.7/24"),
    *("2001:db8::/129", "a:b", "2001:db8:1", ":::", "10:20:30/64", "1::2::3", "1:2:3:4:5:6:7:8::", "2001:db8::1/32"),
)


@pytest.mark.parametrize("host", NO_NETWORKS)
def test_an_address_that_the_api_server_could_not_read_is_no_value(host: str) -> None:
    done = template({"admissionPolicies": {"tunnels": {"enabled": True, "databases": [{"hosts": ["x", host]}]}}})

    assert done.returncode != 0
    assert f'admissionPolicies.tunnels: "{host}" is no address' in done.stderr


@pytest.mark.parametrize("address", NO_NETWORKS)
def test_an_address_that_the_operator_would_not_start_with_is_no_value(address: str) -> None:
    done = template({"settings": {"egressAddresses": ["203.0.113.7", address]}})

    assert done.returncode != 0
    assert f'settings.egressAddresses: "{address}" is no address' in done.stderr
    with pytest.raises(ValueError, match="write at most 32 addresses or networks"):
        EGRESS_ADDRESSES.parse(address)


def test_addresses_and_networks_of_both_families_are_values() -> None:
    admission = {"tunnels": {"enabled": True, "databases": [{"hosts": list(NETWORKS)}]}}
    values = {"settings": {"egressAddresses": list(NETWORKS)}, "admissionPolicies": admission}

    assert settings_of(environment_of(values)).egress_addresses == NETWORKS


def test_admission_policies_bind_the_service_account_and_image_of_the_release() -> None:
    account, image = {"create": False, "name": "given"}, {"repository": "r", "tag": "2"}
    bound = {"admissionPolicies": {"operator": {"enabled": True}}, "serviceAccount": account, "image": image}
    found = [one for one in render(bound) if one["kind"] == "ValidatingAdmissionPolicy"]
    bindings = [one["spec"] for one in render(bound) if one["kind"] == "ValidatingAdmissionPolicyBinding"]

    assert {one["spec"]["matchConditions"][0]["expression"] for one in found} == {
        f'request.userInfo.username == "system:serviceaccount:{NAMESPACE}:given"'
    }
    assert {(one["policyName"], *one["validationActions"]) for one in bindings} == {
        (one["metadata"]["name"], "Deny") for one in found
    }
    images = [
        one["expression"] for each in found for one in each["spec"].get("variables", ()) if one["name"] == "image"
    ]
    assert images == ['"r:2"']


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
    values = {
        "podLabels": {"app.kubernetes.io/name": "other", "team": "data"},
        "commonLabels": {"app.kubernetes.io/instance": "other", "team": "all", "tier": "platform"},
    }
    deployment = the_one(render(values), "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]

    assert labels == {**deployment["spec"]["selector"]["matchLabels"], "team": "data", "tier": "platform"}


def test_what_is_said_of_the_pod_is_there() -> None:
    spread = {"maxSkew": 2, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
    values: Manifest = {
        "podSecurityContext": {"runAsUser": 10001},
        "securityContext": {"runAsGroup": 10001},
        "extraEnv": [{"name": "TZ", "value": "Europe/Berlin"}],
        "topologySpreadConstraints": [spread],
        "terminationGracePeriodSeconds": 10,
        "priorityClassName": "system-cluster-critical",
    }
    deployment = the_one(render(values), "Deployment")
    pod = deployment["spec"]["template"]["spec"]

    assert pod["securityContext"].items() >= {"runAsUser": 10001, "runAsNonRoot": True}.items()
    assert pod["containers"][0]["securityContext"]["runAsGroup"] == 10001
    assert pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["containers"][0]["env"][-1] == values["extraEnv"][0]
    assert pod["topologySpreadConstraints"] == [
        {**spread, "labelSelector": {"matchLabels": deployment["spec"]["selector"]["matchLabels"]}}
    ]
    assert pod["terminationGracePeriodSeconds"] == 10
    assert pod["priorityClassName"] == "system-cluster-critical"


def test_several_operators_are_spread_over_nodes_and_outlive_a_drain() -> None:
    one, two = render({"replicaCount": 1}), render({"replicaCount": 2})
    spec = the_one(two, "Deployment")["spec"]
    selector = {"matchLabels": spec["selector"]["matchLabels"]}

    assert spec["template"]["spec"]["topologySpreadConstraints"] == [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": selector,
        }
    ]
    assert the_one(two, "PodDisruptionBudget")["spec"] == {"maxUnavailable": 1, "selector": selector}
    assert the_one(one, "Deployment")["spec"]["template"] == spec["template"], "another number replaces no pod"
    assert not [manifest for manifest in one if manifest["kind"] == "PodDisruptionBudget"]


# --- the network ------------------------------------------------------------------------------------------------


def test_a_network_policy_leaves_the_metrics_to_the_named_and_egress_open() -> None:
    team = {"podSelector": {"matchLabels": {"app": "prometheus"}}}
    values = {
        "networkPolicy": {"enabled": True, "from": [team]},
        "settings": {"scraperNamespaces": ["monitoring"]},
    }
    manifests = render(values)
    spec = the_one(manifests, "NetworkPolicy")["spec"]

    assert spec == {
        "podSelector": the_one(manifests, "Deployment")["spec"]["selector"],
        "policyTypes": ["Ingress"],
        "ingress": [
            {
                "from": [
                    team,
                    {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}},
                ],
                "ports": [{"port": "metrics", "protocol": "TCP"}],
            }
        ],
    }


def test_a_network_policy_with_nobody_named_admits_nobody() -> None:
    spec = the_one(render({"networkPolicy": {"enabled": True}}), "NetworkPolicy")["spec"]

    assert (spec["policyTypes"], spec["ingress"]) == (["Ingress"], [])


def test_limited_egress_still_reaches_the_forwarders() -> None:
    server = {"to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}], "ports": [{"port": 6443}]}
    spec = the_one(render({"networkPolicy": {"enabled": True, "egress": [server]}}), "NetworkPolicy")["spec"]
    pod = build_deployment(tunnel(), INSTALLATION)["spec"]["template"]
    forwarders, given = spec["egress"]
    (to,) = forwarders["to"]

    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert given == server
    assert to["namespaceSelector"] == {}
    assert to["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert forwarders["ports"] == [{"port": ADMIN_PORT_NAME, "protocol": "TCP"}]


# --- replicas ---------------------------------------------------------------------------------------------------


def test_a_leader_is_elected_whatever_the_number_by_a_lease_of_the_release() -> None:
    """A pod is never alone: not while it is replaced, nor once somebody scales its Deployment."""
    settings = [settings_of(environment_of({"replicaCount": count})) for count in (0, 1, 2)]

    assert {(one.leader_election, one.lease_name) for one in settings} == {(True, "tunnels-dbtunnel-operator")}
    assert settings_of(environment_of({"fullnameOverride": "other"})).lease_name == "other"
    assert {"strategy"}.isdisjoint(the_one(render(), "Deployment")["spec"]), "a new pod is ready before an old one ends"


DIGEST = "sha256:" + "0" * 64


# --- images -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "forwarder", "wanted"),
    [
        ({}, {}, ("localhost/dbtunnel:0.1.0", "localhost/dbtunnel:0.1.0")),
        ({"repository": "r", "tag": "2"}, {}, ("r:2", "r:2")),
        ({"repository": "r", "tag": "2"}, {"tag": "1"}, ("r:2", "r:1")),
        ({"repository": "r"}, {"repository": "s"}, ("r:0.1.0", "s:0.1.0")),
        ({"repository": "r", "digest": DIGEST}, {}, (f"r@{DIGEST}", f"r@{DIGEST}")),
        ({"repository": "r", "digest": DIGEST}, {"repository": "s"}, (f"r@{DIGEST}", f"s@{DIGEST}")),
        ({"repository": "r", "tag": "2", "digest": DIGEST}, {"tag": "1"}, (f"r@{DIGEST}", "r:1")),
        ({"repository": "r", "tag": "2"}, {"digest": DIGEST}, ("r:2", f"r@{DIGEST}")),
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
    assert "neither forwarder.image.tag nor forwarder.image.digest is set" in _notes()
    assert "settings.egressAddresses" in _notes()
    assert "dbtunnel crd | kubectl apply" in _notes({"crds": {"enabled": False}})

    settled = {"forwarder": {"image": {"tag": "1"}}, "settings": {"egressAddresses": ["203.0.113.7"]}}
    assert "is set" not in _notes(settled)
    assert "egressAddresses" not in _notes(settled)
