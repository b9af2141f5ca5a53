"""Which of its rights the operator used while the cluster tests ran, by the API servers' audit logs.

Each run of tests writes down what its cluster's operators did, installed ones and processes; once the tests are over
`python -m tests.support.rights` takes all of it together. A right that nobody used is one too many; a request for a
right that nobody grants is one too few.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from dbtunnel.api.resource import GROUP, PLURAL
from dbtunnel.controller.rbac import PROXY_RULES, TUNNEL_RULES, Rule, leader_rules
from tests.support.cluster.base import AuditLog, Cluster
from tests.support.processes import ROOT

DIRECTORY = ROOT / "build" / "rights"

Event = Mapping[str, Any]

LEASE = "dbtunnel-operator"
"""How the names of operators' Leases end, in the tests."""


class Right(NamedTuple):
    """A verb on a resource."""

    group: str
    resource: str
    verb: str

    @classmethod
    def of(cls, event: Event) -> Self:
        """The right that a request needs."""
        about = event["objectRef"]
        sub = f"/{about['subresource']}" if "subresource" in about else ""
        return cls(about.get("apiGroup", ""), f"{about['resource']}{sub}", event["verb"])

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{f'.{self.group}' if self.group else ''}"


STATUS = Right(GROUP, f"{PLURAL}/status", "patch")

FOR_EVERYBODY = {Right("authentication.k8s.io", "selfsubjectreviews", "create")}
"""What Kubernetes lets everybody do who has logged in, and Kopf does at its start."""


ASKED_BY_ADMISSION = {Right("apps", "deployments", "delete")}
"""Rights that show in no request. Under OwnerReferencesPermissionEnforcement nobody changes the owner of an object that
they may not delete; the tests in which orphans are taken up fail without them."""


def granted(rules: Iterable[Rule] = (*TUNNEL_RULES, *leader_rules(LEASE), *PROXY_RULES)) -> set[Right]:
    """The rights of operators, of those outside the cluster, too. Those of one object alone count as of all."""
    return {
        Right(group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


class Uses:
    """How often each right was used, and refused.

    A refusal does not count where the same operator had the same right there before or after: it has come or gone, with
    a namespace or a release. Where it never had it, a role or a binding is too narrow, whatever else it was let do.
    """

    def __init__(self) -> None:
        self.used, self.refused = Counter[Right](), Counter[Right]()

    def take(self, log: AuditLog) -> None:
        """Adds what the operators of a cluster did."""
        events = [one for one in (*log.reads, *log.writes) if _is_service_account(one)]
        operators = {one["user"]["username"] for one in events if _is_an_operators(one)}
        own = [one for one in events if one["user"]["username"] in operators]
        reached = {_reach(one) for one in own if _is_allowed(one)}
        for one in own:
            right = Right.of(one)
            if _is_allowed(one):
                self.used[right] += 1
            elif right not in granted() or reached.isdisjoint((_place(one), _place(one)._replace(namespace=""))):
                self.refused[right] += 1

    def write(self, path: Path) -> None:
        """Keeps it for `read`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"used": self.used, "refused": self.refused}
        path.write_text(
            json.dumps({name: [[*right, count] for right, count in of.items()] for name, of in found.items()})
        )

    def read(self, path: Path) -> None:
        """Adds what was kept there."""
        document = json.loads(path.read_text())
        for name, counter in (("used", self.used), ("refused", self.refused)):
            counter.update({Right(*right): count for *right, count in document[name]})

    def faults(self) -> Iterator[str]:
        """Rights of which there are too many, and too few."""
        for right in sorted(granted() - self.used.keys() - ASKED_BY_ADMISSION):
            yield f"granted and never used: {right}"
        for right in sorted(self.refused):
            yield f"refused {self.refused[right]} times: {right}"
        for right in sorted(self.used.keys() - granted() - FOR_EVERYBODY):
            yield f"used though not granted by the operator's own rules: {right}"

    def report(self) -> str:
        """All of it, for people."""
        rights = sorted(granted())
        sums = f"verbs granted: {len(rights)}; used: {sum(right in self.used for right in rights)}"
        asked = f"; asked by admission alone: {', '.join(map(str, sorted(ASKED_BY_ADMISSION)))}"
        return "\n".join([*(f"{self.used[right]:7} x {right}" for right in rights), f"{sums}{asked}"])


class _Place(NamedTuple):
    """A right in a namespace, or in all where it is empty, and who asks for it."""

    user: str
    right: Right
    namespace: str


def _place(event: Event) -> _Place:
    return _Place(event["user"]["username"], Right.of(event), event["objectRef"].get("namespace", ""))


def _reach(event: Event) -> _Place:
    """How far the right reaches by which a request was allowed."""
    place, reason = _place(event), event["annotations"].get("authorization.k8s.io/reason", "")
    return place._replace(namespace="") if "by ClusterRoleBinding" in reason else place


def _is_allowed(event: Event) -> bool:
    return bool(event.get("annotations", {}).get("authorization.k8s.io/decision") == "allow")


def _is_service_account(event: Event) -> bool:
    name: str = event["user"]["username"]
    return name.startswith("system:serviceaccount:") and not name.startswith("system:serviceaccount:kube-system:")


def _is_an_operators(event: Event) -> bool:
    """Nobody else writes the status of tunnels with a service account, or asks for the Lease."""
    right = Right.of(event)
    return right == STATUS or (right.resource == "leases" and event["objectRef"].get("name", "").endswith(LEASE))


def keep(cluster: Cluster) -> None:
    """Writes down what a cluster's operators did so far, for `main`."""
    uses = Uses()
    uses.take(cluster.audit_log())
    uses.write(DIRECTORY / f"{cluster.name}.json")


def main() -> int:
    """Says what was used; 1 where rights are too many or too few."""
    uses = Uses()
    for path in sorted(DIRECTORY.glob("*.json")):
        uses.read(path)
    print(uses.report())
    faults = list(uses.faults())
    print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
