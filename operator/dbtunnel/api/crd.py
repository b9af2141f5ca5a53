"""The CustomResourceDefinition, made from the models. What is in `crds/` and in the chart is this module's output."""

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, cast

from dbtunnel.api.base import CEL_KEY, ApiModel
from dbtunnel.api.resource import GROUP, KIND, PLURAL, VERSION, DatabaseTunnel
from dbtunnel.api.spec import DatabaseTunnelSpec
from dbtunnel.api.status import DatabaseTunnelStatus

Schema = dict[str, Any]

_NOT_STRUCTURAL = frozenset({"title", "propertyNames"})
"""Keywords of JSON Schema that a structural schema does not have."""

_READY = '.status.conditions[?(@.type=="Ready")]'

_NOT_SEEN_YET = {"observedGeneration": -1}
"""The status of a tunnel before the operator's first write: what waits by kstatus takes an object without a status for
done, and one whose generation was not observed for one in progress."""


def crd() -> Schema:
    """The CustomResourceDefinition of DatabaseTunnel."""
    names = {
        "kind": KIND,
        "listKind": f"{KIND}List",
        "plural": PLURAL,
        "singular": KIND.lower(),
        "shortNames": ["dbtun"],
    }
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "additionalPrinterColumns": _columns(),
        "schema": {"openAPIV3Schema": resource_schema()},
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {"group": GROUP, "scope": "Namespaced", "names": names, "versions": [version]},
    }


def resource_schema() -> Schema:
    """The structural schema of the whole object."""
    return {
        "type": "object",
        "description": DatabaseTunnel.__doc__,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": model_schema(DatabaseTunnelSpec),
            "status": {**model_schema(DatabaseTunnelStatus), "default": _NOT_SEEN_YET},
        },
        **cast(Schema, DatabaseTunnel.model_config["json_schema_extra"]),
    }


def model_schema(model: type[ApiModel]) -> Schema:
    """The structural schema of one model, every reference replaced by what it refers to."""
    document = model.model_json_schema(by_alias=True)
    definitions = document.pop("$defs", {})
    return cast(Schema, _structural(document, definitions))


def _structural(node: Any, definitions: Mapping[str, Schema]) -> Any:
    if isinstance(node, list):
        return [_structural(item, definitions) for item in node]
    if not isinstance(node, dict):
        return node
    node = _with_default_told(_resolved(node, definitions))
    return {
        key: _named(value, definitions) if key == "properties" else _cleaned(key, value, definitions)
        for key, value in node.items()
        if key not in _NOT_STRUCTURAL and not _says_nothing(node, key)
    }


def _named(properties: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """The schemas of named fields; a field may bear the name of a keyword."""
    return {name: _structural(schema, definitions) for name, schema in properties.items()}


def _resolved(node: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """`node` with its reference, and its union with null, replaced by what they stand for."""
    while True:
        if "$ref" in node:
            reference = node["$ref"].removeprefix("#/$defs/")
            target = definitions[reference]
            node = target | {key: value for key, value in node.items() if key != "$ref"} | _told_of_both(target, node)
        elif {"type": "null"} in node.get("anyOf", ()):
            (choice,) = [choice for choice in node["anyOf"] if choice != {"type": "null"}]
            node = choice | {key: value for key, value in node.items() if key != "anyOf"}
        else:
            return node


def _told_of_both(target: Schema, field: Schema) -> Schema:
    """What an object is, and what it is for where it stands: `kubectl explain` shows one description of a field."""
    if "properties" not in target or "description" not in field or "description" not in target:
        return {}
    is_repeated = target["description"].startswith(field["description"].rstrip("."))
    text = target["description"] if is_repeated else f"{field['description']} {target['description']}"
    return {"description": text}


def _with_default_told(node: Schema) -> Schema:
    """`kubectl explain` shows no defaults but those that the description tells."""
    default = node.get("default")
    if default is None or isinstance(default, dict) or "description" not in node:
        return node
    return node | {"description": f"{node['description']} Default: {json.dumps(default).strip(chr(34))}."}


def _cleaned(key: str, value: Any, definitions: Mapping[str, Schema]) -> Any:
    if key == "description":
        return " ".join(value.split())
    if key == "default" and isinstance(value, dict):
        return {}  # the API server fills in the nested defaults
    # a copy, since YAML would refer from one place to another
    return deepcopy(value) if key in ("required", "enum", CEL_KEY) else _structural(value, definitions)


def _says_nothing(node: Schema, key: str) -> bool:
    is_null_default = key == "default" and _is_empty(node[key])
    is_open = key == "additionalProperties" and node[key] is True
    is_union_type = key == "type" and "x-kubernetes-int-or-string" in node
    return is_null_default or is_open or is_union_type


def _is_empty(default: Any) -> bool:
    """Whether a default sets no value: the object then stays out of what is stored."""
    if isinstance(default, dict):
        return all(_is_empty(value) for value in default.values())
    return default is None


def _columns() -> list[Schema]:
    def column(name: str, path: str, *, wide: bool = False, of: str = "string") -> Schema:
        return {"name": name, "type": of, "jsonPath": path} | ({"priority": 1} if wide else {})

    return [
        column("Engine", ".spec.engine"),
        column("Endpoint", ".status.endpoint.host"),
        column("Bastion", ".spec.tunnel.host"),
        column("Ready", f"{_READY}.status"),
        column("Reason", f"{_READY}.reason"),
        column("Age", ".metadata.creationTimestamp", of="date"),
        column("Active Host", ".status.hops[?(@.active==true)].host", wide=True),
        column("Replicas", ".status.readyReplicas", wide=True, of="integer"),
        column("Message", f"{_READY}.message", wide=True),
    ]
