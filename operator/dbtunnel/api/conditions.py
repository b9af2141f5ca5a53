"""The types of conditions, and their order."""

from enum import StrEnum


class ConditionType(StrEnum):
    """The types of `status.conditions`, in causal order; the summary conditions come last."""

    WORKLOAD_READY = "WorkloadReady"
    """The wanted pods run and their admin port answers. Readiness is not consulted."""
    KEY_READY = "KeyReady"
    """The private key is there and parses."""
    TRANSPORT_READY = "TransportReady"
    """SSH transport layer (RFC 4253): TCP, version exchange, key exchange, host key verified."""
    AUTHENTICATED = "Authenticated"
    """SSH authentication layer (RFC 4252): the bastion accepted the key."""
    DATABASE_REACHABLE = "DatabaseReachable"
    """SSH connection layer (RFC 4254): a channel opened and the engine's protocol answered."""
    READY = "Ready"
    """All of the above, and the Service leads to a forwarder: who connects now is served."""
    RECONCILING = "Reconciling"
    """kstatus: in progress, no person needs to act yet."""
    STALLED = "Stalled"
    """kstatus: a person must act."""


LAYERS = (
    ConditionType.KEY_READY,
    ConditionType.TRANSPORT_READY,
    ConditionType.AUTHENTICATED,
    ConditionType.DATABASE_REACHABLE,
)
"""What a forwarder reports, in causal order."""

CAUSAL_ORDER = (ConditionType.WORKLOAD_READY, *LAYERS)
"""The conditions that `Ready` sums up: the first that is False decides, else the first that is Unknown."""
