"""What people read at a terminal: colour where it is wanted, text that a server sent made harmless, lines that fit."""

import argparse
import os
import textwrap
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import TextIO

from dbtunnel.domain.diagnosis import printable

COLUMNS = 80
"""Width that text keeps to where it goes to no terminal."""

_FEWEST_COLUMNS = 60
"""A fingerprint fits; a terminal that is narrower breaks lines by itself."""

_LIMIT = 20_000
"""Characters of one piece of text."""


class Color(StrEnum):
    """SGR sequences (ECMA-48)."""

    GREEN = "\x1b[32m"
    RED = "\x1b[31m"
    YELLOW = "\x1b[33m"
    DIM = "\x1b[2m"
    BOLD = "\x1b[1m"


_PLAIN = "\x1b[0m"

COLOR_CHOICES = ("auto", "always", "never")


class Style:
    """How to write to a stream."""

    def __init__(self, *, color: bool, unicode: bool, columns: int = COLUMNS) -> None:
        self._color = color
        self.columns = columns
        """Width that text keeps to, but for what must stay in one piece."""
        self.branch, self.last, self.line = ("├─ ", "└─ ", "│  ") if unicode else ("|- ", "`- ", "|  ")
        """What stands before the branches of a tree, and before what is behind one."""

    def text(self, text: str, color: Color | None = None) -> str:
        """A text in which nothing but this colour is a control character."""
        harmless = printable(text, _LIMIT)
        return f"{color}{harmless}{_PLAIN}" if color and self._color else harmless

    def wrapped(self, text: str, color: Color | None = None, indent: str = "") -> Iterator[str]:
        """The same in lines that fit, parted at spaces where there are any."""
        # first made harmless, since an escape is longer than what it stands for
        lines = textwrap.wrap(printable(text, _LIMIT), self.columns - len(indent), break_on_hyphens=False)
        return (indent + self.text(line, color) for line in lines)


def add_color_argument(parser: argparse.ArgumentParser) -> None:
    """Whether to print in colour."""
    parser.add_argument(
        "--color",
        default="auto",
        choices=COLOR_CHOICES,
        help="auto: at a terminal, unless NO_COLOR is set (default %(default)s)",
    )


def style_for(stream: TextIO, choice: str, environment: Mapping[str, str]) -> Style:
    """`choice`: one of COLOR_CHOICES. Auto: at a terminal that is not dumb, unless NO_COLOR is set (no-color.org)."""
    wanted = stream.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
    is_unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
    is_colored = choice == "always" or (choice == "auto" and wanted)
    return Style(color=is_colored, unicode=is_unicode, columns=_columns_of(stream))


def _columns_of(stream: TextIO) -> int:
    """A terminal's width."""
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except OSError:  # it is none
        return COLUMNS
    return max(columns, _FEWEST_COLUMNS) if columns else COLUMNS
