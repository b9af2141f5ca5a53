"""The objects that a tunnel consists of. Each builder takes values and returns a manifest."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from dbtunnel.api import forwarder as wire
from dbtunnel.api.pods import PodTemplate
from dbtunnel.api.resource import API_VERSION, KIND, DatabaseTunnel
from dbtunnel.api.spec import AccessPolicy, RefKind
from dbtunnel.domain import names
from dbtunnel.domain.forwarding import (
    drain_seconds,
    forwarder_config,
    further_servers,
    replicas,
    service_port,
    started_replicas,
)
from dbtunnel.domain.settings import FORWARDER_RESOURCES, Installation, Kept

Manifest = dict[str, Any]

ADMIN_PORT_NAME = "admin"
DATABASE_PORT_NAME = "database"

_ENDING_SLACK_SECONDS = 5
"""What a pod has beyond its drain before the kubelet kills it."""


_READABLE = 0o444
"""Mounted files belong to root, and without an fsGroup the pod's user reads them as anybody; only it is in the pod."""


def desired_children(tunnel: DatabaseTunnel, installation: Installation) -> list[Manifest]:
    """Every object that the tunnel needs, in the order in which they are made."""
    children = [build_service(tunnel)]
    if tunnel.spec.access.policy is not AccessPolicy.UNRESTRICTED:
        children.append(build_network_policy(tunnel, installation))
    if replicas(tunnel, installation.defaults) > 1:
        children.append(build_disruption_budget(tunnel))
    children.append(build_deployment(tunnel, installation))
    return children


def build_service(tunnel: DatabaseTunnel) -> Manifest:
    """The Service that applications connect to."""
    port = {
        "name": DATABASE_PORT_NAME,
        "port": service_port(tunnel),
        "targetPort": DATABASE_PORT_NAME,
        "protocol": "TCP",
    }
    given = tunnel.spec.service
    metadata = child_metadata(tunnel, names.service_name(tunnel))
    metadata["labels"] = {**(given.labels or {}), **metadata["labels"]}
    metadata["annotations"] = dict(given.annotations or {})
    spec = {"type": "ClusterIP", "selector": names.selector_labels(tunnel), "ports": [port]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def build_network_policy(tunnel: DatabaseTunnel, installation: Installation) -> Manifest:
    """Who may connect to the pods: the peers of `spec.access` to the database port, the operator and the installer's
    scrapers to the admin port.
    """
    peers: list[Any] = [{"podSelector": {}}]
    if tunnel.spec.access.policy is AccessPolicy.SELECTED:
        peers = [peer.document() for peer in tunnel.spec.access.from_ or ()]
    rules: list[Manifest] = [{"from": peers, "ports": [{"port": DATABASE_PORT_NAME, "protocol": "TCP"}]}]
    readers = dict.fromkeys(filter(None, (installation.operator_namespace, *installation.scraper_namespaces)))
    if readers:
        admin = {"port": ADMIN_PORT_NAME, "protocol": "TCP"}
        named = [{"matchLabels": {"kubernetes.io/metadata.name": name}} for name in readers]
        rules.append({"from": [{"namespaceSelector": one} for one in named], "ports": [admin]})
    spec = {
        "podSelector": {"matchLabels": names.selector_labels(tunnel)},
        "policyTypes": ["Ingress"],
        "ingress": rules,
    }
    metadata = child_metadata(tunnel, names.workload_name(tunnel))
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def build_disruption_budget(tunnel: DatabaseTunnel) -> Manifest:
    """Keeps all replicas but one through a node drain."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": names.selector_labels(tunnel)}}
    metadata = child_metadata(tunnel, names.workload_name(tunnel))
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": spec}


def build_deployment(tunnel: DatabaseTunnel, installation: Installation) -> Manifest:
    """The forwarders. A new pod serves before an old one is told to end."""
    template = _pod_template(tunnel, installation)
    template["metadata"]["labels"][names.REVISION_LABEL] = digest(template)
    spec = {
        "replicas": started_replicas(tunnel, installation),
        "selector": {"matchLabels": names.selector_labels(tunnel)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "revisionHistoryLimit": 2,
        "template": template,
    }
    metadata = child_metadata(tunnel, names.workload_name(tunnel))
    metadata["annotations"] = {names.GENERATION_ANNOTATION: str(tunnel.metadata.generation)}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


def child_metadata(tunnel: DatabaseTunnel, name: str) -> Manifest:
    """Name, labels and owner of a child."""
    owner = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": tunnel.metadata.name,
        "uid": tunnel.metadata.uid,
        "controller": True,
        # true is refused under OwnerReferencesPermissionEnforcement, as on OpenShift
        "blockOwnerDeletion": False,
    }
    return {
        "name": name,
        "namespace": tunnel.metadata.namespace,
        "labels": names.child_labels(tunnel),
        "annotations": {},
        "ownerReferences": [owner],
    }


def digest(manifest: Mapping[str, Any]) -> str:
    """Hash of a manifest, for labels and annotations."""
    return sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]


def current_revision(deployment: Manifest) -> str:
    """The revision label of the pods that a built Deployment asks for."""
    return str(deployment["spec"]["template"]["metadata"]["labels"][names.REVISION_LABEL])


def pods_revision(tunnel: DatabaseTunnel, installation: Installation) -> str:
    """The revision label of the tunnel's current pods."""
    return installation.kept.revision if installation.kept else current_revision(build_deployment(tunnel, installation))


def kept_template(deployment: Manifest) -> Kept | None:
    """The template of a live Deployment; None where it is none of the operator's."""
    template = deployment["spec"]["template"]
    revision = (template.get("metadata", {}).get("labels") or {}).get(names.REVISION_LABEL)
    variables = [one for container in template["spec"].get("containers") or () for one in container.get("env") or ()]
    config = next((one.get("value") for one in variables if one["name"] == wire.CONFIG_VARIABLE), None)
    return Kept(revision, wire.digest_of(config)) if revision and config else None


def is_written_for(deployment: Manifest, tunnel: DatabaseTunnel) -> bool:
    """Whether a live Deployment is of the tunnel's present spec, and nobody else has set anything in it."""
    metadata, present = deployment["metadata"], str(tunnel.metadata.generation)
    generation = (metadata.get("annotations") or {}).get(names.GENERATION_ANNOTATION, present)
    return bool(generation == present and not metadata.get("managedFields"))


def _pod_template(tunnel: DatabaseTunnel, installation: Installation) -> Manifest:
    given = _given(tunnel, installation)
    labels = {**(given.labels or {}), **names.child_labels(tunnel)}
    spec = {
        "containers": [_container(tunnel, installation, given)],
        "volumes": [{"name": one.name, **one.source} for one in _mounted(tunnel)],
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # uid and fsGroup are left to the image and to OpenShift, unless the installer says otherwise
        "securityContext": {
            **installation.forwarder_pod_security.document(),
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": drain_seconds(tunnel, installation.defaults)[1] + _ENDING_SLACK_SECONDS,
        **_placement(tunnel, given),
    }
    return {"metadata": {"labels": labels, "annotations": dict(given.annotations or {})}, "spec": spec}


def _given(tunnel: DatabaseTunnel, installation: Installation) -> PodTemplate:
    """What the tunnel says of its pods, and what the installer says where the tunnel leaves it open."""
    own, default = tunnel.spec.pod_template, installation.defaults.pod_template
    said = {name: value for name in type(own).model_fields if (value := getattr(own, name)) is not None}
    for name in ("labels", "annotations"):
        said[name] = {**(getattr(default, name) or {}), **said.get(name, {})}
    return default.model_copy(update=said)


def _container(tunnel: DatabaseTunnel, installation: Installation, given: PodTemplate) -> Manifest:
    resources = given.resources or FORWARDER_RESOURCES
    return {
        "name": "forwarder",
        "image": installation.forwarder_image,
        "imagePullPolicy": installation.forwarder_image_pull_policy,
        "args": ["forward", *_flags(installation)],
        "env": [
            {
                "name": wire.CONFIG_VARIABLE,
                "value": forwarder_config(tunnel, installation.defaults).to_json(),
            },
            {"name": wire.POD_UID_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
        ],
        "ports": [
            {"name": DATABASE_PORT_NAME, "containerPort": wire.DATABASE_PORT, "protocol": "TCP"},
            {"name": ADMIN_PORT_NAME, "containerPort": wire.ADMIN_PORT, "protocol": "TCP"},
        ],
        "resources": resources.document(),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": one.name, "mountPath": one.path, "readOnly": True} for one in _mounted(tunnel)],
        "livenessProbe": _probe("/livez", period_seconds=10, failures=6),
        "readinessProbe": _probe("/readyz", period_seconds=1, failures=1),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _flags(installation: Installation) -> Iterator[str]:
    """Nothing where it is the default, so that pods of before these settings are as wanted."""
    if installation.forwarder_log_level != "INFO":
        yield f"--log-level={installation.forwarder_log_level.lower()}"
    if installation.forwarder_log_format != "json":
        yield f"--log-format={installation.forwarder_log_format}"
    if installation.forwarder_packets != "own":
        yield f"--packets={installation.forwarder_packets}"


def _probe(path: str, *, period_seconds: int, failures: int) -> Manifest:
    return {
        "httpGet": {"path": path, "port": ADMIN_PORT_NAME},
        "periodSeconds": period_seconds,
        "failureThreshold": failures,
        "timeoutSeconds": 5,
    }


@dataclass(frozen=True)
class _Mounted:
    """An object whose files a forwarder reads; it need not be there yet."""

    name: str
    path: str
    source: Manifest


def _mounted(tunnel: DatabaseTunnel) -> Iterator[_Mounted]:
    yield _Mounted("key", wire.KEY_DIRECTORY, _source(RefKind.SECRET, names.key_secret_name(tunnel)))
    hosts = tunnel.spec.tunnel.host_key.known_hosts_ref
    if hosts:
        yield _Mounted("known-hosts", wire.KNOWN_HOSTS_DIRECTORY, _source(hosts.kind, hosts.name))
    for number, server in enumerate(further_servers(tunnel), start=1):
        directory = f"{wire.HOPS_DIRECTORY}/{number}"
        key, hosts = server.key_secret_ref, server.host_key.known_hosts_ref
        if key:
            yield _Mounted(f"hop-{number}-key", f"{directory}/key", _source(RefKind.SECRET, key.name))
        if hosts:
            yield _Mounted(f"hop-{number}-known-hosts", f"{directory}/known-hosts", _source(hosts.kind, hosts.name))


def _source(kind: RefKind, name: str) -> Manifest:
    if kind is RefKind.SECRET:
        return {"secret": {"secretName": name, "optional": True, "defaultMode": _READABLE}}
    return {"configMap": {"name": name, "optional": True, "defaultMode": _READABLE}}


def _placement(tunnel: DatabaseTunnel, given: PodTemplate) -> Manifest:
    """Where the pods run: what is given, under the names of a pod's specification."""
    fields = given.model_dump(mode="json", by_alias=True, exclude_none=True)
    placement = {key: value for key, value in fields.items() if key not in ("labels", "annotations", "resources")}
    spread = placement.get("topologySpreadConstraints") or [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    ]
    selector = {"labelSelector": {"matchLabels": names.selector_labels(tunnel)}}
    placement["topologySpreadConstraints"] = [{**constraint, **selector} for constraint in spread]
    return placement
