"""Debian packages that the tests' real parts come from."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

_SEEN: set[str] = set()
"""Packages that this process has found on the machine: each server of the tests asks again."""


class MissingPackageError(RuntimeError):
    """A package is not there and cannot be installed; the text says which, why it is needed, and what to do."""


def ensure_packages(packages: Mapping[str, str]) -> None:
    """Installs what is not there. `packages` maps each name to the reason why it is needed."""
    if not shutil.which("dpkg-query"):
        needs = "; ".join(f"{name} ({why})" for name, why in packages.items())
        raise MissingPackageError(f"this is no Debian or Ubuntu, and these packages of theirs are needed: {needs}")
    missing = {name: why for name, why in packages.items() if name not in _SEEN and not _is_installed(name)}
    _SEEN.update(packages.keys() - missing.keys())
    if not missing:
        return
    for name, why in missing.items():
        print(f"installing the Debian package {name}: {why}", file=sys.stderr, flush=True)
    needs = "; ".join(f"{name} ({why})" for name, why in missing.items())
    advice = f"install them with: sudo apt-get install --no-install-recommends {' '.join(missing)}"
    if os.geteuid() != 0:
        raise MissingPackageError(f"packages are missing: {needs}. This user cannot install packages; {advice}")
    options = ["-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]
    # services that Debian would start belong to nobody here: the tests start their own
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for attempt in (["apt-get", "install", *options, *missing], ["apt-get", "update"]) * 2:
        done = subprocess.run(attempt, env=environment, capture_output=True, text=True, check=False)
        if attempt[1] == "install" and done.returncode == 0:
            return
    raise MissingPackageError(f"apt-get could not install: {needs}. It said: {done.stderr[-2000:]}. {advice}")


def _is_installed(name: str) -> bool:
    query = ["dpkg-query", "-W", "-f", "${db:Status-Status}", name]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout == "installed"
