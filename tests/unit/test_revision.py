"""Which fields of the spec, and which settings of the installer, roll the pods; no other does."""

from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import pytest

from dbtunnel.api.crd import resource_schema
from dbtunnel.api.pods import PodTemplate, Resources
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.domain.children import build_deployment, current_revision
from dbtunnel.domain.settings import Defaults, Installation
from tests.support.values import INSTALLATION, changed, manifest, tunnel

FINGERPRINT = "SHA256:" + "A" * 43

ROLLS: dict[str, Any] = {
    "engine": "Redshift",
    "database.host": "other.internal",
    "database.port": 5433,
    "database.tls.serverName": "other.example",
    "tunnel.host": "203.0.113.8",
    "tunnel.port": 2222,
    "tunnel.user": "other",
    "tunnel.keySecretRef.name": "other",
    "tunnel.keySecretRef.key": "other",
    "tunnel.keySecretRef.passphraseKey": "other",
    "tunnel.hostKey.fingerprints": [FINGERPRINT],
    "tunnel.hostKey.knownHosts": "bastion ssh-ed25519 AAAA",
    "tunnel.hostKey.knownHostsRef.kind": "Secret",
    "tunnel.hostKey.knownHostsRef.name": "other",
    "tunnel.hostKey.knownHostsRef.key": "other",
    "tunnel.hostKey.alias": "alias",
    "tunnel.algorithms": "Legacy",
    "tunnel.jumpHosts": [{"host": "203.0.113.8"}],
    "tunnel.fallbacks": [{"host": "203.0.113.8"}],
    "tunnel.connectTimeoutSeconds": 11,
    "tunnel.keepalive.intervalSeconds": 16,
    "tunnel.keepalive.countMax": 4,
    "tunnel.compression": True,
    "replicas": 2,
    "tunnel.connections": 2,
    "connectionLimits.max": 500,
    "connectionLimits.idleTimeoutSeconds": 3600,
    "parking.maxSeconds": 31,
    "parking.maxClients": 1001,
    "drain.minSeconds": 4,
    "drain.maxSeconds": 31,
    "probe.mode": "Passive",
    "probe.intervalSeconds": 61,
    "podTemplate.labels": {"a": "b"},
    "podTemplate.annotations": {"a": "b"},
    "podTemplate.resources.limits": {"cpu": "1"},
    "podTemplate.resources.requests": {"cpu": "1"},
    "podTemplate.nodeSelector": {"a": "b"},
    "podTemplate.tolerations": [{"operator": "Exists"}],
    "podTemplate.affinity": {"nodeAffinity": {}},
    "podTemplate.topologySpreadConstraints": [{"topologyKey": "zone"}],
    "podTemplate.priorityClassName": "high",
    "podTemplate.imagePullSecrets": [{"name": "registry"}],
    "podTemplate.hostAliases": [{"ip": "203.0.113.7", "hostnames": ["bastion"]}],
}
"""Fields that a forwarder cannot learn of while it runs, and another value of each."""

STAYS: dict[str, Any] = {
    "tunnel.generatedKeyType": "RSA",
    "access.policy": "Unrestricted",
    "access.from": [{"podSelector": {}}],
    "service.name": "other",
    "service.port": 6543,
    "service.annotations": {"a": "b"},
    "service.labels": {"a": "b"},
    "serviceBinding": "Enabled",
    "suspend": True,
}
"""Fields that leave the pods as they are, and another value of each."""

BESIDE: dict[str, Mapping[str, Any]] = {
    "tunnel.keySecretRef": {"tunnel.keySecretRef.name": "orders-ssh"},
    "tunnel.hostKey.knownHostsRef": {"tunnel.hostKey.knownHostsRef.name": "hosts"},
    "access.from": {"access.policy": "Selected", "access.from": [{"podSelector": {"matchLabels": {"a": "b"}}}]},
}
"""What must be given for a field to be given; by the beginning of its path."""


def leaves(schema: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Paths of the fields that have no fields of their own."""
    for name, field in schema["properties"].items():
        where = f"{path}.{name}" if path else name
        if "properties" in field:
            yield from leaves(field, where)
        else:
            yield where


def revision(changes: Mapping[str, Any] | None = None, installation: Installation = INSTALLATION) -> str:
    return current_revision(build_deployment(tunnel(changes), installation))


def revisions(field: str, value: Any) -> set[str]:
    """The revisions without and with the change of one field."""
    beside = next((given for beginning, given in BESIDE.items() if field.startswith(beginning)), {})
    return {revision(beside), revision({**beside, field: value})}


def test_it_is_decided_for_every_field_of_the_spec() -> None:
    assert sorted(ROLLS | STAYS) == sorted(leaves(resource_schema()["properties"]["spec"]))


@pytest.mark.parametrize("field", ROLLS)
def test_a_field_that_rolls_the_pods(field: str) -> None:
    assert len(revisions(field, ROLLS[field])) == 2


@pytest.mark.parametrize("field", STAYS)
def test_a_field_that_leaves_the_pods(field: str) -> None:
    assert len(revisions(field, STAYS[field])) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata.generation": 4},
        {"metadata.resourceVersion": "101"},
        {"metadata.uid": "another"},
        {"metadata.labels": {"a": "b"}},
        {"metadata.annotations": {"a": "b"}},
        {"status": {"observedGeneration": 2}},
    ],
)
def test_metadata_and_status_leave_the_pods(changes: dict[str, Any]) -> None:
    parsed = DatabaseTunnel.parse(changed(manifest(), changes))
    assert current_revision(build_deployment(parsed, INSTALLATION)) == revision()


def test_a_default_that_is_written_out_leaves_the_pods() -> None:
    written: dict[str, Any] = {
        "database.port": 5432,
        "database.tls.serverName": "orders.internal",
        "tunnel.port": 22,
        "tunnel.keySecretRef": {"name": "orders-ssh"},
        "tunnel.keepalive": {"intervalSeconds": 15, "countMax": 3},
        "replicas": 1,
        "parking": {"maxSeconds": 30, "maxClients": 1000},
        "drain": {"minSeconds": 3, "maxSeconds": 30},
        "probe": {"mode": "Auto", "intervalSeconds": 60},
    }
    assert revision(written) == revision()


@pytest.mark.parametrize(
    "change",
    [
        {"operator_namespace": "other"},
        {"egress_addresses": ("203.0.113.1",)},
        {"unreachable_after_seconds": 5},
        {"forwarder_packets": "own"},
    ],
)
def test_settings_that_leave_the_pods(change: dict[str, Any]) -> None:
    assert revision(installation=replace(INSTALLATION, **change)) == revision()


@pytest.mark.parametrize(
    "change",
    [
        {"forwarder_image": "other"},
        {"forwarder_image_pull_policy": "Always"},
        {"forwarder_log_level": "DEBUG"},
        {"forwarder_packets": "asyncssh"},
    ],
)
def test_settings_that_roll_the_pods(change: dict[str, Any]) -> None:
    assert revision(installation=replace(INSTALLATION, **change)) != revision()


OTHER_DEFAULTS: dict[str, Any] = {
    "replicas": 2,
    "keepalive_interval_seconds": 16,
    "keepalive_count_max": 4,
    "parking_max_seconds": 31,
    "parking_max_clients": 1001,
    "drain_min_seconds": 4,
    "drain_max_seconds": 31,
    "probe_mode": "Passive",
    "probe_interval_seconds": 61,
    "pod_template": PodTemplate(resources=Resources(limits={"memory": "512Mi"})),
}

CHOSEN: dict[str, Any] = {
    "replicas": 1,
    "tunnel.keepalive": {"intervalSeconds": 15, "countMax": 3},
    "parking": {"maxSeconds": 30, "maxClients": 1000},
    "drain": {"minSeconds": 3, "maxSeconds": 30},
    "probe": {"mode": "Auto", "intervalSeconds": 60},
    "podTemplate.resources": {"requests": {"cpu": "10m"}},
}
"""A tunnel that leaves nothing open."""


def test_every_default_is_tried() -> None:
    assert OTHER_DEFAULTS.keys() == {field.name for field in fields(Defaults)}


@pytest.mark.parametrize("name", OTHER_DEFAULTS)
def test_a_default_rolls_the_pods_of_tunnels_that_leave_it_open_and_no_others(name: str) -> None:
    other = replace(INSTALLATION, defaults=replace(Defaults(), **{name: OTHER_DEFAULTS[name]}))
    assert revision(installation=other) != revision()
    assert revision(CHOSEN, other) == revision(CHOSEN)
