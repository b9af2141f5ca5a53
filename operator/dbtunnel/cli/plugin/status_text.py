"""A tunnel's status for a person: its layers, its SSH servers, keys and forwarders, what failed, what to do."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo

from dbtunnel.api.conditions import CAUSAL_ORDER, ConditionType
from dbtunnel.api.forwarder import LayerStatus
from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import Condition, Hop
from dbtunnel.cli.advice import told
from dbtunnel.cli.plugin.handout_text import known_hop
from dbtunnel.cli.plugin.replicas import Replica
from dbtunnel.cli.tables import Cell, Row, age_of, size, table, time_of_day
from dbtunnel.cli.terminal import Color, Style
from dbtunnel.domain.authorized_keys import forward_target
from dbtunnel.domain.forwarding import database_port, forwarder_config
from dbtunnel.domain.hops import ends_of, hop_name, jumps_of
from dbtunnel.domain.settings import Defaults

SESSIONS, PARKED, TAKEN = (
    "dbtunnel_forwarder_clients",
    "dbtunnel_forwarder_clients_parked",
    "dbtunnel_forwarder_clients_total",
)
REFUSED, BYTES = "dbtunnel_forwarder_clients_refused_total", "dbtunnel_forwarder_bytes_total"
CONNECTS, FAILURES = "dbtunnel_forwarder_ssh_connects_total", "dbtunnel_forwarder_ssh_failures_total"
DATABASE_FAILURES = "dbtunnel_forwarder_database_failures_total"
SENT, RECEIVED = "sent", "received"

METRICS = (SESSIONS, PARKED, TAKEN, REFUSED, BYTES, CONNECTS, FAILURES, DATABASE_FAILURES)
"""What is read of a forwarder's metrics; importing their declarations would import the forwarder."""

_NO_LIMIT = 100_000


@dataclass(frozen=True)
class View:
    """How it is shown, and when and where."""

    style: Style
    now: datetime
    zone: tzinfo | None = None
    """None: the machine's."""
    wide: bool = False
    """All there is, also where it does not fit."""

    def table(self, rows: Sequence[Row], *, right: Collection[int] = (), further: int = 0) -> Iterator[str]:
        """As `tables.table`."""
        return table(rows, self.style, right=right, further=further, columns=_NO_LIMIT if self.wide else None)


def status_text(tunnel: DatabaseTunnel, replicas: Sequence[Replica] | str, view: View) -> str:
    """`replicas`: what forwarders say, or why they were not asked."""
    parts = (
        _head(tunnel, view),
        _layers(tunnel, view),
        _hops(tunnel, view),
        _keys(tunnel, view),
        [replicas] if isinstance(replicas, str) else _replicas(replicas, view),
        [] if isinstance(replicas, str) else _failures(replicas, view),
        _last_failure(tunnel, view),
        _advice(tunnel, view),
    )
    blocks = ["\n".join(lines) for lines in map(list, parts) if lines]
    return "\n\n".join(blocks) + "\n"


def conditions_of(tunnel: DatabaseTunnel) -> dict[str, Condition]:
    """By type."""
    return {condition.type: condition for condition in tunnel.status.conditions or ()}


def is_ready(tunnel: DatabaseTunnel) -> bool:
    """Whether the status says that clients are served."""
    ready = conditions_of(tunnel).get(ConditionType.READY)
    return ready is not None and ready.status == LayerStatus.TRUE


def _head(tunnel: DatabaseTunnel, view: View) -> Iterator[str]:
    style, spec, endpoint = view.style, tunnel.spec, tunnel.status.endpoint
    database = forward_target(spec.database.host, database_port(tunnel))
    yield style.text(f"{tunnel.metadata.namespace}/{tunnel.metadata.name}: {spec.engine} {database}", Color.BOLD)
    if endpoint and endpoint.host and endpoint.port:
        address = f" ({endpoint.cluster_ip})" if view.wide and endpoint.cluster_ip else ""
        yield style.text(f"clients connect to {forward_target(endpoint.host, endpoint.port)}{address}")
    reachable = conditions_of(tunnel).get(ConditionType.DATABASE_REACHABLE)
    if reachable and reachable.status == LayerStatus.TRUE and reachable.message:
        yield from style.wrapped(f"database: {reachable.message}")
    if (tunnel.status.observed_generation or 0) < tunnel.metadata.generation:
        yield style.text("The operator has not seen the latest change of the spec yet.", Color.YELLOW)


# --- the tables ----------------------------------------------------------------------------------------------------


def _layers(tunnel: DatabaseTunnel, view: View) -> Iterator[str]:
    known = conditions_of(tunnel)
    rows: list[Row] = [("LAYER", "STATE", "FOR", "REASON")]
    for kind in (*CAUSAL_ORDER, ConditionType.READY):
        condition = known.get(kind)
        if condition:
            since = age_of(condition.last_transition_time, view.now)
            reason = "" if condition.reason == Reason.SUCCEEDED else condition.reason
            rows.append((kind, _state(condition), since, reason))
    return view.table(rows) if len(rows) > 1 else iter(["The status is empty: does the operator run?"])


def _state(condition: Condition) -> Cell:
    if condition.status == LayerStatus.TRUE:
        return Cell("ok", Color.GREEN)
    if condition.status == LayerStatus.FALSE:
        return Cell("FAILED", Color.RED)
    return Cell("not probed" if condition.reason == Reason.NOT_PROBED else "unknown", Color.DIM)


def _hops(tunnel: DatabaseTunnel, view: View) -> Iterator[str]:
    config = forwarder_config(tunnel, Defaults())
    rows: list[Row] = [("SSH SERVER", "IN USE BY", "VERSION", "CIPHER", "HOST KEY")]
    for number in (*jumps_of(config), *ends_of(config)):
        hop = known_hop(tunnel, config, number)
        version = (hop.server_version or "").removeprefix("SSH-2.0-")
        shown = (hop.cipher or "", (hop.host_key_fingerprints or ("",))[0])
        rows.append((hop_name(config, number), _users(hop), version, *shown))
    return view.table(rows, further=2)


def _users(hop: Hop) -> str:
    count = hop.replicas or 0
    return f"{count} replica{'' if count == 1 else 's'}" if hop.active else "none"


def _keys(tunnel: DatabaseTunnel, view: View) -> Iterator[str]:
    """Only while a key is replaced, or one is not accepted: else the layers say all."""
    keys = tunnel.status.public_keys or ()
    if not view.wide and all(key.use == "Current" and key.accepted is not False for key in keys):
        return iter(())
    accepted = {True: Cell("yes", Color.GREEN), False: Cell("no", Color.RED), None: Cell("")}
    rows: list[Row] = [("KEY", "ACCEPTED", "FINGERPRINT")]
    rows += [(key.use, accepted[key.accepted], key.fingerprint) for key in keys]
    return view.table(rows) if keys else iter(())


def _replicas(replicas: Sequence[Replica], view: View) -> Iterator[str]:
    """A pod each; of one that could not be asked, why."""
    head = ("REPLICA", "READY", "AGE", "SESSIONS", "PARKED", "SENT", "RECEIVED", "SSH", "CLIENTS", "REFUSED", "NODE")
    rows: list[Row] = [head, *(_replica(replica, view) for replica in replicas)]
    yield from view.table(rows, right=range(2, 10), further=4) if replicas else ["No forwarder runs."]
    for replica in replicas:
        if replica.problem:
            yield from view.style.wrapped(f"{replica.pod.name}: {replica.problem}", Color.RED)


def _replica(replica: Replica, view: View) -> Row:
    ready = Cell("yes", Color.GREEN) if replica.pod.is_ready else Cell("no", Color.RED)
    row: list[str | Cell] = [replica.pod.name, ready, age_of(replica.created, view.now)]
    counted = [f"{replica.metric(SESSIONS):.0f}", f"{replica.metric(PARKED):.0f}"]
    counted += [size(replica.metric(BYTES, SENT)), size(replica.metric(BYTES, RECEIVED))]
    counted += [str(replica.status.connections if replica.status else 0), f"{replica.metric(TAKEN):.0f}"]
    counted += [f"{sum(replica.by_label(REFUSED).values()):.0f}"]
    row += counted if replica.status else ["-"] * len(counted)
    return [*row, replica.node]


# --- what failed, what to do ---------------------------------------------------------------------------------------


def _failures(replicas: Sequence[Replica], view: View) -> Iterator[str]:
    """How often forwarders failed to connect since they began, and clients and probes to get to the database."""
    for what, metric in (
        ("Failed attempts to connect", FAILURES),
        ("Clients and probes without a database", DATABASE_FAILURES),
    ):
        counts = Counter[str]()
        for replica in replicas:
            counts.update({reason: int(count) for reason, count in replica.by_label(metric).items()})
        counted = ", ".join(f"{reason} {count}" for reason, count in counts.most_common() if count)
        if counted:
            yield from view.style.wrapped(f"{what} since these replicas began: {counted}.")


def _last_failure(tunnel: DatabaseTunnel, view: View) -> Iterator[str]:
    failure = tunnel.status.last_failure
    if failure is None or not failure.reason:
        return
    yield view.style.text(f"Last failure: {failure.reason}, {time_of_day(failure.time, view.now, view.zone)}")
    if is_ready(tunnel):
        yield from view.style.wrapped(failure.message or "", Color.DIM, "  ")


def _advice(tunnel: DatabaseTunnel, view: View) -> Iterator[str]:
    """The verdict, with the message of `Ready`; what is to be pasted stays in one piece."""
    ready = conditions_of(tunnel).get(ConditionType.READY)
    if ready is None:
        return
    if ready.status == LayerStatus.TRUE:
        yield view.style.text("READY", Color.GREEN)
    else:
        color = Color.RED if ready.status == LayerStatus.FALSE else Color.YELLOW
        yield view.style.text(f"NOT READY: {ready.reason}", color)
    config = forwarder_config(tunnel, Defaults())
    servers = [known_hop(tunnel, config, number) for number in range(len(config.hops))]
    yield from told(ready.message, [server for server in servers if server.role], view.style)
