"""Builds images with docker where an engine answers, else with buildah on a base image of Debian's packages."""

import ast
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.binaries import Store, cache_directory, say
from tests.support.debian import ensure_packages
from tests.support.images import debian_base

ROOT = Path(__file__).parents[3]

_KEPT_ARCHIVES = 3
"""Of each image; every change of the code makes one of some hundred megabytes."""

_KEPT_LAYERS = 200
"""In buildah's storage; a build adds a handful of small ones."""

_BUILD_TIMEOUT_SECONDS = 1200

_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "retries")
"""The host's settings that reach the build: where packages are and how to get there."""

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


class ImageError(RuntimeError):
    """An image cannot be built; the text has what the builder said, and what to do."""


@dataclass(frozen=True)
class BuiltImage:
    """An image in docker-archive form."""

    archive: Path
    reference: str
    """Its name in the archive. The tag is a digest of what it was made from, so that IfNotPresent is right."""


@dataclass(frozen=True)
class Recipe:
    """What an image is made from."""

    name: str
    dockerfile: str
    inputs: tuple[str, ...]
    """Files and folders that the Dockerfile copies."""


OPERATOR = Recipe(
    "dbtunnel",
    "Dockerfile",
    ("operator", "pyproject.toml", "LICENSE", "requirements.txt", "requirements-build.txt", ".dockerignore"),
)
CLIENT = Recipe(
    "dbtunnel-client", "tests/support/images/client.Dockerfile", ("requirements-clients.txt", ".dockerignore")
)


@cache
def build(recipe: Recipe, reference: str | None = None) -> BuiltImage:
    """The image, from the cache where its inputs are unchanged; the same for the whole process.

    Raises ImageError, MissingPackageError.
    """
    key = _digest(recipe, reference)
    reference = reference or f"localhost/{recipe.name}:{key}"
    name = f"{recipe.name}-{key}.tar"
    store = Store(cache_directory() / "images")
    with store.locked():
        archive = store.find(name)
        if archive is None:
            say(f"building the image {reference} with {'docker' if docker_answers() else 'buildah'}")
            start = time.monotonic()
            archive = _build(recipe, reference, store, name)
            say(f"built it in {time.monotonic() - start:.0f} s, {archive.stat().st_size / 1e6:.0f} MB")
            _forget_old(store, recipe)
    return BuiltImage(archive, reference)


def retagged(image: BuiltImage, tag: str, directory: Path) -> BuiltImage:
    """The same image under another tag, in an archive in `directory`. What names it stands in two of its files."""
    reference, archive = f"{image.reference.rpartition(':')[0]}:{tag}", directory / f"{tag}.tar"
    with tarfile.open(image.archive) as old, tarfile.open(archive, "w") as new:
        for member in old:
            content = old.extractfile(member) if member.isfile() else None
            if content and member.name in ("manifest.json", "index.json"):
                text = content.read().replace(image.reference.encode(), reference.encode())
                content, member.size = io.BytesIO(text), len(text)
            new.addfile(member, content)
    return BuiltImage(archive, reference)


@cache
def docker_answers() -> bool:
    """Whether there is a Docker engine."""
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "info"], capture_output=True, timeout=30, check=False).returncode == 0


def pip_settings(listing: str, certificates: str | None) -> str:
    """A pip.conf with the settings of `pip config list` that a build needs, and the file with certificates."""
    settings = {}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in _PIP_SETTINGS:
            settings[option] = str(ast.literal_eval(value)).replace("\n", "\n    ")
    if certificates:
        settings["cert"] = certificates
    return "[global]\n" + "".join(f"{name} = {value}\n" for name, value in settings.items())


def _digest(recipe: Recipe, reference: str | None) -> str:
    digest = hashlib.sha256(f"{docker_answers()} {debian_base.description()} {reference}".encode())
    for path in _files(ROOT / name for name in (recipe.dockerfile, *recipe.inputs)):
        content = path.read_bytes()
        digest.update(f"\n{path.relative_to(ROOT)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:12]


def _files(paths: Iterator[Path]) -> Iterator[Path]:
    for path in paths:
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (file for file in found if file.is_file() and not _is_ignored(file))


def _is_ignored(path: Path) -> bool:
    return any(part == "__pycache__" or part.endswith(".egg-info") for part in path.parts)


def _build(recipe: Recipe, reference: str, store: Store, name: str) -> Path:
    with tempfile.TemporaryDirectory(dir=store.directory, prefix="build-") as scratch:
        target = Path(scratch) / "image.tar"
        options = ["--file", str(ROOT / recipe.dockerfile), "--tag", reference, *_secrets(Path(scratch)), str(ROOT)]
        if docker_answers():
            _run(["docker", "build", *options])
            _run(["docker", "save", "--output", str(target), reference])
        else:
            _build_with_buildah(options, reference, store, Path(scratch), target)
        return store.put(name, target)


def _build_with_buildah(options: Sequence[str], reference: str, store: Store, scratch: Path, target: Path) -> None:
    """Layers are kept, so that a change of the code builds the code alone."""
    ensure_packages({"buildah": "builds the container images, since no Docker engine answers"})
    context = scratch / "base"
    context.mkdir()
    (context / "root.tar").hardlink_to(debian_base.root_archive(store))
    # in a mount namespace of its own, since buildah leaves its storage mounted
    buildah = ["unshare", "--mount", "buildah", *_storage(store)]
    bud = [*buildah, "bud", "--layers", "--isolation", "chroot"]
    _run([*bud, "--file", str(Path(__file__).parent / "base.Dockerfile"), "--tag", "localhost/base", str(context)])
    _run([*bud, "--build-arg", "BASE_IMAGE=localhost/base", *options])
    _run([*buildah, "push", reference, f"docker-archive:{target}:{reference}"])


def _storage(store: Store) -> list[str]:
    """Options for a storage of our own, begun anew when it has grown."""
    storage = store.directory / "storage"
    if storage.exists() and sum(1 for _ in (storage / "root").glob("*/*/diff")) > _KEPT_LAYERS:
        shutil.rmtree(storage)
    return ["--root", str(storage / "root"), "--runroot", str(storage / "run")]


def _secrets(scratch: Path) -> list[str]:
    """Options that show the build pip's settings and this machine's certificates, without copying them."""
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    ).stdout
    settings = scratch / "pip.conf"
    settings.touch(mode=0o600)  # an index address may have a password in it
    settings.write_text(pip_settings(listing, "/run/secrets/ca.crt" if _CERTIFICATES.exists() else None))
    secrets: Mapping[str, Path] = {"pip.conf": settings, "ca.crt": _CERTIFICATES}
    return [word for name, path in secrets.items() if path.exists() for word in ("--secret", f"id={name},src={path}")]


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_BUILD_TIMEOUT_SECONDS, check=False, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        output = (done.stdout + done.stderr)[-4000:]
        raise ImageError(
            f"{command[0]} could not build the image (exit code {done.returncode}):\n{output}\n"
            "It needs a package index that pip can reach (`pip config list` shows which is set) and Debian's mirror."
        )


def _forget_old(store: Store, recipe: Recipe) -> None:
    archives = sorted(store.directory.glob(f"{recipe.name}-????????????.tar"), key=lambda path: path.stat().st_mtime)
    for archive in archives[:-_KEPT_ARCHIVES]:
        archive.unlink()
        archive.with_name(f"{archive.name}.sha256").unlink(missing_ok=True)
