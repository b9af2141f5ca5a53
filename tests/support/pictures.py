"""Pictures of a terminal on the pages: an SVG of what a run printed, and the text itself beside it.

The tests compare what they see with the text; `make pictures` has them write both anew. The SVG is drawn of the text.
"""

import difflib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

from tests.support.laptop import terminal
from tests.support.processes import ROOT

DIRECTORY = ROOT / "docs" / "pictures"

RECORD = "DBTUNNEL_PICTURES"
"""The environment variable with which the tests write."""

COLUMNS = 96
"""Width of the terminal: what is longer goes on in the next line. No table of the pictures is about as wide: whether a
column more fits would depend on the length of a pod's name, or of a version.
"""

_CELL_WIDTH, _LINE_HEIGHT, _MARGIN = 8, 18, 16

_CLASSES = {"1": "bold", "2": "dim", "31": "red", "32": "green", "33": "yellow", "0": "", "": ""}
"""By the parameter of an SGR sequence (ECMA-48)."""

_SGR = re.compile(r"\x1b\[(\d*)m")

_STYLE = """
text { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #e6edf3; }
.prompt { fill: #79c0ff; font-weight: bold; } .bold { font-weight: bold; } .dim { fill: #9198a1; }
.red { fill: #ff7b72; } .green { fill: #56d364; } .yellow { fill: #e3b341; }
"""

_VARIES = {
    _SGR.pattern: r" <\1> ",  # a word of its own
    r"SHA256:[\w+/]{43}": "FINGERPRINT",
    r"AAAA[\w+/=]+": "KEY",
    r"OpenSSH_\S+(?: (?:Debian|Ubuntu)\S+)?": "VERSION",
    r"\borders-tunnel-\w+-\w{5}\b": "POD",
    r"\d{4}-\d\d-\d\dT[\d:]+Z": "DATE",
    r"\d\d:\d\d:\d\d": "TIME",
    r"\b(?:\d+[dhms])+\b": "AGE",
    r"\b[\d.]+ (?:[KM]i)?B\b": "BYTES",
    r"\b(connect|version|key exchange|login|channel|answer) \d+": r"\1 N",
    r"\b\d+ ms\b": "N ms",
    r"\s+": " ",
}
"""What differs from run to run, and with it the widths of columns and where lines are broken."""


def shown(name: str, text: str) -> None:
    """What a picture shows; the text has command lines after `$ `, and after each what it printed."""
    path = DIRECTORY / f"{name}.txt"
    if os.environ.get(RECORD):
        DIRECTORY.mkdir(exist_ok=True)
        path.write_text(text)
        path.with_suffix(".svg").write_text(svg(text))
    was, now = constant(path.read_text()), constant(text)
    changes = difflib.unified_diff(was.split(" "), now.split(" "), "recorded", "now", lineterm="")
    assert was == now, "\n".join([f"{path} is of another time: make pictures", *changes])


def at_a_terminal(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """What a command that asks nothing prints at a terminal, whatever its exit code."""
    ours, theirs = terminal(COLUMNS)
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**environment, "TERM": "xterm", "NO_COLOR": ""}
    ):
        os.close(theirs)
        printed = b"".join(iter(lambda: _read(ours), b""))
    os.close(ours)
    return printed.decode().replace("\r\n", "\n")


def _read(end: int) -> bytes:
    try:
        return os.read(end, 65536)
    except OSError:  # nobody has the other end any more
        return b""


def constant(text: str) -> str:
    """What is the same in each run."""
    for pattern, word in _VARIES.items():
        text = re.sub(pattern, word, text)
    return text


def svg(text: str) -> str:
    """The picture of a terminal that shows the text."""
    rows = [row for line in text.splitlines() for row in _rows(line)]
    width, height = COLUMNS * _CELL_WIDTH + 2 * _MARGIN, len(rows) * _LINE_HEIGHT + 2 * _MARGIN
    pieces = [piece for number, row in enumerate(rows) for piece in _pieces(row, _MARGIN + 13 + number * _LINE_HEIGHT)]
    size = f'width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 {width} {height}" {size}>'
    screen = f'<rect {size} rx="8" fill="#0d1117"/>'
    return "\n".join([head, f"<style>{_STYLE}</style>", screen, *pieces, "</svg>\n"])


def _rows(line: str) -> Iterator[list[tuple[str, str]]]:
    """The characters of a line with their class, in rows as wide as the terminal."""
    name, cells = "prompt" if line.startswith("$ ") else "", []
    for number, piece in enumerate(_SGR.split(line)):
        if number % 2:
            name = _CLASSES[piece]
        else:
            cells += [(name, character) for character in piece]
    for start in range(0, max(len(cells), 1), COLUMNS):
        yield cells[start : start + COLUMNS]


def _pieces(row: list[tuple[str, str]], y: int) -> Iterator[str]:
    """Texts of one class each, as wide as their columns whatever the font."""
    column = 0
    for name, group in groupby(row, key=lambda cell: cell[0]):
        words = "".join(character for _, character in group)
        shown_words = words.strip()
        x = _MARGIN + (column + len(words) - len(words.lstrip())) * _CELL_WIDTH
        column += len(words)
        if shown_words:
            length = len(shown_words) * _CELL_WIDTH
            class_ = f' class="{name}"' if name else ""
            yield f'<text x="{x}" y="{y}" textLength="{length}"{class_}>{escape(shown_words, quote=False)}</text>'


def recorded() -> list[Path]:
    """The texts of all pictures."""
    return sorted(DIRECTORY.glob("*.txt"))
