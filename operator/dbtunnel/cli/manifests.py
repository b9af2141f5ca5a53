"""Reading a DatabaseTunnel that a person wrote, with errors that name the field, what was found and what to write."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.cli import UnusableInputError


class ManifestError(UnusableInputError):
    """The file cannot be used; the text says where and why, a line a problem."""


class _Loader(yaml.SafeLoader):
    """YAML as kubectl reads it: what looks like a date is a text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_tunnel(path: str, namespace: str = "default") -> DatabaseTunnel:
    """The DatabaseTunnel in a file, `-` for standard input. Raises ManifestError."""
    try:
        text = sys.stdin.read() if path == "-" else Path(path).read_text()
        documents = [document for document in yaml.load_all(text, _Loader) if document is not None]
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: {error}") from error
    if len(documents) != 1:
        raise ManifestError(f"{path}: found {len(documents)} documents; give one DatabaseTunnel")
    return parse_tunnel(documents[0], path, namespace)


def parse_tunnel(manifest: Any, path: str, namespace: str) -> DatabaseTunnel:
    """The tunnel of a manifest, in `namespace` where it names none. Unknown fields are errors."""
    given = _mapping(manifest, path)
    metadata = _mapping(given.get("metadata") or {}, f"{path}: metadata")
    try:
        tunnel = DatabaseTunnel.parse({**given, "metadata": {"namespace": namespace, **metadata}})
        strange = list(_unknown(given.get("spec"), tunnel.spec.model_dump(by_alias=True), "spec"))
    except ValidationError as error:
        raise ManifestError("\n".join(f"{path}: {_line(problem)}" for problem in _problems(error))) from error
    except TypeError as error:
        # YAML has more types than JSON
        raise ManifestError(f"{path}: {error}") from error
    if strange:
        raise ManifestError("\n".join(f"{path}: {field}: no such field" for field in strange))
    return tunnel


def _mapping(found: Any, where: str) -> Mapping[str, Any]:
    if isinstance(found, Mapping):
        return found
    raise ManifestError(f"{where}: found {repr(found)[:80]}; write a mapping, as of a DatabaseTunnel")


def _unknown(given: Any, known: Any, where: str) -> list[str]:
    """Paths of the fields that the model did not take."""
    if isinstance(given, list) and isinstance(known, list | tuple):
        given, known = dict(enumerate(given)), dict(enumerate(known))
    if not isinstance(given, Mapping) or not isinstance(known, Mapping):
        return []
    found: list[str] = []
    for name, value in given.items():
        path = f"{where}.{name}"
        found += _unknown(value, known[name], path) if name in known else [path]
    return found


def _problems(error: ValidationError) -> list[Any]:
    """All but those of lists that only lack the items in which there are problems already."""
    problems = error.errors()
    around = {problem["loc"][:-1] for problem in problems}
    return [problem for problem in problems if problem["type"] != "too_short" or problem["loc"] not in around]


def _line(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "manifest"
    found = "" if problem["type"] in ("missing", "rule") else f" (found {repr(problem['input'])[:80]})"
    return f"{where}: {problem['msg']}{found}"
