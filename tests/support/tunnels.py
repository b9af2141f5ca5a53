"""DatabaseTunnels for tests."""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from dbtunnel.api.forwarder import ADMIN_PORT
from dbtunnel.domain.names import TUNNEL_LABEL
from tests.support.bastion import Bastion
from tests.support.cluster import Cluster
from tests.support.processes import ROOT, wait_until

Manifest = dict[str, Any]

CHILDREN = ("service/orders", "networkpolicy/orders-tunnel", "deployment/orders-tunnel")
"""The objects that the smallest tunnel has."""

READY_SECONDS = 60
"""How long a tunnel may take, on a busy machine, to work or to tell what fails."""


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


def make_namespace(cluster: Cluster, words: str) -> str:
    """A namespace that enforces Pod Security `restricted`; its name."""
    name = f"{re.sub(r'[^a-z0-9]+', '-', words.lower()).strip('-')[:40]}-{uuid.uuid4().hex[:6]}"
    metadata = {"name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}
    cluster.request("POST", "/api/v1/namespaces", {"metadata": metadata})
    return name


def remove_namespace(cluster: Cluster, name: str) -> None:
    """Has it deleted, without waiting."""
    cluster.request("DELETE", f"/api/v1/namespaces/{name}")


def patch(
    cluster: Cluster, namespace: str, resource: str, change: Mapping[str, Any] | Sequence[Any], kind: str = "merge"
) -> None:
    """Changes an object by a patch."""
    cluster.kubectl("patch", resource, "-n", namespace, f"--type={kind}", "-p", json.dumps(change))


def find(cluster: Cluster, namespace: str, resource: str) -> Manifest | None:
    """An object, by `kind/name`; None where it does not exist."""
    return cluster.find(resource, namespace)


def condition(cluster: Cluster, namespace: str, kind: str, name: str = "orders") -> Manifest:
    """A condition of a tunnel; empty while there is none."""
    tunnel = find(cluster, namespace, f"databasetunnel/{name}") or {}
    conditions = tunnel.get("status", {}).get("conditions", ())
    return next((one for one in conditions if one["type"] == kind), {})


def failure(cluster: Cluster, namespace: str, reason: str) -> Manifest:
    """The tunnel's Ready, if it is False for this reason; else empty."""
    ready = condition(cluster, namespace, "Ready")
    return ready if (ready.get("status"), ready.get("reason")) == ("False", reason) else {}


def wait_for_children(cluster: Cluster, namespace: str) -> None:
    """Returns once all of them are there."""
    for child in CHILDREN:
        wait_until(lambda child=child: find(cluster, namespace, child), child)  # type: ignore[misc]


def example(namespace: str, name: str) -> Manifest:
    """The tunnel of a file in `examples/`, in another namespace."""
    manifest: Manifest = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    manifest["metadata"]["namespace"] = namespace
    return manifest


def wait_for_ready(cluster: Cluster, namespace: str, name: str, timeout_seconds: float = READY_SECONDS) -> Manifest:
    """The tunnel, once its Ready is True."""
    return _wait_for(cluster, namespace, name, ("True", "Succeeded"), timeout_seconds)


def wait_for_reason(
    cluster: Cluster, namespace: str, name: str, reason: str, timeout_seconds: float = READY_SECONDS
) -> Manifest:
    """The tunnel, once its Ready is False for this reason."""
    return _wait_for(cluster, namespace, name, ("False", reason), timeout_seconds)


def start_tunnel(cluster: Cluster, namespace: str, name: str, bastion: Bastion | None = None, **spec: Any) -> Manifest:
    """The example `orders` under another name, `spec` beside its own, through a bastion where one is given; once it is
    Ready.
    """
    manifest = example(namespace, "orders")
    manifest["metadata"]["name"] = name
    way = {**manifest["spec"]["tunnel"], **spec.pop("tunnel", {})}
    if bastion:
        pins = {"fingerprints": list(bastion.fingerprints.values())}
        way |= {"host": bastion.host, "port": bastion.port, "hostKey": pins}
    manifest["spec"] |= {**spec, "tunnel": way}
    apply(cluster, manifest)
    return wait_for_ready(cluster, namespace, name)


def pods(cluster: Cluster, namespace: str, name: str) -> list[str]:
    """Names of a tunnel's pods that are not ending."""
    path = f"/api/v1/namespaces/{namespace}/pods?labelSelector={TUNNEL_LABEL}={name}"
    listed = (cluster.request("GET", path) or {})["items"]
    return [one["metadata"]["name"] for one in listed if "deletionTimestamp" not in one["metadata"]]


def metric(cluster: Cluster, namespace: str, pod: str, line: str) -> float:
    """The value of a forwarder's metric, named with its label as it stands at /metrics; 0 where it is not there."""
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}:{ADMIN_PORT}/proxy/metrics"
    text = cluster.read(path)
    assert text is not None, f"there is no pod {pod}"
    values = [words.rsplit(" ", 1) for words in text.splitlines()]
    return next((float(value) for name, value in values if name == line), 0.0)


def try_at_once(cluster: Cluster, namespace: str, name: str) -> None:
    """Replaces a tunnel's pods: a new one does not wait the minute after which a rejected key is tried again."""
    cluster.kubectl("-n", namespace, "delete", "pod", "-l", f"{TUNNEL_LABEL}={name}", "--wait=false")


def _wait_for(cluster: Cluster, namespace: str, name: str, wanted: tuple[str, str], timeout_seconds: float) -> Manifest:
    def state() -> Manifest | None:
        ready = condition(cluster, namespace, "Ready", name)
        is_current = ready.get("observedGeneration") == _generation(cluster, namespace, name)
        return ready if is_current and (ready.get("status"), ready.get("reason")) == wanted else None

    def told() -> str:
        return json.dumps((find(cluster, namespace, f"databasetunnel/{name}") or {}).get("status"), indent=1)

    wait_until(state, f"{name}: Ready={': '.join(wanted)}", timeout_seconds, interval_seconds=0.2, describe=told)
    return find(cluster, namespace, f"databasetunnel/{name}") or {}


def _generation(cluster: Cluster, namespace: str, name: str) -> int:
    return int((find(cluster, namespace, f"databasetunnel/{name}") or {}).get("metadata", {}).get("generation", 0))
