"""The two documents between operator and forwarder: the configuration going in, the status coming out.

A forwarder imports this module and not the resource's, which keeps its start short and its memory small.
"""

from dataclasses import field
from enum import StrEnum
from hashlib import sha256
from typing import Annotated

from dbtunnel.api.documents import UNWRITTEN, Document, Limits, written
from dbtunnel.api.engines import Engine

CONFIG_VARIABLE = "DBTUNNEL_CONFIG"
"""The environment variable that holds the forwarder's configuration, one JSON document."""

POD_UID_VARIABLE = "POD_UID"
"""The environment variable that holds the pod's uid, from the downward API."""

KEY_DIRECTORY = "/etc/dbtunnel/key"
"""Where the whole key Secret is mounted, a file a key; empty while the Secret is not there."""

KNOWN_HOSTS_DIRECTORY = "/etc/dbtunnel/known-hosts"
"""Where the object of `hostKey.knownHostsRef` is mounted."""

HOPS_DIRECTORY = "/etc/dbtunnel/hops"
"""Where those of jump hosts and fallbacks are mounted: `NUMBER/key` and `NUMBER/known-hosts`, by the hop's number."""

MOST_HOPS = 9
"""The bastion, four fallbacks, four jump hosts."""

ADMIN_PORT = 8080
"""TCP port of /livez, /readyz, /status and /metrics."""

DATABASE_PORT = 15432
"""TCP port on which the pod takes database clients, whatever the engine; the Service has the port people see."""

MOUNTED_FILE_LIMIT = 64 * 1024
"""Bytes: the most that a key, passphrase or known_hosts file may have."""

NEXT_SUFFIX = "-next"
"""After a name of the key Secret: the key, or its passphrase, that is to replace the one under that name."""

CERTIFICATE_SUFFIX = "-cert.pub"
"""After the private key's name, or that of the next: its user certificate, named as ssh names it."""

REVOKED_SUFFIX = "-revoked"
"""After the private key's name: the fingerprints or public halves of keys that must not be used any more."""


_WORD = "[!-~]*"
"""A word of printable ASCII: a status is shown to people, and whoever can make pods can pose as a forwarder."""

_Port = Annotated[int, Limits(1, 65535)]
_Positive = Annotated[int, Limits(1)]
_NotNegative = Annotated[int, Limits(0)]
_ShortWord = Annotated[str, Limits(most=64, pattern=_WORD)]


class Algorithms(StrEnum):
    """Which SSH algorithms are offered."""

    DEFAULT = "Default"
    """Current ones; nothing with SHA-1."""
    LEGACY = "Legacy"
    """Those that old bastions need as well: ssh-rsa and SHA-1 key exchanges."""


class ProbeMode(StrEnum):
    """How the forwarder finds out whether the database answers."""

    AUTO = "Auto"
    """Active for the PostgreSQL family, passive for MySQL."""
    PASSIVE = "Passive"
    """Only what real client traffic shows."""
    DISABLED = "Disabled"
    """Not at all; DatabaseReachable stays Unknown with the reason NotProbed."""


class HostKeyRule(Document):
    """How the SSH server's host key is verified. All empty: nothing is sent, and what the server shows is reported."""

    fingerprints: tuple[str, ...] = ()
    known_hosts: str | None = None
    known_hosts_file: str | None = None
    """Name of a file in the known-hosts directory; it may appear later and may change."""
    alias: str | None = None


class ForwarderKey(Document):
    """Names of the files in the key directory."""

    secret: str
    """Name of the Secret, for messages."""
    key: str
    passphrase_key: str


class ForwarderHop(Document):
    """An SSH server that the forwarder connects to."""

    host: str
    port: _Port
    user: str
    host_key: HostKeyRule = HostKeyRule()
    algorithms: Algorithms = Algorithms.DEFAULT
    key: ForwarderKey | None = None
    """The key of a jump host or fallback; None: the tunnel's."""


class Seconds(Document):
    """Every duration, in seconds."""

    connect_timeout: _Positive = 10
    keepalive_interval: _Positive = 15
    parking_max: _NotNegative = 30
    drain_min: _NotNegative = 3
    drain_max: _NotNegative = 30
    probe_interval: _Positive = 60
    idle: _Positive | None = None
    """After which a session on which nothing happens is ended; None: never."""


class ForwarderConfig(Document):
    """All that a forwarder is told. A change rolls the pods, so nothing is here that it does not need."""

    namespace: str
    name: str
    engine: Engine
    database_host: str
    database_port: _Port
    database_server_name: str
    bastion: ForwarderHop
    fallbacks: tuple[ForwarderHop, ...] | None = None
    """What takes the bastion's place, in this order."""
    jump_hosts: tuple[ForwarderHop, ...] | None = None
    """The way to the bastion and to each fallback, in this order."""
    key: ForwarderKey
    keepalive_count_max: _Positive = 3
    compression: bool = False
    connections: _Positive | None = None
    """SSH connections, over which channels are spread; None: one."""
    parking_max_clients: _NotNegative = 1000
    max_clients: _Positive | None = None
    """How many clients are served at most, beside those that come to cancel a query; None: no limit."""
    probe_mode: ProbeMode = ProbeMode.AUTO
    replicas: _Positive = 1
    """How many neighbours share the source address: slow retries are slower with more of them."""
    seconds: Seconds = Seconds()
    own_packets: bool = field(default=True, metadata=UNWRITTEN)
    """No part of the document, but the command's switch `--packets`."""

    @property
    def hops(self) -> tuple[ForwarderHop, ...]:
        """Every SSH server. A hop's number is its place here: 0 is the bastion."""
        return (self.bastion, *(self.fallbacks or ()), *(self.jump_hosts or ()))

    def to_json(self) -> str:
        """The document for the environment; the same value always gives the same text."""
        return written(self)

    def digest(self) -> str:
        """Hash of the configuration: the forwarder reports it, so that the operator believes current pods only."""
        return digest_of(self.to_json())


def digest_of(config: str) -> str:
    """Hash of a configuration's document."""
    return sha256(config.encode()).hexdigest()[:16]


class LayerStatus(StrEnum):
    """A condition's status."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class LayerFact(Document):
    """One layer as a forwarder sees it. Layers after the first that is False are Unknown."""

    status: LayerStatus = LayerStatus.UNKNOWN
    reason: Annotated[str, Limits(most=64, pattern="[A-Za-z0-9]+")] = "Progressing"
    """A `Reason`; a text here so that an older operator reads a newer forwarder."""
    seen: Annotated[str, Limits(most=1024)] = ""
    """What was observed, already bounded and printable; a remote server may have written it."""
    hop: Annotated[int, Limits(0, MOST_HOPS - 1)] = 0
    """Number of the SSH server that this speaks of."""


class HostKeyFact(Document):
    """A host key that the server showed, or proved to hold."""

    algorithm: _ShortWord
    fingerprint: _ShortWord
    announced: bool = False
    """Whether it is not pinned, and the server has proved to hold it over a connection that a pinned key verifies."""


class PublicKeyFact(Document):
    """A key that the forwarder has, never its private half."""

    key: Annotated[str, Limits(most=4096, pattern="[!-~]+ [!-~]+")]
    """As in authorized_keys: type and base64, no comment."""
    fingerprint: _ShortWord
    accepted: bool | None = None
    """Whether the bastion accepted it at the last attempt; None while that is not known."""
    certificate_not_after: _ShortWord | None = None
    """When its user certificate expires, as RFC 3339, UTC; None where it has none, or one for ever."""


class NextKeyFact(Document):
    """A key that is to replace the one in use."""

    name: Annotated[str, Limits(most=300, pattern=_WORD)]
    """Where it stands in the Secret."""
    public_key: PublicKeyFact | None = None
    """None where there is none to read."""
    fact: LayerFact = LayerFact()
    """True once the SSH server has accepted it, False with the reason why it cannot be used."""


class KeySessions(Document):
    """What goes over the SSH connections that logged in with one key."""

    fingerprint: _ShortWord
    connections: int = 0
    channels: int = 0
    """Sessions of clients, and probes; those that are being opened counted too."""


class HopFact(Document):
    """What is known of an SSH server."""

    active: bool = False
    """Whether the connection for new clients goes through it."""
    failure: LayerFact | None = None
    """Why it, or what is behind it, could not be used at the last attempt; None where it could, or was not tried."""
    public_key: PublicKeyFact | None = None
    """Its key, where it has one of its own."""
    next_key: NextKeyFact | None = None
    """The one that is to replace that."""
    host_keys: Annotated[tuple[HostKeyFact, ...], Limits(most=8)] = ()
    """Those that it showed; with a connection first the one in use, then those that it has proved to hold besides."""
    server_version: Annotated[str, Limits(most=256)] | None = None
    cipher: _ShortWord | None = None
    mac: _ShortWord | None = None


class DatabaseFact(Document):
    """What a probe or real traffic showed of the database."""

    protocol: Annotated[str, Limits(most=64)] | None = None
    server_version: Annotated[str, Limits(most=256)] | None = None
    auth_plugin: Annotated[str, Limits(most=64)] | None = None
    """How MySQL wants its clients to log in unless their account says otherwise."""
    tls_offered: bool | None = None
    certificate_not_after: _ShortWord | None = None
    """RFC 3339, UTC."""


class ForwarderStatus(Document):
    """The document at /status: the layered facts of one forwarder."""

    sequence: int
    """Grows with every change of the facts; `?after=SEQUENCE&timeoutSeconds=N` waits for a later one."""
    pod_uid: Annotated[str, Limits(most=64)] = ""
    config_hash: Annotated[str, Limits(most=64)]
    key: LayerFact = LayerFact()
    transport: LayerFact = LayerFact()
    authentication: LayerFact = LayerFact()
    database: LayerFact = LayerFact()
    public_key: PublicKeyFact | None = None
    """The tunnel's key."""
    next_key: NextKeyFact | None = None
    """The one that is to replace that."""
    hops: Annotated[tuple[HopFact, ...], Limits(most=MOST_HOPS)] = ()
    """By number."""
    database_fact: DatabaseFact = DatabaseFact()
    connections: int = 0
    """SSH connections that take new clients."""
    draining: bool = False
    sessions: Annotated[tuple[KeySessions, ...], Limits(most=64)] = ()
    """As they are at the answer: a change of these alone is no change of the facts, and ends no wait."""
