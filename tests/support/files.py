"""Directories that servers under another user come to."""

import os
from pathlib import Path


def let_others_in(directory: Path) -> None:
    """Lets every user pass through the directory and those above it, as far as they are root's own."""
    for path in (directory, *directory.parents):
        if path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o001)
