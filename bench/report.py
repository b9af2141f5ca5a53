"""What is told: the tables, from a document that holds all that was measured."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from bench.contenders import ASYNCSSH, CONTENDERS, OURS, OURS_2, RELAY, SSH, SSH_GCM
from bench.figures import Aim, is_met, ratios, spread
from bench.rows import ROWS, Row

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
"""Between these lines a document has the tables."""

Document = Mapping[str, Any]
"""`machine`: what it was measured on, by name; `rounds`; `quick`: whether they were short; `results`: values by row and
contender, one a round; `failures`."""

_RATIOS_TO = (SSH, SSH_GCM, ASYNCSSH, RELAY)
_WORDS = {True: "met", False: "missed", None: ""}


def markdown(document: Document) -> str:
    """The whole report."""
    machine = "; ".join(f"{name} {value}" for name, value in document["machine"].items())
    return "\n".join(
        [
            fill(f"{machine}. Medians of {document['rounds']} {'short ' if document['quick'] else ''}rounds.", 120),
            "",
            *table(_medians(document["results"])),
            "",
            f"Ratios of `{CONTENDERS[OURS].title}`, of the values of the same round: median (least to most).",
            "",
            *table(_ratios(document["results"])),
            "",
        ]
    )


def write(document: Document, directory: Path) -> list[Path]:
    """Writes it as JSON and as Markdown; the files."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        directory / "bench.json": json.dumps(document, indent=1) + "\n",
        directory / "bench.md": markdown(document),
    }
    for path, text in files.items():
        path.write_text(text)
    return list(files)


def insert(text: str, tables: str) -> str:
    """A document's text with these tables between its markers. Raises ValueError where it has none."""
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document needs a line {BEGIN} and after it a line {END}")
    return f"{before}{begin}\n{tables.strip()}\n\n{end}{after}"


def _medians(results: Document) -> list[list[str]]:
    """A line for each row that was measured, a column for each contender: its value, or why there can be none."""
    lines = [["median", "unit", *(contender.title for contender in CONTENDERS.values())]]
    for row in _measured(results):
        samples = results[row.name]
        cells = (row.without.get(name) or _median(samples.get(name), row.digits) for name in CONTENDERS)
        lines.append([row.title, row.unit, *cells])
    return lines


def _ratios(results: Document) -> list[list[str]]:
    """A line for each row that was measured, with the aim and whether it is met."""
    heads = [
        *(f"to {CONTENDERS[name].title}" for name in _RATIOS_TO),
        f"with 2 connections, to {CONTENDERS[SSH].title}",
    ]
    lines = [["ratio", *heads, "aim", ""]]
    for row in _measured(results):
        samples = results[row.name]
        found = [_ratio(ratios(samples, OURS, name)) for name in _RATIOS_TO]
        found.append(_ratio(ratios(samples, OURS_2, SSH)))
        lines.append([row.title, *found, ", ".join(_aim(row, aim) for aim in row.aims), _verdict(row, samples)])
    return lines


def _measured(results: Document) -> list[Row]:
    return [row for row in ROWS if row.name in results]


def _median(values: Sequence[float] | None, digits: int) -> str:
    return f"{spread(values).median:.{digits}f}" if values else ""


def _ratio(values: Sequence[float]) -> str:
    if not values:
        return ""
    found = spread(values)
    return f"{found.median:.2f} ({found.least:.2f} to {found.most:.2f})"


def _aim(row: Row, aim: Aim) -> str:
    bound = f"{'≥' if row.higher_is_better else '≤'} {aim.bound:g}"
    return f"{bound} times {CONTENDERS[aim.against].title}" if aim.against else f"{bound} {row.unit}"


def _verdict(row: Row, samples: Mapping[str, Sequence[float]]) -> str:
    """Whether each aim is met; one word where all are the same."""
    words = [_WORDS[is_met(samples, OURS, aim, higher_is_better=row.higher_is_better)] for aim in row.aims]
    return words[0] if len(set(words)) == 1 else ", ".join(words)


def table(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of Markdown; every column but the first is aligned to the right."""
    rule = ["---", *["---:"] * (len(lines[0]) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (lines[0], rule, *lines[1:])]
