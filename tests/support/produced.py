"""Which test produces each reason with the real thing, and which has `dbtunnel check` meet it.

A test is marked with what it produces, and fails where it has not looked at that: `check_told` and the like note what
they have seen. `python -m tests.support.produced` prints the table of the tests; with `--run` it runs one of each, and
prints the messages in full and the exit codes as they came.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from dbtunnel.api.reasons import REASONS, Reason
from tests.support.processes import ROOT

produces = pytest.mark.produces
"""`@produces(Reason.X)`: the test brings the reason about and checks condition, message, Event and metric; in a cluster
also how `kubectl dbtunnel check` ends."""

checks = pytest.mark.checks
"""`@checks(Reason.X)`: the test has `dbtunnel check` meet the reason, and looks at its exit code."""

FOLDERS = ("tests/forwarder", "tests/cluster")

_PREFIX = "PRODUCED "
"""Begins the lines of the plugin."""

_MARKS = {"produces": "has not looked at how that is told", "checks": "has not looked at how `dbtunnel check` ends"}

_seen: dict[tuple[str, Reason], str | int] = {}


def note(reason: Reason, message: str) -> None:
    """The running test has seen the reason told, and found it right."""
    _seen["produces", reason] = message


def note_exit(reason: Reason, code: int) -> None:
    """The running test has seen `dbtunnel check` end so for this reason, which is right."""
    _seen["checks", reason] = code


def promised(item: pytest.Item) -> list[tuple[str, Reason]]:
    """What a test is to look at: marks and reasons."""
    return [(name, reason) for name in _MARKS for mark in item.iter_markers(name) for reason in mark.args]


def begin() -> None:
    """A test begins."""
    _seen.clear()


def end(item: pytest.Item) -> None:
    """A test has passed; it fails all the same where it kept no promise."""
    for name, told in _MARKS.items():
        missing = sorted(reason for mark, reason in promised(item) if mark == name and (mark, reason) not in _seen)
        if missing:
            pytest.fail(f"it is marked with {name}({', '.join(missing)}), and {told}")
    # text, since that is what another process can hand over
    item.user_properties += [(_PREFIX, json.dumps([item.nodeid, *place, _seen[place]])) for place in promised(item)]


# --- as a plugin (`-p tests.support.produced`) ------------------------------------------------------------------------

_results: list[object] = []


def pytest_collection_finish(session: pytest.Session) -> None:
    """A line for each promise, where tests are only collected."""
    if session.config.option.collectonly:
        for item in session.items:
            for name, reason in promised(item):
                print(_PREFIX + json.dumps([item.nodeid, name, reason]))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Takes up what a test has seen, also where another process has run it."""
    if report.when == "call":
        _results.extend(seen for name, seen in report.user_properties if name == _PREFIX)


def pytest_terminal_summary() -> None:
    """A line for each thing seen."""
    for result in _results:
        print(f"{_PREFIX}{result}")


# --- the table --------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """A reason's tests, by their node ids, and what they saw if they were run."""

    produced_by: list[str] = field(default_factory=list)
    checked_by: list[str] = field(default_factory=list)
    message: str = ""
    exit_codes: set[int] = field(default_factory=set)


Table = dict[Reason, Row]


def table(*folders: str) -> Table:
    """Each reason's tests; they are collected and not run."""
    found: Table = {reason: Row() for reason in REASONS}
    for test, name, reason in _lines("--collect-only", *folders):
        row = found[Reason(reason)]
        (row.produced_by if name == "produces" else row.checked_by).append(test)
    return found


def run(found: Table) -> None:
    """Runs a test of each kind for each reason, and notes what it saw."""
    first = {tests[0] for row in found.values() for tests in (row.produced_by, row.checked_by) if tests}
    for test, name, reason, seen in _lines("-n", "2", "--dist", "loadfile", *sorted(first)):
        row = found[Reason(reason)]
        if name == "checks":
            row.exit_codes.add(int(seen))
        elif test == row.produced_by[0]:
            row.message = str(seen)


def _lines(*arguments: str) -> Iterator[list[str]]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.support.produced", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pytest failed: {done.stdout[-3000:]}{done.stderr[-2000:]}")
    return (json.loads(line.removeprefix(_PREFIX)) for line in done.stdout.splitlines() if line.startswith(_PREFIX))


def written(found: Table) -> Iterator[str]:
    """The table as Markdown."""
    yield "| reason | produced by | message in full | exit code of `dbtunnel check` | seen by |"
    yield "| --- | --- | --- | --- | --- |"
    for reason, row in found.items():
        message = row.message.replace("|", "\\|")
        codes = ", ".join(map(str, sorted(row.exit_codes)))
        yield f"| `{reason}` | {_names(row.produced_by)} | {message} | {codes} | {_names(row.checked_by)} |"
    yield ""
    without = [f"`{reason}`" for reason, row in found.items() if not row.produced_by]
    yield f"Reasons without a test that produces them: {', '.join(without) or 'none'}."


def _names(tests: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(test.partition("[")[0] for test in tests))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.produced", description=__doc__)
    parser.add_argument("--run", action="store_true", help="run a test of each, for messages and exit codes (minutes)")
    parser.add_argument("folders", nargs="*", default=FOLDERS, help="default: %(default)s")
    arguments = parser.parse_args()
    found = table(*arguments.folders)
    if arguments.run:
        run(found)
    print("\n".join(written(found)))


if __name__ == "__main__":
    main()
