"""What a release has beside its image: made here by the commands that the workflow runs, pushed to a real registry."""

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from dbtunnel import __version__
from tests.support.binaries import binary
from tests.support.chart import helm, render
from tests.support.processes import ROOT, free_port, run
from tests.support.registry import USER, registry
from tests.support.release import NAMESPACE, RELEASE, ReleaseError, check, files, main, manifests, push

REPOSITORY = "registry.example.com/team/dbtunnel"
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yaml"))
RELEASE_WORKFLOW = ROOT / ".github/workflows/release.yaml"
WORKFLOW = yaml.safe_load(RELEASE_WORKFLOW.read_text())

READS = {"contents": "read"}

_PUBLISHES = {"packages": "write", "id-token": "write", "attestations": "write"}

WRITES = {
    ("release", "image"): {**READS, **_PUBLISHES},
    ("release", "chart"): {"contents": "write", **_PUBLISHES},
}
"""What jobs may beyond reading the repository: to push to its registry, to sign as themselves; one makes a release."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a release."""
    directory = tmp_path_factory.mktemp("release") / "files"
    files(directory, REPOSITORY)
    return directory


def archive(made: Path) -> Path:
    return made / f"dbtunnel-operator-{__version__}.tgz"


def images(documents: list[Any]) -> set[str]:
    """Those that the documents name, in containers and settings."""
    return set(re.findall(r'"(?:image|value)": "([^"]+/dbtunnel:[^"]+)"', json.dumps(documents)))


# --- the files --------------------------------------------------------------------------------------------------


def test_a_release_has_these_files(made: Path) -> None:
    assert {path.name for path in made.iterdir()} == {
        archive(made).name,
        "install.yaml",
        "sbom.cdx.json",
        "SHA256SUMS",
    }
    assert run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=made).count(": OK\n") == 3


def test_the_packaged_chart_is_the_chart_with_the_image_of_the_release(made: Path) -> None:
    packaged = helm("template", RELEASE, str(archive(made)), "--namespace", NAMESPACE).stdout
    documents = [one for one in yaml.safe_load_all(packaged) if one]

    assert images(documents) == {f"{REPOSITORY}:{__version__}"}
    assert documents == render({"image": {"repository": REPOSITORY}}, release=RELEASE)
    assert helm("lint", "--strict", str(archive(made))).returncode == 0


def test_the_manifests_are_what_the_chart_renders_and_its_namespace_first(made: Path) -> None:
    first, *rest = [one for one in yaml.safe_load_all((made / "install.yaml").read_text()) if one]

    assert (first["kind"], first["metadata"]["name"]) == ("Namespace", NAMESPACE)
    assert rest == render({"image": {"repository": REPOSITORY}}, release=RELEASE)
    assert {"CustomResourceDefinition", "Deployment"} <= {one["kind"] for one in rest}


def test_the_manifests_are_the_same_each_time() -> None:
    assert manifests() == manifests()


def test_the_bill_of_materials_names_every_pinned_package(made: Path) -> None:
    bill = json.loads((made / "sbom.cdx.json").read_text())
    pinned = set(re.findall(r"^(\S+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))

    assert (bill["bomFormat"], bill["metadata"]["component"]["version"]) == ("CycloneDX", __version__)
    assert {(one["name"], one["version"]) for one in bill["components"]} == pinned
    assert all(one["purl"] == f"pkg:pypi/{one['name']}@{one['version']}" for one in bill["components"])


# --- the registry -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`HOST:PORT` of a registry."""
    with registry(tmp_path_factory.mktemp("registry")) as address:
        yield address


def test_the_chart_comes_from_a_registry_as_it_was_pushed(made: Path, address: str, tmp_path: Path) -> None:
    digest = push(archive(made), f"oci://{address}/charts", "--plain-http")

    chart = f"oci://{address}/charts/dbtunnel-operator"
    pulled = helm("pull", f"{chart}@{digest}", "--plain-http", "--destination", str(tmp_path))
    assert pulled.returncode == 0, pulled.stderr
    (got,) = tmp_path.glob("*.tgz")
    assert got.read_bytes() == archive(made).read_bytes()
    shown = helm("show", "chart", chart, "--version", "0.1.x", "--plain-http").stdout
    assert yaml.safe_load(shown)["version"] == __version__, "a range of versions finds it, as Flux asks for it"


def test_a_registry_that_is_away_is_told(made: Path) -> None:
    with pytest.raises(ReleaseError, match="helm push"):
        push(archive(made), f"oci://127.0.0.1:{free_port()}/charts", "--plain-http")


def test_helm_has_the_login_of_docker(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with registry(tmp_path, password="good") as address:

        def push_as(password: str) -> str:
            login = base64.b64encode(f"{USER}:{password}".encode()).decode()
            (tmp_path / "config.json").write_text(json.dumps({"auths": {address: {"auth": login}}}))
            return push(archive(made), f"oci://{address}/charts", "--plain-http")

        with pytest.raises(ReleaseError, match="401"):
            push_as("bad")
        assert push_as("good").startswith("sha256:")


# --- the check --------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that say a version, as at a release."""
    (tmp_path / "charts").mkdir()
    shutil.copytree(ROOT / "charts/dbtunnel-operator", tmp_path / "charts/dbtunnel-operator")
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n## {__version__} - 2027-01-01\n")
    return tmp_path


def test_a_tag_that_fits_everything_is_released(tree: Path) -> None:
    check(f"v{__version__}", tree)


@pytest.mark.parametrize("tag", ["v9.9.9", __version__, f"v{__version__}-1"])
def test_a_tag_of_another_version_is_not_released(tree: Path, tag: str) -> None:
    with pytest.raises(ReleaseError, match="change one of them"):
        check(tag, tree)


def test_a_chart_of_another_version_is_not_released(tree: Path) -> None:
    chart = tree / "charts/dbtunnel-operator/Chart.yaml"
    chart.write_text(chart.read_text().replace(f"appVersion: {__version__}", "appVersion: 0.0.9"))
    with pytest.raises(ReleaseError, match=r"the chart's appVersion has version 0\.0\.9"):
        check(f"v{__version__}", tree)


def test_a_version_that_the_changelog_does_not_tell_of_is_not_released(tree: Path) -> None:
    (tree / "CHANGELOG.md").write_text("# Changelog\n\n## Unreleased\n")
    with pytest.raises(ReleaseError, match="no section"):
        check(f"v{__version__}", tree)


def test_the_command_says_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "v9.9.9"]) == 1
    assert "the tag is v9.9.9, the package has version" in capsys.readouterr().err


# --- the workflow -----------------------------------------------------------------------------------------------


def lint(path: Path) -> subprocess.CompletedProcess[str]:
    """What actionlint says of a workflow; without the programs that it may call where they are there."""
    command = [str(binary("actionlint")), "-shellcheck=", "-pyflakes=", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_the_workflows_are_valid(path: Path) -> None:
    done = lint(path)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_soak_is_run_by_the_calendar() -> None:
    workflow = yaml.load((ROOT / ".github/workflows/soak.yaml").read_text(), yaml.BaseLoader)
    assert workflow["on"]["schedule"]
    assert any(step.get("run", "").endswith(" make soak") for step in workflow["jobs"]["soak"]["steps"])


def test_an_error_in_a_workflow_would_be_found(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(RELEASE_WORKFLOW.read_text().replace("outputs.digest }}", "output.x }}"))
    assert 'property "output" is not defined' in lint(wrong).stdout


def commands(job: str) -> list[str]:
    return [step["run"] for step in WORKFLOW["jobs"][job].get("steps", ()) if "run" in step]


def needed(job: str) -> set[str]:
    """The jobs that have to succeed before it starts."""
    needs = WORKFLOW["jobs"][job].get("needs", [])
    direct = {needs} if isinstance(needs, str) else set(needs)
    return direct.union(*map(needed, direct))


def run_step(job: str, name: str, directory: Path, **environment: str) -> tuple[int, dict[str, str]]:
    """A step as GitHub runs it: its exit code, and its outputs."""
    text = next(step["run"] for step in WORKFLOW["jobs"][job]["steps"] if step.get("id") == name)
    output = directory / "output"
    given = {"PATH": os.environ["PATH"], "GITHUB_OUTPUT": str(output), **environment}
    done = subprocess.run(["bash", "-e", "-c", text], cwd=directory, env=given, check=False)
    lines = output.read_text().splitlines() if output.exists() else []
    return done.returncode, dict(line.split("=", 1) for line in lines)


def test_the_workflow_runs_what_is_tested_here() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = [command.split()[1] for job in WORKFLOW["jobs"] for command in commands(job) if command.startswith("make ")]

    assert made == ["release-check", "release-files"]
    assert set(made) <= targets


def test_nothing_is_published_before_every_test_has_passed() -> None:
    tests = yaml.load((ROOT / ".github/workflows/test.yaml").read_text(), yaml.BaseLoader)
    publishing = [name for name, job in WORKFLOW["jobs"].items() if "write" in job.get("permissions", {}).values()]

    assert publishing == ["image", "chart"]
    assert all(needed(name) >= {"check", "test"} for name in publishing)
    assert WORKFLOW["jobs"]["test"] == {"needs": "check", "permissions": READS, "uses": "./.github/workflows/test.yaml"}
    assert "workflow_call" in tests["on"]
    assert any(step.get("run", "").endswith(" make test") for step in tests["jobs"]["test"]["steps"])


def test_names_in_the_registry_have_no_capital_letters(tmp_path: Path) -> None:
    given = {"GITHUB_REPOSITORY_OWNER": "Example-Org", "GITHUB_REF_NAME": "v1.2.3"}
    assert run_step("check", "names", tmp_path, **given) == (
        0,
        {"version": "1.2.3", "image": "ghcr.io/example-org/dbtunnel", "charts": "ghcr.io/example-org/charts"},
    )
    published = {name: job.get("env", {}) for name, job in WORKFLOW["jobs"].items()}
    assert published["image"] == {"IMAGE": "${{ needs.check.outputs.image }}"}
    assert published["chart"] == {**published["image"], "CHARTS": "${{ needs.check.outputs.charts }}"}
    assert "repository_owner" not in json.dumps(WORKFLOW)


def test_what_a_job_tells_another_is_used() -> None:
    told = {f"{name}.outputs.{output}" for name, job in WORKFLOW["jobs"].items() for output in job.get("outputs", {})}
    assert told == set(re.findall(r"needs\.(\w+\.outputs\.\w+)", json.dumps(WORKFLOW)))


@pytest.mark.parametrize(
    ("script", "ends"),
    [("echo sha256:0123", (0, {"digest": "sha256:0123"})), ("echo no registry; exit 1", (1, {}))],
    ids=["succeeds", "fails"],
)
def test_a_push_that_fails_ends_the_release(tmp_path: Path, script: str, ends: tuple[int, dict[str, str]]) -> None:
    program = tmp_path / ".venv/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\necho "$@" > said\n{script}\n')
    program.chmod(0o755)

    assert run_step("chart", "push", tmp_path, CHARTS="ghcr.io/example-org/charts") == ends
    assert (tmp_path / "said").read_text() == "-m tests.support.release push oci://ghcr.io/example-org/charts\n"


@pytest.mark.parametrize(("tag", "marks"), [("v1.2.3", ""), ("v1.2.3-rc1", " --prerelease")])
def test_a_prerelease_is_no_latest_release(tmp_path: Path, tag: str, marks: str) -> None:
    (tmp_path / "build/release").mkdir(parents=True)
    (tmp_path / "build/release/SHA256SUMS").touch()
    program = tmp_path / "gh"
    program.write_text('#!/bin/sh\necho "$@" > said\n')
    program.chmod(0o755)

    path = f"{tmp_path}:{os.environ['PATH']}"
    assert run_step("chart", "page", tmp_path, PATH=path, GITHUB_REF_NAME=tag) == (0, {})
    said = f"release create {tag} --verify-tag --generate-notes{marks} build/release/SHA256SUMS\n"
    assert (tmp_path / "said").read_text() == said


def test_every_artifact_is_signed_by_digest_and_has_its_provenance() -> None:
    text = json.dumps(WORKFLOW)
    build = next(one["with"] for one in WORKFLOW["jobs"]["image"]["steps"] if one.get("id") == "build")

    assert build["platforms"] == "linux/amd64,linux/arm64"
    assert (build["sbom"], build["provenance"]) == (True, "mode=max")
    assert re.findall(r'cosign sign --yes \\"\$(\S+)@\$DIGEST', text) == ["IMAGE", "CHARTS/dbtunnel-operator"]
    assert text.count("actions/attest-build-provenance@") == 2


def jobs(path: Path) -> dict[str, Any]:
    """Those of a workflow, by name."""
    found: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return found


def test_every_action_is_pinned_by_a_commit_which_has_one_release_everywhere() -> None:
    texts = [path.read_text() for path in WORKFLOWS]
    uses = [one for text in texts for one in re.findall(r"^ +(?:- )?uses: (?!\./)(.*)$", text, re.MULTILINE)]
    pinned = [re.fullmatch(r"([\w-]+/[\w-]+)[\w/-]*@([0-9a-f]{40} # v\d+\.\d+\.\d+)", one) for one in uses]

    steps = [step for path in WORKFLOWS for job in jobs(path).values() for step in job.get("steps", ())]
    assert len(uses) == sum("uses" in step for step in steps) > 20
    assert [use for use, pin in zip(uses, pinned, strict=True) if not pin] == []
    pins = {pin.groups() for pin in pinned if pin}
    assert len(pins) == len({repository for repository, _ in pins})


def test_cosign_is_of_one_version_everywhere() -> None:
    steps = [step for job in jobs(RELEASE_WORKFLOW).values() for step in job.get("steps", ())]
    installed = [step["with"] for step in steps if step.get("uses", "").startswith("sigstore/cosign-installer@")]
    assert installed == [{"cosign-release": "v2.5.2"}] * 2


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_job_has_an_end_and_the_permissions_that_it_needs(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["permissions"] == {}
    for name, job in jobs(path).items():
        assert "uses" in job or job["timeout-minutes"], name
        assert job["permissions"] == WRITES.get((path.stem, name), READS), name


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_no_job_leaves_its_token_in_the_clone(path: Path) -> None:
    steps = [step for job in jobs(path).values() for step in job.get("steps", ())]
    clones = [step.get("with") for step in steps if step.get("uses", "").startswith("actions/checkout@")]
    assert clones
    assert all(one == {"persist-credentials": False} for one in clones)
