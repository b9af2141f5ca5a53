"""The builders: each object that a tunnel consists of, field by field."""

import json
from dataclasses import replace
from typing import Any

import pytest

from dbtunnel.api import forwarder as wire
from dbtunnel.api.documents import read
from dbtunnel.api.forwarder import ForwarderConfig
from dbtunnel.api.pods import PodSecurity, PodTemplate, Resources, SeLinuxOptions
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.cli.main import build_parser
from dbtunnel.domain.children import (
    Manifest,
    build_deployment,
    build_disruption_budget,
    build_network_policy,
    build_service,
    desired_children,
)
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.settings import Defaults
from tests.support.values import INSTALLATION, changed, manifest, tunnel

SELECTOR = {"app.kubernetes.io/name": "dbtunnel-forwarder", "dbtunnel.dev/tunnel": "orders"}
LABELS = {**SELECTOR, "app.kubernetes.io/managed-by": "dbtunnel-operator"}
OWNER = {
    "apiVersion": "dbtunnel.dev/v1alpha1",
    "kind": "DatabaseTunnel",
    "name": "orders",
    "uid": "tunnel-uid",
    "controller": True,
    "blockOwnerDeletion": False,
}

EVERYTHING: dict[str, Any] = {
    "replicas": 3,
    "access": {"policy": "Selected", "from": [{"podSelector": {"matchLabels": {"app": "shop"}}}]},
    "tunnel.hostKey": {"knownHostsRef": {"name": "hosts"}},
    "service": {"name": "orders-db", "port": 15432, "labels": {"team": "shop"}, "annotations": {"note": "hand"}},
}


def metadata(name: str) -> Manifest:
    return {"name": name, "namespace": "shop", "labels": LABELS, "annotations": {}, "ownerReferences": [OWNER]}


def pod_template(of: DatabaseTunnel) -> Manifest:
    template: Manifest = build_deployment(of, INSTALLATION)["spec"]["template"]
    return template


def container(of: DatabaseTunnel) -> Manifest:
    (only,) = pod_template(of)["spec"]["containers"]
    return dict(only)


# --- what there is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({}, ["Service", "NetworkPolicy", "Deployment"]),
        ({"replicas": 2}, ["Service", "NetworkPolicy", "PodDisruptionBudget", "Deployment"]),
        ({"access": {"policy": "Unrestricted"}}, ["Service", "Deployment"]),
        ({"suspend": True}, ["Service", "NetworkPolicy", "Deployment"]),
        ({"suspend": True, "replicas": 2}, ["Service", "NetworkPolicy", "PodDisruptionBudget", "Deployment"]),
    ],
)
def test_which_objects_a_tunnel_has(changes: dict[str, Any], kinds: list[str]) -> None:
    assert [child["kind"] for child in desired_children(tunnel(changes), INSTALLATION)] == kinds


def test_the_installers_replicas_count_like_those_of_the_tunnel() -> None:
    two = replace(INSTALLATION, defaults=Defaults(replicas=2))
    assert "PodDisruptionBudget" in [child["kind"] for child in desired_children(tunnel(), two)]
    assert build_deployment(tunnel(), two)["spec"]["replicas"] == 2
    assert "PodDisruptionBudget" not in [child["kind"] for child in desired_children(tunnel({"replicas": 1}), two)]


def test_every_child_belongs_to_the_tunnel() -> None:
    for child in desired_children(tunnel(EVERYTHING), INSTALLATION):
        assert child["metadata"]["ownerReferences"] == [OWNER]
        assert child["metadata"]["namespace"] == "shop"
        assert child["metadata"]["labels"].items() >= LABELS.items()
        assert isinstance(child["metadata"]["annotations"], dict)


def test_nothing_of_the_tunnels_own_metadata_is_copied() -> None:
    marks = {"labels": {"app.kubernetes.io/instance": "copied"}, "annotations": {"argocd/track": "copied"}}
    given = changed(manifest(), {f"metadata.{field}": value for field, value in marks.items()})
    children = desired_children(DatabaseTunnel.parse(given), INSTALLATION)
    assert "copied" not in json.dumps(children)
    assert children == desired_children(tunnel(), INSTALLATION)


def test_the_same_tunnel_always_gives_the_same_children() -> None:
    assert desired_children(tunnel(EVERYTHING), INSTALLATION) == desired_children(tunnel(EVERYTHING), INSTALLATION)


# --- Service ----------------------------------------------------------------------------------------------------------


def test_service() -> None:
    assert build_service(tunnel()) == {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata("orders"),
        "spec": {
            "type": "ClusterIP",
            "selector": SELECTOR,
            "ports": [{"name": "database", "port": 5432, "targetPort": "database", "protocol": "TCP"}],
        },
    }


def test_a_service_of_another_name_and_port() -> None:
    service = build_service(tunnel(EVERYTHING))
    assert service["metadata"]["name"] == "orders-db"
    assert service["metadata"]["annotations"] == {"note": "hand"}
    assert service["metadata"]["labels"] == {**LABELS, "team": "shop"}
    assert service["spec"]["ports"][0]["port"] == 15432
    assert service["spec"]["selector"] == SELECTOR


def test_labels_of_the_operator_win_over_given_ones() -> None:
    wrong = dict.fromkeys(LABELS, "wrong") | {"dbtunnel.dev/revision": "wrong", "team": "shop"}
    given = tunnel({"service.labels": wrong, "podTemplate.labels": wrong})
    assert build_service(given)["metadata"]["labels"].items() >= LABELS.items()
    labels = pod_template(given)["metadata"]["labels"]
    assert labels.items() >= {**LABELS, "team": "shop"}.items()
    assert labels["dbtunnel.dev/revision"] != "wrong"


# --- NetworkPolicy and PodDisruptionBudget ----------------------------------------------------------------------------


def test_the_namespace_reaches_the_database_and_the_operator_the_admin_port() -> None:
    assert build_network_policy(tunnel(), INSTALLATION) == {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata("orders-tunnel"),
        "spec": {
            "podSelector": {"matchLabels": SELECTOR},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": {}}], "ports": [{"port": "database", "protocol": "TCP"}]},
                {
                    "from": [
                        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "dbtunnel-system"}}}
                    ],
                    "ports": [{"port": "admin", "protocol": "TCP"}],
                },
            ],
        },
    }


def test_selected_peers_take_the_place_of_the_namespace_as_they_are() -> None:
    web = {"matchLabels": {"tier": "web"}, "matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]}
    peers = [
        {"ipBlock": {"cidr": "10.0.0.1/8", "except": ["10.1.0.0/16"]}},
        {"ipBlock": {"cidr": "2001:db8::/32", "except": []}},
        {"namespaceSelector": {}, "podSelector": web},
        {"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "Exists"}]}},
        {"podSelector": {"matchLabels": {}, "matchExpressions": []}},
    ]
    policy = build_network_policy(tunnel({"access": {"policy": "Selected", "from": peers}}), INSTALLATION)
    database, admin = policy["spec"]["ingress"]
    assert database["from"] == peers
    assert [port["port"] for port in admin["ports"]] == ["admin"]


def test_scrapers_reach_the_admin_port_too() -> None:
    installation = replace(INSTALLATION, scraper_namespaces=("monitoring", "dbtunnel-system"))
    *_, admin = build_network_policy(tunnel(), installation)["spec"]["ingress"]
    names = [peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for peer in admin["from"]]
    assert names == ["dbtunnel-system", "monitoring"]
    assert admin["ports"] == [{"port": "admin", "protocol": "TCP"}]


def test_an_operator_outside_the_cluster_is_admitted_nowhere() -> None:
    (database,) = build_network_policy(tunnel(), replace(INSTALLATION, operator_namespace=""))["spec"]["ingress"]
    assert [port["port"] for port in database["ports"]] == ["database"]


def test_disruption_budget() -> None:
    assert build_disruption_budget(tunnel()) == {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": metadata("orders-tunnel"),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": SELECTOR}},
    }


# --- Deployment -------------------------------------------------------------------------------------------------------


def test_deployment() -> None:
    deployment = build_deployment(tunnel(), INSTALLATION)
    template = deployment["spec"].pop("template")
    assert deployment == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata("orders-tunnel") | {"annotations": {"dbtunnel.dev/generation": "3"}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": SELECTOR},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "revisionHistoryLimit": 2,
        },
    }
    assert template["metadata"]["labels"].items() >= SELECTOR.items(), "a Deployment must select its own pods"


def test_suspending_scales_to_zero_and_keeps_the_template() -> None:
    suspended = build_deployment(tunnel({"suspend": True, "replicas": 3}), INSTALLATION)
    running = build_deployment(tunnel({"replicas": 3}), INSTALLATION)
    assert (suspended["spec"]["replicas"], running["spec"]["replicas"]) == (0, 3)
    assert suspended["spec"]["template"] == running["spec"]["template"]


@pytest.mark.parametrize("changes", [{}, EVERYTHING])
def test_the_pod_is_admitted_by_the_restricted_pod_security_standard(changes: dict[str, Any]) -> None:
    pod, one = pod_template(tunnel(changes))["spec"], container(tunnel(changes))
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"}
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {kind for volume in pod["volumes"] for kind in volume} <= {"name", "secret", "configMap"}
    assert not any("hostPort" in port or "hostIP" in port for port in one["ports"])


def test_the_pod_has_no_credentials_of_the_cluster() -> None:
    pod = pod_template(tunnel())["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert "serviceAccountName" not in pod


def test_the_container_gets_its_configuration_and_its_name() -> None:
    config, uid = container(tunnel())["env"]
    assert config["name"] == wire.CONFIG_VARIABLE
    assert read(ForwarderConfig, config["value"]) == forwarder_config(tunnel(), INSTALLATION.defaults)
    assert uid == {"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
    assert container(tunnel())["args"] == ["forward"]


def test_the_longest_known_hosts_fit_into_one_environment_variable() -> None:
    config, _ = container(tunnel({"tunnel.hostKey": {"knownHosts": "bastion ssh-rsa A\n" * 1820}}))["env"]
    assert len(config["value"].encode()) < 128 * 1024 - len("DBTUNNEL_CONFIG=") - 1, "exec(2) takes no more"


def test_probes_ask_the_admin_port_alone() -> None:
    one = container(tunnel())
    ports = {port["name"]: port["containerPort"] for port in one["ports"]}
    assert ports == {"database": wire.DATABASE_PORT, "admin": wire.ADMIN_PORT}
    assert one["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "admin"}
    assert one["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "admin"}
    assert "startupProbe" not in one


def test_image_and_resources_are_the_installers_unless_given() -> None:
    installation = replace(INSTALLATION, forwarder_image_pull_policy="Always")
    one = build_deployment(tunnel(), installation)["spec"]["template"]["spec"]["containers"][0]
    assert (one["image"], one["imagePullPolicy"]) == ("registry.example/dbtunnel:1", "Always")
    assert one["resources"] == {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}
    assert container(tunnel({"podTemplate.resources": {"limits": {"cpu": 1}}}))["resources"] == {"limits": {"cpu": 1}}


def test_what_a_tunnel_leaves_open_of_its_pods_is_the_installers() -> None:
    default = PodTemplate(
        labels={"team": "all", "tier": "data"},
        annotations={"a": "installer"},
        node_selector={"pool": "tunnels"},
        priority_class_name="tunnels",
        resources=Resources(limits={"memory": "1Gi"}),
    )
    installation = replace(INSTALLATION, defaults=Defaults(pod_template=default))
    own = {"labels": {"team": "shop"}, "nodeSelector": {"disk": "fast"}}
    template = build_deployment(tunnel({"podTemplate": own}), installation)["spec"]["template"]
    assert template["metadata"]["labels"].items() >= {"team": "shop", "tier": "data"}.items()
    assert template["metadata"]["annotations"] == {"a": "installer"}
    assert template["spec"]["nodeSelector"] == {"disk": "fast"}
    assert template["spec"]["priorityClassName"] == "tunnels"
    assert template["spec"]["containers"][0]["resources"] == {"limits": {"memory": "1Gi"}}


def test_the_installer_adds_to_the_security_context_and_takes_nothing_away() -> None:
    given = PodSecurity(run_as_user=10001, fs_group=10002, se_linux_options=SeLinuxOptions(level="s0:c1"))
    pod = build_deployment(tunnel(), replace(INSTALLATION, forwarder_pod_security=given))["spec"]["template"]["spec"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "runAsUser": 10001,
        "fsGroup": 10002,
        "seLinuxOptions": {"level": "s0:c1"},
    }


def test_forwarders_are_told_a_level_only_where_it_is_another() -> None:
    assert container(tunnel())["args"] == ["forward"]
    installation = replace(INSTALLATION, forwarder_log_level="DEBUG")
    one = build_deployment(tunnel(), installation)["spec"]["template"]["spec"]["containers"][0]
    assert one["args"] == ["forward", "--log-level=debug"]
    as_text = replace(INSTALLATION, forwarder_log_format="text")
    (one,) = build_deployment(tunnel(), as_text)["spec"]["template"]["spec"]["containers"]
    assert one["args"] == ["forward", "--log-format=text"]


def test_forwarders_are_told_whose_packets_only_where_it_is_not_their_own() -> None:
    assert container(tunnel())["args"] == ["forward"]
    every = replace(
        INSTALLATION, forwarder_log_level="WARNING", forwarder_log_format="text", forwarder_packets="asyncssh"
    )
    template = build_deployment(tunnel(), every)["spec"]["template"]
    arguments = template["spec"]["containers"][0]["args"]
    assert arguments[-1] == "--packets=asyncssh"
    taken = build_parser().parse_args(arguments)
    assert (taken.log_level, taken.log_format, taken.packets) == ("warning", "text", "asyncssh")


def test_the_whole_key_secret_is_mounted_whether_it_is_there_or_not() -> None:
    given = tunnel({"tunnel.keySecretRef": {"name": "bastion-key", "key": "id_rsa"}})
    secret = {"secretName": "bastion-key", "optional": True, "defaultMode": 0o444}
    assert pod_template(given)["spec"]["volumes"] == [{"name": "key", "secret": secret}]
    assert container(given)["volumeMounts"] == [{"name": "key", "mountPath": wire.KEY_DIRECTORY, "readOnly": True}]


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("ConfigMap", {"configMap": {"name": "hosts", "optional": True, "defaultMode": 0o444}}),
        ("Secret", {"secret": {"secretName": "hosts", "optional": True, "defaultMode": 0o444}}),
    ],
)
def test_known_hosts_are_mounted_from_where_they_are(kind: str, source: Manifest) -> None:
    given = tunnel({"tunnel.hostKey": {"knownHostsRef": {"kind": kind, "name": "hosts"}}})
    assert pod_template(given)["spec"]["volumes"][1:] == [{"name": "known-hosts", **source}]
    assert container(given)["volumeMounts"][1:] == [
        {"name": "known-hosts", "mountPath": wire.KNOWN_HOSTS_DIRECTORY, "readOnly": True}
    ]


@pytest.mark.parametrize(
    ("drain", "seconds"),
    [({}, 35), ({"maxSeconds": 604800}, 604805), ({"minSeconds": 60}, 65), ({"maxSeconds": 0}, 5)],
)
def test_the_kubelet_waits_a_little_longer_than_the_drain(drain: dict[str, int], seconds: int) -> None:
    assert pod_template(tunnel({"drain": drain}))["spec"]["terminationGracePeriodSeconds"] == seconds


def test_pods_are_spread_over_nodes() -> None:
    (constraint,) = pod_template(tunnel())["spec"]["topologySpreadConstraints"]
    assert constraint == {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": SELECTOR},
    }


def test_given_constraints_spread_this_tunnels_pods() -> None:
    zone = {"topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule", "maxSkew": 2}
    (constraint,) = pod_template(tunnel({"podTemplate.topologySpreadConstraints": [zone]}))["spec"][
        "topologySpreadConstraints"
    ]
    assert constraint == {**zone, "labelSelector": {"matchLabels": SELECTOR}}


def test_placement_is_taken_over_under_the_names_of_a_pod() -> None:
    given: dict[str, Any] = {
        "nodeSelector": {"disk": "ssd"},
        "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}],
        "affinity": {"podAntiAffinity": {"newerField": [{"weight": 1}]}},
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "registry"}],
        "hostAliases": [{"ip": "203.0.113.7", "hostnames": ["bastion"]}],
    }
    pod = pod_template(tunnel({"podTemplate": {**given, "annotations": {"a": "b"}}}))
    assert pod["metadata"]["annotations"] == {"a": "b"}
    assert {field: pod["spec"][field] for field in given} == given
    assert not pod["spec"].keys() & {"labels", "annotations", "resources"}
