"""What a forwarder tells: its document, its metrics and its log lines."""

import asyncio
import json
import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.api.conditions import LAYERS, ConditionType
from dbtunnel.api.documents import read, written
from dbtunnel.api.forwarder import HopFact, LayerFact, LayerStatus
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.settings import Defaults
from dbtunnel.forwarder import metrics as counted
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.logs import Budget, JsonFormatter, TextFormatter, event
from dbtunnel.forwarder.metrics import METRICS, Metrics
from dbtunnel.forwarder.state import State
from tests.support.values import FIELDS, tunnel
from tests.support.virtual_time import now, run

CONFIG = forwarder_config(tunnel(), Defaults())
HOSTILE = '\x1b[2J\r\n{"event": "forged"}\u202e'
LOST = Failure(ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST, "reset")


def statuses(state: State) -> list[LayerStatus]:
    return [fact.status for _, fact in state.layers()]


def works() -> State:
    state = State(CONFIG, "pod-uid")
    for layer in LAYERS:
        state.succeeded(layer)
    return state


# --- the document -----------------------------------------------------------------------------------------------------


def test_a_forwarder_that_has_only_begun_knows_nothing() -> None:
    state = State(CONFIG, "pod-uid")
    assert (state.status.sequence, state.status.pod_uid) == (0, "pod-uid")
    assert state.status.config_hash == CONFIG.digest()
    assert statuses(state) == [LayerStatus.UNKNOWN] * 4
    assert dict(state.layers()).keys() == set(FIELDS.values())


def test_every_change_grows_the_number_and_nothing_else_does() -> None:
    state = State(CONFIG, "pod-uid")
    state.set(hops=(HopFact(cipher="aes"),))
    assert state.status.sequence == 1
    state.set(hops=(HopFact(cipher="aes"),))
    assert state.status.sequence == 1
    state.set(hops=(HopFact(cipher="chacha"),), draining=True)
    assert state.status.sequence == 2


@pytest.mark.parametrize("layer", LAYERS)
def test_a_failure_means_that_the_layers_before_it_work_and_those_after_it_are_not_reached(
    layer: ConditionType,
) -> None:
    state = works()
    state.failed(Failure(layer, next(reason for reason, info in REASONS.items() if info.type is layer), HOSTILE))
    position = LAYERS.index(layer)
    assert statuses(state) == [
        *[LayerStatus.TRUE] * position,
        LayerStatus.FALSE,
        *[LayerStatus.UNKNOWN] * (3 - position),
    ]
    fact: LayerFact = getattr(state.status, FIELDS[layer])
    assert fact.seen.isprintable()
    assert fact.seen.isascii()


def test_what_was_seen_is_bounded() -> None:
    state = works()
    state.failed(Failure(ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST, "\x00" * 5000))
    assert len(state.status.transport.seen) == 1000
    read(type(state.status), written(state.status))


def test_a_layer_cannot_work_before_those_below_it() -> None:
    state = State(CONFIG, "pod-uid")
    for layer in reversed(LAYERS[1:]):
        state.succeeded(layer)
    assert statuses(state) == [LayerStatus.UNKNOWN] * 4
    assert state.status.sequence == 0


def test_what_is_not_known_has_a_reason() -> None:
    state = works()
    state.unknown(ConditionType.DATABASE_REACHABLE, Reason.NOT_PROBED, "passive")
    assert state.status.database == LayerFact(status=LayerStatus.UNKNOWN, reason="NotProbed", seen="passive")
    assert not state.works(ConditionType.DATABASE_REACHABLE)
    assert state.works(ConditionType.AUTHENTICATED)


def test_whoever_waits_hears_of_a_change_at_once_and_of_none_at_the_timeout() -> None:
    async def main() -> None:
        state = State(CONFIG, "pod-uid")
        asyncio.get_running_loop().call_later(5, lambda: state.set(draining=True))
        changed, still = await asyncio.gather(state.after(0, 30), state.after(7, 30))
        assert (changed.sequence, now()) == (1, 5)
        assert still.sequence == 0, "a number that is yet to come is answered at once"
        assert (await state.after(1, 30)).sequence == 1
        assert now() == 35
        assert (await state.after(0, 30)).sequence == 1
        assert now() == 35, "what has changed already is not waited for"

    run(main())


def test_two_who_wait_both_hear() -> None:
    async def main() -> None:
        state = State(CONFIG, "pod-uid")
        asyncio.get_running_loop().call_later(5, lambda: state.failed(LOST))
        heard = await asyncio.gather(*(state.after(0, 30) for _ in range(3)))
        assert [one.transport.reason for one in heard] == ["ConnectionLost"] * 3
        assert now() == 5

    run(main())


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_every_metric_is_declared_in_order_and_what_is_known_has_a_value() -> None:
    lines = Metrics().text().splitlines()
    declared = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert declared == [metric.name for metric in METRICS]
    assert [line for line in lines if not line.startswith("#") and "_seconds" not in line] == [
        line
        for metric in METRICS
        if not metric.buckets
        for line in (
            [f"{metric.name} 0"]
            if not metric.labels
            else [f'{metric.name}{{{one.name}="{value}"}} 0' for one in metric.labels for value in sorted(one.known)]
        )
    ]
    for metric in METRICS:
        assert metric.name.startswith("dbtunnel_forwarder_")
        assert (metric.kind == "counter") == metric.name.endswith("_total")
        assert (metric.kind == "histogram") == bool(metric.buckets)


def test_values_by_label() -> None:
    metrics = Metrics()
    metrics.add(counted.CLIENTS_REFUSED, label="parking full")
    metrics.add(counted.CLIENTS_REFUSED, label="limit")
    metrics.add(counted.CLIENTS_REFUSED, label="limit")
    metrics.add(counted.CLIENTS_OPEN, 2)
    metrics.add(counted.CLIENTS_OPEN, -1)
    metrics.set(counted.SSH_UP, 1)
    metrics.add(counted.BYTES, 2**53, "up")
    samples = [line for line in metrics.text().splitlines() if not line.startswith("#")]
    assert [line for line in samples if "refused" in line] == [
        'dbtunnel_forwarder_clients_refused_total{reason="limit"} 2',
        'dbtunnel_forwarder_clients_refused_total{reason="parking full"} 1',
    ]
    assert "dbtunnel_forwarder_clients 1" in samples
    assert "dbtunnel_forwarder_ssh_up 1" in samples
    assert f'dbtunnel_forwarder_bytes_total{{direction="up"}} {2**53}' in samples
    assert metrics.get(counted.CLIENTS_OPEN) == 1
    assert metrics.get(counted.CLIENTS_REFUSED, "unheard of") == 0


# --- log lines --------------------------------------------------------------------------------------------------------

LOGGER = logging.getLogger("dbtunnel.test")


@pytest.fixture(autouse=True)
def every_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


def test_an_event_is_one_json_object(caplog: pytest.LogCaptureFixture) -> None:
    event(LOGGER, "layer changed", level=logging.WARNING, layer="transport", seen=HOSTILE, count=3, nothing=None)
    line = JsonFormatter().format(caplog.records[-1])
    document: dict[str, Any] = json.loads(line)
    assert re.fullmatch(r"2\d{3}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", document.pop("time"))
    assert document == {
        "level": "warning",
        "logger": "dbtunnel.test",
        "event": "layer changed",
        "layer": "transport",
        "seen": r'\x1b[2J\r\n{"event": "forged"}\u202e',
        "count": 3,
        "nothing": None,
    }


def test_a_line_for_a_person_is_one_line_that_nobody_else_can_begin(caplog: pytest.LogCaptureFixture) -> None:
    event(LOGGER, "ended", level=logging.WARNING, seen=HOSTILE, nothing="")
    line = TextFormatter().format(caplog.records[-1])
    assert re.fullmatch(r'\d\d:\d\d:\d\d warning ended seen=\\x1b\[2J\\r\\n\{"event": "forged"\}\\u202e', line)


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_lines_are_bounded(formatter: logging.Formatter, caplog: pytest.LogCaptureFixture) -> None:
    event(LOGGER, "x" * 10_000, seen="y" * 10_000)
    assert len(formatter.format(caplog.records[-1])) < 8500


def test_an_exception_stays_within_its_line(caplog: pytest.LogCaptureFixture) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        LOGGER.exception("a bug")
    line = JsonFormatter().format(caplog.records[-1])
    assert "\n" not in line
    assert json.loads(line)["exception"].isprintable()


def test_what_many_clients_can_cause_does_not_fill_the_log() -> None:
    budget = Budget(3, 60)
    assert [budget.allows(second) for second in (0, 1, 2, 3, 59)] == [True, True, True, False, False]
    assert [budget.allows(second) for second in (60, 61, 62, 63)] == [True, True, True, False]


def test_a_change_of_a_layer_is_logged_with_what_to_do_and_the_same_failure_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    state = works()
    caplog.clear()
    for _ in range(3):
        state.failed(LOST)
        state.failed(Failure(ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST, "another text"))
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert [line["layer"] for line in lines] == ["transport", "authentication", "database"]
    assert lines[0]["message"].startswith("bastion 203.0.113.7:22: the SSH connection was lost: reset.")


def test_a_layer_that_comes_and_goes_is_not_logged_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    state = works()
    caplog.clear()
    refused = Failure(ConditionType.DATABASE_REACHABLE, Reason.DATABASE_REFUSED, "x")
    for _ in range(500):
        state.failed(refused)
        state.succeeded(ConditionType.DATABASE_REACHABLE)
    assert 1 <= len(caplog.records) <= 40


@given(st.text(max_size=300))
def test_no_text_ends_a_log_line(text: str) -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, text.replace("%", "%%"), (), None)
    record.fields = {"seen": text}
    for formatter in (JsonFormatter(), TextFormatter()):
        assert formatter.format(record).isprintable()
