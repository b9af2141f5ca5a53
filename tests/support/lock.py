"""`make lock`: resolves the dependencies anew and pins each with the hashes of all its files.

The lock files name versions and hashes alone, so that they serve every index and mirror.
"""

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.support.applications.runtimes import NODE_PACKAGES, resolve

ROOT = Path(__file__).parents[2]

LOCKS: Mapping[str, tuple[str, ...]] = {
    "requirements.txt": ("pyproject.toml",),
    "requirements-dev.txt": ("--extra", "test", "--extra", "lint", "--extra", "dev", "pyproject.toml"),
    "requirements-build.txt": ("--only-build-deps", "--build-deps-for", "wheel", "pyproject.toml"),
    "requirements-clients.txt": ("tests/support/images/clients.in",),
    "requirements-node.txt": ("tests/support/applications/node.in",),
}
"""Each lock file of pip and what it is resolved from. An extra is never named through the package itself, which would
pin this folder's path. The clients have a lock of their own: redshift_connector needs an older python-dateutil than the
Kubernetes client does."""

_OPTIONS = (
    "--generate-hashes",
    "--strip-extras",
    "--allow-unsafe",
    "--no-emit-index-url",
    "--no-emit-trusted-host",
    "--no-emit-find-links",
    "--no-annotate",
    "--no-header",
    "--quiet",
)


def main() -> None:
    """Writes every lock file."""
    for name, sources in LOCKS.items():
        print(f"resolving {name}", flush=True)
        command = [sys.executable, "-m", "piptools", "compile", *_OPTIONS, "--output-file", name, *sources]
        subprocess.run(command, cwd=ROOT, check=True)
    print(f"resolving {NODE_PACKAGES[1].name}", flush=True)
    with tempfile.TemporaryDirectory() as directory:
        NODE_PACKAGES[1].write_text(resolve(Path(directory)))


if __name__ == "__main__":
    main()
