"""DatabaseTunnels for tests."""

import json
from collections.abc import Mapping
from typing import Any

from tests.support.cluster import Cluster, ClusterError

Manifest = dict[str, Any]


def tunnel_manifest(namespace: str, name: str = "orders", **spec: Any) -> Manifest:
    """The smallest tunnel, with `spec` beside it; nothing listens at its bastion."""
    smallest = {
        "engine": "PostgreSQL",
        "database": {"host": "orders.internal"},
        "tunnel": {"host": "127.0.0.9"},
        **spec,
    }
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "dbtunnel.dev/v1alpha1", "kind": "DatabaseTunnel", "metadata": metadata, "spec": smallest}


def apply(cluster: Cluster, *manifests: Manifest) -> None:
    """Applies objects, as a person does."""
    items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
    cluster.kubectl("apply", "-f", "-", input=json.dumps(items))


def patch(cluster: Cluster, namespace: str, resource: str, change: Mapping[str, Any], kind: str = "merge") -> None:
    """Changes an object by a patch."""
    cluster.kubectl("patch", resource, "-n", namespace, f"--type={kind}", "-p", json.dumps(change))


def find(cluster: Cluster, namespace: str, resource: str) -> Manifest | None:
    """An object, by `kind/name`; None where it does not exist."""
    try:
        return cluster.get(resource, "-n", namespace)
    except ClusterError as error:
        if "NotFound" in str(error):
            return None
        raise


def condition(cluster: Cluster, namespace: str, kind: str, name: str = "orders") -> Manifest:
    """A condition of a tunnel; empty while there is none."""
    tunnel = find(cluster, namespace, f"databasetunnel/{name}") or {}
    conditions = tunnel.get("status", {}).get("conditions", ())
    return next((one for one in conditions if one["type"] == kind), {})
