"""The lock files pin what pyproject.toml asks for, by hashes alone."""

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

_PIN = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9-]*)==(?P<version>[0-9][a-z0-9.+!]*)(?P<hashes>( --hash=sha256:[0-9a-f]{64})+)"
)


@dataclass(frozen=True)
class Pin:
    """One package of a lock file."""

    version: str
    hashes: int


def _lock(name: str) -> dict[str, Pin]:
    """The pins of a lock file; a line of any other form fails the test."""
    text = (ROOT / name).read_text().replace("\\\n", "")
    lines = [" ".join(line.split()) for line in text.splitlines() if line and not line.startswith("#")]
    pins = {}
    for line in lines:
        match = _PIN.fullmatch(line)
        assert match, f"{name}: not a pin with hashes alone: {line[:200]}"
        pins[match["name"]] = Pin(match["version"], match["hashes"].count("--hash="))
    return pins


def _wanted() -> Mapping[str, list[str]]:
    """Each lock file, and the requirements that it must satisfy."""
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    clients, node = (
        [line for line in (ROOT / "tests/support" / name).read_text().splitlines() if not line.startswith("#")]
        for name in ("images/clients.in", "applications/node.in")
    )
    return {
        "requirements.txt": project["dependencies"],
        "requirements-build.txt": PYPROJECT["build-system"]["requires"],
        "requirements-dev.txt": [*project["dependencies"], *extras["test"], *extras["lint"], *extras["dev"]],
        "requirements-clients.txt": clients,
        "requirements-node.txt": node,
    }


def _environment(python: str, machine: str) -> dict[str, str]:
    """Markers of an interpreter on Linux."""
    return {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "implementation_version": f"{python}.0",
        "platform_machine": machine,
        "extra": "",
    }


def _missing(pins: Mapping[str, Pin], requirements: Iterable[str], environment: dict[str, str]) -> list[str]:
    """What the requirements ask for that the pins do not give."""
    problems = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        pin = pins.get(canonicalize_name(requirement.name))
        if pin is None or not requirement.specifier.contains(pin.version, prereleases=True):
            problems.append(f"{text}: {pin.version if pin else 'not there'}")
    return problems


@pytest.mark.parametrize("name", _wanted())
def test_every_requirement_is_pinned_at_a_version_that_satisfies_it(name: str) -> None:
    assert _missing(_lock(name), _wanted()[name], _environment("3.11", "x86_64")) == []


@pytest.mark.parametrize("name", _wanted())
def test_a_lock_names_versions_and_hashes_and_no_address(name: str) -> None:
    text = (ROOT / name).read_text()

    assert _lock(name)
    assert not re.search(r"://|@|--index|--extra-index|--find-links|--trusted|(^|\s)/", text)


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_lock_is_complete_on_every_python(python: str, machine: str) -> None:
    """A marker such as python_version >= "3.13" may ask for a package that the resolving interpreter did not need."""
    pins = _lock("requirements-dev.txt")
    environment = _environment(python, machine)

    problems = [
        f"{name} needs {problem}" for name in pins for problem in _missing(pins, requires(name) or [], environment)
    ]

    assert problems == []


def test_the_package_asks_for_everything_that_it_imports() -> None:
    """What comes along with another dependency may stop to."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / "operator").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    modules = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    tops = {name.split(".")[0] for name in modules} - sys.stdlib_module_names - {"dbtunnel"}
    tops -= {"pydantic_core"}  # pydantic's other half, pinned by it to the one version that fits
    asked = {canonicalize_name(Requirement(text).name) for text in PYPROJECT["project"]["dependencies"]}
    known = packages_distributions()

    assert "cryptography" in tops
    assert {top for top in tops if not asked & {canonicalize_name(name) for name in known[top]}} == set()


def test_packages_with_compiled_parts_have_hashes_of_their_wheels() -> None:
    pins = _lock("requirements.txt")

    assert {
        name: pins[name].hashes for name in ("aiohttp", "cryptography", "pydantic-core") if pins[name].hashes < 10
    } == {}


def test_what_is_tested_is_what_ships() -> None:
    runtime, development = _lock("requirements.txt"), _lock("requirements-dev.txt")

    assert {name: pin for name, pin in runtime.items() if development.get(name) != pin} == {}


def test_the_image_builds_with_the_tested_setuptools() -> None:
    assert _lock("requirements-build.txt")["setuptools"] == _lock("requirements-dev.txt")["setuptools"]


def test_the_lock_of_npm_names_versions_and_hashes_and_no_registry() -> None:
    folder = ROOT / "tests/support/applications"
    asked = json.loads((folder / "package.json").read_text())["dependencies"]
    locked = json.loads((folder / "package-lock.json").read_text())["packages"]
    project = locked.pop("")

    assert project["dependencies"] == asked
    assert {f"node_modules/{name}" for name in asked} <= set(locked)
    assert [name for name, one in locked.items() if not one.get("integrity", "").startswith("sha512-")] == []
    assert [name for name, one in locked.items() if "resolved" in one] == []
