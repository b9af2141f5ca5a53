"""What the operator tells: metrics, log lines, events."""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import Reason
from dbtunnel.api.status import DatabaseTunnelStatus
from dbtunnel.controller.logs import FORMATS, JsonFormatter, event
from dbtunnel.controller.metrics import API_WRITES, METRICS, QUEUE_DEPTH, RECONCILE_SECONDS, Metrics, code_of
from dbtunnel.domain.news import transition
from dbtunnel.domain.observed import Observation
from dbtunnel.domain.status import decide
from tests.support.values import INSTALLATION, NOW, failing, observed, tunnel, working

ORDERS = tunnel()

# --- metrics ----------------------------------------------------------------------------------------------------------

SAMPLE = re.compile(r'[a-z_]+(\{[a-z]+="(\\.|[^"\\])*"(,[a-z]+="(\\.|[^"\\])*")*\})? [0-9.e+-]+')


def samples(metrics: Metrics) -> list[str]:
    return [line for line in metrics.text().splitlines() if not line.startswith("#")]


def test_every_metric_is_declared_whether_it_has_values_or_not() -> None:
    lines = Metrics().text().splitlines()
    assert f"# HELP {API_WRITES.name} Writes to the API server." in lines
    declared = [line.split()[2:] for line in lines if line.startswith("# TYPE")]
    assert declared == [[metric.name, metric.kind] for metric in METRICS]
    for metric in METRICS:
        assert metric.name.startswith("dbtunnel_operator_")
        assert (metric.kind == "counter") == metric.name.endswith("_total")


def test_counters_count_by_their_labels_and_gauges_are_looked_up() -> None:
    metrics, depth = Metrics(), 3
    metrics.add(API_WRITES, label=("Service", "create"))
    metrics.add(API_WRITES, label=("Service", "create"))
    metrics.add(API_WRITES, label=("DatabaseTunnel/status", "patch"))
    metrics.look_up(QUEUE_DEPTH, lambda: {"": depth})
    depth = 4
    assert [line for line in samples(metrics) if "reconcile_seconds" not in line and "repairs" not in line] == [
        'dbtunnel_operator_api_writes_total{kind="DatabaseTunnel/status",verb="patch"} 1',
        'dbtunnel_operator_api_writes_total{kind="Service",verb="create"} 2',
        "dbtunnel_operator_queue_depth 4",
        "dbtunnel_operator_last_reconcile_age_seconds 0",
        "dbtunnel_operator_working 0",
    ]


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.1, 0.11, 100):
        metrics.observe(RECONCILE_SECONDS, seconds, "succeeded")
    name = RECONCILE_SECONDS.name
    buckets = {"0.01": 1, "0.1": 2, "0.5": 3, "2.5": 3, "10": 3, "60": 3, "+Inf": 4}
    assert 'dbtunnel_operator_reconcile_seconds_count{result="refused"} 0' in samples(metrics), "known from the start"
    assert [line for line in samples(metrics) if line.startswith(name) and "succeeded" in line] == [
        *(f'{name}_bucket{{result="succeeded",le="{bound}"}} {count}' for bound, count in buckets.items()),
        f'{name}_sum{{result="succeeded"}} 100.211',
        f'{name}_count{{result="succeeded"}} 4',
    ]
    assert RECONCILE_SECONDS.series == 4 * (len(buckets) + 2)


def test_a_label_cannot_end_its_line() -> None:
    metrics = Metrics()
    metrics.add(API_WRITES, label=('a"} 1\nforged{x="\\', "create"))
    (sample,) = [line for line in samples(metrics) if line.startswith(API_WRITES.name)]
    assert sample == f'{API_WRITES.name}{{kind="a\\"}} 1\\nforged{{x=\\"\\\\",verb="create"}} 1'
    assert SAMPLE.fullmatch(sample)


def test_no_status_of_a_server_makes_a_label_of_its_own() -> None:
    assert [code_of(status) for status in (404, 409, 503, 299, 799, 10**9)] == ["404", "409", "503", *["other"] * 3]


# --- logs -------------------------------------------------------------------------------------------------------------


def logged(caplog: pytest.LogCaptureFixture) -> Mapping[str, Any]:
    """The last record as the line that is written."""
    line = JsonFormatter().format(caplog.records[-1])
    assert "\n" not in line
    document: Mapping[str, Any] = json.loads(line)
    return document


LOGGER = logging.getLogger("dbtunnel.test")


@pytest.fixture(autouse=True)
def every_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, LOGGER.name)


def test_an_event_is_one_json_object_with_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    event(LOGGER, "child created", level=logging.WARNING, namespace="shop", kind="Service", seconds=0.5, empty=None)
    line = dict(logged(caplog))
    assert re.fullmatch(r"2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line.pop("time"))
    assert line == {
        "level": "warning",
        "logger": "dbtunnel.test",
        "event": "child created",
        "namespace": "shop",
        "kind": "Service",
        "seconds": 0.5,
        "empty": None,
    }


def test_what_libraries_log_takes_the_same_form(caplog: pytest.LogCaptureFixture) -> None:
    LOGGER.error("watch of %s ended: %s", "pods", "\x1b[2J\n{")
    assert logged(caplog)["event"] == "watch of pods ended: \x1b[2J\n{"
    assert "\x1b" not in JsonFormatter().format(caplog.records[-1])


def test_a_line_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    event(LOGGER, "x" * 10_000, error="y" * 10_000)
    line = logged(caplog)
    assert len(line["event"]) == len(line["error"]) == 4000


def test_an_exception_is_told_with_its_last_lines(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("begin" + "x" * 10_000 + "the end")
    except ValueError:
        LOGGER.exception("reconcile failed")
    line = logged(caplog)
    assert line["exception"].endswith("the end")
    assert len(line["exception"]) <= 4000


def test_a_line_for_people_has_the_same_and_forges_nothing(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError("\x1b[2J")
    except ValueError:
        event(LOGGER, "found\nfound", level=logging.WARNING, name="orders", error="\n2026 info")
        LOGGER.exception("reconcile failed")
    found, failed = (FORMATS["text"]().format(record) for record in caplog.records)
    assert re.fullmatch(r"2\S+Z? warning found\\nfound name=orders error=\\n2026 info", found)
    assert failed.splitlines()[0].endswith("error reconcile failed")
    assert failed.splitlines()[-1] == "ValueError: \\x1b[2J"


def test_a_field_that_json_does_not_know_is_shown_as_text(caplog: pytest.LogCaptureFixture) -> None:
    event(LOGGER, "found", where={"a"}, error=ValueError("x"))
    assert logged(caplog)["error"] == "x"


# --- events -----------------------------------------------------------------------------------------------------------

NEW = decide(ORDERS, Observation(), INSTALLATION, NOW).status
READY = decide(ORDERS, observed(ORDERS, working(ORDERS)), INSTALLATION, NOW).status


def failed(reason: Reason, layer: ConditionType = ConditionType.TRANSPORT_READY) -> DatabaseTunnelStatus:
    return decide(ORDERS, observed(ORDERS, failing(ORDERS, layer, reason)), INSTALLATION, NOW).status


LOST = failed(Reason.CONNECTION_LOST)
MISMATCH = failed(Reason.HOST_KEY_MISMATCH)


def stalled(status: DatabaseTunnelStatus) -> DatabaseTunnelStatus:
    """The same failure once its grace is over."""
    conditions = [
        one.model_copy(update={"status": {"Stalled": "True", "Reconciling": "False"}.get(one.type, one.status)})
        for one in status.conditions or ()
    ]
    return status.model_copy(update={"conditions": tuple(conditions)})


def told(before: DatabaseTunnelStatus | None, after: DatabaseTunnelStatus) -> tuple[str, str] | None:
    news = transition(before.document() if before else {}, after)
    return news[:2] if news else None


@pytest.mark.parametrize(
    ("before", "after", "news"),
    [
        (None, NEW, None),
        (NEW, READY, ("Normal", "Ready")),
        (LOST, READY, ("Normal", "Ready")),
        (NEW, LOST, ("Warning", "ConnectionLost")),
        (READY, LOST, ("Warning", "ConnectionLost")),
        (LOST, LOST, None),
        (LOST, failed(Reason.CONNECTION_REFUSED), None),
        (LOST, MISMATCH, ("Warning", "HostKeyMismatch")),
        (stalled(LOST), stalled(MISMATCH), ("Warning", "HostKeyMismatch")),
        (stalled(MISMATCH), LOST, ("Warning", "ConnectionLost")),
        (MISMATCH, failed(Reason.KEY_REJECTED), ("Warning", "KeyRejected")),
        (LOST, failed(Reason.DATABASE_REFUSED), ("Warning", "DatabaseRefused")),
        (MISMATCH, MISMATCH, None),
        (LOST, stalled(LOST), ("Warning", "ConnectionLost")),
        (stalled(LOST), stalled(LOST), None),
        (READY, MISMATCH, ("Warning", "HostKeyMismatch")),
        (READY, NEW, None),
        (READY, READY, None),
    ],
)
def test_an_event_is_posted_on_a_transition_only(
    before: DatabaseTunnelStatus | None, after: DatabaseTunnelStatus, news: tuple[str, str] | None
) -> None:
    assert told(before, after) == news


def test_an_event_bears_the_message_of_ready() -> None:
    news = transition(READY.document(), LOST)
    assert news is not None
    assert news[2].startswith("bastion 203.0.113.7:22: the SSH connection was lost: ")


def test_suspending_is_nothing_to_warn_of() -> None:
    of = tunnel({"suspend": True})
    suspended = decide(of, Observation(), INSTALLATION, NOW).status
    assert told(READY, suspended) == ("Normal", "Suspended")
    assert told(suspended, NEW) is None


def test_a_status_without_conditions_is_no_transition() -> None:
    assert transition({}, DatabaseTunnelStatus()) is None
