"""Reading a DatabaseTunnel that a person wrote, with errors that name the field, what was found and what to write."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dbtunnel.api.resource import DatabaseTunnel


class ManifestError(ValueError):
    """The file cannot be used; the text says where and why, a line a problem."""


def read_tunnel(path: str, namespace: str = "default") -> DatabaseTunnel:
    """The DatabaseTunnel in a file, `-` for standard input. Raises ManifestError."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: {error}") from error
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise ManifestError(f"{path}: found {len(documents)} documents; give one DatabaseTunnel")
    return parse_tunnel(documents[0], path, namespace)


def parse_tunnel(manifest: Mapping[str, Any], path: str, namespace: str) -> DatabaseTunnel:
    """The tunnel of a manifest, in `namespace` where it names none. Unknown fields are errors."""
    metadata = {"namespace": namespace, **(manifest.get("metadata") or {})}
    try:
        tunnel = DatabaseTunnel.parse({**manifest, "metadata": metadata})
        strange = list(_unknown(manifest.get("spec"), tunnel.spec.model_dump(by_alias=True), "spec"))
    except ValidationError as error:
        raise ManifestError("\n".join(f"{path}: {_line(problem)}" for problem in error.errors())) from error
    if strange:
        raise ManifestError("\n".join(f"{path}: {field}: no such field" for field in strange))
    return tunnel


def _unknown(given: Any, known: Any, where: str) -> list[str]:
    """Paths of the fields that the model did not take."""
    if not isinstance(given, Mapping) or not isinstance(known, Mapping):
        return []
    found: list[str] = []
    for name, value in given.items():
        path = f"{where}.{name}"
        found += _unknown(value, known[name], path) if name in known else [path]
    return found


def _line(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "manifest"
    found = "" if problem["type"] in ("missing", "rule") else f" (found {repr(problem['input'])[:80]})"
    return f"{where}: {problem['msg']}{found}"
