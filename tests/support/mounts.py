"""How a server that runs as another user comes to its directory, whatever permissions lie above it."""

from collections.abc import Sequence
from pathlib import Path

MOUNT_POINT = Path("/mnt")
"""Where a server sees its directory: in a mount namespace of its own, so that the machine's /mnt stays as it is."""


def mounted(directory: Path, argv: Sequence[str]) -> list[str]:
    """The command, with the directory at `MOUNT_POINT`. Needs root; the process keeps its id through it."""
    script = f'mount --bind "$0" {MOUNT_POINT} && cd {MOUNT_POINT} && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, str(directory.absolute()), *argv]
