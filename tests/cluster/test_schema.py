"""The schema, judged by the real API server: what it stores, what it refuses, and what it says."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from dbtunnel.api.crd import resource_schema
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.cli.manifests import ManifestError, parse_tunnel
from tests.support.cluster import Cluster, ClusterError
from tests.support.generated import fields_of
from tests.support.hop_rows import BAD_HOPS, GOOD_HOPS
from tests.support.operator import installed_operators_rest
from tests.support.tunnels import make_namespace, remove_namespace

FINGERPRINT = "SHA256:" + "A" * 43

MINIMAL: dict[str, Any] = {
    "engine": "PostgreSQL",
    "database": {"host": "orders.internal"},
    "tunnel": {"host": "203.0.113.7"},
}

CONDITIONS = {
    "matchExpressions": [
        {"key": "tier", "operator": "In", "values": ["web", "job"]},
        {"key": "tier", "operator": "NotIn", "values": ["test"]},
        {"key": "app", "operator": "Exists"},
        {"key": "old", "operator": "DoesNotExist"},
    ]
}

GOOD: dict[str, Mapping[str, Any]] = {
    "nothing but what is needed": {},
    "Redshift": {"engine": "Redshift"},
    "AlloyDB": {"engine": "AlloyDB"},
    "MySQL": {"engine": "MySQL"},
    "a bastion by name": {"tunnel.host": "bastion.example.com"},
    "a bastion by IPv4": {"tunnel.host": "198.51.100.1"},
    "a bastion by IPv6": {"tunnel.host": "2001:db8::7"},
    "a name that ends in a dot": {"database.host": "orders.internal."},
    "a name with an underscore": {"database.host": "orders_db.internal"},
    "a name in capitals": {"database.host": "Orders.Internal"},
    "a database by IPv6": {"database.host": "fd00::1"},
    "the lowest port": {"database.port": 1},
    "the highest port": {"tunnel.port": 65535},
    "a name for the certificate": {"database.tls": {"serverName": "orders.example.com"}},
    "a user of a directory": {"tunnel.user": "CORP\\svc-dbtunnel@example.com"},
    "a key Secret with all its keys": {
        "tunnel.keySecretRef": {"name": "orders.ssh", "key": "id_ed25519", "passphraseKey": "pass.phrase"}
    },
    "a generated RSA key": {"tunnel.generatedKeyType": "RSA"},
    "fingerprints": {"tunnel.hostKey": {"fingerprints": [FINGERPRINT]}},
    "as many fingerprints as may be": {"tunnel.hostKey": {"fingerprints": [FINGERPRINT] * 8}},
    "a known_hosts text": {"tunnel.hostKey": {"knownHosts": "bastion ssh-ed25519 AAAA\n"}},
    "known_hosts in a ConfigMap": {
        "tunnel.hostKey": {"knownHostsRef": {"name": "hosts", "kind": "ConfigMap", "key": "a"}}
    },
    "known_hosts in a Secret": {"tunnel.hostKey": {"knownHostsRef": {"name": "hosts", "kind": "Secret", "key": "a"}}},
    "an alias": {"tunnel.hostKey": {"alias": "bastion.example.com", "knownHosts": "x"}},
    "compression": {"tunnel.compression": True},
    "eight connections": {"tunnel.connections": 8},
    "old algorithms": {"tunnel.algorithms": "Legacy"},
    "a time to connect": {"tunnel.connectTimeoutSeconds": 300},
    "keepalive": {"tunnel.keepalive": {"intervalSeconds": 1, "countMax": 1}},
    "three replicas": {"replicas": 3},
    "pods with labels": {"access": {"policy": "Selected", "from": [{"podSelector": {"matchLabels": {"app": "shop"}}}]}},
    "pods by conditions on labels, in namespaces too": {
        "access": {"policy": "Selected", "from": [{"podSelector": CONDITIONS, "namespaceSelector": CONDITIONS}]}
    },
    "all pods of namespaces with labels": {
        "access": {"policy": "Selected", "from": [{"namespaceSelector": {"matchLabels": {"team": "data"}}}]}
    },
    "all pods everywhere": {"access": {"policy": "Selected", "from": [{"podSelector": {}, "namespaceSelector": {}}]}},
    "addresses": {
        "access": {
            "policy": "Selected",
            "from": [
                {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}},
                {"ipBlock": {"cidr": "2001:db8::7/32"}},
            ],
        }
    },
    "as many peers as may be": {"access": {"policy": "Selected", "from": [{"podSelector": {}}] * 16}},
    "unrestricted access": {"access": {"policy": "Unrestricted"}},
    "limits": {"connectionLimits": {"max": 1, "idleTimeoutSeconds": 1}},
    "parking": {"parking": {"maxSeconds": 0, "maxClients": 0}},
    "seven days of drain": {"drain": {"minSeconds": 3, "maxSeconds": 604800}},
    "a passive probe": {"probe": {"mode": "Passive", "intervalSeconds": 5}},
    "a Service of another name": {"service": {"name": "orders-db", "port": 15432}},
    "marks of a Service": {"service": {"annotations": {"example.com/a": "b c"}, "labels": {"a": "b"}}},
    "marks of pods": {"podTemplate": {"annotations": {"example.com/a": "b c"}, "labels": {"a": "b"}}},
    "resources": {"podTemplate": {"resources": {"requests": {"cpu": "10m"}, "limits": {"memory": "64Mi", "cpu": 1}}}},
    "tolerations": {
        "podTemplate": {
            "tolerations": [
                {"key": "a", "operator": "Exists", "effect": "NoSchedule"},
                {"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "tolerationSeconds": 60},
            ]
        }
    },
    "nodes with labels": {"podTemplate": {"nodeSelector": {"kubernetes.io/arch": "amd64"}}},
    "spread over zones": {
        "podTemplate": {
            "topologySpreadConstraints": [
                {"topologyKey": "topology.kubernetes.io/zone", "maxSkew": 2, "whenUnsatisfiable": "DoNotSchedule"}
            ]
        }
    },
    "a priority": {"podTemplate": {"priorityClassName": "high"}},
    "credentials of a registry": {"podTemplate": {"imagePullSecrets": [{"name": "registry"}]}},
    "affinity": {
        "podTemplate": {"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}}
    },
    "names for an address": {"podTemplate": {"hostAliases": [{"ip": "198.51.100.1", "hostnames": ["bastion"]}]}},
    "a binding": {"serviceBinding": "Enabled"},
    "switched off": {"suspend": True},
    **GOOD_HOPS,
}
"""Changes to the minimal spec that the API server stores as they are."""


def selected(*peers: Mapping[str, Any]) -> dict[str, Any]:
    return {"access": {"policy": "Selected", "from": list(peers)}}


BAD: dict[str, tuple[Mapping[str, Any], str, str]] = {
    "no engine": ({"engine": None}, "spec.engine", "Required value"),
    "an engine in lower case": ({"engine": "postgresql"}, "spec.engine", 'supported values: "PostgreSQL"'),
    "no database": ({"database": None}, "spec.database", "Required value"),
    "no bastion": ({"tunnel": None}, "spec.tunnel", "Required value"),
    "no host": ({"database.host": None}, "spec.database.host", "Required value"),
    "an empty host": ({"tunnel.host": ""}, "spec.tunnel.host", "at least 1 char"),
    "a host with a port": ({"tunnel.host": "bastion:22"}, "spec.tunnel.host", "no port"),
    "a host with a scheme": ({"tunnel.host": "ssh://bastion"}, "spec.tunnel.host", "no scheme"),
    "IPv6 in brackets": ({"tunnel.host": "[2001:db8::7]"}, "spec.tunnel.host", "no brackets"),
    "an IPv4 address with a number too high": ({"tunnel.host": "198.51.100.256"}, "spec.tunnel.host", "IPv4"),
    "a host with a space": ({"database.host": "orders internal"}, "spec.database.host", "host name"),
    "a host that ends a line": ({"database.host": "orders\nx"}, "spec.database.host", "host name"),
    "a host with a quotation mark": ({"database.host": 'orders"'}, "spec.database.host", "host name"),
    "a host of 254 characters": ({"database.host": "a" * 254}, "spec.database.host", "253"),
    "port 0": ({"database.port": 0}, "spec.database.port", "greater than or equal to 1"),
    "port 65536": ({"tunnel.port": 65536}, "spec.tunnel.port", "less than or equal to 65535"),
    "a port as a string": ({"tunnel.port": "22"}, "spec.tunnel.port", "must be of type integer"),
    "a negative port": ({"tunnel.port": -1}, "spec.tunnel.port", "greater than or equal to 1"),
    "an empty user": ({"tunnel.user": ""}, "spec.tunnel.user", "at least 1 char"),
    "a user with a space": ({"tunnel.user": "db tunnel"}, "spec.tunnel.user", "no spaces"),
    "a user like an option": ({"tunnel.user": "-oProxyCommand"}, "spec.tunnel.user", "not beginning with '-'"),
    "a key Secret without a name": ({"tunnel.keySecretRef": {"key": "a"}}, "spec.tunnel.keySecretRef.name", "Required"),
    "a key Secret in capitals": (
        {"tunnel.keySecretRef": {"name": "Key"}},
        "spec.tunnel.keySecretRef.name",
        "lower-case",
    ),
    "a key with a slash": (
        {"tunnel.keySecretRef": {"name": "a", "key": "../b"}},
        "spec.tunnel.keySecretRef.key",
        "letters, digits",
    ),
    "a key type that is not there": ({"tunnel.generatedKeyType": "DSA"}, "spec.tunnel.generatedKeyType", "Ed25519"),
    "two ways of giving host keys": (
        {"tunnel.hostKey": {"fingerprints": [FINGERPRINT], "knownHosts": "x"}},
        "spec.tunnel.hostKey",
        "give one of",
    ),
    "three ways of giving host keys": (
        {"tunnel.hostKey": {"fingerprints": [FINGERPRINT], "knownHosts": "x", "knownHostsRef": {"name": "a"}}},
        "spec.tunnel.hostKey",
        "give one of",
    ),
    "an MD5 fingerprint": (
        {"tunnel.hostKey": {"fingerprints": ["MD5:16:27:ac:a5"]}},
        "spec.tunnel.hostKey.fingerprints[0]",
        "ssh-keygen -lf",
    ),
    "a fingerprint with padding": (
        {"tunnel.hostKey": {"fingerprints": [FINGERPRINT[:-1] + "="]}},
        "spec.tunnel.hostKey.fingerprints[0]",
        "without trailing",
    ),
    "no fingerprint in the list": (
        {"tunnel.hostKey": {"fingerprints": []}},
        "spec.tunnel.hostKey.fingerprints",
        "at least 1",
    ),
    "nine fingerprints": ({"tunnel.hostKey": {"fingerprints": [FINGERPRINT] * 9}}, "fingerprints", "at most 8"),
    "a known_hosts text over 32 KiB": ({"tunnel.hostKey": {"knownHosts": "x" * 32769}}, "knownHosts", "32768"),
    "known_hosts in a Pod": (
        {"tunnel.hostKey": {"knownHostsRef": {"kind": "Pod", "name": "a"}}},
        "spec.tunnel.hostKey.knownHostsRef.kind",
        "ConfigMap",
    ),
    "algorithms that are not there": ({"tunnel.algorithms": "All"}, "spec.tunnel.algorithms", "Legacy"),
    "no time to connect": ({"tunnel.connectTimeoutSeconds": 0}, "connectTimeoutSeconds", "greater than or equal to 1"),
    "keepalive of an hour and a second": ({"tunnel.keepalive": {"intervalSeconds": 3601}}, "intervalSeconds", "3600"),
    "no replicas": ({"replicas": 0}, "spec.replicas", "greater than or equal to 1"),
    "17 replicas": ({"replicas": 17}, "spec.replicas", "less than or equal to 16"),
    "peers without their policy": ({"access": {"from": [{"podSelector": {}}]}}, "spec.access", "policy Selected"),
    "selected peers, none given": ({"access": {"policy": "Selected"}}, "spec.access", "policy Selected"),
    "17 peers": (selected(*[{"podSelector": {}}] * 17), "spec.access.from", "at most 16"),
    "a peer that is nobody": (selected({}), "spec.access.from[0]", "give podSelector, namespaceSelector or both"),
    "pods and addresses as one peer": (
        selected({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}),
        "spec.access.from[0]",
        "or ipBlock alone",
    ),
    "an unknown kind of peer": (
        selected({"podSelector": {}, "podselector": {}}),
        "spec.access.from[0].podselector",
        "unknown field",
    ),
    "labels without their field": (
        selected({"podSelector": {"app": "shop"}}),
        "spec.access.from[0].podSelector.app",
        "unknown field",
    ),
    "a condition on labels in lower case": (
        selected({"podSelector": {"matchExpressions": [{"key": "app", "operator": "exists"}]}}),
        "spec.access.from[0].podSelector.matchExpressions[0].operator",
        "DoesNotExist",
    ),
    "a comparison with nothing": (
        selected({"podSelector": {"matchExpressions": [{"key": "app", "operator": "In"}]}}),
        "spec.access.from[0].podSelector.matchExpressions[0]",
        "give `values` with operator In or NotIn",
    ),
    "a condition that compares nothing, with a value": (
        selected({"namespaceSelector": {"matchExpressions": [{"key": "a", "operator": "Exists", "values": ["b"]}]}}),
        "spec.access.from[0].namespaceSelector.matchExpressions[0]",
        "and only with them",
    ),
    "addresses without a range": (selected({"ipBlock": {}}), "spec.access.from[0].ipBlock.cidr", "Required value"),
    "an address without its prefix": (
        selected({"ipBlock": {"cidr": "10.0.0.0"}}),
        "spec.access.from[0].ipBlock.cidr",
        "such as 10.0.0.0/8",
    ),
    "an exception that is no range": (
        selected({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.0.0.0/33"]}}),
        "spec.access.from[0].ipBlock.except[0]",
        "such as 10.0.0.0/8",
    ),
    "more drain than seven days": ({"drain": {"maxSeconds": 604801}}, "spec.drain.maxSeconds", "604800"),
    "drain in the wrong order": (
        {"drain": {"minSeconds": 9, "maxSeconds": 5}},
        "spec.drain",
        "minSeconds must not be more",
    ),
    "nine connections": ({"tunnel": {"host": "a", "connections": 9}}, "tunnel.connections", "less than or equal to 8"),
    "a limit of no clients": ({"connectionLimits": {"max": 0}}, "connectionLimits.max", "greater than or equal to 1"),
    "a probe that logs in": ({"probe": {"mode": "Login"}}, "spec.probe.mode", "Passive"),
    "a probe a second": ({"probe": {"intervalSeconds": 1}}, "spec.probe.intervalSeconds", "greater than or equal to 5"),
    "a Service name with a dot": ({"service": {"name": "a.b"}}, "spec.service.name", "beginning with a letter"),
    "a Service name of 64 characters": ({"service": {"name": "a" * 64}}, "spec.service.name", "63"),
    "resources that are none": (
        {"podTemplate": {"resources": {"limits": {"cpu": "much"}}}},
        "limits[cpu]",
        "such as 100m",
    ),
    "a toleration's effect in lower case": (
        {"podTemplate": {"tolerations": [{"effect": "noschedule"}]}},
        "spec.podTemplate.tolerations[0].effect",
        "NoSchedule",
    ),
    "a host alias without an address": (
        {"podTemplate": {"hostAliases": [{"ip": "bastion", "hostnames": ["b"]}]}},
        "spec.podTemplate.hostAliases[0].ip",
        "IPv4 or IPv6",
    ),
    "suspend as a string": ({"suspend": "yes"}, "spec.suspend", "must be of type boolean"),
    "an unknown field": ({"databse": {"host": "x"}}, "spec.databse", "unknown field"),
    "an unknown field deep inside": ({"tunnel.hostkey": {}}, "spec.tunnel.hostkey", "unknown field"),
    **BAD_HOPS,
}
"""Changes to the minimal spec that are refused: the change, the field that is named, and what the message says."""

NAMES: dict[str, tuple[str, bool]] = {
    "63 characters": ("a" * 63, True),
    "64 characters": ("a" * 64, False),
    "a dot": ("orders.v2", False),
    "a digit first": ("2orders", False),
    "a digit last": ("orders-2", True),
    "a hyphen last": ("orders-", False),
}
"""Names, and whether a Service could bear them."""


def manifest(changes: Mapping[str, Any], name: str = "orders") -> dict[str, Any]:
    """The minimal tunnel with changes; a change to None takes the field away."""
    spec = json.loads(json.dumps(MINIMAL))
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = spec
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return {"apiVersion": "dbtunnel.dev/v1alpha1", "kind": "DatabaseTunnel", "metadata": {"name": name}, "spec": spec}


def contains(stored: Any, given: Any) -> bool:
    """Whether everything given is stored as it was; the API server adds defaults."""
    if isinstance(given, dict):
        return isinstance(stored, dict) and all(key in stored and contains(stored[key], given[key]) for key in given)
    if isinstance(given, list):
        return len(stored) == len(given) and all(map(contains, stored, given))
    return bool(stored == given)


def paths(value: Any, path: str) -> Iterator[str]:
    """Where there is something in a document; `[]` stands for a list's items."""
    yield path
    for name, within in value.items() if isinstance(value, dict) else ():
        yield from paths(within, f"{path}.{name}")
    for item in value if isinstance(value, list) else ():
        yield from paths(item, f"{path}[]")


@pytest.fixture(scope="module")
def stored(crd_installed: Cluster) -> Iterator[dict[str, dict[str, Any]]]:
    """What the API server has of each good manifest, by its row; created and read in one go."""
    namespace = make_namespace(crd_installed, "schema")
    names = {f"good-{number}": row for number, row in enumerate(GOOD)}
    items = [manifest(GOOD[row], name) for name, row in names.items()]
    document = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    with installed_operators_rest(crd_installed):
        crd_installed.kubectl("create", "-n", namespace, "-f", "-", input=document)
        found = crd_installed.get("databasetunnels", "-n", namespace)["items"]
        crd_installed.kubectl("delete", "databasetunnels", "--all", "-n", namespace)
    yield {names[one["metadata"]["name"]]: one for one in found}
    remove_namespace(crd_installed, namespace)


@pytest.mark.parametrize("row", GOOD)
def test_good_manifests_are_stored_unchanged(stored: Mapping[str, dict[str, Any]], row: str) -> None:
    given = manifest(GOOD[row])
    assert contains(stored[row]["spec"], given["spec"])
    assert DatabaseTunnel.parse(stored[row]).spec == DatabaseTunnel.parse(given).spec


def test_every_field_is_in_a_good_manifest() -> None:
    given = {path for changes in GOOD.values() for path in paths(manifest(changes)["spec"], "spec")}
    fields = {path for path, _ in fields_of(resource_schema()["properties"]["spec"], "spec")}
    assert fields - given == set()


@pytest.mark.parametrize(("changes", "field", "message"), BAD.values(), ids=BAD)
def test_bad_manifests_are_refused_with_advice(
    crd_installed: Cluster, changes: Mapping[str, Any], field: str, message: str
) -> None:
    with pytest.raises(ClusterError) as refusal:
        crd_installed.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(manifest(changes)))
    assert field in str(refusal.value)
    assert message in str(refusal.value)


@pytest.mark.parametrize(("changes", "field", "message"), BAD.values(), ids=BAD)
def test_the_command_line_refuses_the_same(changes: Mapping[str, Any], field: str, message: str) -> None:
    with pytest.raises(ManifestError) as refusal:
        parse_tunnel(manifest(changes), "orders.yaml", "default")
    assert re.sub(r"\[(\w+)\]", r".\1", field) in str(refusal.value)
    if message == "unknown field":
        assert "no such field" in str(refusal.value)


@pytest.mark.parametrize(("name", "good"), NAMES.values(), ids=NAMES)
def test_names_must_fit_a_service(crd_installed: Cluster, name: str, good: bool) -> None:
    def create() -> str:
        return crd_installed.kubectl("create", "--dry-run=server", "-f", "-", input=json.dumps(manifest({}, name)))

    if good:
        assert name in create()
        return
    with pytest.raises(ClusterError, match="a Service bears it"):
        create()


def test_the_resource_explains_itself(crd_installed: Cluster) -> None:
    text = crd_installed.kubectl("explain", "databasetunnel.spec.tunnel.keySecretRef")
    assert "Left out: the operator creates Secret" in " ".join(text.split())
    fields = crd_installed.kubectl("explain", "databasetunnel.spec.tunnel", "--recursive")
    assert "knownHostsRef" in fields


def test_columns(crd_installed: Cluster, namespace: str) -> None:
    crd_installed.kubectl("create", "-n", namespace, "-f", "-", input=json.dumps(manifest({})))
    columns = ["NAME", "ENGINE", "ENDPOINT", "BASTION", "READY", "REASON", "AGE"]
    table = crd_installed.kubectl("get", "dbtun", "-n", namespace)
    wide = crd_installed.kubectl("get", "dbtun", "-n", namespace, "-o", "wide")
    assert re.split(r" {2,}", table.splitlines()[0].strip()) == columns
    assert "203.0.113.7" in table
    assert re.split(r" {2,}", wide.splitlines()[0].strip()) == [*columns, "ACTIVE HOST", "REPLICAS", "MESSAGE"]
