"""The kustomize example renames every reference that a DatabaseTunnel has."""

from collections.abc import Iterator
from typing import Any

import yaml

from dbtunnel.api.crd import resource_schema
from tests.support.processes import ROOT

EXAMPLE = ROOT / "examples" / "kustomize"


def references(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Kind and path of every field of the schema that names another object."""
    for name, field in schema.get("properties", {}).items():
        inner = field.get("items", field)
        below = f"{path}/{name}"
        if name.endswith("Ref") or name == "imagePullSecrets":
            kinds = inner["properties"].get("kind", {}).get("enum", ["Secret"])
            yield from ((kind, f"{below}/name") for kind in kinds)
        else:
            yield from references(inner, below)


def test_every_reference_is_renamed() -> None:
    names = yaml.safe_load((EXAMPLE / "names.yaml").read_text())["nameReference"]
    listed = {(one["kind"], field["path"]) for one in names for field in one["fieldSpecs"]}
    wanted = set(references(resource_schema()["properties"]["spec"], "spec"))

    assert ("ConfigMap", "spec/tunnel/jumpHosts/hostKey/knownHostsRef/name") in wanted
    assert listed == wanted
    assert all(field["group"] == "dbtunnel.dev" for one in names for field in one["fieldSpecs"])
