"""What clients say that are not served, as docs/troubleshooting.md has it: each line there is heard by some test."""

import re

from tests.support.processes import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"

_BLOCK = re.compile(r"^```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def lines() -> list[str]:
    """The page's lines of clients' words; `...` stands for anything."""
    return [line for block in _BLOCK.findall(PAGE.read_text()) for line in block.splitlines()]


def check_words(line: str, said: object) -> None:
    """A client has said these words, and they stand on the page."""
    assert line in lines()
    pattern = ".*".join(map(re.escape, line.split("...")))
    assert re.search(pattern, str(said), re.DOTALL), f"{said}\nis not: {line}"
