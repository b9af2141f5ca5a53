"""`spec` of a DatabaseTunnel: what a person declares."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from dbtunnel.api.base import ApiModel, Port, Rule, cel_rules
from dbtunnel.api.engines import Engine
from dbtunnel.api.forwarder import Algorithms, ProbeMode
from dbtunnel.api.peers import Peer
from dbtunnel.api.pods import Annotations, Labels, PodTemplate
from dbtunnel.api.rules import DataKey, Fingerprint, Host, ObjectName, ServiceName, User


class RefKind(StrEnum):
    """The kinds of object that can hold a known_hosts text."""

    CONFIG_MAP = "ConfigMap"
    SECRET = "Secret"


class KeyType(StrEnum):
    """Type of a generated key."""

    ED25519 = "Ed25519"
    ECDSA = "ECDSA"
    """NIST P-256."""
    RSA = "RSA"
    """3072 bits."""


class ServiceBinding(StrEnum):
    """Whether there is a Secret that workloads bind to (servicebinding.io)."""

    DISABLED = "Disabled"
    ENABLED = "Enabled"


class AccessPolicy(StrEnum):
    """Who may connect to the tunnel's pods, enforced by a NetworkPolicy."""

    SAME_NAMESPACE = "SameNamespace"
    SELECTED = "Selected"
    """The peers in `from`."""
    UNRESTRICTED = "Unrestricted"
    """No NetworkPolicy."""


class DatabaseTls(ApiModel):
    """What clients need to know of the database's TLS. The tunnel itself passes TLS through unchanged."""

    server_name: Host | None = None
    """Name on the database's certificate, published for clients. Default: database.host."""


class Database(ApiModel):
    """The database, as the SSH server sees it."""

    host: Host
    """Name or address of the database, as the SSH server resolves it."""
    port: Port | None = None
    """TCP port. Default by engine: PostgreSQL 5432, Redshift 5439, AlloyDB 5432, MySQL 3306."""
    tls: DatabaseTls = DatabaseTls()
    """TLS of the database, published for clients."""


class KeySecretRef(ApiModel):
    """The Secret that holds the private key, in the tunnel's namespace."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    name: ObjectName
    """Name of the Secret."""
    key: DataKey = "ssh-privatekey"
    """Key within the Secret: a private key in OpenSSH, PEM, PKCS#8 or PuTTY's format. Its OpenSSH user certificate may
    stand under `<key>-cert.pub`. Another private key under `<key>-next`, where present, is offered to the SSH server
    before it, so that a key is replaced with overlap; a change cuts no session.
    A key whose fingerprint or public half stands under `<key>-revoked` is not used, and its sessions end at once."""
    passphrase_key: DataKey = "passphrase"
    """Key within the Secret that holds the private key's passphrase; not needed for an unencrypted key. That of the
    next key may stand under `<passphraseKey>-next`."""


class KnownHostsRef(ApiModel):
    """A known_hosts text in a ConfigMap or Secret, in the tunnel's namespace."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-map-type": "atomic"})

    kind: RefKind = RefKind.CONFIG_MAP
    """ConfigMap or Secret."""
    name: ObjectName
    """Name of the object."""
    key: DataKey = "known_hosts"
    """Key within the object."""


ONE_SOURCE = Rule(
    "[has(self.fingerprints), has(self.knownHosts), has(self.knownHostsRef)].filter(given, given).size() <= 1",
    lambda given: sum(source is not None for source in given) <= 1,
    "give one of fingerprints, knownHosts and knownHostsRef, not several",
)


class HostKey(ApiModel):
    """How the SSH server's host key is verified, by one of three sources. With none, nothing is sent to the server
    and the condition TransportReady shows the keys that it offers, for a person to compare and pin."""

    model_config = ConfigDict(json_schema_extra=cel_rules(ONE_SOURCE))

    fingerprints: (
        Annotated[
            tuple[Fingerprint, ...],
            Field(min_length=1, max_length=8, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
        ]
        | None
    ) = None
    """SHA-256 fingerprints of accepted host keys, as `ssh-keygen -lf` prints them."""
    known_hosts: Annotated[str, Field(min_length=1, max_length=32768)] | None = None
    """Lines in OpenSSH's known_hosts format, as `ssh-keyscan` prints them; hashed names, patterns, @cert-authority and
    @revoked too."""
    known_hosts_ref: KnownHostsRef | None = None
    """A ConfigMap or Secret with such lines."""
    alias: Host | None = None
    """Name to look up in known_hosts, without a port, and to expect on a host certificate, instead of the host: as
    ssh's HostKeyAlias."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        ONE_SOURCE.enforce((self.fingerprints, self.known_hosts, self.known_hosts_ref))
        return self


class HopHostKey(HostKey):
    """How the host key of a jump host or fallback is verified, by one of three sources. With none, nothing is sent to
    it, and its keys are shown for a person to compare and pin."""

    known_hosts: Annotated[str, Field(min_length=1, max_length=8192)] | None = None
    """Lines in OpenSSH's known_hosts format. Shorter than the bastion's, since all of them together are one variable of
    the pod's environment; knownHostsRef has room for more."""


class SshServer(ApiModel):
    """An SSH server beside the bastion. Its host key is its own, whatever is pinned for the others."""

    host: Host
    """Name or address. The cluster resolves that of the first jump host, and of a fallback where there is no jump host;
    the jump host before it resolves any other."""
    port: Port = 22
    """TCP port."""
    user: User | None = None
    """Login name. Default: tunnel.user."""
    key_secret_ref: KeySecretRef | None = None
    """The Secret with the private key. Default: the tunnel's key, the generated one too."""
    host_key: HopHostKey = HopHostKey()
    """How its host key is verified. Never the tunnel's."""
    algorithms: Algorithms = Algorithms.DEFAULT
    """Default offers current algorithms and nothing with SHA-1; Legacy adds what old SSH servers need."""


_EACH_ONCE = Rule(
    "self.all(one, self.exists_one(other, other.host == one.host && other.port == one.port))",
    lambda servers: len({(server.host, server.port) for server in servers}) == len(servers),
    "name each host and port once",
)

SshServers = Annotated[
    tuple[SshServer, ...],
    Field(max_length=4, json_schema_extra={"x-kubernetes-list-type": "atomic"}),
    _EACH_ONCE,
]


class Keepalive(ApiModel):
    """Keepalive of each SSH connection: a dead one is noticed after intervalSeconds x (countMax + 1)."""

    interval_seconds: Annotated[int, Field(ge=1, le=3600)] | None = None
    """Seconds between keepalive messages. Default: 15 unless the installer chose otherwise."""
    count_max: Annotated[int, Field(ge=1, le=100)] | None = None
    """Unanswered messages after which the connection is lost. Default: 3 unless the installer chose otherwise."""


class Tunnel(ApiModel):
    """The SSH server (bastion) through which the database is reached. Only `host` is needed. Without `keySecretRef` the
    operator makes a key, whose public half the server's administrator authorizes. Without a source in `hostKey` nothing
    is sent to the server, and the condition TransportReady shows the host keys that it offers, to be compared and
    pinned. Whatever is missing, status.conditions says what to do."""

    host: Host
    """Name or address of the SSH server, as the cluster resolves it; with jumpHosts, as the last of them does."""
    port: Port = 22
    """TCP port of the SSH server."""
    user: User = "dbtunnel"
    """Login name on the SSH server."""
    key_secret_ref: KeySecretRef | None = None
    """The Secret with the private key. Left out: the operator creates Secret `<name>-ssh` with a new key and shows the
    public half in status.publicKeys and, ready to paste, in status.hops[].authorizedKeysLine. Keys are replaced in
    that Secret as in any other."""
    generated_key_type: KeyType = KeyType.ED25519
    """Type of the key that the operator generates where keySecretRef is left out."""
    host_key: HostKey = HostKey()
    """How the SSH server's host key is verified."""
    algorithms: Algorithms = Algorithms.DEFAULT
    """Default offers current algorithms and nothing with SHA-1; Legacy adds what old SSH servers need."""
    jump_hosts: SshServers | None = None
    """SSH servers on the way to the bastion, as ssh's ProxyJump: the cluster connects to the first, each to the next,
    the last to the bastion and to the fallbacks. Each is logged in to with its own user, key and host key."""
    fallbacks: SshServers | None = None
    """Other bastions, tried in order while those before them cannot be logged in to, whatever the reason: no answer, a
    host key that is not pinned, a key that is not accepted. They are reached through the same jump hosts; there are no
    others for them. New connections go back to the bastion once it lets us in again; running ones stay where they
    are. A database that does not answer is no reason to leave a bastion."""
    connect_timeout_seconds: Annotated[int, Field(ge=1, le=300)] = 10
    """Seconds for TCP, key exchange and authentication together, for each SSH server, and for a channel to the database
    to open."""
    keepalive: Keepalive = Keepalive()
    """Keepalive of each SSH connection."""
    compression: bool = False
    """Whether zlib compression is offered. Helps on slow links only: a server that takes it up gets and sends all data
    in asyncssh's packets, which are slower than the forwarder's own (docs/performance.md)."""
    connections: Annotated[int, Field(ge=1, le=8)] = 1
    """SSH connections per replica. Each new client gets the one with the fewest clients, where a stream of data that
    goes over it at the time counts for 64; the loss of one ends the sessions on it and no others. One in each replica
    is enough for Ready, whose message says how many stand."""


_PEERS_WITH_POLICY = Rule(
    "(has(self.policy) && self.policy == 'Selected') == has(self.from)",
    lambda access: (access.policy == AccessPolicy.SELECTED) == (access.from_ is not None),
    "give `from` with policy Selected, and only with it",
)


class Access(ApiModel):
    """Who may connect to the tunnel, as a NetworkPolicy; needs a network that enforces it."""

    model_config = ConfigDict(json_schema_extra=cel_rules(_PEERS_WITH_POLICY))

    policy: AccessPolicy = AccessPolicy.SAME_NAMESPACE
    """SameNamespace: pods of this namespace. Selected: the peers in `from`. Unrestricted: no NetworkPolicy is made."""
    from_: Annotated[tuple[Peer, ...], Field(min_length=1, max_length=16)] | None = Field(default=None, alias="from")
    """Peers as in a NetworkPolicy's ingress rule, for policy Selected."""

    @model_validator(mode="after")
    def _peers_with_policy(self) -> Self:
        _PEERS_WITH_POLICY.enforce(self)
        return self


class ConnectionLimits(ApiModel):
    """How many clients a replica serves at most, and for how long nothing may happen on a session. Unset: no limit."""

    max: Annotated[int, Field(ge=1, le=100000)] | None = None
    """Clients at the same time, per replica, those that wait counted too; at the limit others are refused at once, with
    a reset, and with MySQL by its error 1040. Beyond it a few are let in to cancel a query, one for each 100 of max, at
    least 2 and at most 10. With PostgreSQL, Redshift and AlloyDB such a one may say CancelRequest, in the clear or
    under TLS, and nothing else, and has 3 seconds for it; with MySQL, where KILL is a statement of a session, it has 10
    seconds for whatever it does."""
    idle_timeout_seconds: Annotated[int, Field(ge=1, le=604800)] | None = None
    """Seconds without a byte either way after which a session is ended by a reset, a tenth later at most."""


class Parking(ApiModel):
    """Clients that connect while the SSH connection is being made wait instead of being refused."""

    max_seconds: Annotated[int, Field(ge=0, le=3600)] | None = None
    """Seconds that a client waits at most. 0: not at all. Default: 30."""
    max_clients: Annotated[int, Field(ge=0, le=100000)] | None = None
    """How many clients wait at most, per replica. Default: 1000."""


_DRAIN_ORDER = Rule(
    "!has(self.minSeconds) || !has(self.maxSeconds) || self.minSeconds <= self.maxSeconds",
    lambda drain: drain.min_seconds is None or drain.max_seconds is None or drain.min_seconds <= drain.max_seconds,
    "minSeconds must not be more than maxSeconds",
)


class Drain(ApiModel):
    """How a pod ends: it goes on serving new clients for minSeconds, since endpoints lag, then lets sessions finish."""

    model_config = ConfigDict(json_schema_extra=cel_rules(_DRAIN_ORDER))

    min_seconds: Annotated[int, Field(ge=0, le=300)] | None = None
    """Seconds for which new clients are still served after the pod was told to end. Default: 3."""
    max_seconds: Annotated[int, Field(ge=0, le=604800)] | None = None
    """Seconds that running sessions have to finish, at most seven days. Those that have been at rest for half of it are
    ended then, so that pools do not hold the pod for long. What runs may go on to the end: a statement, a COPY, an
    answer that is not all read, and a transaction, unless TLS hides it and nothing is sent. Default: 30."""

    @model_validator(mode="after")
    def _order(self) -> Self:
        _DRAIN_ORDER.enforce(self)
        return self


class Probe(ApiModel):
    """How the forwarder finds out whether the database answers. It never logs in."""

    mode: ProbeMode | None = None
    """Auto: PostgreSQL, Redshift and AlloyDB are probed, MySQL is judged by real traffic. Passive: real traffic only.
    Disabled: not at all. Default: Auto."""
    interval_seconds: Annotated[int, Field(ge=5, le=86400)] | None = None
    """Seconds between probes. Default: 60."""


class Service(ApiModel):
    """The Service that applications connect to."""

    name: ServiceName | None = None
    """Its name. Default: the tunnel's. An object of that name that is not the tunnel's is never touched."""
    port: Port | None = None
    """Its TCP port. Default: database.port."""
    annotations: Annotations | None = None
    """Annotations of the Service."""
    labels: Labels | None = None
    """Labels of the Service. Those of the operator can't be changed."""


class DatabaseTunnelSpec(ApiModel):
    """What the tunnel should be."""

    engine: Engine
    """The database's engine: chooses the default port and how the tunnel is probed."""
    database: Database
    """The database, as the SSH server sees it."""
    tunnel: Tunnel
    """The SSH server (bastion) through which the database is reached."""
    replicas: Annotated[int, Field(ge=1, le=16)] | None = None
    """Forwarder pods. Default: 1 unless the installer chose otherwise. Of several the others start once an SSH server
    has let one in.
    """
    access: Access = Access()
    """Who may connect to the tunnel."""
    connection_limits: ConnectionLimits = ConnectionLimits()
    """How many clients are served, and how long they may be idle."""
    parking: Parking = Parking()
    """How clients wait while the SSH connection is being made."""
    drain: Drain = Drain()
    """How a pod ends."""
    probe: Probe = Probe()
    """How the database is probed."""
    service: Service = Service()
    """The Service that applications connect to."""
    service_binding: ServiceBinding = ServiceBinding.DISABLED
    """Enabled: a Secret tells workloads where the database is, as servicebinding.io has it; `status.binding` names it.
    It has no credentials."""
    pod_template: PodTemplate = PodTemplate()
    """What the forwarder's pods get beside what the operator sets."""
    suspend: bool = False
    """Switches the tunnel off: the objects stay, no pod runs."""
