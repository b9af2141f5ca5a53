"""Log lines: bounded in length and number, and saying what to do."""

import json
import logging
import sys
from types import TracebackType

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import Reason
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.logs import Budget, Fold, JsonFormatter, TextFormatter
from dbtunnel.forwarder.state import State
from tests.unit.test_forwarder_connect import CONFIG

ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def record(name: str = "layer changed", exc_info: ExcInfo | None = None, **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("dbtunnel", logging.INFO, "", 0, name, (), exc_info)
    made.fields = fields
    return made


def refused() -> Failure:
    return Failure(ConditionType.DATABASE_REACHABLE, Reason.DATABASE_REFUSED, "Connection refused")


def test_a_line_for_machines_is_one_bounded_line_whatever_a_server_said() -> None:
    line = JsonFormatter().format(record(seen="x\n\x1b[2J" * 10_000, count=3))
    assert "\n" not in line
    assert "\x1b" not in line
    assert len(line) < 10_000
    assert json.loads(line)["count"] == 3


def test_a_line_for_people_is_one_bounded_line_whatever_a_server_said() -> None:
    line = TextFormatter().format(record(seen="x\n\x1b[2J" * 10_000, reason=Reason.KEY_REJECTED, empty=""))
    assert line.endswith(" reason=KeyRejected")
    assert "layer changed seen=x\\n\\x1b[2J" in line
    assert "\n" not in line
    assert len(line) < 10_000


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_a_bug_is_told_with_its_place(formatter: logging.Formatter) -> None:
    try:
        raise RuntimeError("a bug")
    except RuntimeError:
        kind, error, trace = sys.exc_info()
    assert kind is not None
    assert error is not None
    assert "a bug" in formatter.format(record("failed", (kind, error, trace)))


def test_the_text_of_a_bug_s_exception_is_harmless_at_a_terminal() -> None:
    try:
        raise RuntimeError("\x1b[2J\x1b]0;gone\x07\u202e\r\n" + "x" * 5000)
    except RuntimeError:
        kind, error, trace = sys.exc_info()
    assert kind is not None
    assert error is not None
    lines = TextFormatter().format(record("failed", (kind, error, trace))).split("\n")
    assert all(line.isascii() and line.isprintable() and len(line) < 5000 for line in lines)
    assert lines[0].endswith("failed")
    assert "Traceback" in lines[1]
    assert lines[-2].startswith(r"RuntimeError: \x1b[2J\x1b]0;gone\x07\u202e")


def test_a_failure_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    State(CONFIG, "pod-1").failed(Failure(ConditionType.TRANSPORT_READY, Reason.CONNECTION_REFUSED, "refused"))
    fields = next(vars(line)["fields"] for line in caplog.records if vars(line)["fields"]["layer"] == "transport")
    assert fields["message"].startswith("bastion bastion:22: connection refused. Start the SSH server")


def test_changes_that_clients_cause_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state = State(CONFIG, "pod-1")
    for _ in range(1000):
        state.failed(refused())
        state.succeeded(ConditionType.DATABASE_REACHABLE)
    assert state.status.sequence >= 2000
    assert len(caplog.records) < 50


def test_a_budget_is_renewed() -> None:
    budget = Budget(2, 60)
    assert [budget.allows(now) for now in (0, 1, 2, 59, 60, 61, 62)] == [True, True, False, False, True, True, False]


def test_what_is_folded_is_told_at_once_and_then_with_its_count() -> None:
    fold = Fold(60)
    assert [fold.add(now) for now in (0, 1, 2, 59, 60, 61, 200)] == [1, 0, 0, 0, 4, 0, 2]
