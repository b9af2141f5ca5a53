"""Programs are found, downloaded with their checksum, or built, and never used when they are not what was published."""

import hashlib
import http.server
import io
import json
import re
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path

import pytest

from tests.support import binaries, sources
from tests.support.binaries import BinaryError, binary
from tests.support.processes import free_port
from tests.support.sources import SOURCES

GO = """\
#!/bin/sh
if [ "$1" = version ]; then echo "go version go{version} linux/amd64"; exit; fi
{build}
"""
"""Stands in for Go, whose build of a real program takes minutes."""

BUILDS = 'while [ "$1" != -o ]; do shift; done; mkdir -p out; echo built > "$2"'
FAILS = "echo no module proxy here >&2; exit 1"


class ReleaseSite(http.server.ThreadingHTTPServer):
    """The official sites below one address of this machine: `http://ADDRESS/SITE/PATH`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ReleaseHandler)
        self.files: dict[str, bytes] = {}
        self.cut_short: set[str] = set()
        """Paths of files whose connection ends half-way."""
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def publish(self, name: str, content: bytes, *, checksum: str | None = None) -> None:
        """A program as its project publishes it, with the checksum in that project's form."""
        source = SOURCES[name]
        file = _archive(source.member, content) if source.member else content
        digest = checksum or hashlib.sha256(file).hexdigest()
        named = f"{'0' * 64}  another-file.tar.gz\n{digest}  {source.url.rsplit('/', 1)[1]}\n"
        self.files[source.url.split("//")[1]] = file
        self.files[source.checksum.split("//")[1]] = (digest if name.startswith("kube") else named).encode()


class _ReleaseHandler(http.server.BaseHTTPRequestHandler):
    server: ReleaseSite

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        self.server.requests.append(path)
        content = self.server.files.get(path)
        if content is None:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if path in self.server.cut_short else content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""


def _archive(member: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        entry = tarfile.TarInfo(member)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def nothing_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, no folder of programs, and a Go that cannot build."""
    binary.cache_clear()
    monkeypatch.setenv("DBTUNNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBE_BIN_DIR", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    _install_go(monkeypatch, tmp_path, FAILS)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[ReleaseSite]:
    with ReleaseSite() as site:
        threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        monkeypatch.setenv("DBTUNNEL_DOWNLOAD_BASE", site.url)
        yield site
        site.shutdown()
    binary.cache_clear()


def _install_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, build: str, version: str = "1.99.0") -> None:
    folder = tmp_path / "path"
    folder.mkdir(exist_ok=True)
    (folder / "go").write_text(GO.format(version=version, build=build))
    (folder / "go").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def _cached(tmp_path: Path) -> set[str]:
    """What the cache holds, but for its lock."""
    return {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()} - {".lock"}


# --- the official release ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, source in SOURCES.items() if source.url])
def test_a_release_with_the_published_checksum_is_used(name: str, site: ReleaseSite) -> None:
    site.publish(name, b"the official " + name.encode())

    path = binary(name)

    assert path.read_bytes() == b"the official " + name.encode()
    assert path.stat().st_mode & 0o111 == 0o111


@pytest.mark.parametrize("name", ["kubectl", "helm", "etcd"])
def test_a_release_with_another_checksum_is_refused(
    name: str, site: ReleaseSite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.publish(name, b"not what was published", checksum="a" * 64)

    with pytest.raises(BinaryError, match="KUBE_BIN_DIR"):
        binary(name)

    assert _cached(tmp_path) == set()
    assert f"published is {'a' * 64}" in capsys.readouterr().err


def test_a_program_whose_release_is_refused_is_built(
    site: ReleaseSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.publish("kubectl", b"not what was published", checksum="a" * 64)
    _install_go(monkeypatch, tmp_path, BUILDS)

    assert binary("kubectl").read_text() == "built\n"


def test_a_download_that_ends_early_is_refused(site: ReleaseSite, tmp_path: Path) -> None:
    site.publish("kubectl", b"the official kubectl")
    site.cut_short.add(SOURCES["kubectl"].url.split("//")[1])

    with pytest.raises(BinaryError):
        binary("kubectl")
    assert _cached(tmp_path) == set()


def test_an_archive_without_the_program_is_refused(site: ReleaseSite, tmp_path: Path) -> None:
    archive = _archive("README.md", b"no program")
    source = SOURCES["helm"]
    site.files[source.url.split("//")[1]] = archive
    site.files[source.checksum.split("//")[1]] = hashlib.sha256(archive).hexdigest().encode()

    with pytest.raises(BinaryError):
        binary("helm")
    assert _cached(tmp_path) == set()


def test_a_checksum_of_other_files_alone_is_refused(site: ReleaseSite, capsys: pytest.CaptureFixture[str]) -> None:
    site.publish("etcd", b"the official etcd")
    site.files[SOURCES["etcd"].checksum.split("//")[1]] = f"{'0' * 64}  another-file.tar.gz\n".encode()

    with pytest.raises(BinaryError):
        binary("etcd")
    assert "no checksum of etcd-v" in capsys.readouterr().err


def test_an_unreachable_site_is_noticed_in_seconds_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DBTUNNEL_DOWNLOAD_BASE", f"http://127.0.0.1:{free_port()}")
    began = time.monotonic()

    with pytest.raises(BinaryError):
        binary("kubectl")

    assert time.monotonic() - began < 10
    said = [line for line in capsys.readouterr().err.splitlines() if "no official release of kubectl" in line]
    assert len(said) == 1
    assert "building it from its Go module" in said[0]


# --- the cache --------------------------------------------------------------------------------------------------


def test_a_cached_program_is_not_downloaded_again(site: ReleaseSite) -> None:
    site.publish("kubectl", b"the official kubectl")
    first = binary("kubectl")
    site.requests.clear()
    binary.cache_clear()

    assert binary("kubectl") == first
    assert site.requests == []


@pytest.mark.parametrize("file", ["kubectl", "kubectl.sha256"])
@pytest.mark.parametrize("damage", ["something else", ""])
def test_a_damaged_cache_is_made_good(site: ReleaseSite, file: str, damage: str) -> None:
    site.publish("kubectl", b"the official kubectl")
    path = binary("kubectl")
    (path.parent / file).write_text(damage)
    binary.cache_clear()

    assert binary("kubectl").read_bytes() == b"the official kubectl"
    assert (path.parent / "kubectl.sha256").read_text() == binaries.sha256_of(path)


def test_two_at_once_get_a_program_once(site: ReleaseSite) -> None:
    site.publish("kubectl", b"the official kubectl")

    with ThreadPoolExecutor(2) as pool:
        paths = set(pool.map(binary, ["kubectl", "kubectl"]))

    assert len(paths) == 1
    assert site.requests.count(SOURCES["kubectl"].url.split("//")[1]) == 1


def test_what_an_interrupted_run_left_is_removed(site: ReleaseSite, tmp_path: Path) -> None:
    site.publish("kubectl", b"the official kubectl")
    store = binary("kubectl").parent
    (store / "partial-abc123").mkdir()
    (store / "partial-abc123" / "kubelet").write_text("half of it")
    binary.cache_clear()

    binary("kubectl")

    assert _cached(tmp_path) == {"kubectl", "kubectl.sha256"}


# --- a folder of programs ---------------------------------------------------------------------------------------


def test_a_folder_of_programs_comes_first(site: ReleaseSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "kubectl").write_text("mine")
    monkeypatch.setenv("KUBE_BIN_DIR", str(own))
    site.publish("helm", b"the official helm")

    assert binary("kubectl") == own / "kubectl"
    assert binary("helm").read_bytes() == b"the official helm"


# --- the build --------------------------------------------------------------------------------------------------


def test_one_build_yields_every_program_of_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBTUNNEL_DOWNLOAD_BASE", f"http://127.0.0.1:{free_port()}")
    _install_go(monkeypatch, tmp_path, BUILDS)

    store = binary("helm").parent

    assert {path.name for path in store.iterdir() if path.suffix != ".sha256"} == {".lock", "coredns", "helm", "kind"}


def test_a_module_with_a_program_of_its_own_is_built_from_its_own_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And anew where that changes; nothing is downloaded."""
    modules = tmp_path / "modules"
    (modules / "netpol").mkdir(parents=True)
    monkeypatch.setattr(binaries, "MODULES", modules)
    _install_go(monkeypatch, tmp_path, f"cat main.go >> {tmp_path}/read; {BUILDS}")
    stores = set()
    for text in ("first\n", "second\n"):
        for name in ("go.mod", "go.sum", "main.go"):
            (modules / "netpol" / name).write_text(text)
        stores.add(binary("netpol").parent)
        binary.cache_clear()

    assert len(stores) == 2
    assert (tmp_path / "read").read_text() == "first\nsecond\n"


def test_a_build_is_static_and_knows_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBTUNNEL_DOWNLOAD_BASE", f"http://127.0.0.1:{free_port()}")
    told = tmp_path / "told"
    _install_go(monkeypatch, tmp_path, f'echo "CGO_ENABLED=$CGO_ENABLED $*" >> {told}; {BUILDS}')

    binary("kubectl")

    line = next(line for line in told.read_text().splitlines() if line.endswith("k8s.io/kubernetes/cmd/kubectl"))
    assert line.startswith("CGO_ENABLED=0 build -trimpath ")
    assert "-X k8s.io/component-base/version.gitVersion=v1.36.3" in line


def test_a_module_may_ask_for_a_newer_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBTUNNEL_DOWNLOAD_BASE", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("GOTOOLCHAIN", "local")
    told = tmp_path / "told"
    _install_go(monkeypatch, tmp_path, f'echo "$GOTOOLCHAIN $*" >> {told}; {BUILDS}')

    assert binary("argocd").parent != binary("kubectl").parent

    assert told.read_text().splitlines()[0].startswith("auto build ")


def test_a_long_build_tells_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DBTUNNEL_DOWNLOAD_BASE", f"http://127.0.0.1:{free_port()}")
    _install_go(monkeypatch, tmp_path, f"for n in $(seq 600); do echo example.test/p$n >&2; done; {BUILDS}")

    binary("kustomize")

    told = [line.strip() for line in capsys.readouterr().err.splitlines() if " packages" in line]
    assert told == ["250 packages, at example.test/p250", "500 packages, at example.test/p500"]


def test_files_of_a_module_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "module" / "manifests" / "crds"
    folder.mkdir(parents=True)
    for name in ("appproject-crd.yaml", "application-crd.yaml", "applicationset-crd.yaml", "kustomization.yaml"):
        (folder / name).write_text(f"name: {name}\n")
    answer = json.dumps({"Dir": str(tmp_path / "module")})
    _install_go(
        monkeypatch, tmp_path, f'[ "$*" = "mod download -json github.com/argoproj/argo-cd/v3" ] && echo \'{answer}\''
    )

    assert binary("argocd-crds.yaml").read_text() == "---\nname: application-crd.yaml\n---\nname: appproject-crd.yaml\n"


def test_a_build_that_fails_says_why_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DBTUNNEL_DOWNLOAD_BASE", f"http://127.0.0.1:{free_port()}")

    with pytest.raises(BinaryError) as failure:
        binary("kube-proxy")

    assert "needed for the local cluster" in str(failure.value)
    assert "no module proxy here" in str(failure.value)
    assert "KUBE_BIN_DIR" in str(failure.value)


def test_without_a_current_go_and_no_index_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBTUNNEL_DOWNLOAD_BASE", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    _install_go(monkeypatch, tmp_path, BUILDS, version="1.19.8")

    with pytest.raises(BinaryError, match=r"(?s)Go 1\.26 or later is needed.*Install Go"):
        binary("kubectl")


def test_the_release_and_the_module_are_of_one_version() -> None:
    modules = {path.parent.name: path.read_text() for path in binaries.MODULES.glob("*/go.mod")}

    def version(module: str, package: str) -> str:
        match = re.search(rf"^\s*(?:require\s+)?{re.escape(package)} v(\S+)", modules[module], re.MULTILINE)
        assert match, f"{package} is not in {module}"
        return match[1]

    assert version("kubernetes", "k8s.io/kubernetes") == sources.KUBERNETES
    assert version("kubernetes", "go.etcd.io/etcd/server/v3") == sources.ETCD
    assert version("tools", "helm.sh/helm/v4") == sources.HELM
    assert version("tools", "sigs.k8s.io/kind") == sources.KIND
    assert version("tools", "github.com/coredns/coredns") == sources.COREDNS
    assert version("argocd", "github.com/argoproj/argo-cd/v3") == sources.ARGOCD
    assert version("kustomize", "sigs.k8s.io/kustomize/kustomize/v5") == sources.KUSTOMIZE
    assert version("actionlint", "github.com/rhysd/actionlint") == sources.ACTIONLINT
