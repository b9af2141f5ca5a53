"""The chart's values as values.yaml declares them; its schema and the table of its README are made of that.

A comment is the description, a default the type. What a default cannot tell is in `SHAPES`, and what Kubernetes defines
comes from its client's models, so that a typing error in a value is refused before anything is installed.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from kubernetes import client

from dbtunnel.api.base import ApiModel
from dbtunnel.api.crd import model_schema
from dbtunnel.api.pods import PodSecurity, PodTemplate
from tests.support.chart import CHART

Schema = dict[str, Any]

_BEGIN, _END = "<!-- values: begin -->", "<!-- values: end -->"


@dataclass(frozen=True)
class Value:
    """A value that has a comment of its own; what is below one that has none belongs to it."""

    comment: str
    default: Any

    @property
    def default_text(self) -> str:
        """As the README shows it."""
        text = json.dumps(self.default)
        return f"`{text}`" if len(text) <= 40 else "see values.yaml"


def declared() -> dict[str, Value]:
    """Every value by its path, in order."""
    text = (CHART / "values.yaml").read_text()
    defaults = yaml.safe_load(text)
    return {path: Value(comment, _at(defaults, path)) for path, comment in _comments(text)}


def paths(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The path of everything that has a name."""
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from paths(value, f"{prefix}{name}.")


def _at(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values[name]
    return values


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """The path of each value that has a comment right above it, and the comment."""
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


# --- the schema -------------------------------------------------------------------------------------------------------


def schema_json() -> str:
    """values.schema.json."""
    values: Mapping[str, Value] = declared()
    models: dict[str, Schema] = {}
    properties = _properties("", values, models)
    properties["global"] = {
        "description": "Set by Helm for charts that are part of others; not used here.",
        "type": "object",
    }
    document = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart dbtunnel-operator",
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "definitions": dict(sorted(models.items())),
    }
    return json.dumps(document, indent=1) + "\n"


def _properties(prefix: str, values: Mapping[str, Value], models: dict[str, Schema]) -> Schema:
    """The schemas of the values right below a path."""
    found = {path.removeprefix(prefix): path for path in values if path.startswith(prefix)}
    return {name: _node(path, values, models) for name, path in found.items() if "." not in name}


def _node(path: str, values: Mapping[str, Value], models: dict[str, Schema]) -> Schema:
    described = {"description": values[path].comment}
    below = _properties(f"{path}.", values, models)
    if below:
        return {**described, "type": "object", "additionalProperties": False, "properties": below}
    shape = SHAPES.get(path) or _by_name(path.rpartition(".")[2]) or {}
    return {**described, "type": _TYPES[type(values[path].default)], **_resolved(shape, models)}


def _resolved(shape: Schema, models: dict[str, Schema]) -> Schema:
    """`shape` with the definitions that it names taken in."""
    for name in re.findall(r'"#/definitions/(\w+)"', json.dumps(shape)):
        _take_in(name, models)
    return shape


_TYPES = {bool: "boolean", int: "integer", str: "string", list: "array", dict: "object"}


def _by_name(name: str) -> Schema | None:
    """What a value's own name tells."""
    kinds = {"labels": _LABELS, "nodeselector": _LABELS, "annotations": _ANNOTATIONS, "resources": _RESOURCES}
    return next((shape for end, shape in kinds.items() if name.lower().endswith(end)), None)


def _model(name: str) -> Schema:
    return {"$ref": f"#/definitions/{name}"}


def _take_in(name: str, models: dict[str, Schema]) -> None:
    """One of Kubernetes' own types, and those that it is made of."""
    if name not in models:
        document = getattr(client, name).model_json_schema(ref_template="#/definitions/{model}")
        for found, schema in {**document.pop("$defs", {}), name: document}.items():
            models[found] = _bare(schema)


def _bare(node: Any) -> Any:
    """A schema without what it says to people, and without the null that stands for what is left out."""
    if isinstance(node, list):
        return [_bare(one) for one in node]
    if not isinstance(node, dict):
        return node
    choices = [one for one in node.get("anyOf", ()) if one != {"type": "null"}]
    node = {**node, **(choices[0] if len(choices) == 1 else {"anyOf": choices} if choices else {})}
    spoken = ("title", "description", "default", *(("anyOf",) if len(choices) == 1 else ()))
    return {
        key: {name: _bare(one) for name, one in value.items()} if key == "properties" else _bare(value)
        for key, value in node.items()
        if key not in spoken
    }


def _own(model: type[ApiModel]) -> Schema:
    """A model of the operator's, as strict as the operator reads it."""
    closed: Schema = _closed(model_schema(model))
    return {key: value for key, value in closed.items() if key != "type"}


def _closed(node: Any) -> Any:
    if isinstance(node, list):
        return [_closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if key not in ("description", "default") and "x-kub" not in key}
    if "properties" not in kept:
        return {key: _closed(value) for key, value in kept.items()}
    below = {name: _closed(one) for name, one in kept["properties"].items()}
    return {**kept, "properties": below, "additionalProperties": False}


# --- what defaults cannot tell ----------------------------------------------------------------------------------------


def _one_of(*values: str) -> Schema:
    return {"enum": list(values)}


def _between(low: int, high: int) -> Schema:
    return {"minimum": low, "maximum": high}


def _list_of(item: Schema) -> Schema:
    return {"items": item}


_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_KEY = rf"^([a-z0-9]([-a-z0-9.]{{0,251}}[a-z0-9])?/)?{_NAME}$"
_LABELS = {"additionalProperties": False, "patternProperties": {_KEY: {"type": "string", "pattern": f"^({_NAME})?$"}}}
_ANNOTATIONS = {"additionalProperties": False, "patternProperties": {_KEY: {"type": "string"}}}
_AMOUNTS = {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
_RESOURCES = {"additionalProperties": False, "properties": {"requests": _AMOUNTS, "limits": _AMOUNTS}}
_OBJECT_NAME = {"pattern": r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?)?$", "maxLength": 253}
_LABEL_NAME = {"pattern": "^([a-z]([-a-z0-9]*[a-z0-9])?)?$", "maxLength": 63}
_NAMESPACES = _list_of({"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"})
_DIGEST = {"pattern": "^(sha256:[0-9a-f]{64})?$"}
_TAG = {"pattern": r"^([A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?$"}
_PULL_POLICIES = ("Always", "IfNotPresent", "Never")
_LEVELS, _FORMATS = _one_of("DEBUG", "INFO", "WARNING", "ERROR"), _one_of("json", "text")
_INTERVAL = {"pattern": "^([0-9]+(ms|[smh]))*$"}

_WILD_NAME, _NETWORK = "^([*][.])?[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?$", "^[0-9a-fA-F.:]+(/[0-9]{1,3})?$"
_TARGETS = {
    **_list_of(
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "hosts": {
                    "type": "array",
                    "maxItems": 64,
                    "items": {"type": "string", "pattern": f"{_WILD_NAME}|{_NETWORK}"},
                },
                "ports": {"type": "array", "maxItems": 64, "items": {"type": "integer", **_between(1, 65535)}},
                "namespaces": {"type": "array", "maxItems": 256, **_NAMESPACES},
            },
        }
    ),
    "maxItems": 64,
}

SHAPES: Mapping[str, Schema] = {
    "nameOverride": _LABEL_NAME,
    "fullnameOverride": _LABEL_NAME,
    "image.repository": {"pattern": "^[^@ ]+$"},
    "image.tag": _TAG,
    "image.digest": _DIGEST,
    "image.pullPolicy": _one_of(*_PULL_POLICIES),
    "forwarder.image.repository": {"pattern": "^[^@ ]*$"},
    "forwarder.image.tag": _TAG,
    "forwarder.image.digest": _DIGEST,
    "forwarder.image.pullPolicy": _one_of("", *_PULL_POLICIES),
    "imagePullSecrets": _list_of(
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {"name": {"type": "string", **_OBJECT_NAME, "minLength": 1}},
        }
    ),
    "replicaCount": _between(0, 5),
    "settings.namespaces": {**_NAMESPACES, "uniqueItems": True},
    "settings.scraperNamespaces": _NAMESPACES,
    "settings.egressAddresses": {
        **_list_of({"type": "string", "pattern": "^[0-9a-fA-F.:]+(/[0-9]+)?$"}),
        "maxItems": 32,
    },
    "settings.defaultReplicas": _between(1, 16),
    "settings.defaultKeepaliveIntervalSeconds": _between(1, 3600),
    "settings.defaultKeepaliveCountMax": _between(1, 100),
    "settings.defaultParkingMaxSeconds": _between(0, 3600),
    "settings.defaultParkingMaxClients": _between(0, 100000),
    "settings.defaultDrainMinSeconds": _between(0, 300),
    "settings.defaultDrainMaxSeconds": _between(0, 604800),
    "settings.defaultProbeIntervalSeconds": _between(5, 86400),
    "settings.defaultProbeMode": _one_of("Auto", "Passive", "Disabled"),
    "settings.defaultPodTemplate": _own(PodTemplate),
    "settings.workers": _between(1, 64),
    "settings.rollouts": _between(1, 1000),
    "settings.resyncSeconds": _between(10, 86400),
    "settings.unreachableAfterSeconds": _between(1, 3600),
    "settings.logLevel": _LEVELS,
    "settings.logFormat": _FORMATS,
    "settings.forwarderLogLevel": _LEVELS,
    "settings.forwarderLogFormat": _FORMATS,
    "settings.forwarderPackets": _one_of("own", "asyncssh"),
    "settings.forwarderPodSecurity": _own(PodSecurity),
    "serviceAccount.name": _OBJECT_NAME,
    "rbac.readers": _one_of("view", "nobody"),
    "rbac.writers": _one_of("edit", "admin", "nobody"),
    "admissionPolicies.tunnels.actions": {
        **_list_of(_one_of("Deny", "Warn", "Audit")),
        # the API server refuses both together
        "not": {"allOf": [{"contains": _one_of("Deny")}, {"contains": _one_of("Warn")}]},
        "minItems": 1,
        "uniqueItems": True,
    },
    "admissionPolicies.tunnels.sshServers": _TARGETS,
    "admissionPolicies.tunnels.databases": _TARGETS,
    "metrics.serviceMonitor.interval": _INTERVAL,
    "metrics.podMonitor.interval": _INTERVAL,
    "podSecurityContext": {"allOf": [_model("V1PodSecurityContext")]},
    "securityContext": {"allOf": [_model("V1SecurityContext")]},
    "extraEnv": _list_of(
        {
            "allOf": [_model("V1EnvVar")],
            "properties": {"name": {"not": {"pattern": "^(DBTUNNEL_.*|POD_ID)$"}, "minLength": 1}},
        }
    ),
    "terminationGracePeriodSeconds": _between(0, 3600),
    "podDisruptionBudget.maxUnavailable": _between(1, 5),
    "networkPolicy.from": _list_of(_model("V1NetworkPolicyPeer")),
    "networkPolicy.egress": _list_of(_model("V1NetworkPolicyEgressRule")),
    "tolerations": _list_of(_model("V1Toleration")),
    "affinity": {"allOf": [_model("V1Affinity")]},
    "topologySpreadConstraints": _list_of(
        {"allOf": [_model("V1TopologySpreadConstraint")], "properties": {"labelSelector": False}}
    ),
    "priorityClassName": _OBJECT_NAME,
}
"""What a value may be, by its path, where its default does not tell."""


# --- the README -------------------------------------------------------------------------------------------------------


def readme() -> str:
    """The chart's README with the table of values as it must be."""
    text = (CHART / "README.md").read_text()
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    return f"{before}{_BEGIN}\n\n{_table()}\n\n{_END}{after}"


def _table() -> str:
    values = declared()
    groups = {path.rpartition(".")[0] for path in values}
    rows = [
        f"| `{path}` | {'' if path in groups else value.default_text} | {value.comment.replace('|', chr(92) + '|')} |"
        for path, value in values.items()
    ]
    return "\n".join(["| value | default | |", "| --- | --- | --- |", *rows])
