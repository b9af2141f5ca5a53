"""A real zsh at a terminal."""

import os
from pathlib import Path

from tests.support.laptop import at_a_terminal

PACKAGES = {"zsh": "completion in zsh"}

_IS_READY = "\x1b[?2004h"
"""What it says once it reads keys (bracketed paste); a Tab that comes before that is a character like others."""


def typed(directory: Path, setup: str, words: str, until: str) -> str:
    """What it shows of words that are typed and completed (Tab), up to `until`; `setup` are lines of ~/.zshrc."""
    (directory / ".zshrc").write_text(setup)
    environment = {"HOME": str(directory), "ZDOTDIR": str(directory), "TERM": "dumb", "PATH": os.defpath}
    # SIGTERM does not end it
    return at_a_terminal(["zsh", "-i"], f"{words}\t\nexit", until, _IS_READY, environment)
