"""The types of conditions, their order, and the reasons that they can have."""

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


class Reason(StrEnum):
    """Why a condition has its status."""

    SUCCEEDED = "Succeeded"
    PROGRESSING = "Progressing"
    SUSPENDED = "Suspended"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    CRASH_LOOPING = "CrashLooping"
    QUOTA_EXCEEDED = "QuotaExceeded"
    NAME_CONFLICT = "NameConflict"
    REJECTED = "Rejected"
    FORWARDER_UNREACHABLE = "ForwarderUnreachable"
    SECRET_NOT_FOUND = "SecretNotFound"
    SECRET_KEY_MISSING = "SecretKeyMissing"
    PRIVATE_KEY_INVALID = "PrivateKeyInvalid"
    PUBLIC_KEY_GIVEN = "PublicKeyGiven"
    PASSPHRASE_REQUIRED = "PassphraseRequired"
    PASSPHRASE_WRONG = "PassphraseWrong"
    HOST_UNRESOLVABLE = "HostUnresolvable"
    NETWORK_UNREACHABLE = "NetworkUnreachable"
    CONNECTION_REFUSED = "ConnectionRefused"
    CONNECT_TIMEOUT = "ConnectTimeout"
    NOT_AN_SSH_SERVER = "NotAnSshServer"
    BASTION_REFUSING = "BastionRefusing"
    NO_COMMON_ALGORITHM = "NoCommonAlgorithm"
    HOST_KEY_UNKNOWN = "HostKeyUnknown"
    HOST_KEY_MISMATCH = "HostKeyMismatch"
    HOST_KEY_REVOKED = "HostKeyRevoked"
    HOST_CERTIFICATE_INVALID = "HostCertificateInvalid"
    KNOWN_HOSTS_INVALID = "KnownHostsInvalid"
    CONNECTION_LOST = "ConnectionLost"
    KEY_REJECTED = "KeyRejected"
    SECOND_FACTOR_REQUIRED = "SecondFactorRequired"
    TOO_MANY_AUTH_FAILURES = "TooManyAuthFailures"
    METHOD_NOT_OFFERED = "MethodNotOffered"
    FORWARDING_PROHIBITED = "ForwardingProhibited"
    DATABASE_UNRESOLVABLE = "DatabaseUnresolvable"
    DATABASE_UNREACHABLE = "DatabaseUnreachable"
    DATABASE_REFUSED = "DatabaseRefused"
    DATABASE_TIMEOUT = "DatabaseTimeout"
    UNEXPECTED_PROTOCOL = "UnexpectedProtocol"
    HOST_BLOCKED = "HostBlocked"
    TOO_MANY_CONNECTIONS = "TooManyConnections"
    NOT_PROBED = "NotProbed"
