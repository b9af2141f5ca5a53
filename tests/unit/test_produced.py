"""Each reason is produced by a test with the real thing, which looks at how it is told."""

import re
import subprocess
import sys
from pathlib import Path

from dbtunnel.api.reasons import REASONS
from tests.support.generated import ROOT
from tests.support.produced import table


def test_every_reason_has_a_test_that_produces_it() -> None:
    tests = table("tests/forwarder", "tests/cluster")
    without = [str(reason) for reason in REASONS if not tests[reason]]
    assert not without, "mark a test with produces(...), which fails where it does not look at the reason"


def test_the_mark_alone_proves_nothing(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from dbtunnel.api.reasons import Reason\n"
        "from tests.support.produced import note, produces\n\n"
        "@produces(Reason.KEY_REJECTED)\n"
        "def test_that_looks(): note(Reason.KEY_REJECTED)\n\n"
        "@produces(Reason.KEY_REJECTED)\n"
        "def test_that_looks_away(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.conftest"]
    done = subprocess.run(
        [*command, "--rootdir", tmp_path, "-c", ROOT / "pyproject.toml", tmp_path / "test_it.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "it is marked to produce KeyRejected, and has not looked at how that is told" in done.stdout
    assert re.search(r"^FAILED \S+::test_that_looks_away", done.stdout, re.MULTILINE), done.stdout
