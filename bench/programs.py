"""The compiled programs: sources, sinks and relays that are fast enough not to be what is measured."""

import hashlib
import os
from functools import cache
from pathlib import Path

from tests.support.binaries import cache_directory
from tests.support.debian import ensure_packages
from tests.support.processes import run

SOURCES = Path(__file__).parent / "programs"

PACKAGES = {"gcc": "compiles the benchmark's sources and sinks", "libc6-dev": "the C library's headers"}

_COMPILE = ("gcc", "-O2", "-Wall", "-Wextra", "-pthread")


@cache
def program(name: str) -> Path:
    """The program of a source in `programs/`, compiled where that has not been done. Raises ProcessError."""
    source = SOURCES / f"{name}.c"
    digest = hashlib.sha256(source.read_bytes() + " ".join(_COMPILE).encode()).hexdigest()[:12]
    target = cache_directory() / "bench" / f"{name}-{digest}"
    if not target.exists():
        ensure_packages(PACKAGES)
        target.parent.mkdir(parents=True, exist_ok=True)
        new = target.with_name(f"{target.name}.{os.getpid()}")
        run([*_COMPILE, "-o", new, source])
        new.rename(target)
    return target
