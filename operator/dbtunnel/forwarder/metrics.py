"""What a forwarder counts, declared once: the text at /metrics and its documentation come from here."""

from dbtunnel.api.conditions import ConditionType, Reason
from dbtunnel.api.reasons import REASONS
from dbtunnel.domain.metrics import Kind, Label, Metric, Values
from dbtunnel.forwarder.failures import Loss

_REASONS = "a reason of [conditions.md](conditions.md)"
_REASON = Label("reason", _REASONS, len(Reason))
_REFUSAL = Label("reason", f"{_REASONS}, `ConnectionLimit`, `Parking`, `Silent` or `TooManyClients`", len(Reason) + 4)
_LOSS = Label("reason", ", ".join(f"`{loss}`" for loss in Loss), len(Loss), known=tuple(Loss))
_RESULT = Label("result", f"`Succeeded` or {_REASONS}", len(Reason), known=(Reason.SUCCEEDED,))
_DIRECTION = Label("direction", "`sent` to the database, `received` from it", 2, known=("sent", "received"))
_HOP = Label("hop", "an SSH server of the tunnel: what it is, its host and port", 9)
_KEY = Label("key", "the fingerprint of the key", 18)
_SERVER_NAME = Label("server_name", "the name that clients are told to verify, `spec.database.tls.serverName`", 1)
_OF_THE_DATABASE = tuple(
    reason
    for reason, info in REASONS.items()
    if info.type is ConditionType.DATABASE_REACHABLE and reason is not Reason.NOT_PROBED
)
_DATABASE_REASON = Label(
    "reason", ", ".join(f"`{reason}`" for reason in _OF_THE_DATABASE), len(_OF_THE_DATABASE), known=_OF_THE_DATABASE
)
_LAYER = Label("layer", "`key`, `transport`, `authentication`, `database`", 4)

CLIENTS_OPEN = Metric("dbtunnel_forwarder_clients", Kind.GAUGE, "Clients that are connected to the database now.")
CLIENTS_PARKED = Metric("dbtunnel_forwarder_clients_parked", Kind.GAUGE, "Clients that wait for the SSH connection.")
CLIENTS_TOTAL = Metric("dbtunnel_forwarder_clients_total", Kind.COUNTER, "Clients that were taken.")
CLIENTS_REFUSED = Metric(
    "dbtunnel_forwarder_clients_refused_total",
    Kind.COUNTER,
    "Clients that were closed without a database.",
    (_REFUSAL,),
)
CLIENTS_LEFT = Metric(
    "dbtunnel_forwarder_clients_left_before_login_total",
    Kind.COUNTER,
    "Clients of MySQL that got a channel and left before they had tried to log in: without a word, with something that"
    " is no login, within TLS's handshake. The server counts them against the bastion's address: after"
    " max_connect_errors of them in a row, 100 by default, it refuses everybody behind it.",
)
SESSIONS_IDLE = Metric(
    "dbtunnel_forwarder_sessions_idle_total", Kind.COUNTER, "Sessions that were ended since nothing happened on them."
)
BYTES = Metric("dbtunnel_forwarder_bytes_total", Kind.COUNTER, "Bytes of clients' streams.", (_DIRECTION,))
SSH_UP = Metric("dbtunnel_forwarder_ssh_up", Kind.GAUGE, "SSH connections that take new clients.")
OWN_PACKETS = Metric(
    "dbtunnel_forwarder_ssh_own_packets",
    Kind.GAUGE,
    "1 while packets of data take the forwarder's own way, 0 while they take asyncssh's, which is slower; the event"
    " `connected` says why. Before the first connection, what the self-check at the start has found, as the event"
    " `started` does.",
)
CHANNEL_SECONDS = Metric(
    "dbtunnel_forwarder_channel_open_seconds",
    Kind.HISTOGRAM,
    "From the moment in which a client's channel was asked for until the SSH server had opened it, which it does once"
    " it has connected to the database. Each is a session.",
    buckets=(0.005, 0.025, 0.1, 0.5, 2.5, 10),
)
SSH_CONNECTS = Metric("dbtunnel_forwarder_ssh_connects_total", Kind.COUNTER, "SSH connections that were made.")
SSH_FAILURES = Metric(
    "dbtunnel_forwarder_ssh_failures_total", Kind.COUNTER, "Attempts to connect that failed.", (_REASON,)
)
SSH_RECONNECTS = Metric(
    "dbtunnel_forwarder_ssh_reconnects_total",
    Kind.COUNTER,
    "SSH connections that ended while new clients went over them, or that another took the place of.",
    (_LOSS,),
)
HANDSHAKE_SECONDS = Metric(
    "dbtunnel_forwarder_ssh_handshake_seconds",
    Kind.HISTOGRAM,
    "TCP connection, key exchange, host key and login, of those that succeeded; one for each SSH server on the way.",
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)
HOP_ACTIVE = Metric(
    "dbtunnel_forwarder_hop_active", Kind.GAUGE, "1 while new clients go through this SSH server, else 0.", (_HOP,)
)
HOST_KEYS_ANNOUNCED = Metric(
    "dbtunnel_forwarder_host_keys_announced",
    Kind.GAUGE,
    "Host keys that an SSH server has proved to hold and that are not pinned: pin them before it changes to one.",
    (_HOP,),
)
NEXT_KEY_FAILS = Metric(
    "dbtunnel_forwarder_next_key_failing", Kind.GAUGE, "1 while a key that is to replace another cannot be used."
)
KEY_CERTIFICATE_EXPIRY = Metric(
    "dbtunnel_forwarder_key_certificate_expiry_timestamp_seconds",
    Kind.GAUGE,
    "When the user certificate of a key expires, in Unix time; for those alone that do.",
    (_KEY,),
)
PROBES = Metric("dbtunnel_forwarder_probes_total", Kind.COUNTER, "Probes of the database.", (_RESULT,))
DATABASE_FAILURES = Metric(
    "dbtunnel_forwarder_database_failures_total",
    Kind.COUNTER,
    "What showed that the database cannot be used: probes, and connections of clients, to whom no channel was opened or"
    " whom the database turned away. Nothing is learned of these where `spec.probe.mode` is Disabled.",
    (_DATABASE_REASON,),
)
DATABASE_CERTIFICATE_EXPIRY = Metric(
    "dbtunnel_forwarder_database_certificate_expiry_timestamp_seconds",
    Kind.GAUGE,
    "When the certificate expires that the database shows to a probe, in seconds of Unix time.",
    (_SERVER_NAME,),
)
LAYER = Metric("dbtunnel_forwarder_layer_ready", Kind.GAUGE, "1 while the layer works, 0 while it does not.", (_LAYER,))

METRICS = (
    CLIENTS_OPEN,
    CLIENTS_PARKED,
    CLIENTS_TOTAL,
    CLIENTS_REFUSED,
    CLIENTS_LEFT,
    SESSIONS_IDLE,
    BYTES,
    CHANNEL_SECONDS,
    SSH_UP,
    OWN_PACKETS,
    SSH_CONNECTS,
    SSH_FAILURES,
    SSH_RECONNECTS,
    HANDSHAKE_SECONDS,
    HOP_ACTIVE,
    HOST_KEYS_ANNOUNCED,
    NEXT_KEY_FAILS,
    KEY_CERTIFICATE_EXPIRY,
    PROBES,
    DATABASE_FAILURES,
    DATABASE_CERTIFICATE_EXPIRY,
    LAYER,
)
"""All of them, in the order of /metrics."""


class Metrics(Values):
    """Their values in a process."""

    def __init__(self) -> None:
        super().__init__(METRICS)
