"""A base image without a registry: debootstrap's smallest Debian, with the Python of this release."""

import os
import subprocess
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.binaries import Store, say
from tests.support.debian import MissingPackageError, ensure_packages

_PACKAGES = ("python3", "python3-venv", "ca-certificates")

_NEEDLESS = ("var/cache/apt/*", "var/lib/apt/lists/*", "var/log/*", "usr/share/doc/*", "usr/share/man/*")
"""Left out of the image: they only cost time when it is loaded."""

_TIMEOUT_SECONDS = 900


@dataclass(frozen=True)
class Release:
    """Where this machine's own packages come from."""

    mirror: str
    codename: str
    components: str


def description() -> str:
    """What the base is made from, for the keys of what is built on it; the mirror makes no difference."""
    return f"{_codename()} {_PACKAGES} {_NEEDLESS}"


def root_archive(store: Store) -> Path:
    """The file system as a tar archive, made at the first call. Raises MissingPackageError."""
    name = f"base-{_codename()}.tar"
    found = store.find(name)
    if found:
        return found
    ensure_packages({"debootstrap": "makes the base of the container images, since no Docker engine answers"})
    if os.geteuid() != 0:
        raise MissingPackageError("debootstrap needs root to make the images' base; run as root, or start Docker")
    release = machine_release()
    say(f"making the images' base from Debian {release.codename}, which takes about a minute")
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir=store.directory, prefix="base-") as scratch:
        _debootstrap(release, Path(scratch) / "root")
        target = Path(scratch) / "root.tar"
        _pack(Path(scratch) / "root", target)
        say(f"made it in {time.monotonic() - start:.0f} s")
        return store.put(name, target)


@cache
def _codename() -> str:
    lines = Path("/etc/os-release").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return values.get("VERSION_CODENAME", "").strip('"')


def machine_release() -> Release:
    """The first of apt's sources that is this release's main one. Raises MissingPackageError."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages"]
    listing = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    found = [line.split() for line in listing.splitlines()]
    mirrors = [mirror for mirror, codename, _ in found if codename == _codename()]
    if not mirrors:
        raise MissingPackageError(
            f"apt has no source for {_codename() or 'this release'}, which the images' base is made from; "
            "run `apt-get update`, or start Docker"
        )
    components = {component for mirror, codename, component in found if (mirror, codename) == (mirrors[0], _codename())}
    return Release(mirrors[0], _codename(), ",".join(sorted(components)))


def _debootstrap(release: Release, root: Path) -> None:
    command = [
        "debootstrap",
        "--variant=minbase",
        f"--include={','.join(_PACKAGES)}",
        f"--components={release.components}",
        release.codename,
        str(root),
        release.mirror,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=False)
    if done.returncode:
        raise MissingPackageError(f"debootstrap could not make the images' base:\n{done.stdout[-3000:]}{done.stderr}")


def _pack(root: Path, target: Path) -> None:
    leave_out = [f"--exclude=./{pattern}" for pattern in _NEEDLESS]
    subprocess.run(["tar", "-C", str(root), "--numeric-owner", *leave_out, "-cf", str(target), "."], check=True)
