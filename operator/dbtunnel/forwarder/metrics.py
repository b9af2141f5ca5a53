"""What is counted, declared once: the text at /metrics and its documentation come from here."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """Prometheus's metric types."""

    COUNTER = "counter"
    GAUGE = "gauge"


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric, and what it tells. It is itself alone, so that finding its value costs little."""

    name: str
    kind: Kind
    help: str
    label: str | None = None


CLIENTS_OPEN = Metric("dbtunnel_forwarder_clients", Kind.GAUGE, "Clients that are connected to the database now.")
CLIENTS_PARKED = Metric("dbtunnel_forwarder_clients_parked", Kind.GAUGE, "Clients that wait for the SSH connection.")
CLIENTS_TOTAL = Metric("dbtunnel_forwarder_clients_total", Kind.COUNTER, "Clients that were taken.")
CLIENTS_REFUSED = Metric(
    "dbtunnel_forwarder_clients_refused_total", Kind.COUNTER, "Clients that were closed without a database.", "reason"
)
CLIENTS_LEFT = Metric(
    "dbtunnel_forwarder_clients_left_before_login_total",
    Kind.COUNTER,
    "Clients of MySQL that were greeted and left without a word. The server counts them against the bastion's address:"
    " after max_connect_errors of them in a row, 100 by default, it refuses everybody behind it.",
)
SESSIONS_IDLE = Metric(
    "dbtunnel_forwarder_sessions_idle_total", Kind.COUNTER, "Sessions that were ended since nothing happened on them."
)
BYTES = Metric("dbtunnel_forwarder_bytes_total", Kind.COUNTER, "Bytes of clients' streams.", "direction")
SSH_UP = Metric("dbtunnel_forwarder_ssh_up", Kind.GAUGE, "SSH connections that take new clients.")
OWN_PACKETS = Metric(
    "dbtunnel_forwarder_ssh_own_packets",
    Kind.GAUGE,
    "1 while packets of data take the forwarder's own way, 0 while they take asyncssh's, which is slower; the event"
    " `connected` says why.",
)
SSH_CONNECTS = Metric("dbtunnel_forwarder_ssh_connects_total", Kind.COUNTER, "SSH connections that were made.")
SSH_FAILURES = Metric(
    "dbtunnel_forwarder_ssh_failures_total", Kind.COUNTER, "Attempts to connect that failed.", "reason"
)
HOP_ACTIVE = Metric(
    "dbtunnel_forwarder_hop_active", Kind.GAUGE, "1 while new clients go through this SSH server, else 0.", "hop"
)
NEXT_KEY_FAILS = Metric(
    "dbtunnel_forwarder_next_key_failing", Kind.GAUGE, "1 while a key that is to replace another cannot be used."
)
PROBES = Metric("dbtunnel_forwarder_probes_total", Kind.COUNTER, "Probes of the database.", "result")
LAYER = Metric("dbtunnel_forwarder_layer_ready", Kind.GAUGE, "1 while the layer works, 0 while it does not.", "layer")

METRICS = (
    CLIENTS_OPEN,
    CLIENTS_PARKED,
    CLIENTS_TOTAL,
    CLIENTS_REFUSED,
    CLIENTS_LEFT,
    SESSIONS_IDLE,
    BYTES,
    SSH_UP,
    OWN_PACKETS,
    SSH_CONNECTS,
    SSH_FAILURES,
    HOP_ACTIVE,
    NEXT_KEY_FAILS,
    PROBES,
    LAYER,
)
"""All of them, in the order of /metrics."""


@dataclass
class Metrics:
    """The values."""

    _values: dict[tuple[Metric, str], float] = field(default_factory=dict)

    def add(self, metric: Metric, amount: float = 1, label: str = "") -> None:
        """Counts up, or down for a gauge."""
        self._values[metric, label] = self._values.get((metric, label), 0) + amount

    def set(self, metric: Metric, value: float, label: str = "") -> None:
        """Sets a gauge."""
        self._values[metric, label] = value

    def get(self, metric: Metric, label: str = "") -> float:
        """The current value."""
        return self._values.get((metric, label), 0)

    def text(self) -> str:
        """Prometheus's text format."""
        return "".join(f"{line}\n" for metric in METRICS for line in self._lines(metric))

    def _lines(self, metric: Metric) -> Iterator[str]:
        yield f"# HELP {metric.name} {metric.help}"
        yield f"# TYPE {metric.name} {metric.kind}"
        if metric.label is None:
            yield f"{metric.name} {self.get(metric):.0f}"
        for (known, label), value in sorted(self._values.items(), key=lambda item: item[0][1]):
            if known is metric and metric.label is not None:
                yield f'{metric.name}{{{metric.label}="{label}"}} {value:.0f}'
