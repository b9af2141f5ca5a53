"""Which test produces each reason with the real thing.

A test is marked with what it produces, and fails where it has not looked at that: `check_told` and the like note what
they have seen. As a plugin (`-p tests.support.produced`) it prints the table of the collected tests.
"""

import subprocess
import sys

import pytest

from dbtunnel.api.reasons import Reason
from tests.support.processes import ROOT

produces = pytest.mark.produces
"""`@produces(Reason.X)`: the test brings the reason about and checks how it is told."""

_PREFIX = "PRODUCES"

_seen: set[Reason] = set()


def note(reason: Reason) -> None:
    """The running test has seen the reason told, and found it right."""
    _seen.add(reason)


def promised(item: pytest.Item) -> set[Reason]:
    """What a test is to produce."""
    return {reason for mark in item.iter_markers("produces") for reason in mark.args}


def begin() -> None:
    """A test begins."""
    _seen.clear()


def end(item: pytest.Item) -> None:
    """A test has passed; it fails all the same where it kept no promise."""
    if missing := promised(item) - _seen:
        pytest.fail(f"it is marked to produce {', '.join(sorted(missing))}, and has not looked at how that is told")


def pytest_collection_finish(session: pytest.Session) -> None:
    """As a plugin: a line for each reason that a test produces."""
    for item in session.items:
        for reason in sorted(promised(item)):
            print(_PREFIX, reason, item.nodeid)


def table(*folders: str) -> dict[Reason, list[str]]:
    """Each reason's tests, by their node ids; the tests are collected and not run."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "tests.support.produced", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"collecting failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    found: dict[Reason, list[str]] = {reason: [] for reason in Reason}
    for line in done.stdout.splitlines():
        prefix, _, rest = line.partition(" ")
        if prefix == _PREFIX:
            reason, _, test = rest.partition(" ")
            found[Reason(reason)].append(test)
    return found


def main() -> None:
    """Prints the table as Markdown."""
    print("| reason | tests |\n| --- | --- |")
    for reason, tests in table("tests/forwarder", "tests/cluster").items():
        shown = sorted({test.partition("[")[0] for test in tests})
        print(f"| `{reason}` | {', '.join(f'`{test}`' for test in shown)} |")


if __name__ == "__main__":
    main()
