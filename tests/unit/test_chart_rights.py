"""The rights that the chart grants: to the operator what it uses, to people what the installer chose."""

import re
from collections.abc import Iterable
from itertools import product

import pytest

from dbtunnel.controller.rbac import TUNNEL_RULES, Rule, leader_rules
from tests.support.chart import NAMESPACE, Manifest, render, the_one
from tests.support.processes import ROOT

Triple = tuple[str, ...]

NAME = "tunnels-dbtunnel-operator"

NOBODY = {"readers": "nobody", "writers": "nobody"}


def _flat(rules: Iterable[Rule]) -> set[Triple]:
    """Each (group, resource, verb), with a name behind it where the right is of that object alone."""
    parts = ("apiGroups", "resources", "verbs", "resourceNames")
    assert all({*parts[:3]} <= set(rule) <= {*parts} and all(rule.values()) for rule in rules)
    return {each for rule in rules for each in product(*(rule[part] for part in parts if part in rule))}


def roles(manifests: list[Manifest]) -> dict[tuple[str, str, str], set[Triple]]:
    """The operator's roles by kind, namespace and name."""
    named = ((one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"], one) for one in manifests)
    return {
        (kind, namespace, name): _flat(one["rules"])
        for kind, namespace, name, one in named
        if kind in ("Role", "ClusterRole") and not name.endswith(("-readers", "-writers"))
    }


# --- the operator's ---------------------------------------------------------------------------------------------


def test_the_rights_are_those_that_the_operator_uses() -> None:
    assert roles(render()) == {
        ("ClusterRole", "", NAME): _flat(TUNNEL_RULES),
        ("Role", NAMESPACE, f"{NAME}-leases"): _flat(leader_rules(NAME)),
    }


def test_in_named_namespaces_they_are_roles_and_nothing_is_granted_elsewhere() -> None:
    manifests = render({"settings": {"namespaces": ["shop", "billing"]}, "rbac": NOBODY, "crds": {"enabled": False}})

    lease = {("Role", NAMESPACE, f"{NAME}-leases"): _flat(leader_rules(NAME))}
    assert roles(manifests) == lease | {("Role", one, NAME): _flat(TUNNEL_RULES) for one in ("shop", "billing")}
    assert all("namespace" in one["metadata"] for one in manifests), "nothing of it is the cluster's"


@pytest.mark.parametrize("namespaces", [[], ["shop"], ["shop", "billing"]])
def test_every_role_is_bound_once_to_the_operators_service_account(namespaces: list[str]) -> None:
    manifests = render({"settings": {"namespaces": namespaces}})
    account = the_one(manifests, "ServiceAccount")["metadata"]
    bound = [
        (one["roleRef"]["kind"], one["metadata"].get("namespace", ""), one["roleRef"]["name"])
        for one in manifests
        if one["kind"].endswith("Binding")
        and one["kind"] == f"{one['roleRef']['kind']}Binding"
        and one["subjects"] == [{"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}]
    ]

    assert sorted(bound) == sorted(roles(manifests))
    assert len(bound) == sum(one["kind"].endswith("Binding") for one in manifests)


def test_no_secret_can_be_read() -> None:
    granted = set[Triple]().union(*roles(render()).values())

    assert {triple for triple in granted if triple[1].startswith("secrets")} == {("", "secrets", "create")}
    assert not {triple for triple in granted if "*" in triple}


def test_rights_that_somebody_else_grants_are_left_to_them() -> None:
    kinds = {one["kind"] for one in render({"rbac": {"create": False, **NOBODY}})}

    assert not {kind for kind in kinds if "Role" in kind}


def test_the_page_for_the_installer_tells_exactly_these_rights() -> None:
    text = (ROOT / "docs" / "installation.md").read_text()
    of_one = "of the release's name"
    rows = re.findall(rf"^\| `([a-z/]+)((?:\.[a-z0-9.]+)?)`(?: ({of_one}))? \| ([a-z, ]+) \|", text, re.MULTILINE)
    told = {(group[1:], resource, verb, name) for resource, group, name, verbs in rows for verb in verbs.split(", ")}

    assert told == {(*one, "")[:4] for one in _flat((*TUNNEL_RULES, *leader_rules(of_one)))}


# --- people's ---------------------------------------------------------------------------------------------------


def _for_people(values: Manifest) -> dict[str, tuple[list[str], set[Triple]]]:
    """What Kubernetes adds to its own roles: to which, and what."""
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    return {
        one["metadata"]["name"].rpartition("-")[2]: (
            [label.removeprefix(prefix) for label in one["metadata"]["labels"] if label.startswith(prefix)],
            _flat(one["rules"]),
        )
        for one in render(values)
        if one["kind"] == "ClusterRole" and one["metadata"]["name"].endswith(("-readers", "-writers"))
    }


def test_who_may_view_reads_tunnels_and_who_may_edit_writes_them() -> None:
    found = _for_people({})
    group, tunnels = "dbtunnel.dev", "databasetunnels"

    assert {name: to for name, (to, _) in found.items()} == {"readers": ["view"], "writers": ["edit"]}
    assert found["readers"][1] == {
        (group, resource, verb) for resource in (tunnels, f"{tunnels}/status") for verb in ("get", "list", "watch")
    }
    assert found["writers"][1] == {
        (group, tunnels, verb) for verb in ("create", "update", "patch", "delete", "deletecollection")
    }, "and never the status"


def test_controllers_of_service_bindings_may_read_tunnels() -> None:
    """They aggregate the roles that bear this label (servicebinding.io, "Role-Based Access Control (RBAC)")."""
    label = "servicebinding.io/controller"
    labelled = {one["metadata"]["name"]: one for one in render({}) if label in one["metadata"].get("labels", {})}
    ((name, role),) = labelled.items()
    assert (role["kind"], role["metadata"]["labels"][label]) == ("ClusterRole", "true")
    assert name.endswith("-readers")


def test_who_may_create_tunnels_is_the_installers_choice() -> None:
    assert _for_people({"rbac": {"writers": "admin"}})["writers"][0] == ["admin"]
    assert set(_for_people({"rbac": {"writers": "nobody"}})) == {"readers"}
    assert _for_people({"rbac": NOBODY}) == {}
