"""The chart's values: what they set, which are refused, and where they are described."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from dbtunnel.controller.settings import SETTINGS, Setting
from tests.support.chart import CHART, Manifest, environment_of, settings_of, template

SCHEMA = json.loads((CHART / "values.schema.json").read_text())

SET_BY_TEMPLATES = {
    "forwarder-image",
    "forwarder-image-pull-policy",
    "leader-election",
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
    filled = {
        name: environment[name]
        for name in ("DBTUNNEL_FORWARDER_IMAGE", "DBTUNNEL_OPERATOR_NAMESPACE", "DBTUNNEL_POD_IP")
    }
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
                    "defaultResources": {"limits": {"memory": "1Gi"}},
                    "logLevel": "DEBUG",
                    "forwarderLogLevel": "WARNING",
                }
            }
        )
    )

    assert settings.egress_addresses == ("203.0.113.7", "198.51.100.0/24")
    assert settings.namespaces == ("shop",)
    assert settings.default_drain_max_seconds == 604800
    assert settings.default_resources.document()["limits"] == {"memory": "1Gi"}
    assert (settings.log_level, settings.forwarder_log_level) == ("DEBUG", "WARNING")


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
    done = template(values)

    assert done.returncode != 0
    assert f"at '{field}'" in done.stderr
    assert told in done.stderr


def test_no_service_account_at_all_is_refused() -> None:
    done = template({"serviceAccount": {"create": False}})

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
