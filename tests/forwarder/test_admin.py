"""The admin port: what the kubelet, the operator and Prometheus read."""

import json
import re
import signal
import socket
import threading
import time
import urllib.error
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from dbtunnel.forwarder.metrics import METRICS
from tests.support.bastion import Bastion
from tests.support.databases import DATABASE, PASSWORD, USER, PostgresServer
from tests.support.forwarder import Forwarder, seconds
from tests.support.processes import listens, wait_until

StartForwarder = Callable[..., Forwarder]


def status_code(forwarder: Forwarder, path: str) -> int:
    try:
        forwarder.get(path)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def say(forwarder: Forwarder, request: bytes) -> bytes:
    """Sends a request as it stands and tells what comes until the other end closes."""
    with socket.create_connection(("127.0.0.1", forwarder.admin_port), 5) as connection:
        connection.sendall(request)
        answer = b""
        try:
            while data := connection.recv(65536):
                answer += data
        except ConnectionResetError:
            pass
        return answer


# --- health -----------------------------------------------------------------------------------------------------------


def test_readiness_follows_the_ssh_connection_with_patience(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    bastion.stop()
    forwarder = start_forwarder(postgres.port, seconds=seconds(parking_max=2))
    assert status_code(forwarder, "/readyz") == 503  # a rollout waits for the first connection
    assert status_code(forwarder, "/livez") == 200
    bastion.start()
    wait_until(lambda: status_code(forwarder, "/readyz") == 200, "the first connection")
    bastion.stop()
    forwarder.wait(lambda status: status.transport.status == "False", "the loss")
    assert forwarder.get("/readyz").startswith("reconnecting")  # clients wait, so they must be let in
    wait_until(lambda: status_code(forwarder, "/readyz") == 503, "the patience to end")
    assert status_code(forwarder, "/livez") == 200
    bastion.start()
    wait_until(lambda: status_code(forwarder, "/readyz") == 200, "the next connection")


def test_readiness_ends_with_the_port_and_not_with_the_signal(
    start_forwarder: StartForwarder, postgres: PostgresServer
) -> None:
    """While a drain takes clients it may be the only pod that there is; then a Service would lead them to nothing."""
    forwarder = start_forwarder(postgres.port, seconds=seconds(drain_min=2, drain_max=6))
    forwarder.wait_for("database", "Succeeded")
    target: dict[str, Any] = {"host": "127.0.0.1", "port": forwarder.port}
    with psycopg.connect(user=USER, password=PASSWORD, dbname=DATABASE, **target) as session:
        session.pgconn.send_query(b"select pg_sleep(60)")  # one that is quiet would end with the port, and all with it
        forwarder.process.signal(signal.SIGTERM)
        forwarder.wait(lambda status: status.draining, "the drain")
        answers = status_code(forwarder, "/readyz"), listens("127.0.0.1", forwarder.port)
        assert answers == (200, True)
        wait_until(lambda: status_code(forwarder, "/readyz") == 503, "it not to be ready any more")
        assert not listens("127.0.0.1", forwarder.port)
        assert status_code(forwarder, "/livez") == 200, "else it would be killed in the middle of its drain"
        session.pgconn.finish()  # its statement goes on until the drain ends it
    assert forwarder.process.wait(10) == 0


def test_a_database_that_is_down_does_not_make_the_pod_unready(start_forwarder: StartForwarder) -> None:
    forwarder = start_forwarder(1)
    forwarder.wait_for("database", "DatabaseRefused")
    assert status_code(forwarder, "/readyz") == 200


# --- status -----------------------------------------------------------------------------------------------------------


def test_the_document_names_pod_and_configuration(start_forwarder: StartForwarder, postgres: PostgresServer) -> None:
    forwarder = start_forwarder(postgres.port)
    forwarder.wait_for("database", "Succeeded")
    document = json.loads(forwarder.get("/status"))
    assert document["podUid"] == "pod-1"
    assert document["configHash"] == forwarder.config.digest()
    assert set(document) >= {"sequence", "key", "transport", "authentication", "database", "publicKey", "hops"}
    assert "PRIVATE" not in forwarder.get("/status")


def test_a_long_poll_answers_with_the_next_change(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start_forwarder(postgres.port)
    forwarder.wait_for("database", "Succeeded")
    sequence = forwarder.status().sequence
    answers: list[dict[str, object]] = []
    path = f"/status?after={sequence}&timeoutSeconds=20"
    waiting = threading.Thread(target=lambda: answers.append(json.loads(forwarder.get(path, 30))))
    waiting.start()
    bastion.kill_sessions()
    waiting.join(5)
    # an answer without a change would have the same number
    assert int(str(answers[0]["sequence"])) > sequence


def test_a_long_poll_ends_at_its_timeout_and_one_of_an_earlier_life_at_once(
    start_forwarder: StartForwarder, postgres: PostgresServer
) -> None:
    forwarder = start_forwarder(postgres.port)
    forwarder.wait_for("database", "Succeeded")
    sequence = forwarder.status().sequence
    begun = time.monotonic()
    assert json.loads(forwarder.get(f"/status?after={sequence}&timeoutSeconds=1"))["sequence"] == sequence
    assert 0.9 < time.monotonic() - begun < 10
    begun = time.monotonic()
    forwarder.get(f"/status?after={sequence + 1000}&timeoutSeconds=30")
    assert time.monotonic() - begun < 10


# --- requests ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_line", "code"),
    [
        (b"GET /nothing HTTP/1.1", 404),
        (b"POST /status HTTP/1.1", 405),
        (b"GET /status?after=x HTTP/1.1", 400),
        (b"GET /status?timeoutSeconds=nan HTTP/1.1", 400),
        (b"nonsense", 405),
        (b"GET http://[::1 HTTP/1.1", 404),
        (b"GET /status?after=" + b"9" * 5000 + b" HTTP/1.1", 400),
    ],
    ids=["path", "method", "number", "nan", "nonsense", "address", "huge"],
)
def test_a_bad_request_gets_an_answer(
    start_forwarder: StartForwarder, postgres: PostgresServer, request_line: bytes, code: int
) -> None:
    forwarder = start_forwarder(postgres.port)
    assert say(forwarder, request_line + b"\r\nHost: x\r\n\r\n").startswith(f"HTTP/1.1 {code} ".encode())
    assert forwarder.get("/livez") == "ok\n"
    assert "exception" not in forwarder.log.read_text()


def test_a_request_without_end_is_cut_off(start_forwarder: StartForwarder, postgres: PostgresServer) -> None:
    forwarder = start_forwarder(postgres.port)
    assert say(forwarder, b"GET /" + b"x" * 100_000) == b""
    assert forwarder.get("/livez") == "ok\n"


def test_a_connection_takes_one_request_after_the_other(
    start_forwarder: StartForwarder, postgres: PostgresServer
) -> None:
    forwarder = start_forwarder(postgres.port)
    with socket.create_connection(("127.0.0.1", forwarder.admin_port), 5) as connection:
        for _ in range(3):
            connection.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"ok\n"):
                answer += connection.recv(4096)
            assert b"Content-Length: 3\r\n" in answer


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_every_metric_is_documented_and_well_formed(start_forwarder: StartForwarder, postgres: PostgresServer) -> None:
    forwarder = start_forwarder(postgres.port)
    forwarder.wait_for("database", "Succeeded")
    lines = forwarder.get("/metrics").splitlines()
    sample = re.compile(r'[a-z_]+(\{[a-z]+="[A-Za-z0-9 .:+]+"\})? [0-9.]+')
    for metric in METRICS:
        assert f"# HELP {metric.name} {metric.help}" in lines
        assert f"# TYPE {metric.name} {metric.kind}" in lines
    assert all(sample.fullmatch(line) for line in lines if not line.startswith("# "))
    assert forwarder.metric("dbtunnel_forwarder_ssh_up") == 1
    for layer in ("key", "transport", "authentication", "database"):
        assert forwarder.metric(f'dbtunnel_forwarder_layer_ready{{layer="{layer}"}}') == 1
    assert forwarder.metric("dbtunnel_forwarder_ssh_handshake_seconds_count") == 1
    assert 0 < forwarder.metric("dbtunnel_forwarder_ssh_handshake_seconds_sum") < 10


def test_failures_are_counted_by_their_reason(start_forwarder: StartForwarder, bastion: Bastion) -> None:
    forwarder = start_forwarder(1, engine="MySQL")
    forwarder.wait_for("authentication", "Succeeded")
    with socket.create_connection(("127.0.0.1", forwarder.port)) as client, pytest.raises(ConnectionResetError):
        client.recv(1)
    assert forwarder.metric('dbtunnel_forwarder_clients_refused_total{reason="DatabaseRefused"}') == 1
    assert forwarder.metric("dbtunnel_forwarder_clients_total") == 1
    bastion.stop()
    forwarder.wait_for("transport", "ConnectionRefused")
    assert forwarder.metric('dbtunnel_forwarder_ssh_failures_total{reason="ConnectionRefused"}') >= 1
    assert forwarder.metric("dbtunnel_forwarder_ssh_up") == 0
    assert forwarder.metric('dbtunnel_forwarder_layer_ready{layer="transport"}') == 0
