"""What the chart has for Prometheus and Grafana: monitors, alert rules, the dashboard."""

import json
import re
from pathlib import Path
from typing import Any

import grafana_foundation_sdk.cog.encoder
import grafana_foundation_sdk.cog.plugins
import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard

from dbtunnel.controller.metrics import METRICS as OPERATORS
from dbtunnel.domain.children import ADMIN_PORT_NAME, build_deployment
from dbtunnel.domain.metrics import Kind
from dbtunnel.domain.names import TUNNEL_LABEL
from dbtunnel.forwarder.metrics import METRICS as FORWARDERS
from tests.support.chart import CHART, NAMESPACE, Manifest, render, template, the_one
from tests.support.monitoring import ALERTS, alert_rules, dashboard, expressions
from tests.support.prometheus import promtool
from tests.support.values import INSTALLATION, tunnel

PARTS = ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")
ALL = {"metrics": {part: {"enabled": True} for part in PARTS}}
KINDS = ("ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap")


def is_within(labels: Manifest, others: Manifest) -> bool:
    return labels.items() <= others.items()


# --- monitors ---------------------------------------------------------------------------------------------------------


def test_nothing_of_it_is_there_unless_asked_for() -> None:
    assert not {manifest["kind"] for manifest in render()} & set(KINDS)


@pytest.mark.parametrize(("part", "kind"), list(zip(PARTS, KINDS, strict=True)))
def test_each_part_is_switched_on_by_itself_and_bears_given_labels(part: str, kind: str) -> None:
    manifests = render({"metrics": {part: {"enabled": True, "labels": {"release": "monitoring"}}}})
    assert [one["kind"] for one in manifests if one["kind"] in KINDS] == [kind]
    metadata = the_one(manifests, kind)["metadata"]
    assert metadata["namespace"] == NAMESPACE
    assert is_within({"release": "monitoring", "app.kubernetes.io/instance": "tunnels"}, metadata["labels"])


def test_the_service_monitor_finds_the_service_of_the_metrics() -> None:
    manifests = render(ALL)
    monitor, service = (the_one(manifests, kind) for kind in ("ServiceMonitor", "Service"))
    assert is_within(monitor["spec"]["selector"]["matchLabels"], service["metadata"]["labels"])
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint == {"port": service["spec"]["ports"][0]["name"], "honorLabels": True}


def test_a_service_monitor_without_the_service_is_refused() -> None:
    done = template({"metrics": {"enabled": False, "serviceMonitor": {"enabled": True}}})
    assert "needs metrics.enabled" in done.stderr


def test_the_pod_monitor_finds_the_pods_of_tunnels_and_names_their_tunnel() -> None:
    monitor = the_one(render(ALL), "PodMonitor")["spec"]
    pod = build_deployment(tunnel(), INSTALLATION)["spec"]["template"]
    assert is_within(monitor["selector"]["matchLabels"], pod["metadata"]["labels"])
    (endpoint,) = monitor["podMetricsEndpoints"]
    ports = [port["name"] for one in pod["spec"]["containers"] for port in one["ports"]]
    assert endpoint["port"] == ADMIN_PORT_NAME
    assert ADMIN_PORT_NAME in ports
    label = "__meta_kubernetes_pod_label_" + re.sub(r"[^a-zA-Z0-9_]", "_", TUNNEL_LABEL)
    assert endpoint["relabelings"] == [{"sourceLabels": [label], "targetLabel": "tunnel"}]


@pytest.mark.parametrize(("namespaces", "selector"), [([], {"any": True}), (["shop"], {"matchNames": ["shop"]})])
def test_pods_are_looked_for_where_tunnels_are_served(namespaces: list[str], selector: Manifest) -> None:
    monitor = the_one(render({**ALL, "settings": {"namespaces": namespaces}}), "PodMonitor")
    assert monitor["spec"]["namespaceSelector"] == selector


def test_the_interval_is_prometheus_own_unless_given() -> None:
    parts = {part: {"enabled": True, "interval": "15s"} for part in PARTS[:2]}
    manifests = render({"metrics": parts})
    assert the_one(manifests, "ServiceMonitor")["spec"]["endpoints"][0]["interval"] == "15s"
    assert the_one(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"][0]["interval"] == "15s"
    assert "interval" not in str(render(ALL)[-4:])
    bad = template({"metrics": {"podMonitor": {"interval": "often"}}})
    assert "at '/metrics/podMonitor/interval'" in bad.stderr


# --- alert rules ------------------------------------------------------------------------------------------------------

DECLARED = {
    f"{metric.name}{suffix}"
    for metric in (*OPERATORS, *FORWARDERS)
    for suffix in (("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",))
}


def names_in(expression: str) -> set[str]:
    """The metrics of an expression."""
    return set(re.findall(r"\bdbtunnel_\w+", expression))


def test_the_rules_are_those_of_the_file_as_it_stands() -> None:
    assert the_one(render(ALL), "PrometheusRule")["spec"] == yaml.safe_load(ALERTS.read_text())


def test_every_metric_of_a_rule_is_declared() -> None:
    for rule in alert_rules():
        names = names_in(rule["expr"])
        assert names, rule["alert"]
        assert names <= DECLARED, rule["alert"]


def test_every_rule_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in alert_rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_promtool_takes_the_rules() -> None:
    done = promtool("check", "rules", ALERTS)
    assert done.returncode == 0, done.stdout + done.stderr


READY = "dbtunnel_operator_tunnel_ready"
LOST = "dbtunnel_forwarder_ssh_reconnects_total"
LEFT, TAKEN = "dbtunnel_forwarder_clients_left_before_login_total", "dbtunnel_forwarder_clients_total"
TURNED_AWAY = "dbtunnel_forwarder_database_failures_total"
OF = 'namespace="shop",tunnel="orders"'
ORDERS = {"namespace": "shop", "tunnel": "orders"}


def series(name: str, labels: str, values: str) -> Manifest:
    return {"series": f"{name}{{{labels}}}", "values": values}


def reconciles(result: str, values: str) -> Manifest:
    return series("dbtunnel_operator_reconcile_seconds_count", f'result="{result}"', values)


def expiry(pod: str, days: int) -> Manifest:
    """The tests' time begins at that of Unix."""
    name = "dbtunnel_forwarder_database_certificate_expiry_timestamp_seconds"
    return series(name, f'{OF},pod="{pod}",server_name="orders.internal"', f"{days * 86400}x20")


def key_expiry(hours: int) -> Manifest:
    """As `expiry`, of the user certificate of a key."""
    name = "dbtunnel_forwarder_key_certificate_expiry_timestamp_seconds"
    return series(name, f'{OF},pod="a",key="SHA256:abc"', f"{hours * 3600}x100")


WORKING = series("dbtunnel_operator_working", 'pod="a"', "1x60")

# each: the alert, what is recorded every minute, at which minute it is looked, and the labels of what then fires
CASES: dict[str, tuple[str, list[Manifest], int, list[dict[str, str]]]] = {
    "down for five minutes": (
        "DatabaseTunnelDown",
        [series(READY, f'{OF},reason="ConnectionRefused"', "0x20")],
        6,
        [ORDERS],
    ),
    "down for a moment": (
        "DatabaseTunnelDown",
        [
            series(READY, f'{OF},reason="ConnectionLost"', "0x2 _x20"),
            series(READY, f'{OF},reason="Succeeded"', "_x2 1x20"),
        ],
        8,
        [],
    ),
    "down for changing reasons": (
        "DatabaseTunnelDown",
        [
            series(READY, f'{OF},reason="ConnectionRefused"', "0x3 stale _x20"),
            series(READY, f'{OF},reason="ConnectTimeout"', "_x3 0x20"),
        ],
        7,
        [ORDERS],
    ),
    "suspended": ("DatabaseTunnelDown", [series(READY, f'{OF},reason="Suspended"', "0x20")], 15, []),
    "one of two": (
        "DatabaseTunnelDown",
        [
            series(READY, f'{OF},reason="Succeeded"', "1x20"),
            series(READY, 'namespace="shop",tunnel="reports",reason="KeyRejected"', "0x20"),
        ],
        10,
        [{"namespace": "shop", "tunnel": "reports"}],
    ),
    "flapping": ("DatabaseTunnelFlapping", [series(LOST, f'{OF},pod="a",reason="Lost"', "0+1x30")], 20, [ORDERS]),
    "a bastion that restarts once": (
        "DatabaseTunnelFlapping",
        [series(LOST, f'{OF},pod="{number}",reason="Lost"', "0x5 1x30") for number in range(10)],
        20,
        [],
    ),
    "keys that change": (
        "DatabaseTunnelFlapping",
        [series(LOST, f'{OF},pod="a",reason="Replaced"', "0+1x30")],
        20,
        [],
    ),
    "a certificate that one of two replicas has seen to end soon": (
        "DatabaseTunnelCertificateExpiring",
        [expiry("a", 13), expiry("b", 300)],
        5,
        [{**ORDERS, "server_name": "orders.internal"}],
    ),
    "one that has expired": (
        "DatabaseTunnelCertificateExpiring",
        [expiry("a", 0)],
        5,
        [{**ORDERS, "server_name": "orders.internal"}],
    ),
    "one that is good for a while": ("DatabaseTunnelCertificateExpiring", [expiry("a", 15)], 5, []),
    "a key's certificate with half an hour left": (
        "DatabaseTunnelKeyCertificateExpiring",
        [key_expiry(1)],
        30,
        [{**ORDERS, "key": "SHA256:abc"}],
    ),
    "a key's certificate that is renewed in time": ("DatabaseTunnelKeyCertificateExpiring", [key_expiry(8)], 30, []),
    "clients of two pods that leave, and hardly a login": (
        "DatabaseTunnelClientsLeaving",
        [
            *(series(LEFT, f'{OF},pod="{pod}"', "0x4 1x4 2x4 3x4 4x20") for pod in "ab"),
            *(series(TAKEN, f'{OF},pod="{pod}"', "0x4 2x4 3x4 5x4 6x20") for pod in "ab"),
        ],
        18,
        [ORDERS],
    ),
    "health checks among many who log in": (
        "DatabaseTunnelClientsLeaving",
        [series(LEFT, f'{OF},pod="a"', "0+6x30"), series(TAKEN, f'{OF},pod="a"', "0+20x30")],
        20,
        [],
    ),
    "a port scan": (
        "DatabaseTunnelClientsLeaving",
        [series(LEFT, f'{OF},pod="a"', "0 3x30"), series(TAKEN, f'{OF},pod="a"', "0 3x30")],
        10,
        [],
    ),
    "a database that is full now and then": (
        "DatabaseTunnelClientsTurnedAway",
        [series(TURNED_AWAY, f'{OF},pod="{pod}",reason="TooManyConnections"', "0x4 1x4 2x20") for pod in "ab"],
        14,
        [{**ORDERS, "reason": "TooManyConnections"}],
    ),
    "a database that is full once, and restarts often": (
        "DatabaseTunnelClientsTurnedAway",
        [
            series(TURNED_AWAY, f'{OF},pod="a",reason="TooManyConnections"', "0x4 1x30"),
            series(TURNED_AWAY, f'{OF},pod="a",reason="DatabaseRefused"', "0+9x30"),
        ],
        20,
        [],
    ),
    "one operator at work and one standing by": (
        "DatabaseTunnelOperatorAbsent",
        [WORKING, series("dbtunnel_operator_working", 'pod="b"', "0x60")],
        30,
        [],
    ),
    "only one that stands by": (
        "DatabaseTunnelOperatorAbsent",
        [series("dbtunnel_operator_working", 'pod="b"', "0x60")],
        11,
        [{}],
    ),
    "none": ("DatabaseTunnelOperatorAbsent", [], 11, [{}]),
    "a queue that stands": (
        "DatabaseTunnelOperatorStalled",
        [
            series("dbtunnel_operator_queue_depth", 'pod="a"', "3x30"),
            series("dbtunnel_operator_last_reconcile_age_seconds", 'pod="a"', "0+60x30"),
        ],
        9,
        [{"pod": "a"}],
    ),
    "a queue that is worked on": (
        "DatabaseTunnelOperatorStalled",
        [
            series("dbtunnel_operator_queue_depth", 'pod="a"', "900x30"),
            series("dbtunnel_operator_last_reconcile_age_seconds", 'pod="a"', "1x30"),
        ],
        25,
        [],
    ),
    "nothing to do for long": (
        "DatabaseTunnelOperatorStalled",
        [
            series("dbtunnel_operator_queue_depth", 'pod="a"', "0x30"),
            series("dbtunnel_operator_last_reconcile_age_seconds", 'pod="a"', "0+60x30"),
        ],
        25,
        [],
    ),
    "refused ever again": (
        "DatabaseTunnelOperatorFailing",
        [reconciles("refused", "0+5x60"), reconciles("succeeded", "0+1x60")],
        40,
        [{}],
    ),
    "refused now and then": (
        "DatabaseTunnelOperatorFailing",
        [reconciles("refused", "0+1x60"), reconciles("succeeded", "0+5x60")],
        40,
        [],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_alert_fires_when_it_should(case: str, tmp_path: Path) -> None:
    alert, recorded, minute, firing = CASES[case]
    (rule,) = [one for one in alert_rules() if one["alert"] == alert]
    fired = [{"exp_labels": {**labels, **rule["labels"]}} for labels in firing]
    document: dict[str, Any] = {
        # without the annotations, whose text promtool would have to be told again
        "rule_files": [str(tmp_path / "rules.yaml")],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": recorded,
                "alert_rule_test": [{"alertname": alert, "eval_time": f"{minute}m", "exp_alerts": fired}],
            }
        ],
    }
    bare = {name: value for name, value in rule.items() if name != "annotations"}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "one", "rules": [bare]}]}))
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(document))
    done = promtool("test", "rules", tmp_path / "test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_seen_to_fire_and_not_to_fire() -> None:
    names = {rule["alert"] for rule in alert_rules()}
    assert {alert for alert, *_, firing in CASES.values() if firing} == names
    assert {alert for alert, *_, firing in CASES.values() if not firing} == names


# --- the dashboard ----------------------------------------------------------------------------------------------------


def test_the_config_map_has_the_dashboard_of_the_file_for_grafanas_sidecar() -> None:
    manifest = the_one(render(ALL), "ConfigMap")
    assert json.loads(manifest["data"]["dbtunnel.json"]) == dashboard()
    assert manifest["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_every_field_of_the_dashboard_is_one_of_grafanas() -> None:
    grafana_foundation_sdk.cog.plugins.register_default_plugins()
    loaded = Dashboard.from_json(dashboard())
    encoder = grafana_foundation_sdk.cog.encoder.JSONEncoder()
    assert within(json.loads(encoder.encode(loaded)), dashboard()) == []


def within(loaded: Any, given: Any, path: str = "") -> list[str]:
    """Where something given was not understood."""
    if isinstance(given, dict):
        return [place for name, one in given.items() for place in within(loaded.get(name), one, f"{path}.{name}")]
    if isinstance(given, list):
        pairs = enumerate(zip(loaded, given, strict=True))
        return [place for number, (one, other) in pairs for place in within(one, other, f"{path}[{number}]")]
    return [] if loaded == given else [f"{path}: {given!r}, understood as {loaded!r}"]


def test_a_field_that_grafana_does_not_know_is_noticed() -> None:
    loaded = Dashboard.from_json({"title": "x", "titel": "y"})
    encoded = json.loads(grafana_foundation_sdk.cog.encoder.JSONEncoder().encode(loaded))
    assert within(encoded, {"title": "x", "titel": "y"}) == [".titel: 'y', understood as None"]


def test_panels_have_numbers_of_their_own_and_cover_no_other() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (column, line)
        for place in (panel["gridPos"] for panel in panels)
        for column in range(place["x"], place["x"] + place["w"])
        for line in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(column for column, _ in cells) < 24


def test_every_metric_of_the_dashboard_is_declared() -> None:
    shown = {name for expression in expressions() for name in names_in(expression)}
    assert shown
    assert shown <= DECLARED


def test_the_readme_of_the_chart_lists_the_alerts() -> None:
    text = (CHART / "README.md").read_text()
    assert [rule["alert"] for rule in alert_rules() if f"`{rule['alert']}`" not in text] == []
