"""A real Prometheus scrapes a real forwarder and a real operator; the dashboard's queries give data, the rules load."""

import math
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.conninfo import make_conninfo

from dbtunnel.controller.metrics import METRICS as OPERATORS
from dbtunnel.domain.metrics import Kind, Metric
from dbtunnel.forwarder.evidence import SSL_REQUEST
from dbtunnel.forwarder.metrics import METRICS as FORWARDERS
from tests.support.bastion import Bastion
from tests.support.databases import DATABASE, PASSWORD, USER, PostgresServer
from tests.support.forwarder import KEY, Forwarder, seconds
from tests.support.key_tools import certificate_of
from tests.support.keys import KeyPair, key_pair
from tests.support.lone_operator import LoneOperator, api_server
from tests.support.monitoring import ALERTS, alert_rules, expressions
from tests.support.processes import wait_until
from tests.support.prometheus import Prometheus, Target
from tests.support.values import changed, manifest

StartForwarder = Callable[..., Forwarder]

OF = {"namespace": "shop", "tunnel": "orders"}
"""What the chart's PodMonitor adds to a forwarder's series."""

KEY_REJECTED = {"conditions": [{"type": "Ready", "status": "False", "reason": "KeyRejected"}]}


def answer(path: str) -> tuple[int, dict[str, Any]]:
    """An API server that has two tunnels, one of which is going, and lets nobody write: reconciles succeed and fail.
    It has nothing to watch.
    """
    if path in ("/api", "/apis"):
        return 200, {"versions": [], "groups": []}
    going = changed(manifest({"metadata.deletionTimestamp": "2026-11-05T12:00:00Z"}), {"metadata.name": "reports"})
    tunnels = [manifest(status=KEY_REJECTED), going]
    items = tunnels if "/databasetunnels" in path else []
    return 200, {"kind": "List", "metadata": {"resourceVersion": "1"}, "items": items}


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[LoneOperator]:
    with api_server(answer) as port:
        operator = LoneOperator(tmp_path, port, "--resync-seconds=10")
        operator.process.start()
        yield operator
        operator.process.stop()


def use(forwarder: Forwarder, bastion: Bastion) -> None:
    """Fails to connect, connects, is used, refuses a client, and connects again."""
    forwarder.wait_for("transport", "ConnectionRefused")
    bastion.start()
    forwarder.wait_for("database", "Succeeded", 40)  # the pause between attempts has grown
    at = {"host": "127.0.0.1", "port": str(forwarder.port)}
    with psycopg.connect(make_conninfo(**at, user=USER, password=PASSWORD, dbname=DATABASE)) as session:
        session.execute("select 1")
    bastion.stop()
    forwarder.wait_for("transport", "ConnectionRefused")
    with socket.create_connection(("127.0.0.1", forwarder.port)) as client:
        client.sendall(SSL_REQUEST)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    bastion.start()
    forwarder.wait_for("database", "Succeeded", 40)


def series_of(prometheus: Prometheus, metric: Metric) -> int:
    """How many series it has, of the process that has most of them."""
    names = (f"{metric.name}_{part}" for part in ("bucket", "sum", "count"))
    name = "|".join(names) if metric.kind is Kind.HISTOGRAM else metric.name
    return int(
        max((value for _, value in prometheus.query(f'count by (instance) ({{__name__=~"{name}"}})')), default=0)
    )


def test_prometheus_takes_what_both_processes_tell(
    tmp_path: Path,
    start_forwarder: StartForwarder,
    bastion: Bastion,
    postgres_tls: PostgresServer,
    client_key: KeyPair,
    operator: LoneOperator,
) -> None:
    bastion.stop()
    certificate = certificate_of(client_key.public, key_pair(), "-I", "orders", "-n", USER, "-V", "-1h:+1h")
    files = {KEY: client_key.private, f"{KEY}-cert.pub": certificate}
    forwarder = start_forwarder(postgres_tls.port, files, seconds=seconds(parking_max=1))
    targets = [
        Target(forwarder.admin_port, {**OF, "pod": "orders-1"}),
        Target(operator.metrics_port, {"pod": "operator"}),
    ]
    with Prometheus(tmp_path / "prometheus", targets, yaml.safe_load(ALERTS.read_text())) as prometheus:
        prometheus.wait_for("dbtunnel_forwarder_ssh_connects_total == 0 and on () dbtunnel_operator_working == 1")
        use(forwarder, bastion)
        prometheus.wait_for("dbtunnel_forwarder_ssh_connects_total == 2")

        assert [one["lastError"] for one in prometheus.targets()] == ["", ""]
        told_of_all(prometheus)
        bounded(prometheus)
        values(prometheus)
        data_for_the_dashboard(prometheus)
        rules_work(prometheus)


def told_of_all(prometheus: Prometheus) -> None:
    known = prometheus.metadata()
    for metric in (*FORWARDERS, *OPERATORS):
        assert (known[metric.name]["type"], known[metric.name]["help"]) == (metric.kind, metric.help)
    names = {name for name in known if name.startswith("dbtunnel_")}
    assert names == {metric.name for metric in (*FORWARDERS, *OPERATORS)}


def bounded(prometheus: Prometheus) -> None:
    tunnels = 2
    found = {metric.name: series_of(prometheus, metric) for metric in (*FORWARDERS, *OPERATORS)}
    most = {
        metric.name: metric.series * (tunnels if metric.is_per_tunnel else 1) for metric in (*FORWARDERS, *OPERATORS)
    }
    assert {name: count for name, count in found.items() if count > most[name]} == {}
    assert sum(map(bool, found.values())) > 20
    print(f"\n{sum(found.values())} series of two processes, {sum(most.values())} at most")


def values(prometheus: Prometheus) -> None:
    for expression in (
        'dbtunnel_forwarder_layer_ready{namespace="shop",tunnel="orders",layer="database"} == 1',
        'dbtunnel_forwarder_ssh_reconnects_total{reason=~"Lost|Disconnected|NetworkFailed"} == 1',
        'dbtunnel_forwarder_ssh_failures_total{reason="ConnectionRefused"} >= 1',
        'dbtunnel_forwarder_clients_refused_total{reason="Parking"} == 1',
        "sum(dbtunnel_forwarder_database_failures_total) == 0",
        "dbtunnel_forwarder_ssh_handshake_seconds_count == 2",
        "dbtunnel_forwarder_channel_open_seconds_count == 1",
        'dbtunnel_operator_tunnel_ready{namespace="shop",tunnel="orders",reason="KeyRejected"} == 0',
        'dbtunnel_operator_reconcile_seconds_count{result="succeeded"} >= 1',
        'dbtunnel_operator_reconcile_seconds_count{result="refused"} >= 1',
        'dbtunnel_operator_api_errors_total{code="403"} >= 1',
    ):
        assert prometheus.wait_for(expression), expression


def data_for_the_dashboard(prometheus: Prometheus) -> None:
    asked = expressions(namespace="shop", tunnel="orders", __rate_interval="5m")
    assert len(asked) > 25
    empty: list[str] = []

    def all_give_data() -> bool:
        empty[:] = [one for one in asked if not any(not math.isnan(value) for _, value in prometheus.query(one))]
        return not empty

    wait_until(all_give_data, "data for every panel", 60, interval_seconds=1, describe=lambda: "\n".join(empty))


def rules_work(prometheus: Prometheus) -> None:
    known = prometheus.rules()
    assert {rule["name"]: rule["health"] for rule in known} == {rule["alert"]: "ok" for rule in alert_rules()}
    pending = {rule["name"]: rule["alerts"] for rule in known if rule["alerts"]}
    (alert,) = pending["DatabaseTunnelDown"]
    assert alert["annotations"]["summary"] == "Tunnel shop/orders has not been ready for 5 minutes."
