"""Each reason is produced by a test with the real thing, which looks at how it is told; `dbtunnel check` meets each."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dbtunnel.api.conditions import LAYERS
from dbtunnel.api.reasons import REASONS, Reason
from tests.support import produced
from tests.support.generated import ROOT


@pytest.fixture(scope="module")
def table() -> produced.Table:
    return produced.table(*produced.FOLDERS)


def test_every_reason_has_a_test_that_produces_it(table: produced.Table) -> None:
    without = [str(reason) for reason in REASONS if not table[reason].produced_by]
    assert not without, "mark a test with produces(...), which fails where it does not look at the reason"


def test_every_reason_is_told_in_a_cluster_by_a_real_event(table: produced.Table) -> None:
    """The others of its tests look at what would be posted."""
    without = [str(one) for one, row in table.items() if not any("tests/cluster/" in test for test in row.produced_by)]
    assert not without


def test_dbtunnel_check_meets_every_reason_of_the_layers(table: produced.Table) -> None:
    """The others are about pods, of which it knows nothing."""
    met = {reason for reason in REASONS if table[reason].checked_by}
    assert met == {reason for reason, info in REASONS.items() if info.type in LAYERS}


def test_the_marks_alone_prove_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from dbtunnel.api.reasons import Reason\n"
        "from tests.support.produced import checks, note, note_exit, produces\n\n"
        "@produces(Reason.KEY_REJECTED)\n"
        "@checks(Reason.KEY_REJECTED)\n"
        "def test_that_looks(): note(Reason.KEY_REJECTED, 'no | key'); note_exit(Reason.KEY_REJECTED, 1)\n\n"
        "@produces(Reason.KEY_REJECTED)\n"
        "def test_that_looks_away(): note_exit(Reason.KEY_REJECTED, 1)\n\n"
        "@checks(Reason.KEY_REJECTED)\n"
        "def test_that_ends_somehow(): note(Reason.KEY_REJECTED, '')\n"
    )
    plugins = ["-p", "no:cacheprovider", "-p", "tests.conftest", "-p", "tests.support.produced"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            *plugins,
            "--rootdir",
            tmp_path,
            "-c",
            ROOT / "pyproject.toml",
            tmp_path,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "it is marked with produces(KeyRejected), and has not looked at how that is told" in done.stdout
    assert "it is marked with checks(KeyRejected), and has not looked at how `dbtunnel check` ends" in done.stdout
    for name in ("test_that_looks_away", "test_that_ends_somehow"):
        assert re.search(rf"^FAILED \S+::{name}", done.stdout, re.MULTILINE), done.stdout
    seen = [line.partition("PRODUCED ")[2] for line in done.stdout.splitlines() if line.startswith("PRODUCED ")]
    assert seen == [
        '["test_it.py::test_that_looks", "produces", "KeyRejected", "no | key"]',
        '["test_it.py::test_that_looks", "checks", "KeyRejected", 1]',
    ]


def test_the_table_has_messages_in_full_and_exit_codes() -> None:
    row = produced.Row(["t.py::a[x]", "t.py::a[y]", "t.py::b"], ["t.py::c"], "no | key", {1})
    assert list(produced.written({Reason.KEY_REJECTED: row}))[2:] == [
        "| `KeyRejected` | `t.py::a`, `t.py::b` | no \\| key | 1 | `t.py::c` |",
        "",
        "Reasons without a test that produces them: none.",
    ]
