"""The commands that a page of the documentation gives, run as they stand there."""

import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.support.binaries import binary
from tests.support.cluster import Cluster
from tests.support.processes import ROOT, run

_FENCE = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def blocks(page: str, language: str) -> list[str]:
    """Those of a language in `docs/<page>.md`."""
    found = _FENCE.findall((ROOT / f"docs/{page}.md").read_text())
    return [textwrap.dedent(text) for name, text in found if name == language]


def follow_by(page: str, way: Sequence[str], word: str, **changes: str) -> str:
    """As `follow`, run by another command, which gets a shell with the commands for its last words."""
    return run([*way, "bash", "-euo", "pipefail", "-c", commands_of(page, word, changes)])


def commands_of(page: str, word: str, changes: Mapping[str, str]) -> str:
    """The one block of commands of `docs/<page>.md` in which the word stands, changed as given."""
    (commands,) = (text for text in blocks(page, "sh") if word in text)
    for old, new in changes.items():
        assert old in commands
        commands = commands.replace(old, new)
    return commands


def follow(page: str, cluster: Cluster, namespace: str, directory: Path, word: str, **changes: str) -> str:
    """Runs, in a folder, the one block of commands of `docs/<page>.md` in which the word stands, `shop` being the
    namespace. Returns what they print. Raises ProcessError.
    """
    commands = commands_of(page, word, changes)
    for name in ("-n shop", "namespace shop"):
        commands = commands.replace(name, name.replace("shop", namespace))
    directory.mkdir(exist_ok=True)
    places = (binary("kubectl"), binary("helm"), Path(sys.executable))
    path = ":".join([*(str(one.parent) for one in places), cluster.environment()["PATH"]])
    return run(["bash", "-euo", "pipefail", "-c", commands], cwd=directory, env={**cluster.environment(), "PATH": path})
