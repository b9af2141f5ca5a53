"""Reasons of conditions: the one table from which messages, retry paces and documentation are made.

A reason's `message` is a template; `dbtunnel.domain.diagnosis` fills it. What stands in braces:
`{tunnel}` the tunnel's name, `{hop}` the SSH server concerned, `{path}` where it stands in the spec, `{before}` the
jump host before it, `{target}` what the tunnel opens from it, `{seen}` what was observed (bounded and printable),
`{also}` the same as further sentences, or nothing,
`{user}`, `{database}` host:port, `{protocol}`, `{secret}`, `{key}`, `{key_path}` where that key's reference stands,
`{passphrase_key}`, `{egress}` the declared egress addresses in brackets or nothing, `{line}` the line for
`authorized_keys`, `{pin}` a patch that pins the observed host keys.
"""

from dataclasses import dataclass

from dbtunnel.api.conditions import CAUSAL_ORDER, LAYERS, ConditionType, Reason

__all__ = ["OUTAGE_GRACE", "PASSING_SECONDS", "REASONS", "SLOW", "SUPPLY_GRACE", "TURNED_AWAY", "Reason", "ReasonInfo"]

SUPPLY_GRACE = 300
"""Seconds in which a person, or a sync that applies the pieces in any order, may still supply what is missing."""

OUTAGE_GRACE = 60
"""Seconds in which an outage of the bastion, the network or the database may still mend by itself."""

PASSING_SECONDS = 5
"""Seconds for which a forwarder's failure that may mend by itself (one with OUTAGE_GRACE) changes no condition: an sshd
that restarts is back within that, and clients wait for it."""

SLOW = 60
"""Seconds between attempts where a retry makes it worse: sshd penalises the source address, which neighbours share."""

TURNED_AWAY = 15
"""Seconds between attempts where a server turns connections away: the shortest that sshd's PerSourcePenalties last, and
short enough for clients that wait `parking.maxSeconds` to be served after the next one."""


@dataclass(frozen=True)
class ReasonInfo:
    """What a reason means for the machine and for the person."""

    type: ConditionType
    """The condition that carries it."""
    grace_seconds: int | None
    """How long the tunnel is Reconciling before it is Stalled. 0: Stalled at once. None: never Stalled."""
    meaning: str
    """What is the case, for the documentation."""
    message: str
    """The template of the condition's message: what was seen at which hop, and what to do."""
    retry_seconds: int = 0
    """The least time between two attempts, before jitter. 0: the usual backoff."""
    behind: str = ""
    """The template for an SSH server to which a jump host opens the connection, where it is another."""

    @property
    def may_pass(self) -> bool:
        """Whether it is told only after PASSING_SECONDS: one of a forwarder's layers, and it may mend by itself."""
        return self.type in LAYERS and self.grace_seconds == OUTAGE_GRACE


_WORKLOAD, _KEY, _TRANSPORT, _AUTH, _DATABASE = CAUSAL_ORDER

REASONS: dict[Reason, ReasonInfo] = {
    Reason.PROGRESSING: ReasonInfo(
        _WORKLOAD,
        None,
        "Nothing is wrong so far: pods are starting, or a layer before this one is not there yet.",
        "{seen}",
    ),
    Reason.SUSPENDED: ReasonInfo(
        _WORKLOAD,
        None,
        "`spec.suspend` is true: the objects stay, no pod runs.",
        "Suspended: no forwarder runs. Set spec.suspend to false to switch the tunnel on.",
    ),
    Reason.UNSCHEDULABLE: ReasonInfo(
        _WORKLOAD,
        OUTAGE_GRACE,
        "No node takes the forwarder's pod.",
        "No node takes the forwarder's pod: {seen}. Free capacity, or change spec.podTemplate"
        " (resources, nodeSelector, tolerations, affinity).",
    ),
    Reason.IMAGE_PULL_FAILED: ReasonInfo(
        _WORKLOAD,
        OUTAGE_GRACE,
        "A node cannot pull the forwarder's image.",
        "The forwarder's image cannot be pulled: {seen}. Check the operator's forwarder image setting"
        " and spec.podTemplate.imagePullSecrets.",
    ),
    Reason.CRASH_LOOPING: ReasonInfo(
        _WORKLOAD,
        OUTAGE_GRACE,
        "The forwarder's container ends again and again.",
        "The forwarder's container keeps ending: {seen}. Read its log with: kubectl logs -l"
        " dbtunnel.dev/tunnel={tunnel} --previous. If it was OOMKilled, raise spec.podTemplate.resources.",
    ),
    Reason.QUOTA_EXCEEDED: ReasonInfo(
        _WORKLOAD,
        OUTAGE_GRACE,
        "The namespace's ResourceQuota or LimitRange refuses the pods.",
        "The namespace's quota refuses the forwarder's pod: {seen}. Raise the quota, or lower"
        " spec.podTemplate.resources or spec.replicas.",
    ),
    Reason.NAME_CONFLICT: ReasonInfo(
        _WORKLOAD,
        0,
        "An object of a name that the tunnel needs exists and is not the tunnel's. It is left alone.",
        "{seen} exists and does not belong to this tunnel; it is left as it is. Delete or rename it,"
        " or choose another spec.service.name or tunnel name.",
        retry_seconds=5,
    ),
    Reason.REJECTED: ReasonInfo(
        _WORKLOAD,
        0,
        "The API server refuses what the tunnel asks for: admission policy, Pod Security, a field of the pod template.",
        "The API server refused what this tunnel asks for: {seen}. Change the spec, or the policy that refuses it.",
        retry_seconds=30,
    ),
    Reason.FORWARDER_UNREACHABLE: ReasonInfo(
        _WORKLOAD,
        OUTAGE_GRACE,
        "The operator cannot read the forwarder's admin port. The tunnel itself may well work.",
        "The operator cannot read the forwarder's status: {seen}. Allow TCP from the operator's namespace to the"
        " admin port of the forwarder's pods (NetworkPolicy, service mesh).",
    ),
    Reason.SECRET_NOT_FOUND: ReasonInfo(
        _KEY,
        SUPPLY_GRACE,
        "The Secret that holds the private key does not exist, or has no data.",
        "Secret {secret} is not there or is empty. Create it: kubectl create secret generic {secret}"
        " --from-file={key}=PATH-TO-PRIVATE-KEY",
    ),
    Reason.SECRET_KEY_MISSING: ReasonInfo(
        _KEY,
        SUPPLY_GRACE,
        "The Secret exists and lacks the named key.",
        "Secret {secret} has no key {key}; it has {seen}. Add the private key under that name, or set {key_path}.key.",
    ),
    Reason.PRIVATE_KEY_INVALID: ReasonInfo(
        _KEY,
        0,
        "What the Secret holds is not a private key, or the certificate beside it is not one of that key.",
        "Secret {secret}, key {key}, is no private key to use: {seen}. Store the whole file that ssh-keygen or puttygen"
        " wrote, from its first line to its last.",
    ),
    Reason.PUBLIC_KEY_GIVEN: ReasonInfo(
        _KEY,
        0,
        "The Secret holds the public half of the key.",
        "Secret {secret}, key {key}, holds a public key. Store the private one: the file without .pub.",
    ),
    Reason.PASSPHRASE_REQUIRED: ReasonInfo(
        _KEY,
        0,
        "The private key is encrypted and no passphrase is given.",
        "Secret {secret}, key {key}, is encrypted. Add its passphrase to the Secret under {passphrase_key}"
        " ({key_path}.passphraseKey), or store an unencrypted key.",
    ),
    Reason.PASSPHRASE_WRONG: ReasonInfo(
        _KEY,
        0,
        "The passphrase does not decrypt the private key.",
        "Secret {secret}, key {key}: the passphrase under {passphrase_key} does not decrypt it."
        " Store the right passphrase (a line end after it is ignored).",
    ),
    Reason.HOST_UNRESOLVABLE: ReasonInfo(
        _TRANSPORT,
        OUTAGE_GRACE,
        "The SSH server's name has no address, as seen from the forwarder's pod or the jump host before it.",
        "{hop}: the name does not resolve in the cluster: {seen}. Check {path}.host, or give an address,"
        " or add the name with spec.podTemplate.hostAliases.",
        behind="{hop}: {before} cannot resolve the name: {seen}. Check {path}.host; it is looked up there.",
    ),
    Reason.NETWORK_UNREACHABLE: ReasonInfo(
        _TRANSPORT,
        OUTAGE_GRACE,
        "There is no route to the SSH server.",
        "{hop}: no route from the cluster: {seen}. Check the address, the cluster's egress and its NetworkPolicies.",
        behind="{hop}: {before} has no route to it: {seen}. Check {path}.host, routes and firewalls between the two.",
    ),
    Reason.CONNECTION_REFUSED: ReasonInfo(
        _TRANSPORT,
        OUTAGE_GRACE,
        "The host answers and nothing listens on the port.",
        "{hop}: connection refused. Start the SSH server, or set {path}.port to the port on which it listens.",
        behind="{hop}: it refuses the connection of {before}: {seen}. Start the SSH server, or correct {path}.port.",
    ),
    Reason.CONNECT_TIMEOUT: ReasonInfo(
        _TRANSPORT,
        OUTAGE_GRACE,
        "Nothing answers: packets are dropped, or the server hangs.",
        "{hop}: no answer in time ({seen}). Most often a firewall drops the packets: allow TCP to this port from the"
        " cluster's egress addresses{egress}.",
        behind="{hop}: no answer in time through {before} ({seen}). Allow TCP from there to this port (firewall).",
    ),
    Reason.NOT_AN_SSH_SERVER: ReasonInfo(
        _TRANSPORT,
        OUTAGE_GRACE,
        "Something answers on the port, and it does not speak SSH.",
        "{hop}: what answers is not an SSH server: {seen}. Set {path}.host and {path}.port to the SSH server's.",
        SLOW,
    ),
    Reason.BASTION_REFUSING: ReasonInfo(
        _TRANSPORT,
        OUTAGE_GRACE,
        "sshd turns connections away before it authenticates: MaxStartups, PerSourcePenalties, a host firewall.",
        "{hop}: the SSH server turns new connections away: {seen}. Raise MaxStartups in its sshd_config, or exempt the"
        " cluster's egress addresses{egress} with PerSourcePenaltyExemptList.",
        TURNED_AWAY,
        behind="{hop}: the SSH server turns new connections of {before} away: {seen}. Raise MaxStartups in its"
        " sshd_config, or exempt that address with PerSourcePenaltyExemptList.",
    ),
    Reason.NO_COMMON_ALGORITHM: ReasonInfo(
        _TRANSPORT,
        0,
        "Client and server share no algorithm of one kind.",
        "{hop}: no algorithm in common: {seen}. Update the SSH server, or set {path}.algorithms to Legacy.",
        SLOW,
    ),
    Reason.HOST_KEY_UNKNOWN: ReasonInfo(
        _TRANSPORT,
        SUPPLY_GRACE,
        "No host key is pinned, so nothing was sent to the server. Its keys are shown.",
        "{hop}: no host key is pinned, so nothing was sent. The server shows {seen}. Compare with what its"
        " administrator says (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then pin it: {pin}",
        SLOW,
    ),
    Reason.HOST_KEY_MISMATCH: ReasonInfo(
        _TRANSPORT,
        0,
        "The server shows a host key that is not pinned: it was reinstalled, or somebody is in between.",
        "{hop}: the host key is not the pinned one; the server shows {seen}. Either the server was reinstalled or"
        " somebody intercepts the connection. Ask its administrator; if the key is right, pin it: {pin}",
        SLOW,
    ),
    Reason.HOST_KEY_REVOKED: ReasonInfo(
        _TRANSPORT,
        0,
        "The server shows a host key that known_hosts marks @revoked.",
        "{hop}: the server shows a host key that is marked @revoked: {seen}. Have the server's administrator replace"
        " the key, then pin the new one.",
        SLOW,
    ),
    Reason.HOST_CERTIFICATE_INVALID: ReasonInfo(
        _TRANSPORT,
        0,
        "The server's host certificate is expired, for another name, or not signed by a pinned authority.",
        "{hop}: the host certificate is not valid: {seen}. Have it renewed for this name ({path}.hostKey.alias"
        " overrides the name), or pin the authority with an @cert-authority line.",
        SLOW,
    ),
    Reason.KNOWN_HOSTS_INVALID: ReasonInfo(
        _TRANSPORT,
        SUPPLY_GRACE,
        "The known_hosts text has a line that cannot be read, or is not there, so nothing was sent to the server.",
        "{hop}: known_hosts cannot be used, so nothing was sent: {seen}. Write lines as `ssh-keyscan HOST`"
        " prints them.",
        SLOW,
    ),
    Reason.CONNECTION_LOST: ReasonInfo(
        _TRANSPORT,
        OUTAGE_GRACE,
        "The SSH connection broke and is being made again.",
        "{hop}: the SSH connection was lost: {seen}. It is being made again. If this repeats, look at the server's log"
        " and at what closes idle connections in between (spec.tunnel.keepalive).",
    ),
    Reason.KEY_REJECTED: ReasonInfo(
        _AUTH,
        SUPPLY_GRACE,
        "The SSH server does not accept the key for this user.",
        "{hop}: user {user}: the server does not accept the key.{also} Add this line to the user's authorized_keys"
        " there: {line}",
        SLOW,
    ),
    Reason.SECOND_FACTOR_REQUIRED: ReasonInfo(
        _AUTH,
        0,
        "The server accepted the key and asks for something more.",
        "{hop}: user {user}: the key was accepted and the server asks for more: {seen}. Set AuthenticationMethods"
        " publickey for this user in sshd_config (a Match User block).",
        SLOW,
    ),
    Reason.TOO_MANY_AUTH_FAILURES: ReasonInfo(
        _AUTH,
        OUTAGE_GRACE,
        "The server closed the connection after too many attempts to authenticate.",
        "{hop}: user {user}: the server counted too many authentication failures: {seen}. Raise MaxAuthTries in"
        " sshd_config, and authorize the key with this line: {line}",
        SLOW,
    ),
    Reason.METHOD_NOT_OFFERED: ReasonInfo(
        _AUTH,
        0,
        "The server does not offer authentication by public key to this user.",
        "{hop}: user {user}: the server does not offer publickey authentication: {seen}. Set PubkeyAuthentication yes"
        " in sshd_config, and look for a Match block that changes it.",
        SLOW,
    ),
    Reason.FORWARDING_PROHIBITED: ReasonInfo(
        _DATABASE,
        0,
        "The SSH server's policy forbids this forwarding. Of a jump host it is TransportReady that says so.",
        "{hop}: forwarding to {target} is prohibited: {seen}. In sshd_config set AllowTcpForwarding local and"
        " PermitOpen any or {target}; in authorized_keys the key's line needs port-forwarding and this"
        " permitopen: {line}",
    ),
    Reason.DATABASE_UNRESOLVABLE: ReasonInfo(
        _DATABASE,
        OUTAGE_GRACE,
        "The database's name has no address, as seen from the SSH server.",
        "{hop}: it cannot resolve the database's name {database}: {seen}. Check spec.database.host; the name is looked"
        " up on the SSH server, not in the cluster.",
    ),
    Reason.DATABASE_UNREACHABLE: ReasonInfo(
        _DATABASE,
        OUTAGE_GRACE,
        "The SSH server has no route to the database.",
        "{hop}: it has no route to the database {database}: {seen}. Check routes and firewalls between the two.",
    ),
    Reason.DATABASE_REFUSED: ReasonInfo(
        _DATABASE,
        OUTAGE_GRACE,
        "The database's host answers the SSH server and nothing listens on the port, or the connection ends at once, or"
        " no account may come from the SSH server's address (MySQL error 1130).",
        "{hop}: the database {database} refused the connection: {seen}. Start the database, or correct"
        " spec.database.host and spec.database.port; where it is a host that is not allowed (MySQL error 1130), create"
        " an account for the SSH server's address (CREATE USER ...@'ADDRESS').",
    ),
    Reason.DATABASE_TIMEOUT: ReasonInfo(
        _DATABASE,
        OUTAGE_GRACE,
        "The database does not answer the SSH server, or answers the connection and then says nothing.",
        "{hop}: no answer from the database {database} in time: {seen}. Allow TCP from the SSH server to the database"
        " (security group, firewall).",
    ),
    Reason.UNEXPECTED_PROTOCOL: ReasonInfo(
        _DATABASE,
        OUTAGE_GRACE,
        "What answers does not speak the engine's protocol.",
        "{hop}: {database} does not speak {protocol}: {seen}. Check spec.engine and spec.database.",
    ),
    Reason.HOST_BLOCKED: ReasonInfo(
        _DATABASE,
        0,
        "MySQL blocked the SSH server's address after max_connect_errors interrupted handshakes (error 1129).",
        "{hop}: the database {database} blocks the SSH server's address: {seen}. Run FLUSH HOSTS (MySQL 8:"
        " TRUNCATE performance_schema.host_cache) on the database, and raise max_connect_errors.",
        SLOW,
    ),
    Reason.TOO_MANY_CONNECTIONS: ReasonInfo(
        _DATABASE,
        OUTAGE_GRACE,
        "The database has no connection left (MySQL error 1040, PostgreSQL's 53300), or the SSH server opens no more"
        " channels.",
        "{hop}: no connection to the database {database} is left: {seen}. Raise the database's max_connections, or the"
        " SSH server's limit if it is the SSH server that says so; or close idle sessions.",
        SLOW,
    ),
    Reason.NOT_PROBED: ReasonInfo(
        _DATABASE,
        None,
        "Nothing has shown yet whether the database answers: this engine is not probed actively and no client has"
        " connected, or spec.probe.mode is Disabled. This does not hold Ready back.",
        "Not probed: {seen}.",
    ),
}
"""Every reason that a condition can have when it is not True."""
