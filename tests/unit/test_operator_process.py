"""The operator's process where there is no API server yet, or one that has no DatabaseTunnels."""

import http.server
import json
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.processes import Process, free_port, wait_until

Answer = Callable[[str], tuple[int, dict[str, Any]]]


@contextmanager
def api_server(answer: Answer) -> Iterator[int]:
    """A server whose answers depend on the path; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, document = answer(self.path)
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class Operator:
    """`dbtunnel operator` against a port of this machine."""

    def __init__(self, directory: Path, port: int, *flags: str) -> None:
        kubeconfig = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "current-context": "x",
        }
        (directory / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
        self.liveness_port, self.metrics_port = free_port(), free_port()
        command = [sys.executable, "-m", "dbtunnel.cli.main", "operator", "--forwarder-image=image", *flags]
        command += [f"--liveness-port={self.liveness_port}", f"--metrics-port={self.metrics_port}"]
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        environment = {**kept, "KUBECONFIG": str(directory / "kubeconfig")}
        self.process = Process([*command, "--listen-address=127.0.0.1"], directory / "log", env=environment)

    def events(self) -> list[dict[str, Any]]:
        log = self.process.log
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def liveness(self) -> int:
        return _status(f"http://127.0.0.1:{self.liveness_port}/healthz")

    def readiness(self) -> int:
        return _status(f"http://127.0.0.1:{self.metrics_port}/readyz")


def _status(url: str) -> int:
    """The status of an answer; 0 where there is none."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Operator]]:
    """Starts an operator against a port."""
    operators: list[Operator] = []

    def start(port: int, *flags: str) -> Operator:
        operator = Operator(tmp_path, port, *flags)
        operators.append(operator)
        operator.process.start()
        return operator

    yield start
    for operator in operators:
        operator.process.stop()


def refusal(status: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"kind": "Status", "reason": "Refused", "message": message}


def test_without_the_definition_it_ends_and_says_what_to_do(started: Callable[..., Operator]) -> None:
    with api_server(lambda _: refusal(404, "the server could not find the requested resource")) as port:
        operator = started(port)
        assert operator.process.wait(20) == 1

    last = operator.events()[-1]
    assert (last["event"], last["level"]) == ("the operator ends", "error")
    assert "databasetunnels.dbtunnel.dev: install the CustomResourceDefinition" in last["error"]
    assert "dbtunnel crd | kubectl apply" in last["error"]


def test_without_rights_it_ends_and_says_which_are_missing(started: Callable[..., Operator]) -> None:
    with api_server(lambda _: refusal(403, 'User "x" cannot list resource "databasetunnels"')) as port:
        operator = started(port)
        assert operator.process.wait(20) == 1

    assert 'User "x" cannot list resource "databasetunnels"' in operator.events()[-1]["error"]


@pytest.mark.parametrize("status", [500, 503, 429, 410])
def test_an_api_server_that_is_not_there_yet_is_waited_for(started: Callable[..., Operator], status: int) -> None:
    with api_server(lambda _: refusal(status, "not yet")) as port:
        operator = started(port)
        is_waiting = ("waiting for the API server", "warning")
        wait_until(
            lambda: [one for one in operator.events() if (one["event"], one["level"]) == is_waiting][2:], "patience"
        )

        assert operator.process.is_running()
        assert (operator.liveness(), operator.readiness()) == (200, 503)


def test_an_api_server_that_nobody_answers_for_is_waited_for(started: Callable[..., Operator]) -> None:
    operator = started(free_port())
    wait_until(lambda: [one for one in operator.events() if one["level"] == "warning"][1:], "patience")

    assert (operator.liveness(), operator.readiness()) == (200, 503)


def test_it_begins_once_the_api_server_is_there(started: Callable[..., Operator]) -> None:
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


@pytest.mark.parametrize("flags", [[], ["--leader-election=true", "--operator-namespace=system"]], ids=str)
def test_it_can_be_told_to_end_while_it_waits(started: Callable[..., Operator], flags: list[str]) -> None:
    with api_server(lambda _: refusal(503, "not yet")) as port:
        operator = started(port, *flags)
        wait_until(lambda: operator.liveness() == 200, "liveness")
        operator.process.stop(5)

    assert operator.process.wait(1) == 0
    assert operator.events()[-1]["event"] == "ended"


def test_one_that_stands_by_is_alive_and_ready(started: Callable[..., Operator]) -> None:
    lease = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": "dbtunnel-operator", "namespace": "system", "resourceVersion": "1"},
        "spec": {
            "holderIdentity": "another",
            "leaseDurationSeconds": 15,
            "acquireTime": "2026-11-05T12:00:00.000000Z",
            "renewTime": "2026-11-05T12:00:00.000000Z",
        },
    }
    with api_server(lambda path: (200, lease) if "/leases/" in path else refusal(404, "not for you")) as port:
        operator = started(port, "--leader-election=true", "--operator-namespace=system")
        wait_until(lambda: operator.liveness() == 200, "liveness")

        assert operator.readiness() == 200
        assert operator.process.is_running()
