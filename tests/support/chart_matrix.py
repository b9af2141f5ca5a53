"""Values of the chart in which every two choices occur together: a matrix of installations in a few rows."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

Values = dict[str, Any]

WATCHED = ("matrix-shop", "matrix-billing")
"""Namespaces that some of them serve."""

_DIGEST = "sha256:" + "0123456789abcdef" * 4
_SPREAD = {"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "DoNotSchedule"}
_EVERY_MONITOR = {
    part: {"enabled": True, "labels": {"release": "monitoring"}}
    for part in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")
}
_POD = {
    "podLabels": {"team": "data"},
    "podAnnotations": {"example.com/pod": "yes"},
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}},
    "priorityClassName": "system-cluster-critical",
    "topologySpreadConstraints": [_SPREAD],
    "terminationGracePeriodSeconds": 10,
}
_CONTAINER = {
    "podSecurityContext": {"runAsUser": 10001, "fsGroup": 10001},
    "securityContext": {"runAsGroup": 10001},
    "extraEnv": [
        {"name": "TZ", "value": "UTC"},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    ],
    "resources": {"limits": {"cpu": 1, "memory": "1Gi"}},
}
_FOR_TUNNELS = {
    "egressAddresses": ["203.0.113.0/24", "2001:db8::1"],
    "scraperNamespaces": ["monitoring"],
    "defaultPodTemplate": {"labels": {"team": "data"}, "priorityClassName": "tunnels", "nodeSelector": {"a": "b"}},
    "forwarderPackets": "asyncssh",
    "forwarderPodSecurity": {"runAsUser": 10001},
    "workers": None,
}

_POLICIES = {
    "tunnels": {
        "enabled": True,
        "actions": ["Warn", "Audit"],
        "sshServers": [{"hosts": ["*.ssh.example.com", "203.0.113.0/24"], "ports": [22]}],
        "databases": [{"hosts": ["orders.internal"], "namespaces": [WATCHED[0]]}],
    },
    "operator": {"enabled": True},
}

FACTORS: Mapping[str, Sequence[Values]] = {
    "replicas": [{}, {"replicaCount": 2}, {"replicaCount": 0}],
    "image": [
        {},
        {"image": {"digest": _DIGEST}, "imagePullSecrets": [{"name": "registry"}]},
        {"image": {"repository": "registry.example.com:5000/dbtunnel", "tag": "1.2.3", "pullPolicy": "Always"}},
    ],
    "forwarder": [{}, {"forwarder": {"image": {"tag": "1"}}}, {"forwarder": {"image": {"digest": _DIGEST}}}],
    "scope": [{}, {"settings": {"namespaces": [WATCHED[0]]}}, {"settings": {"namespaces": list(WATCHED)}}],
    "names": [{}, {"fullnameOverride": "tunnel-operator"}, {"nameOverride": "bridges"}],
    "marks": [{}, {"commonLabels": {"owner": "platform"}, "commonAnnotations": {"example.com/owner": "platform team"}}],
    "account": [
        {},
        {"serviceAccount": {"create": False, "name": "given"}},
        {"serviceAccount": {"annotations": {"example.com/role": "arn:aws:iam::1:role/a"}, "labels": {"a": "b"}}},
    ],
    "rights": [
        {},
        {"rbac": {"writers": "admin"}},
        {"rbac": {"create": False, "readers": "nobody", "writers": "nobody"}},
    ],
    "admission": [{}, {"admissionPolicies": _POLICIES}],
    "definition": [{}, {"crds": {"keep": False}}, {"crds": {"enabled": False}}],
    "metrics": [
        {"metrics": {"annotations": {"prometheus.io/scrape": "true"}}},
        {"metrics": {"enabled": False}},
        {"metrics": _EVERY_MONITOR},
    ],
    "network": [
        {},
        {"networkPolicy": {"enabled": True}},
        {
            "networkPolicy": {
                "enabled": True,
                "from": [{"namespaceSelector": {"matchLabels": {"team": "platform"}}}],
                "egress": [{"to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}], "ports": [{"port": 6443}]}],
            }
        },
    ],
    "drain": [{"podDisruptionBudget": {"maxUnavailable": 2}}, {"podDisruptionBudget": {"enabled": False}}],
    "pod": [{}, _POD],
    "container": [{}, _CONTAINER],
    "tunnels": [{}, {"settings": _FOR_TUNNELS}, {"settings": {"logFormat": "text", "forwarderLogFormat": "text"}}],
}
"""What an installer decides, and the choices; the first is mostly the default."""

Choice = tuple[str, int]


def matrix() -> Iterator[Values]:
    """Values in which each choice meets each choice of every other factor, the same ones every time."""
    open_pairs = {
        (one, other)
        for first, second in combinations(FACTORS, 2)
        for one in _choices(first)
        for other in _choices(second)
    }
    while open_pairs:
        row = dict(min(open_pairs))
        while len(row) < len(FACTORS):
            left = [choice for factor in FACTORS if factor not in row for choice in _choices(factor)]
            row.update([max(left, key=lambda one: (_met(open_pairs, row, one), -one[1]))])
        open_pairs -= {pair for pair in open_pairs if all(row[factor] == number for factor, number in pair)}
        yield _merged([FACTORS[factor][number] for factor, number in row.items()])


def _choices(factor: str) -> list[Choice]:
    return [(factor, number) for number in range(len(FACTORS[factor]))]


def _met(open_pairs: set[tuple[Choice, Choice]], row: Mapping[str, int], choice: Choice) -> int:
    """How many pairs the choice would settle in this row."""
    return sum((one, choice) in open_pairs or (choice, one) in open_pairs for one in row.items())


def _merged(parts: Sequence[Values]) -> Values:
    merged: Values = {}
    for part in parts:
        for name, value in part.items():
            both = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = _merged([merged[name], value]) if both else value
    return merged
