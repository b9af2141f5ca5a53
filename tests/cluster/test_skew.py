"""An operator beside a definition of another version: no status is lost, and nothing is written again and again."""

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import yaml

from dbtunnel.api.crd import crd
from tests.support.cluster import Cluster, ClusterError
from tests.support.operator import Operator, lone_operator
from tests.support.processes import wait_until
from tests.support.tunnels import (
    Manifest,
    apply,
    condition,
    failure,
    find,
    patch,
    tunnel_manifest,
    wait_for_children,
)

EGRESS = "203.0.113.7"
OTHER_ENGINE = "Oracle"
KEY = {"key": "ssh-ed25519 AAAA", "fingerprint": "SHA256:AAAA", "use": "Current", "zone": "a"}
FOREIGN: list[dict[str, Any]] = [
    {
        "type": f"Future{number}",
        "status": "True",
        "reason": "Succeeded",
        "message": "Of another version.",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
        "observedGeneration": 1,
        "zone": "a",
    }
    for number in range(12)
]
"""Conditions of types that this version does not have, and more than its own schema has places for."""


@pytest.fixture(scope="module")
def own(crd_installed: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """An operator whose statuses have an optional field."""
    with lone_operator(crd_installed, tmp_path_factory.mktemp("own"), egress_addresses=EGRESS) as operator:
        yield operator
        define(crd_installed, lambda _: None)
        assert operator.faults() == []


def define(cluster: Cluster, change: Callable[[dict[str, Any]], object]) -> None:
    """Replaces the definition's schema by a changed one."""
    definition = deepcopy(crd())
    change(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"])
    text = json.dumps(definition["spec"])
    cluster.kubectl("patch", "crd", definition["metadata"]["name"], "--type=merge", "-p", f'{{"spec": {text}}}')


def older(schema: dict[str, Any]) -> None:
    """One field of the status, one of the spec and one engine are not there yet."""
    del schema["status"]["properties"]["egressAddresses"]
    del schema["spec"]["properties"]["probe"]
    schema["spec"]["properties"]["engine"]["enum"].remove("AlloyDB")


def newer(schema: dict[str, Any]) -> None:
    """Some fields of the status and one engine are there that this version knows nothing of."""
    schema["status"]["properties"]["future"] = {"type": "object", "properties": {"name": {"type": "string"}}}
    for place in (schema["status"]["properties"]["endpoint"], *entries_of_lists(schema)):
        place["properties"]["zone"] = {"type": "string"}
    schema["status"]["properties"]["conditions"]["maxItems"] = 32
    schema["spec"]["properties"]["engine"]["enum"].append(OTHER_ENGINE)


def entries_of_lists(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Of the lists of objects in the status, what describes their entries."""
    return [schema["status"]["properties"][name]["items"] for name in ("conditions", "hops", "publicKeys")]


def is_refused(cluster: Cluster, engine: str) -> bool:
    try:
        manifest = tunnel_manifest("default", "probe", engine=engine)
        cluster.kubectl("create", "--dry-run=server", "-f", "-", input=yaml.safe_dump(manifest))
    except ClusterError:
        return True
    return False


def status(cluster: Cluster, namespace: str) -> Manifest:
    found: Manifest = (find(cluster, namespace, "databasetunnel/orders") or {}).get("status", {})
    return found


def test_a_newer_operator_beside_an_older_definition(own: Operator, namespace: str) -> None:
    cluster = own.cluster
    define(cluster, older)
    wait_until(lambda: is_refused(cluster, "AlloyDB"), "the older definition")
    apply(cluster, tunnel_manifest(namespace))
    wait_until(lambda: failure(cluster, namespace, "ImagePullFailed"), "its failure, told", 40)
    writes = own.wait_until_quiet(namespace, seconds=4)
    before = status(cluster, namespace)

    assert "egressAddresses" not in before
    assert {"conditions", "endpoint", "hops", "observedGeneration", "lastFailure"} <= set(before)
    told = [one for one in writes if "status" in one]
    print(f"\nbeside an older definition: {len(told)} writes of the status until it rests")
    assert len(told) <= 6, "what is pruned is not written again and again"
    define(cluster, lambda _: None)
    wait_until(lambda: not is_refused(cluster, "AlloyDB"), "the definition of this version")
    cluster.kubectl("annotate", "databasetunnel", "orders", "-n", namespace, "example.com/look=again")
    after = wait_until(lambda: _with_egress(cluster, namespace), "the field that could not be kept")
    assert {key: after[key] for key in before} == before


def test_conditions_of_others_that_leave_too_few_places_give_way(own: Operator, namespace: str) -> None:
    cluster = own.cluster
    apply(cluster, tunnel_manifest(namespace, suspend=True))
    wait_until(lambda: failure(cluster, namespace, "Suspended"), "Suspended")
    own.wait_until_quiet(namespace)
    foreign = [{field: value for field, value in one.items() if field != "zone"} for one in FOREIGN]
    patch_status(cluster, namespace, "json", [{"op": "replace", "path": "/status/conditions", "value": foreign}])

    wait_until(lambda: failure(cluster, namespace, "Suspended"), "Suspended, again")
    assert status(cluster, namespace)["conditions"][8:] == foreign[:8]


def _with_egress(cluster: Cluster, namespace: str) -> Manifest:
    found = status(cluster, namespace)
    return found if found.get("egressAddresses") == [EGRESS] else {}


def test_an_older_operator_beside_a_newer_definition(own: Operator, namespace: str) -> None:
    cluster = own.cluster
    define(cluster, newer)
    wait_until(lambda: not is_refused(cluster, OTHER_ENGINE), "the newer definition")
    apply(cluster, tunnel_manifest(namespace))
    wait_for_children(cluster, namespace)
    wait_until(lambda: failure(cluster, namespace, "ImagePullFailed"), "its failure, told", 40)
    own.wait_until_quiet(namespace)
    patch_status(cluster, namespace, "merge", {"status": {"future": {"name": "kept"}, "endpoint": {"zone": "a"}}})
    write_as_a_newer(cluster, namespace)
    wait_until(lambda: not status(cluster, namespace)["hops"][0]["active"], "the hop, written anew")
    deployment = find(cluster, namespace, "deployment/orders-tunnel") or {}

    patch(cluster, namespace, "databasetunnel/orders", {"spec": {"engine": OTHER_ENGINE}})
    wait_until(lambda: failure(cluster, namespace, "Rejected"), "Rejected")
    kept = written_by_a_newer(cluster, namespace)
    assert "spec.engine: Input should be 'PostgreSQL'" in condition(cluster, namespace, "Ready")["message"]
    assert kept == (
        {"name": "kept"},
        {"zone": "a", "host": f"orders.{namespace}.svc"},
        ["Ready"],
        ["a"],
        [KEY],
        FOREIGN,
    )
    own.wait_until_quiet(namespace)
    now = find(cluster, namespace, "deployment/orders-tunnel") or {}
    assert now["metadata"]["generation"] == deployment["metadata"]["generation"], "what runs goes on"

    patch(cluster, namespace, "databasetunnel/orders", {"spec": {"engine": "PostgreSQL", "suspend": True}})
    wait_until(lambda: failure(cluster, namespace, "Suspended"), "Suspended")
    assert written_by_a_newer(cluster, namespace) == kept


def patch_status(cluster: Cluster, namespace: str, kind: str, change: object) -> None:
    options = ("--subresource=status", f"--type={kind}", "-p", json.dumps(change))
    cluster.kubectl("patch", "databasetunnel", "orders", "-n", namespace, *options)


def write_as_a_newer(cluster: Cluster, namespace: str) -> None:
    """Into fields of its own, within what this version writes, too; and, wrongly, that a hop is in use."""
    ready = [one["type"] for one in status(cluster, namespace)["conditions"]].index("Ready")
    added: list[tuple[str, object]] = [
        (f"conditions/{ready}/zone", "a"),
        ("hops/0/zone", "a"),
        ("hops/0/active", True),
        ("publicKeys", [KEY]),
        *(("conditions/-", one) for one in FOREIGN),
    ]
    changes = [{"op": "add", "path": f"/status/{place}", "value": value} for place, value in added]
    patch_status(cluster, namespace, "json", changes)


def written_by_a_newer(cluster: Cluster, namespace: str) -> tuple[object, ...]:
    """What the newer version wrote: a field of its own, such within fields and entries of lists that this one writes,
    and conditions.
    """
    found = status(cluster, namespace)
    endpoint = {name: found["endpoint"].get(name) for name in ("zone", "host")}
    marked = [one["type"] for one in found["conditions"] if one.get("zone") == "a" and one not in FOREIGN]
    foreign = [one for one in found["conditions"] if one in FOREIGN]
    return found["future"], endpoint, marked, [one.get("zone") for one in found["hops"]], found["publicKeys"], foreign
