"""A real registry of OCI artifacts, Debian's docker-registry, on a port of this machine."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bcrypt
import yaml

from tests.support.debian import ensure_packages
from tests.support.processes import Process, free_port, listens

PACKAGES = {"docker-registry": "takes the packaged chart"}

USER = "publisher"


@contextmanager
def registry(directory: Path, password: str = "") -> Iterator[str]:
    """`HOST:PORT` of an empty one, by HTTP; with a password for `USER` alone, else for everybody."""
    ensure_packages(PACKAGES)
    address = f"127.0.0.1:{free_port()}"
    storage = {"filesystem": {"rootdirectory": str(directory / "storage")}}
    settings = {"version": 0.1, "log": {"level": "warn"}, "storage": storage, "http": {"addr": address}}
    if password:
        hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
        (directory / "users").write_text(f"{USER}:{hashed}\n")
        settings["auth"] = {"htpasswd": {"realm": "registry", "path": str(directory / "users")}}
    (directory / "config.yml").write_text(yaml.safe_dump(settings))
    command = [shutil.which("docker-registry") or "docker-registry", "serve", str(directory / "config.yml")]
    process = Process(command, directory / "registry.log").start()
    host, _, port = address.partition(":")
    try:
        process.wait_until(lambda: listens(host, int(port)), "the registry's start")
        yield address
    finally:
        process.stop()
