"""Names and labels of everything that belongs to a tunnel.

Each is computed here and nowhere else. Do not change one: renaming orphans what runs.
"""

from dbtunnel.api.resource import GROUP, DatabaseTunnel

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "dbtunnel-operator"
"""Value of the managed-by label, and the field manager of every write."""

NAME_LABEL = "app.kubernetes.io/name"
APPLICATION = "dbtunnel-forwarder"
"""Value of the name label on everything that belongs to a tunnel."""

TUNNEL_LABEL = f"{GROUP}/tunnel"
"""Carries the tunnel's name; with the namespace it leads from a child back to its tunnel."""

REVISION_LABEL = f"{GROUP}/revision"
"""On pods: hash of the pod template, so that pods of the current template can be told from earlier ones."""

DESIRED_ANNOTATION = f"{GROUP}/desired"
"""On children: hash of the manifest that the operator last wrote."""

GENERATION_ANNOTATION = f"{GROUP}/generation"
"""On Deployments: the tunnel's generation that it was written for, to tell what the installer changed from the rest."""

REFRESH_ANNOTATION = f"{GROUP}/mount-refresh"
"""On pods: changed to make the kubelet read mounted Secrets anew at once."""

CHILD_SELECTOR = f"{MANAGED_BY_LABEL}={MANAGER},{TUNNEL_LABEL}"
"""Label selector of everything that the operator made for tunnels, their pods included."""


def selector_labels(tunnel: DatabaseTunnel) -> dict[str, str]:
    """The labels that select a tunnel's pods; a Deployment's selector can never change."""
    return {NAME_LABEL: APPLICATION, TUNNEL_LABEL: tunnel.metadata.name}


def child_labels(tunnel: DatabaseTunnel) -> dict[str, str]:
    """The labels of every child. The tunnel's own labels are never copied: trackers such as Argo CD would prune."""
    return {**selector_labels(tunnel), MANAGED_BY_LABEL: MANAGER}


def service_name(tunnel: DatabaseTunnel) -> str:
    """The Service that applications connect to."""
    return tunnel.spec.service.name or tunnel.metadata.name


def workload_name(tunnel: DatabaseTunnel) -> str:
    """The Deployment, the NetworkPolicy and the PodDisruptionBudget."""
    return f"{tunnel.metadata.name}-tunnel"


def key_secret_name(tunnel: DatabaseTunnel) -> str:
    """The Secret with the private key: the given one, else the one that the operator creates."""
    reference = tunnel.spec.tunnel.key_secret_ref
    return reference.name if reference else f"{tunnel.metadata.name}-ssh"


def binding_name(tunnel: DatabaseTunnel, content: str) -> str:
    """The Secret that workloads bind to, by the hash of what is in it."""
    return f"{tunnel.metadata.name}-binding-{content}"


def endpoint_host(tunnel: DatabaseTunnel) -> str:
    """The host name that applications use, short enough for every cluster domain."""
    return f"{service_name(tunnel)}.{tunnel.metadata.namespace}.svc"


def key_comment(tunnel: DatabaseTunnel) -> str:
    """Comment of the public key, by which a bastion's administrator recognizes the tunnel."""
    return f"{tunnel.metadata.namespace}/{tunnel.metadata.name}"
