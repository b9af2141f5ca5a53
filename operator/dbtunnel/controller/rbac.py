"""What the operator may do: exactly the verbs that it uses. The chart grants these, and a test compares the two."""

from typing import Any

from dbtunnel.api.resource import GROUP, PLURAL
from dbtunnel.controller.settings import PodAccess

Rule = dict[str, list[str]]


def _rule(group: str, resources: list[str], *verbs: str) -> Rule:
    return {"apiGroups": [group], "resources": resources, "verbs": list(verbs)}


_CHILD_VERBS = ("get", "list", "watch", "create", "update", "delete")

TUNNEL_RULES: tuple[Rule, ...] = (
    _rule(GROUP, [PLURAL], "list", "watch"),
    _rule(GROUP, [f"{PLURAL}/status"], "patch"),
    _rule("", ["services"], *_CHILD_VERBS),
    # never deleted, but who takes up an orphan must be allowed to under OwnerReferencesPermissionEnforcement
    _rule("apps", ["deployments"], *_CHILD_VERBS),
    _rule("networking.k8s.io", ["networkpolicies"], *_CHILD_VERBS),
    _rule("policy", ["poddisruptionbudgets"], *_CHILD_VERBS),
    # patch: an annotation that makes the kubelet read mounted Secrets anew
    _rule("", ["pods"], "list", "watch", "patch"),
    # generated keys; nothing that could read one
    _rule("", ["secrets"], "create"),
    _rule("events.k8s.io", ["events"], "create", "patch"),
)
"""Where tunnels are watched: in the whole cluster, or in each of the watched namespaces."""

PROXY_RULES: tuple[Rule, ...] = (_rule("", ["pods/proxy"], "get"),)
"""With pod access Proxy, beside `TUNNEL_RULES`."""


def leader_rules(lease: str) -> tuple[Rule, ...]:
    """With leader election, as the chart always has it, in the operator's own namespace; by the Lease's name."""
    group, leases = "coordination.k8s.io", ["leases"]
    # what is created has no name yet for RBAC
    return (_rule(group, leases, "create"), {**_rule(group, leases, "get", "update"), "resourceNames": [lease]})


def cluster_role(name: str, pod_access: PodAccess = PodAccess.DIRECT) -> dict[str, Any]:
    """The ClusterRole."""
    rules = TUNNEL_RULES + (PROXY_RULES if pod_access is PodAccess.PROXY else ())
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": name},
        "rules": list(rules),
    }
