"""`python -m tests.support.release check|manifests|files|push`: what a release has beside its image.

The workflow .github/workflows/release.yaml runs the same commands that a person, or a test, runs here.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from dbtunnel import __version__
from tests.support.binaries import BinaryError, binary
from tests.support.processes import ROOT

RELEASE, NAMESPACE = "dbtunnel", "dbtunnel-system"
"""As everybody who installs install.yaml has them."""

CHART = ROOT / "charts" / "dbtunnel-operator"

_REPOSITORY = "  repository: localhost/dbtunnel\n"
"""The image's in the chart's values, where no registry has it."""

_PIN = re.compile(r"^([a-z0-9][a-z0-9.-]*)==([^ ;\\]+)", re.MULTILINE)


class ReleaseError(RuntimeError):
    """Something does not fit the release; the text says what, and what to do."""


def check(tag: str, root: Path = ROOT) -> None:
    """Raises ReleaseError unless the tag, the package, the chart and the changelog are of one version."""
    version = tag.removeprefix("v")
    chart = yaml.safe_load((root / "charts/dbtunnel-operator/Chart.yaml").read_text())
    found = {"the package": __version__, "the chart": chart["version"], "the chart's appVersion": chart["appVersion"]}
    for what, is_version in found.items():
        if tag != f"v{is_version}":
            raise ReleaseError(f"the tag is {tag}, {what} has version {is_version}: change one of them")
    if not re.search(rf"^## {re.escape(version)}\b", (root / "CHANGELOG.md").read_text(), re.MULTILINE):
        raise ReleaseError(
            f"CHANGELOG.md has no section {version}: call the section Unreleased so, and begin a new one"
        )


def manifests(chart: Path = CHART, *options: str, release: str = RELEASE, namespace: str = NAMESPACE) -> str:
    """What the chart installs, as one file for kubectl: the namespace and all that `helm template` renders."""
    first = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
    rendered = _run("helm", "template", release, str(chart), "--namespace", namespace, *options)
    return f"---\n{yaml.safe_dump(first)}{rendered}"


def files(directory: Path, repository: str) -> None:
    """Writes what a release offers for download: the chart, install.yaml, the bill of materials, their checksums."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        chart = _chart_with(repository, Path(scratch))
        _run("helm", "package", str(chart), "--destination", str(directory))
        (directory / "install.yaml").write_text(manifests(chart))
    (directory / "sbom.cdx.json").write_text(json.dumps(bill_of_materials(), indent=1) + "\n")
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(directory.iterdir())]
    (directory / "SHA256SUMS").write_text("".join(sums))


def _chart_with(repository: str, directory: Path) -> Path:
    """A copy of the chart whose image comes from a repository."""
    copy = directory / CHART.name
    shutil.copytree(CHART, copy)
    text = (copy / "values.yaml").read_text()
    if text.count(_REPOSITORY) != 1:
        raise ReleaseError(f"values.yaml does not have {_REPOSITORY.strip()!r} once")
    (copy / "values.yaml").write_text(text.replace(_REPOSITORY, f"  repository: {repository}\n"))
    return copy


def bill_of_materials() -> dict[str, Any]:
    """The Python packages of the image, by its lock, as CycloneDX 1.6. The image's own bill has Debian's, too."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "dbtunnel", "version": __version__}},
        "components": list(_components((ROOT / "requirements.txt").read_text())),
    }


def _components(lock: str) -> Iterator[dict[str, str]]:
    for name, version in _PIN.findall(lock):
        reference = f"pkg:pypi/{name}@{version}"
        yield {"type": "library", "name": name, "version": version, "purl": reference, "bom-ref": reference}


def push(archive: Path, target: str, *options: str) -> str:
    """Pushes a packaged chart to `oci://REGISTRY/PATH`. Returns its digest, by which it is signed."""
    found = re.search(r"^Digest: (sha256:[0-9a-f]{64})$", _run("helm", "push", str(archive), target, *options), re.M)
    if found is None:
        raise ReleaseError("helm push names no digest")
    return found[1]


def _run(name: str, *arguments: str) -> str:
    """What a program says, on both outputs."""
    done = subprocess.run([binary(name), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"{name} {' '.join(arguments)}: {done.stderr or done.stdout}")
    return done.stdout + (done.stderr if arguments[0] == "push" else "")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 where something does not fit."""
    parser = argparse.ArgumentParser(prog="release", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check").add_argument("tag")
    commands.add_parser("manifests").add_argument("--repository", default="localhost/dbtunnel")
    commands.add_parser("files").add_argument("--repository", required=True)
    commands.add_parser("push").add_argument("target")
    given = parser.parse_args(arguments)
    try:
        _command(given)
    except (BinaryError, ReleaseError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _command(given: argparse.Namespace) -> None:
    build = ROOT / "build"
    if given.command == "check":
        check(given.tag)
    elif given.command == "manifests":
        build.mkdir(exist_ok=True)
        (build / "install.yaml").write_text(manifests(CHART, "--set", f"image.repository={given.repository}"))
        print(build / "install.yaml")
    elif given.command == "files":
        files(build / "release", given.repository)
    else:
        (archive,) = (build / "release").glob("*.tgz")
        print(push(archive, given.target))


if __name__ == "__main__":
    sys.exit(main())
