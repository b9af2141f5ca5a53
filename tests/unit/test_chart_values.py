"""The chart's values: what they set, which are refused, and where they are described."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from dbtunnel.controller.settings import SETTINGS, Setting
from tests.support.chart import CHART, Manifest, environment_of, helm, settings_of, template
from tests.support.chart_values import SHAPES, declared, paths

SCHEMA = json.loads((CHART / "values.schema.json").read_text())

SET_BY_TEMPLATES = {
    "forwarder-image",
    "forwarder-image-pull-policy",
    "leader-election",
    "lease-name",
    "listen-address",
    "liveness-port",
    "metrics-port",
    "operator-namespace",
    "pod-access",
    "pod-ip",
}
"""Settings that the templates fill in or that have no other value in a cluster; all others are values."""


# --- settings ---------------------------------------------------------------------------------------------------


def test_every_setting_is_a_value_with_the_codes_default() -> None:
    environment = environment_of()
    words = ("FORWARDER_IMAGE", "LEADER_ELECTION", "LEASE_NAME", "OPERATOR_NAMESPACE", "POD_IP")
    filled = {name: environment[name] for name in (f"DBTUNNEL_{word}" for word in words)}
    wanted = {setting.variable for setting in SETTINGS if setting.name not in SET_BY_TEMPLATES}

    assert wanted <= set(environment)
    assert settings_of(environment) == settings_of(filled)


def test_settings_reach_the_operator() -> None:
    settings = settings_of(
        environment_of(
            {
                "settings": {
                    "egressAddresses": ["203.0.113.7", "198.51.100.0/24"],
                    "namespaces": ["shop"],
                    "defaultDrainMaxSeconds": 604800,
                    "defaultPodTemplate": {"resources": {"limits": {"memory": "1Gi"}}, "labels": {"team": "data"}},
                    "forwarderPodSecurity": {"runAsUser": 10001, "seLinuxOptions": {"level": "s0"}},
                    "logLevel": "DEBUG",
                    "logFormat": "text",
                    "forwarderLogLevel": "WARNING",
                    "forwarderLogFormat": "text",
                    "forwarderPackets": "asyncssh",
                }
            }
        )
    )

    assert settings.egress_addresses == ("203.0.113.7", "198.51.100.0/24")
    assert settings.namespaces == ("shop",)
    assert settings.default_drain_max_seconds == 604800
    assert settings.default_pod_template.document() == {
        "labels": {"team": "data"},
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}},
    }
    assert settings.forwarder_pod_security.document() == {"runAsUser": 10001, "seLinuxOptions": {"level": "s0"}}
    assert (settings.log_level, settings.forwarder_log_level) == ("DEBUG", "WARNING")
    assert (settings.log_format, settings.forwarder_log_format) == ("text", "text")
    assert settings.forwarder_packets == "asyncssh"


def _camel_case(setting: Setting) -> str:
    first, *others = setting.name.split("-")
    return first + "".join(word.capitalize() for word in others)


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


DIGEST = "sha256:" + "0" * 64

BAD: list[tuple[Manifest, str, str]] = [
    ({"replicas": 2}, "", "replicas"),
    ({"nameOverride": "My Tunnels"}, "/nameOverride", "pattern"),
    ({"fullnameOverride": "a_b"}, "/fullnameOverride", "pattern"),
    *(({name: "my.tunnels"}, f"/{name}", "pattern") for name in ("nameOverride", "fullnameOverride")),
    *(({name: "1tunnels"}, f"/{name}", "pattern") for name in ("nameOverride", "fullnameOverride")),
    ({"commonLabels": {"team": "data platform"}}, "/commonLabels/team", "pattern"),
    ({"commonLabels": {"cost center": "1"}}, "/commonLabels", "cost center"),
    ({"commonLabels": {"priority": 1}}, "/commonLabels/priority", "got number, want string"),
    ({"commonAnnotations": ["a"]}, "/commonAnnotations", "got array, want object"),
    ({"image": {"tagg": "1"}}, "/image", "tagg"),
    ({"image": {"repository": ""}}, "/image/repository", "pattern"),
    ({"image": {"repository": f"registry.example/dbtunnel@{DIGEST}"}}, "/image/repository", "pattern"),
    ({"image": {"tag": 1.0}}, "/image/tag", "got number, want string"),
    ({"image": {"tag": "v1+2"}}, "/image/tag", "pattern"),
    ({"image": {"digest": "0" * 64}}, "/image/digest", "pattern"),
    ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy", "'Always', 'IfNotPresent', 'Never'"),
    ({"forwarder": {"image": {"digest": DIGEST[:-1]}}}, "/forwarder/image/digest", "pattern"),
    ({"replicaCount": "two"}, "/replicaCount", "got string, want integer"),
    ({"replicaCount": -1}, "/replicaCount", "minimum"),
    ({"crds": {"enabled": "no"}}, "/crds/enabled", "got string, want boolean"),
    ({"imagePullSecrets": ["registry"]}, "/imagePullSecrets/0", "got string, want object"),
    ({"settings": {"egressAddresses": "203.0.113.7"}}, "/settings/egressAddresses", "want array"),
    ({"settings": {"egressAddresses": ["bastion.example.com"]}}, "/settings/egressAddresses/0", "pattern"),
    ({"settings": {"namespaces": ["Shop"]}}, "/settings/namespaces/0", "pattern"),
    ({"settings": {"namespaces": ["shop", "shop"]}}, "/settings/namespaces", "items at 0 and 1 are equal"),
    ({"settings": {"defaultReplicas": 17}}, "/settings/defaultReplicas", "maximum"),
    ({"settings": {"defaultProbeMode": "auto"}}, "/settings/defaultProbeMode", "'Auto', 'Passive', 'Disabled'"),
    ({"settings": {"loglevel": "DEBUG"}}, "/settings", "loglevel"),
    ({"settings": {"logFormat": "yaml"}}, "/settings/logFormat", "'json', 'text'"),
    ({"settings": {"forwarderPackets": "Own"}}, "/settings/forwarderPackets", "'own', 'asyncssh'"),
    ({"settings": {"defaultPodTemplate": {"hostNetwork": True}}}, "/settings/defaultPodTemplate", "hostNetwork"),
    (
        {"settings": {"defaultPodTemplate": {"tolerations": [{"effect": "Never"}]}}},
        "/settings/defaultPodTemplate/tolerations/0/effect",
        "'NoSchedule', 'PreferNoSchedule', 'NoExecute'",
    ),
    ({"settings": {"forwarderPodSecurity": {"runAsUser": 0}}}, "/settings/forwarderPodSecurity/runAsUser", "minimum"),
    ({"settings": {"forwarderPodSecurity": {"privileged": True}}}, "/settings/forwarderPodSecurity", "privileged"),
    ({"rbac": {"writers": "everybody"}}, "/rbac/writers", "'edit', 'admin', 'nobody'"),
    ({"serviceAccount": {"annotations": {"example.com/role": 7}}}, "/serviceAccount/annotations", "want string"),
    ({"resources": {"limit": {}}}, "/resources", "limit"),
    ({"podSecurityContext": {"runAsUsr": 1}}, "/podSecurityContext", "runAsUsr"),
    ({"securityContext": {"privileged": "no"}}, "/securityContext/privileged", "want boolean"),
    ({"extraEnv": [{"value": "1"}]}, "/extraEnv/0", "missing property 'name'"),
    ({"extraEnv": [{"name": "DBTUNNEL_WORKERS", "value": "1"}]}, "/extraEnv/0/name", "not"),
    ({"extraEnv": [{"name": "A", "valeu": "1"}]}, "/extraEnv/0", "valeu"),
    ({"tolerations": [{"key": "a", "operater": "Exists"}]}, "/tolerations/0", "operater"),
    ({"affinity": {"podAntiAffinity": {"required": []}}}, "/affinity/podAntiAffinity", "required"),
    ({"topologySpreadConstraints": [{"topologyKey": "a"}]}, "/topologySpreadConstraints/0", "maxSkew"),
    ({"podDisruptionBudget": {"maxUnavailable": "50%"}}, "/podDisruptionBudget/maxUnavailable", "want integer"),
    ({"networkPolicy": {"from": [{"podSelecter": {}}]}}, "/networkPolicy/from/0", "podSelecter"),
    ({"networkPolicy": {"egress": [{"port": 443}]}}, "/networkPolicy/egress/0", "port"),
    ({"terminationGracePeriodSeconds": 3601}, "/terminationGracePeriodSeconds", "maximum"),
    (
        {"admissionPolicies": {"tunnels": {"actions": ["Deny", "Audit", "Warn"]}}},
        "/admissionPolicies/tunnels/actions",
        "'not' failed",
    ),
    (
        {"admissionPolicies": {"tunnels": {"actions": ["Refuse"]}}},
        "/admissionPolicies/tunnels/actions/0",
        "'Deny', 'Warn', 'Audit'",
    ),
    (
        {"admissionPolicies": {"tunnels": {"sshServers": ["bastion.example.com"]}}},
        "/admissionPolicies/tunnels/sshServers/0",
        "want object",
    ),
    (
        {"admissionPolicies": {"tunnels": {"databases": [{"ports": [0]}]}}},
        "/admissionPolicies/tunnels/databases/0/ports/0",
        "minimum",
    ),
    ({"metrics": {"podMonitor": {"interval": "soon"}}}, "/metrics/podMonitor/interval", "pattern"),
]
"""Values that no installation can have, with their place and a word of what is said."""


@pytest.mark.parametrize(("values", "field", "told"), BAD, ids=lambda value: str(value)[:60])
def test_a_bad_value_is_refused_with_its_place(values: Manifest, field: str, told: str) -> None:
    done = template(values)

    assert done.returncode != 0
    assert f"at '{field}" in done.stderr
    assert told in done.stderr


def test_an_installation_with_a_bad_value_fails_like_that() -> None:
    done = helm("install", "tunnels", str(CHART), "--dry-run=client", values={"replicaCount": "two"})

    assert done.returncode != 0
    assert "at '/replicaCount': got string, want integer" in done.stderr


def test_no_service_account_at_all_is_refused() -> None:
    done = template({"serviceAccount": {"create": False}})

    assert done.returncode != 0
    assert "serviceAccount.name" in done.stderr


def test_every_value_has_a_comment() -> None:
    """But for the fields of a value that Kubernetes, or a tunnel, defines as a whole."""
    whole = {*SHAPES, *(path for path in declared() if path.endswith("resources"))}
    values = set(paths(yaml.safe_load((CHART / "values.yaml").read_text())))

    assert {
        path for path in values - set(declared()) if not path.startswith(tuple(f"{one}." for one in whole))
    } == set()


def test_every_shape_is_that_of_a_value() -> None:
    assert set(SHAPES) <= set(declared())


def test_what_is_left_to_kubernetes_is_as_strict_as_its_own_types() -> None:
    """What the schema lets in is checked once more where it is used: by the API server, by the operator."""
    closed = [node for node in SCHEMA["definitions"].values() if node["type"] == "object"]

    assert len(closed) > 10
    assert all(node["additionalProperties"] is False for node in closed)


def test_the_schema_is_strict_everywhere() -> None:
    own = [node for _, node in _schema_nodes(SCHEMA) if "properties" in node]

    assert own
    assert all(node["additionalProperties"] is False for node in (SCHEMA, *own))


def _schema_nodes(schema: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Manifest]]:
    for name, node in schema.get("properties", {}).items():
        yield f"{prefix}{name}", node
        yield from _schema_nodes(node, f"{prefix}{name}.")
