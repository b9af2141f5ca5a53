"""Each engine, from `kubectl apply` to a query through the Service."""

import json
import re
import time
from pathlib import Path

import pytest
import yaml

from dbtunnel.api.engines import ENGINES, Engine
from tests.support.chart import render
from tests.support.clients import AUTHORITY_FILE, COMMANDS, Endpoint, first_query, query
from tests.support.cluster import Cluster, ClusterError
from tests.support.databases import ROWS
from tests.support.installation import RELEASE
from tests.support.monitoring import ALERTS, open_api, scrape_jobs
from tests.support.private_network import BASTION, DATABASES, PrivateDatabase, PrivateNetwork
from tests.support.prometheus import Prometheus
from tests.support.tunnels import Manifest, apply, example, find, try_at_once, wait_for_ready, wait_for_reason

QUERY = "select id, item from orders order by id"


def start(cluster: Cluster, shop: str, name: str) -> Manifest:
    """A tunnel of `examples/` that works; applied by the first test that needs it."""
    if find(cluster, shop, f"databasetunnel/{name}") is None:
        apply(cluster, example(shop, name))
    return wait_for_ready(cluster, shop, name)


def test_a_generated_key_waits_for_its_line(installed: Cluster, shop: str, private_network: PrivateNetwork) -> None:
    apply(installed, example(shop, "reports"))
    tunnel = wait_for_reason(installed, shop, "reports", "KeyRejected")
    (hop,) = tunnel["status"]["hops"]
    ready = next(one for one in tunnel["status"]["conditions"] if one["type"] == "Ready")

    assert hop["authorizedKeysLine"] in ready["message"]
    assert tunnel["status"]["publicKeys"][0]["accepted"] is False
    private_network.authorize(hop["authorizedKeysLine"])


@pytest.mark.parametrize("database", DATABASES, ids=lambda one: str(one.engine))
def test_from_apply_to_a_query_through_the_service(installed: Cluster, shop: str, database: PrivateDatabase) -> None:
    began = time.monotonic()
    tunnel = start(installed, shop, database.name)
    print(f"\n{database.engine}: Ready {time.monotonic() - began:.1f} s after kubectl apply")

    printed = first_query(installed, shop, COMMANDS[database.engine](Endpoint.of(tunnel), QUERY))

    for number, item in ROWS:
        assert re.search(rf"\b{number}\b.*\b{item}\b", printed), printed


def test_the_only_way_to_a_database_is_its_tunnel(
    installed: Cluster, shop: str, private_network: PrivateNetwork
) -> None:
    database = DATABASES[0]
    address = private_network.addresses[database.host]
    for host in (database.host, address, installed.host_address):
        with pytest.raises(ClusterError, match=r"could not translate host name|Connection refused"):
            query(installed, shop, ["psql", f"host={host} port={database.port} connect_timeout=5", "-c", QUERY])


@pytest.mark.parametrize("engine", [Engine.REDSHIFT, Engine.ALLOYDB])
def test_tls_is_the_databases_own_all_the_way(installed: Cluster, shop: str, engine: Engine) -> None:
    """A client that trusts other authorities refuses it, so that the tunnel cannot be what answers."""
    database = next(one for one in DATABASES if one.engine is engine)
    endpoint = Endpoint.of(start(installed, shop, database.name))
    others = "/etc/ssl/certs/ca-certificates.crt"
    trusting = [word.replace(AUTHORITY_FILE, others) for word in COMMANDS[engine](endpoint, QUERY)]

    with pytest.raises(ClusterError, match=r"certificate verify failed"):
        query(installed, shop, ["env", f"SSL_CERT_FILE={others}", *trusting])


@pytest.mark.parametrize("database", DATABASES, ids=lambda one: str(one.engine))
def test_the_status_says_what_clients_and_administrators_need(
    installed: Cluster, shop: str, private_network: PrivateNetwork, database: PrivateDatabase
) -> None:
    status = start(installed, shop, database.name)["status"]

    service = find(installed, shop, f"service/{database.name}")
    assert service
    assert status["endpoint"] == {
        "host": f"{database.name}.{shop}.svc",
        "port": database.port,
        "clusterIP": service["spec"]["clusterIP"],
        "tlsServerName": database.host,
    }
    (key,) = status["publicKeys"]
    assert (key["use"], key["accepted"]) == ("Current", True)
    (hop,) = status["hops"]
    assert (hop["role"], hop["host"], hop["port"], hop["active"], hop["replicas"]) == ("Bastion", BASTION, 22, True, 1)
    assert hop["authorizedKeysLine"] in private_network.authorized
    assert hop["serverVersion"].startswith("SSH-2.0-OpenSSH")
    assert private_network.bastion.fingerprints["ed25519"] in str(hop["hostKeyFingerprints"])
    assert hop["cipher"] == "aes128-gcm@openssh.com"
    assert (status["replicas"], status["readyReplicas"]) == (1, 1)
    assert status.get("lastFailure") is None


def test_every_condition_speaks_of_the_current_generation(installed: Cluster, shop: str) -> None:
    tunnel = start(installed, shop, "orders")

    conditions = {one["type"]: one for one in tunnel["status"]["conditions"]}

    assert list(conditions) == [
        "WorkloadReady",
        "KeyReady",
        "TransportReady",
        "Authenticated",
        "DatabaseReachable",
        "Ready",
        "Reconciling",
        "Stalled",
    ]
    generation = tunnel["metadata"]["generation"]
    assert {one["observedGeneration"] for one in conditions.values()} == {generation}
    assert tunnel["status"]["observedGeneration"] == generation
    assert conditions["Reconciling"]["status"] == conditions["Stalled"]["status"] == "False"


def test_what_a_probe_saw_of_the_database(installed: Cluster, shop: str) -> None:
    """The one without TLS, and one whose certificate bears the tunnel's name."""
    plain, with_tls = (start(installed, shop, name)["status"] for name in ("orders", "analytics"))

    said = {one["type"]: one["message"] for one in with_tls["conditions"]}["DatabaseReachable"]

    assert plain["database"] == {"protocol": "PostgreSQL", "tlsOffered": False}
    end = with_tls["database"].pop("certificateNotAfter")
    assert with_tls["database"] == {"protocol": "PostgreSQL", "tlsOffered": True}
    assert said.startswith("PostgreSQL answers: TLS offered. Its certificate is for ")
    assert said.endswith(f'issued by "test authority", and expires at {end}.')


def test_mysql_is_judged_by_its_first_client_alone(installed: Cluster, shop: str) -> None:
    """A probe of ours could get the bastion's address blocked (max_connect_errors)."""
    tunnel = start(installed, shop, "inventory")

    first_query(installed, shop, COMMANDS[Engine.MYSQL](Endpoint.of(tunnel), QUERY))

    database = wait_for_database(installed, shop, "inventory")
    assert "MariaDB" in database["serverVersion"]
    assert database["tlsOffered"] is True


def wait_for_database(cluster: Cluster, shop: str, name: str) -> Manifest:
    """What a tunnel's status says of the database, once it says anything."""
    from tests.support.processes import wait_until

    def database() -> Manifest:
        found: Manifest = cluster.get("databasetunnel", name, "-n", shop)["status"].get("database", {})
        return found

    return wait_until(database, "what the client's session showed")


def test_printer_columns(installed: Cluster, shop: str) -> None:
    start(installed, shop, "orders")

    heading, line = installed.kubectl("get", "dbtun", "orders", "-n", shop).splitlines()
    wide_heading, wide_line = installed.kubectl("get", "dbtun", "orders", "-n", shop, "-o", "wide").splitlines()

    columns = ["NAME", "ENGINE", "ENDPOINT", "BASTION", "READY", "REASON", "AGE"]
    values = ["orders", "PostgreSQL", f"orders.{shop}.svc", BASTION, "True", "Succeeded"]
    assert _cells(heading) == columns
    assert _cells(line)[:6] == values
    assert _cells(wide_heading) == [*columns, "ACTIVE HOST", "REPLICAS", "MESSAGE"]
    assert _cells(wide_line)[:6] == values
    assert _cells(wide_line)[7:9] == [BASTION, "1"]


def _cells(line: str) -> list[str]:
    """A heading may have a space in it; columns are apart by more than one."""
    return re.split(r" {2,}", line.strip())


def test_explain_is_documentation(crd_installed: Cluster) -> None:
    printed = crd_installed.kubectl("explain", "databasetunnel.spec.tunnel", "--recursive")
    field = crd_installed.kubectl("explain", "databasetunnel.spec.tunnel.hostKey.fingerprints")

    for word in ("keySecretRef", "hostKey", "knownHostsRef", "keepalive", "connectTimeoutSeconds"):
        assert word in printed
    assert "Without `keySecretRef`" in " ".join(printed.split()), "what to write at least, and what happens without"
    assert "ssh-keygen -lf" in field
    assert "Default: 22." in crd_installed.kubectl("explain", "databasetunnel.spec.tunnel.port")


def test_forwarders_satisfy_restricted_pod_security_and_have_no_token(installed: Cluster, shop: str) -> None:
    start(installed, shop, "orders")
    labels = installed.get("namespace", shop)["metadata"]["labels"]
    (pod,) = installed.get("pods", "-n", shop, "-l", "dbtunnel.dev/tunnel=orders")["items"]

    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert [one["name"] for one in pod["spec"]["volumes"]] == ["key", "known-hosts"]
    assert ENGINES[Engine.POSTGRESQL].protocol in pod["spec"]["containers"][0]["env"][0]["value"]


def test_a_generated_key_is_accepted_once_its_line_is_there(installed: Cluster, shop: str) -> None:
    try_at_once(installed, shop, "reports")
    tunnel = wait_for_ready(installed, shop, "reports")

    assert tunnel["status"]["publicKeys"][0]["accepted"] is True
    printed = first_query(installed, shop, COMMANDS[Engine.POSTGRESQL](Endpoint.of(tunnel), QUERY))
    assert ROWS[0][1] in printed


# --- what the chart has for Prometheus --------------------------------------------------------------------------------


def monitors(shop: str) -> list[Manifest]:
    """All that the chart has for Prometheus, of an installation that serves one namespace."""
    metrics = {part: {"enabled": True} for part in ("serviceMonitor", "podMonitor", "prometheusRule")}
    manifests = render({"metrics": metrics, "settings": {"namespaces": [shop]}}, release=RELEASE)
    return [one for one in manifests if one["apiVersion"] == "monitoring.coreos.com/v1"]


def test_prometheus_finds_operator_and_forwarders_by_the_monitors(
    installed: Cluster, shop: str, tmp_path: Path
) -> None:
    start(installed, shop, "orders")
    of = f'namespace="{shop}",tunnel="orders"'
    rules = yaml.safe_load(ALERTS.read_text())
    with (
        open_api(installed, tmp_path) as api,
        Prometheus(
            tmp_path / "prometheus", rules=rules, jobs=scrape_jobs(installed, monitors(shop), api)
        ) as prometheus,
    ):
        (layer,) = prometheus.wait_for(f'dbtunnel_forwarder_layer_ready{{{of},layer="database"}} == 1')
        (ready,) = prometheus.wait_for(f'dbtunnel_operator_tunnel_ready{{{of},reason="Succeeded"}} == 1')
        assert layer[0]["pod"].startswith("orders-tunnel-")
        assert ready[0]["pod"].startswith("dbtunnel-dbtunnel-operator-")
        # others may have gone since: an earlier test replaces the pods of a tunnel
        scraped = {one["labels"]["pod"]: one["lastError"] for one in prometheus.targets()}
        assert {scraped[of["pod"]] for of, _ in (layer, ready)} == {""}
        assert {rule["health"] for rule in prometheus.rules()} <= {"ok", "unknown"}


@pytest.mark.usefixtures("prometheus_operator_kinds")
def test_the_prometheus_operators_kinds_take_what_the_chart_makes(installed: Cluster, shop: str) -> None:
    def tried(documents: list[Manifest]) -> str:
        text = yaml.safe_dump_all(documents)
        return installed.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", input=text)

    made = monitors(shop)
    assert sorted(one["kind"] for one in made) == ["PodMonitor", "PrometheusRule", "ServiceMonitor"]
    assert tried(made).count("created (server dry run)") == 3
    misspelt = json.loads(json.dumps(made).replace("honorLabels", "honourLabels"))
    with pytest.raises(ClusterError, match=r'unknown field "spec.endpoints\[0\].honourLabels"'):
        tried(misspelt)
