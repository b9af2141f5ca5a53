"""The operator's process where there is no API server yet, or one that has no DatabaseTunnels."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.lone_operator import LoneOperator, api_server, refusal
from tests.support.processes import free_port, wait_until

ELECTING = ["--leader-election=true", "--operator-namespace=system", "--lease-name=release"]
BOTH = pytest.mark.parametrize("flags", [[], ELECTING], ids=["alone", "electing"])


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., LoneOperator]]:
    """Starts an operator against a port."""
    operators: list[LoneOperator] = []

    def start(port: int, *flags: str) -> LoneOperator:
        operator = LoneOperator(tmp_path, port, *flags)
        operators.append(operator)
        operator.process.start()
        return operator

    yield start
    for operator in operators:
        operator.process.stop()


def test_without_the_definition_it_ends_and_says_what_to_do(started: Callable[..., LoneOperator]) -> None:
    with api_server(lambda _: refusal(404, "the server could not find the requested resource")) as port:
        operator = started(port)
        assert operator.process.wait(20) == 1

    last = operator.events()[-1]
    assert (last["event"], last["level"]) == ("the operator ends", "error")
    assert "databasetunnels.dbtunnel.dev: install the CustomResourceDefinition" in last["error"]
    assert "dbtunnel crd | kubectl apply" in last["error"]


@BOTH
def test_without_rights_it_ends_and_says_which_are_missing(
    started: Callable[..., LoneOperator], flags: list[str]
) -> None:
    with api_server(lambda path: refusal(403, f'User "x" cannot get {path}')) as port:
        operator = started(port, *flags)
        assert operator.process.wait(20) == 1

    missing = "coordination.k8s.io/v1/namespaces/system/leases/release" if flags else "databasetunnels"
    assert 'User "x" cannot get ' in operator.events()[-1]["error"]
    assert missing in operator.events()[-1]["error"]


@pytest.mark.parametrize(
    ("status", "flags", "told"),
    [(status, [], "waiting for the API server") for status in (500, 503, 429, 410)]
    + [(503, ELECTING, "lease not taken")],
)
def test_an_api_server_that_is_not_there_yet_is_waited_for(
    started: Callable[..., LoneOperator], status: int, flags: list[str], told: str
) -> None:
    with api_server(lambda _: refusal(status, "not yet")) as port:
        operator = started(port, *flags)
        is_waiting = (told, "warning")
        wait_until(
            lambda: [one for one in operator.events() if (one["event"], one["level"]) == is_waiting][1:], "patience"
        )

        assert operator.process.is_running()
        assert (operator.liveness(), operator.readiness()) == (200, 503)


@BOTH
def test_an_api_server_that_nobody_answers_for_is_waited_for(
    started: Callable[..., LoneOperator], flags: list[str]
) -> None:
    operator = started(free_port(), *flags)
    wait_until(lambda: [one for one in operator.events() if one["level"] == "warning"][1:], "patience")

    assert (operator.liveness(), operator.readiness()) == (200, 503)


def test_it_begins_once_the_api_server_is_there(started: Callable[..., LoneOperator]) -> None:
    answers = {"is_there": False}

    def answer(path: str) -> tuple[int, dict[str, Any]]:
        if answers["is_there"] and "watch=" not in path:
            return 200, {"kind": "List", "metadata": {"resourceVersion": "1"}, "items": []}
        return refusal(503, "not yet")

    with api_server(answer) as port:
        operator = started(port)
        wait_until(lambda: [one for one in operator.events() if one["level"] == "warning"], "patience")
        answers["is_there"] = True
        wait_until(lambda: [one for one in operator.events() if one["event"] == "started"], "the start")

        wait_until(lambda: operator.readiness() == 200, "readiness")


@BOTH
def test_it_can_be_told_to_end_while_it_waits(started: Callable[..., LoneOperator], flags: list[str]) -> None:
    with api_server(lambda _: refusal(503, "not yet")) as port:
        operator = started(port, *flags)
        wait_until(lambda: operator.liveness() == 200, "liveness")
        operator.process.stop(5)

    assert operator.process.wait(1) == 0
    assert operator.events()[-1]["event"] == "ended"


def test_one_that_stands_by_is_alive_and_ready(started: Callable[..., LoneOperator]) -> None:
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "release", "namespace": "system", "resourceVersion": "1"},
        "spec": {
            "holderIdentity": "another",
            "leaseDurationSeconds": 15,
            "acquireTime": "2026-11-05T12:00:00.000000Z",
            "renewTime": "2026-11-05T12:00:00.000000Z",
        },
    }
    with api_server(lambda path: (200, lease) if "/leases/" in path else refusal(404, "not for you")) as port:
        operator = started(port, *ELECTING)
        wait_until(lambda: operator.liveness() == 200, "liveness")

        wait_until(lambda: operator.readiness() == 200, "readiness")
        assert operator.process.is_running()
