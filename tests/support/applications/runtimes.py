"""Python, Node.js and Java with database clients, of the locked versions; kept in the cache."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.binaries import BinaryError, Store, cache_directory, say
from tests.support.debian import ensure_packages
from tests.support.processes import ROOT

HERE = Path(__file__).parent

PACKAGES = {
    "default-jdk-headless": "applications in Java",
    "libpostgresql-jdbc-java": "their database client",
}

REQUIREMENTS = (ROOT / "requirements-clients.txt", ROOT / "requirements-node.txt")
"""What pip installs: the clients in Python, and Node.js with npm."""

NODE_PACKAGES = (HERE / "package.json", HERE / "package-lock.json")
"""What npm installs: the clients in JavaScript."""

JAVA = Path("/usr/lib/jvm/default-java/bin")
"""Java's programs, from Debian's default-jdk-headless."""

POSTGRES_JAR = Path("/usr/share/java/postgresql.jar")
"""pgjdbc, from Debian's libpostgresql-jdbc-java."""

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
"""The authorities that this machine trusts: a mirror of packages may have one of its own."""

_WHOLE = "whole"
"""A file that is there once all else is."""


@dataclass(frozen=True)
class Runtimes:
    """Where the installed ones are."""

    python: Path
    node: Path
    node_modules: Path


@cache
def runtimes() -> Runtimes:
    """Installs them where they are not there. Raises BinaryError, MissingPackageError."""
    ensure_packages(PACKAGES)
    store = Store(cache_directory() / "applications")
    place = store.directory / _digest()
    with store.locked():
        if not (place / _WHOLE).exists():
            say("installing database clients in Python and JavaScript, and Node.js for these")
            shutil.rmtree(place, ignore_errors=True)
            _install(place)
            (place / _WHOLE).touch()
    return _in(place)


def _in(place: Path) -> Runtimes:
    programs = place / "python" / "bin"
    return Runtimes(programs / "python", programs / "node", place / "node" / "node_modules")


def _digest() -> str:
    content = b"".join(path.read_bytes() for path in (*REQUIREMENTS, *NODE_PACKAGES))
    return hashlib.sha256(sys.version.encode() + content).hexdigest()[:12]


def _install(place: Path) -> None:
    _run([sys.executable, "-m", "venv", place / "python"])
    files = [word for path in REQUIREMENTS for word in ("--requirement", path)]
    quietly = ("--quiet", "--disable-pip-version-check", "--require-hashes")
    _run([_in(place).python, "-m", "pip", "install", *quietly, *files])
    (place / "node").mkdir()
    for path in NODE_PACKAGES:
        shutil.copy(path, place / "node")
    _npm(place, "ci", "--ignore-scripts")


def resolve(directory: Path) -> str:
    """A package-lock.json of the newest versions, with neither address nor registry in it. Raises BinaryError.

    `directory`: for what is installed to find them out.
    """
    _run([sys.executable, "-m", "venv", directory / "python"])
    quietly = ("--quiet", "--disable-pip-version-check", "--require-hashes")
    _run([_in(directory).python, "-m", "pip", "install", *quietly, "--requirement", REQUIREMENTS[1]])
    (directory / "node").mkdir()
    shutil.copy(NODE_PACKAGES[0], directory / "node")
    _npm(directory, "install", "--package-lock-only", "--omit-lockfile-registry-resolved")
    return (directory / "node" / NODE_PACKAGES[1].name).read_text()


def _npm(place: Path, *arguments: str) -> None:
    authorities = ["--cafile", str(CERTIFICATES)] if CERTIFICATES.exists() else []
    _run([_in(place).node.with_name("npm"), *arguments, "--no-audit", "--no-fund", *authorities], place / "node")


def _run(command: Sequence[str | Path], directory: Path = ROOT) -> None:
    # npm runs the node on its way
    path = f"{Path(command[0]).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BinaryError(
            f"database clients are needed for the tests of docs/tls.md and could not be installed: {command[0]} said\n"
            f"{(done.stdout + done.stderr)[-2000:]}\nIt needs the package index of pip and the registry of npm."
        )
