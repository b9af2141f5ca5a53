"""Applications in the cluster: a pod with real clients, and a query by each engine's own client."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dbtunnel.api.engines import Engine
from tests.support.cluster import Cluster, ClusterError
from tests.support.databases import DATABASE, PASSWORD, USER
from tests.support.private_network import AUTHORITY
from tests.support.processes import wait_until
from tests.support.tunnels import Manifest, apply

POD = "client"

_REFUSED = ("No route to host", "Connection refused", "Can't connect to server")
"""How clients call a Service without an endpoint."""

AUTHORITY_FILE = f"/etc/{AUTHORITY}/ca.crt"


@dataclass(frozen=True)
class Endpoint:
    """What a tunnel's status publishes for its clients."""

    host: str
    port: int
    address: str
    """ClusterIP."""
    server_name: str
    """Name on the database's certificate."""

    @classmethod
    def of(cls, tunnel: Manifest) -> "Endpoint":
        """From the tunnel's status."""
        found = tunnel["status"]["endpoint"]
        return cls(found["host"], found["port"], found["clusterIP"], found["tlsServerName"])


def _psql(endpoint: Endpoint, query: str) -> list[str]:
    return ["psql", f"host={endpoint.host} port={endpoint.port} user={USER} dbname={DATABASE}", "-c", query]


def _psql_verified(endpoint: Endpoint, query: str) -> list[str]:
    """TLS with the certificate's name verified, through the Service's address."""
    target = f"host={endpoint.server_name} hostaddr={endpoint.address} port={endpoint.port}"
    tls = f"sslmode=verify-full sslrootcert={AUTHORITY_FILE}"
    return ["psql", f"{target} user={USER} dbname={DATABASE} {tls}", "-c", query]


def _mysql(endpoint: Endpoint, query: str) -> list[str]:
    address = [f"--host={endpoint.host}", f"--port={endpoint.port}", f"--user={USER}", f"--ssl-ca={AUTHORITY_FILE}"]
    return ["mysql", *address, DATABASE, "--table", "--execute", query]


def _redshift_connector(endpoint: Endpoint, query: str) -> list[str]:
    """Its TLS is verified against SSL_CERT_FILE, and without the name, since it has no hostaddr."""
    program = (
        "import os, redshift_connector\n"
        f'session = redshift_connector.connect(host="{endpoint.host}", port={endpoint.port}, database="{DATABASE}", '
        f'user="{USER}", password=os.environ["PGPASSWORD"], sslmode="verify-ca")\n'
        "cursor = session.cursor()\n"
        f'cursor.execute("{query}")\n'
        'print(*cursor.fetchall(), sep="\\n")'
    )
    return ["python", "-c", program]


COMMANDS: Mapping[Engine, Callable[[Endpoint, str], list[str]]] = {
    Engine.POSTGRESQL: _psql,
    Engine.REDSHIFT: _redshift_connector,
    Engine.ALLOYDB: _psql_verified,
    Engine.MYSQL: _mysql,
}
"""The command line of a query by the engine's client."""


def start_client(cluster: Cluster, namespace: str, image: str) -> None:
    """A pod with the clients; the databases' authority must be published in the namespace."""
    apply(cluster, _pod(namespace, image))
    ready = ("wait", "--for=condition=Ready", f"pod/{POD}", "--timeout=60s")
    cluster.kubectl(*ready, "-n", namespace, timeout_seconds=70)


def first_query(cluster: Cluster, namespace: str, command: list[str]) -> str:
    """As `query`, for a tunnel that has just become Ready: nodes learn of its endpoint a moment after the API."""
    return wait_until(lambda: _answer(cluster, namespace, command), "an answer through the Service", 20)


def _answer(cluster: Cluster, namespace: str, command: list[str]) -> str:
    """What a client prints; nothing while its node refuses the connection."""
    try:
        return query(cluster, namespace, command)
    except ClusterError as error:
        if any(words in str(error) for words in _REFUSED):
            return ""
        raise


def query(cluster: Cluster, namespace: str, command: list[str], timeout_seconds: float = 60) -> str:
    """What a client prints in the pod. Raises ClusterError where it fails."""
    return cluster.kubectl("exec", POD, "-n", namespace, "--", *command, timeout_seconds=timeout_seconds)


def _pod(namespace: str, image: str) -> dict[str, Any]:
    variables = {"PGPASSWORD": PASSWORD, "MYSQL_PWD": PASSWORD, "SSL_CERT_FILE": AUTHORITY_FILE}
    container = {
        "name": POD,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": AUTHORITY, "mountPath": f"/etc/{AUTHORITY}"}],
    }
    spec = {
        "containers": [container],
        "volumes": [{"name": AUTHORITY, "configMap": {"name": AUTHORITY}}],
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD, "namespace": namespace}, "spec": spec}
