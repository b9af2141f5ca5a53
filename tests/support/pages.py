"""The commands that a page of the documentation gives, run as they stand there."""

import re
from pathlib import Path

from tests.support.binaries import binary
from tests.support.cluster import Cluster
from tests.support.processes import ROOT, run

_FENCE = re.compile(r"^ *```sh\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def follow(page: str, cluster: Cluster, namespace: str, directory: Path, word: str, **changes: str) -> str:
    """Runs, in a folder, the one block of commands of `docs/<page>.md` in which the word stands, `shop` being the
    namespace. Returns what they print. Raises ProcessError.
    """
    (commands,) = (text for text in _FENCE.findall((ROOT / f"docs/{page}.md").read_text()) if word in text)
    for old, new in {"-n shop": f"-n {namespace}", **changes}.items():
        assert old in commands or old == "-n shop"
        commands = commands.replace(old, new)
    directory.mkdir(exist_ok=True)
    path = f"{Path(binary('kubectl')).parent}:{cluster.environment()['PATH']}"
    return run(["bash", "-euo", "pipefail", "-c", commands], cwd=directory, env={**cluster.environment(), "PATH": path})
