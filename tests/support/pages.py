"""The commands that the pages of the documentation give: tests run them as they stand there, and each that is run is
written down. Once the tests are over `python -m tests.support.pages` says which blocks of commands nobody has run.

A block that cannot be run in a test has `<!-- not run: REASON -->` on the line before it.
"""

import hashlib
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.binaries import binary
from tests.support.cluster import Cluster
from tests.support.processes import ROOT, Process, run

DIRECTORY = ROOT / "build" / "pages"
"""A file for each block that was run."""

_TOLD = "told.txt"
"""A file beside them."""

COMMANDS = "sh"
"""The language of the blocks that are run."""

_FOLDERS = ("docs", "examples", "charts", "contrib")

_BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)

_MARK = re.compile(r"^ *<!-- not run:(.*?)-->\n\Z", re.MULTILINE)

_TIMEOUT_SECONDS = 280
"""Less than a test may take."""

_NAMESPACE = ("-n shop", "namespace shop")
"""How pages name the namespace, which a test has another name for."""

_NOT_OF_THE_CLONE = (".git", ".venv", "build")


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None
    """Why it is not run, by its mark; None without one."""

    @property
    def record(self) -> str:
        """What names it among those that were run. Another text is another block."""
        return hashlib.sha256(f"{self.page}\n{self.text}".encode()).hexdigest()[:16]


def pages(root: Path = ROOT) -> list[Path]:
    """Every page that people read."""
    found = [path for folder in _FOLDERS for path in (root / folder).rglob("*.md")]
    return sorted([*root.glob("*.md"), *found])


def all_blocks(root: Path = ROOT) -> Iterator[Block]:
    """Those of all pages."""
    for path in pages(root):
        yield from blocks_of(str(path.relative_to(root)), path.read_text())


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """Those of one page."""
    for found in _BLOCK.finditer(text):
        before = text[: found.start()]
        mark = _MARK.search(before)
        reason = mark[1].strip() if mark else None
        yield Block(page, before.count("\n") + 1, found[2], textwrap.dedent(found[3]), reason)


def blocks(page: str, language: str) -> list[str]:
    """The texts of those in a language on a page: README.md, or `keys` for docs/keys.md."""
    return [one.text for one in _blocks(page) if one.language == language]


def _blocks(page: str) -> Iterator[Block]:
    name = page if page.endswith(".md") else f"docs/{page}.md"
    return blocks_of(name, (ROOT / name).read_text())


def without_blocks(text: str) -> str:
    """The page without its blocks, and without their marks."""
    rest = text
    for found in reversed(list(_BLOCK.finditer(text))):
        rest = _MARK.sub("", rest[: found.start()]) + rest[found.end() :]
    return rest


# --- running ----------------------------------------------------------------------------------------------------------


def follow(
    page: str,
    cluster: Cluster,
    namespace: str,
    directory: Path,
    word: str,
    *,
    kubeconfig: str = "",
    **changes: str,
) -> str:
    """Runs, in a folder that looks like the clone, the one block of commands of a page in which the word stands, `shop`
    being the namespace. `page`: as of `blocks`. `kubeconfig`: of another user than the cluster's administrator.
    `changes`: what else stands for something of the reader's, and what is put in for it. Returns what the commands
    print. Raises ProcessError.
    """
    block, commands = _found(page, word, changes)
    for name in _NAMESPACE:
        commands = commands.replace(name, name.replace("shop", namespace))
    user = {"KUBECONFIG": kubeconfig} if kubeconfig else {}
    printed = _printed(_shell(commands), directory, at_a_cluster(cluster) | user)
    _write_down(block)
    return printed


def follow_here(page: str, directory: Path, word: str, *, prefix: Sequence[str] = (), **changes: str) -> str:
    """As `follow`, of commands that need no cluster. The folder is the home. `prefix`: a command that runs them."""
    block, commands = _found(page, word, changes)
    printed = _printed([*prefix, *_shell(commands)], directory, at_home(directory))
    _write_down(block)
    return printed


def follow_by(page: str, way: Sequence[str], word: str, **changes: str) -> str:
    """As `follow`, run by another command, which gets a shell with the commands for its last words."""
    block, commands = _found(page, word, changes)
    printed = run([*way, *_shell(commands)], timeout_seconds=_TIMEOUT_SECONDS)
    _write_down(block)
    return printed


def was_run(page: str, commands: str) -> None:
    """Writes down the block of a page that a test has run in a way of its own, if it has these very commands."""
    for block in _blocks(page):
        if block.language == COMMANDS and block.text == commands:
            _write_down(block)


@contextmanager
def following_here(
    page: str, directory: Path, word: str, *, prefix: Sequence[str] = (), **changes: str
) -> Iterator[Process]:
    """As `follow_here`, of commands that go on until somebody ends them; at the end they must still do."""
    block, commands = _found(page, word, changes)
    _make_clone(directory)
    command = [*prefix, *_shell(commands)]
    process = Process(command, directory / "log", env=at_home(directory), cwd=directory).start()
    try:
        yield process
        assert process.is_running(), process.log_end()
        _write_down(block)
    finally:
        process.stop()


def at_a_cluster(cluster: Cluster) -> dict[str, str]:
    """The environment of somebody who has kubectl, its plugin, and helm."""
    return _with_programs(cluster.environment(), binary("kubectl"), binary("helm"))


def at_home(directory: Path) -> dict[str, str]:
    """The environment of somebody whose home this is."""
    return _with_programs({"HOME": str(directory), "LANG": "C.UTF-8", "PATH": os.environ["PATH"]})


def _printed(command: list[str], directory: Path, environment: Mapping[str, str]) -> str:
    _make_clone(directory)
    return run(command, cwd=directory, env=environment, timeout_seconds=_TIMEOUT_SECONDS, stdin=subprocess.DEVNULL)


def _found(page: str, word: str, changes: Mapping[str, str]) -> tuple[Block, str]:
    """The block, and its commands with everything changed that is the reader's. Raises AssertionError where a change is
    of more than values.
    """
    (block,) = (one for one in _blocks(page) if one.language == COMMANDS and word in one.text)
    assert block.reason is None, f"{block.page}:{block.line} is marked as not run"
    commands = block.text
    for old, new in changes.items():
        assert old in commands, f"{block.page}:{block.line} has no {old}"
        commands = commands.replace(old, new)
    assert _skeleton(commands) == _skeleton(block.text), f"{block.page}:{block.line} would not be run as it stands"
    return block, commands


def _skeleton(commands: str) -> list[list[tuple[str, int]]]:
    """What no test may change: how many words a line has, its first, the names of options, how much is set by `=`."""
    return [
        [
            (_name(word) if not at or word.startswith("-") else "", word.count("="))
            for at, word in enumerate(line.split())
        ]
        for line in commands.splitlines()
    ]


def _name(word: str) -> str:
    return word.partition("=")[0]


def _shell(commands: str) -> list[str]:
    return ["bash", "-euo", "pipefail", "-c", commands]


def _make_clone(directory: Path) -> None:
    """Makes the folder look like the clone; what is built there is left out."""
    directory.mkdir(exist_ok=True)
    clone = {path.name: path for path in ROOT.iterdir() if path.name not in _NOT_OF_THE_CLONE}
    for name, path in {**clone, ".venv": Path(sys.prefix)}.items():
        if not os.path.lexists(directory / name):
            (directory / name).symlink_to(path)


def _with_programs(environment: Mapping[str, str], *programs: Path) -> dict[str, str]:
    places = dict.fromkeys(str(path.parent) for path in (*programs, Path(sys.executable)))
    # the make that runs the tests would tell one of the page's what it was told itself
    kept = {name: value for name, value in environment.items() if "MAKE" not in name and name != "MFLAGS"}
    return {**kept, "PATH": ":".join([*places, environment["PATH"]])}


def _write_down(block: Block) -> None:
    _write(block.record, f"{block.page}:{block.line}")


def _write(name: str, words: str) -> None:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    (DIRECTORY / name).write_text(f"{words}\n")


# --- the account ------------------------------------------------------------------------------------------------------


def tell(words: str) -> None:
    """Has the account end with what a test has measured of a page."""
    _write(_TOLD, words)


def faults(found: list[Block], done: set[str]) -> Iterator[str]:
    """Blocks of commands that were not run and have no mark, and those with a mark that were."""
    for one in found:
        if (one.record in done) == (one.reason is not None):
            what = "it was run: take the mark away" if one.reason else "no test runs it, and it is not marked"
            yield f"{one.page}:{one.line}: {what}: {one.text.splitlines()[0]}"


def report(found: list[Block], done: set[str]) -> str:
    """How many are run, and why the others are not."""
    reasons = Counter(one.reason for one in found if one.reason)
    count = sum(one.record in done for one in found)
    sums = f"blocks of commands: {len(found)}; run: {count}; marked as not run: {reasons.total()}"
    return "\n".join([sums, *(f"{times:4} x {reason}" for reason, times in sorted(reasons.items()))])


def main() -> int:
    """Says what was run; 1 where a block was left out."""
    found = [one for one in all_blocks() if one.language == COMMANDS]
    done = {path.name for path in DIRECTORY.glob("*")}
    print(report(found, done))
    print((DIRECTORY / _TOLD).read_text() if _TOLD in done else "", end="")
    left = list(faults(found, done))
    print("\n".join(left), file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
