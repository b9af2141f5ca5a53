"""The files that are made from the code: `make generate` writes them, a unit test compares them."""

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from dbtunnel.api.conditions import CAUSAL_ORDER, ConditionType
from dbtunnel.api.crd import crd, resource_schema
from dbtunnel.api.engines import ENGINES, Engine, EngineInfo, WireProtocol
from dbtunnel.api.forwarder import DatabaseFact, HopFact, HostKeyFact, PublicKeyFact
from dbtunnel.api.reasons import PASSING_SECONDS, REASONS, Reason, ReasonInfo
from dbtunnel.api.resource import API_VERSION, KIND, DatabaseTunnel
from dbtunnel.controller import metrics as operators
from dbtunnel.domain.certificate import Certificate
from dbtunnel.domain.database import told
from dbtunnel.domain.diagnosis import Subject, explain
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.metrics import Metric
from dbtunnel.domain.settings import Defaults
from dbtunnel.forwarder import metrics as forwarders
from tests.support import chart_values
from tests.support.engine_rules import ALLOYDB, REDSHIFT
from tests.support.events import MEANINGS, Event, events_of
from tests.support.health_cases import HEALTH_FILES

ROOT = Path(__file__).parents[2]

_HEADER = "Generated from the code by `make generate`; do not edit."


def crd_yaml() -> str:
    """The CustomResourceDefinition."""
    return f"# {_HEADER}\n" + yaml.safe_dump(crd(), sort_keys=False, width=120)


def conditions_page() -> str:
    """Every condition type and reason, with what is done about it."""
    lines = [
        "# Conditions and reasons",
        f"<!-- {_HEADER} -->",
        "",
        "For whoever reads a tunnel's status, or builds on it. After it you know what each condition and reason means,",
        "what brings it about and what its message looks like, and how soon it is told, given up and tried again.",
        "",
        "`Ready` takes the first of the conditions below that is False, else the first that is Unknown.",
        "A reason is *Stalled* when a person must act; before that, for its grace period, it is *Reconciling*.",
        f"A failure that may mend by itself is *told* once it has lasted {PASSING_SECONDS} s in a forwarder: one that",
        "is over before changes no condition and posts no Event, and counts in the forwarder's metrics and log.",
        "Clear failures and, but after a relapse, recoveries are told at once.",
        "Of several forwarders the worst is told, with how many see it: `2 of 3 pods: ...`. Each change of `Ready`",
        "posts one Event with the reason and the message below, and so does another reason while it stays",
        "False, but not where both may mend by themselves and are of one layer. One",
        "that is like another of the last ten minutes is counted there.",
        "What a server sent is bounded and escaped. How long it takes is in [diagnosis.md](diagnosis.md).",
    ]
    for kind in CAUSAL_ORDER:
        lines += ["", f"## {kind}", "", _docstring_of(ConditionType, kind.name), ""]
        lines += ["| reason | what is the case | told | Stalled | retried |", "| --- | --- | --- | --- | --- |"]
        lines += [_row(reason, info) for reason, info in REASONS.items() if info.type is kind]
        for reason, info in REASONS.items():
            if info.type is kind:
                lines += ["", *_example(reason, info)]
    lines += ["", "## Summary conditions", ""]
    lines += [
        f"- `{kind}`: {_docstring_of(ConditionType, kind.name)}" for kind in ConditionType if kind not in CAUSAL_ORDER
    ]
    return "\n".join(lines) + "\n"


def engines_page() -> str:
    """What differs between engines, and how their clients verify TLS."""
    lines = [
        "# Engines",
        f"<!-- {_HEADER} -->",
        "",
        "For whoever writes tunnels, and for the database's administrator. After it you know what differs between",
        "engines, what a tunnel sees of each, and what AlloyDB and Redshift demand.",
        "",
        "| engine | protocol | default port | URI scheme | `probe.mode: Auto` asks | what the server demands of TLS |",
        "| --- | --- | --- | --- | --- | --- |",
        *(_engine_row(engine, info) for engine, info in ENGINES.items()),
        "",
        *_SEEN_OF_A_DATABASE,
        "",
        *(f"- `{example}`" for example in _examples()),
        "",
        "How a client verifies the database's certificate through the tunnel is in [tls.md](tls.md).",
    ]
    lines += ["", *_KEPT_ALIVE]
    return "\n".join([*lines, "", ALLOYDB, REDSHIFT])


_KEPT_ALIVE = (
    "## How long-lived sessions are kept alive",
    "",
    "A forwarder sends TCP keepalives to its clients (after 60 s of silence) and SSH's to the bastion",
    "(`spec.tunnel.keepalive`). What lies between bastion and database it cannot keep alive: sshd asks for none on",
    "that connection, and the database at its system's pace, on Linux after two hours. Where a firewall or a cloud's",
    "NAT there drops what is silent for some minutes, the client can have the database ask sooner, or be heard itself:",
    "",
    "- PostgreSQL, AlloyDB, libpq and psycopg: `options='-c tcp_keepalives_idle=60 -c tcp_keepalives_interval=15'`;",
    "  JDBC: `?options=-c%20tcp_keepalives_idle=60`; asyncpg: `server_settings={'tcp_keepalives_idle': '60'}`. The",
    "  database then asks the bastion. libpq's own `keepalives_idle` reaches the forwarder and no further.",
    "- Redshift has no such setting, and MySQL leaves it to its system. Let the pool ask for something before the",
    "  firewall's time is over: `keepaliveTime` of HikariCP, `pool_pre_ping` and `pool_recycle` of SQLAlchemy,",
    "  `select 1` elsewhere. Only libpq's form was tried here.",
)

_SEEN_OF_A_DATABASE = (
    "## What is seen of the database",
    "",
    "Nobody logs in for it. The message of `DatabaseReachable` tells it, and `status.database` in short.",
    "",
    "- PostgreSQL, Redshift, AlloyDB: with `probe.mode: Auto` they are asked whether they offer TLS. If so, the",
    "  handshake is finished and ended as it should be, which shows the certificate: its names, its issuer, when",
    "  it expires, and whether it bears the name that clients are told to verify (`spec.database.tls.serverName`,",
    "  by default `spec.database.host`). Nothing is verified, and a certificate that clients would refuse does",
    "  not make the condition False. The database logs nothing but, where `log_connections` is on, `connection",
    "  received`. A server with which no handshake succeeds logs that each time: while all else works it is",
    "  probed once an hour.",
    "- MySQL and MariaDB are not asked, but by a person with [`dbtunnel check --probe`](check.md). The first packet",
    "  that a real client gets tells the version, whether TLS is offered, and how to log in; or why nobody is taken:",
    "  no connection left (error 1040), the SSH server's address blocked (1129) or not allowed (1130). That clients",
    "  leave before their login, for which it blocks the address in the end, is told until none has for ten minutes.",
    "- PostgreSQL tells a client that no connection is left (53300) only after it has asked for a session. Where",
    "  TLS does not hide that, it counts: what is said of TLS is no word against it until somebody has a session,",
    "  or nobody has complained for 60 s.",
    "",
    "`dbtunnel_forwarder_database_certificate_expiry_timestamp_seconds` is the metric of the expiry. Examples:",
)


def _examples() -> Iterator[str]:
    """Messages of a database that answers."""
    end, now = datetime(2027, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    with_tls = DatabaseFact(protocol=WireProtocol.POSTGRESQL, tls_offered=True)
    certificate = Certificate(("orders.internal",), "Shop CA", end)
    yield told(replace(with_tls, tls_offered=False), None, "", now)
    yield told(with_tls, certificate, "orders.internal", now)
    yield told(with_tls, certificate, "10.0.0.5", now)
    yield told(with_tls, certificate, "orders.internal", end)
    login = {"server_version": "8.0.36", "auth_plugin": "caching_sha2_password"}
    mysql = DatabaseFact(protocol=WireProtocol.MYSQL, tls_offered=True, **login)
    yield told(mysql, None, "", now)
    yield told(mysql, None, "", now, leaver="10.0.0.7")


def resource_page() -> str:
    """Every field of the resource."""
    schema = resource_schema()
    lines = [
        "# DatabaseTunnel: every field",
        f"<!-- {_HEADER} -->",
        "",
        "For whoever writes tunnels, or reads their status. After it you know every field, its type and its default;",
        "the same is in `kubectl explain databasetunnel.spec`.",
        "",
    ]
    for part in ("spec", "status"):
        lines += [f"## {part}", "", "| field | type | default | what it is |", "| --- | --- | --- | --- |"]
        lines += [_field_row(path, field) for path, field in fields_of(schema["properties"][part], part)]
        lines.append("")
    return "\n".join(lines)


def metrics_page() -> str:
    """Every metric of both processes, and how many series there can be."""
    both = (("operator", 8082, operators.METRICS), ("forwarder", 8080, forwarders.METRICS))
    lines = [
        "# Metrics",
        f"<!-- {_HEADER} -->",
        "",
        "For whoever monitors tunnels. After it you know what each metric tells, with which labels, and how many",
        "series to expect.",
        "",
        "In Prometheus' text format, over plain HTTP and without a login. How to have them scraped, and the alerts and",
        "the dashboard that use them, is in the [chart's README](../charts/dbtunnel-operator/README.md#monitoring).",
        "",
        "No label has a value that a client or a server chooses: each is one of a list, or a name in the resource. The",
        "last column says how many series one process has of a metric at most. A histogram has one for each bucket and",
        'three more (`le="+Inf"`, `_sum`, `_count`).',
    ]
    for process, port, metrics in both:
        at_most = sum(metric.series for metric in metrics if not metric.is_per_tunnel)
        lines += ["", f"## Of each {process}", "", f"At `/metrics` on port {port}; at most {at_most} series", ""]
        lines[-2] += ", and one for each tunnel." if any(one.is_per_tunnel for one in metrics) else "."
        lines += ["| metric | type | labels | what it tells | series |", "| --- | --- | --- | --- | --- |"]
        lines += [_metric_row(metric) for metric in metrics]
    return "\n".join(lines) + "\n"


def logs_page() -> str:
    """Every event of both processes' logs."""
    lines = [
        "# Logs",
        f"<!-- {_HEADER} -->",
        "",
        "For whoever reads or collects logs. After it you know each event of both processes, its level and its fields.",
        "",
        "Each line is a JSON object with `time`, `level`, `logger`, `event` and the event's own fields: one line for",
        "one fact. Names of events and fields are kept, more may come. What Kopf and other libraries log has the same",
        "form, and its texts are theirs. A line with `exception` is a bug. No line has a secret or anything of a",
        "client's data; what a server said is bounded and escaped.",
        "",
        "`settings.logLevel` of the chart is the operator's level, `settings.forwarderLogLevel` the forwarders'. With",
        "`DEBUG` a forwarder tells each client's way from its connection to its end, with the client's number as `id`.",
    ]
    for title, package in (("forwarder", "forwarder"), ("operator", "controller")):
        lines += [
            "",
            f"## Of each {title}",
            "",
            "| event | level | fields | what is the case |",
            "| --- | --- | --- | --- |",
        ]
        logged = events_of(package)
        lines += [_event_row(name, meaning, logged) for name, meaning in MEANINGS[package].items()]
    return "\n".join(lines) + "\n"


GENERATED: Mapping[str, Callable[[], str]] = {
    "crds/dbtunnel.dev_databasetunnels.yaml": crd_yaml,
    "charts/dbtunnel-operator/files/crd.yaml": crd_yaml,
    "charts/dbtunnel-operator/values.schema.json": chart_values.schema_json,
    "charts/dbtunnel-operator/README.md": chart_values.readme,
    "docs/conditions.md": conditions_page,
    "docs/engines.md": engines_page,
    "docs/logs.md": logs_page,
    "docs/metrics.md": metrics_page,
    "docs/resource.md": resource_page,
    **HEALTH_FILES,
}
"""Each generated file, and what makes its text."""


def _event_row(name: str, meaning: str, logged: Sequence[Event]) -> str:
    calls = [event for event in logged if event.name == name]
    levels = " or ".join(dict.fromkeys(event.level for event in calls))
    fields = ", ".join(f"`{field}`" for field in dict.fromkeys(field for event in calls for field in event.fields))
    return f"| `{name}` | {levels} | {fields} | {meaning} |"


def _metric_row(metric: Metric) -> str:
    labels = "; ".join(f"`{label.name}`: {label.values}" for label in metric.labels)
    buckets = f" Buckets: {', '.join(map(str, metric.buckets))}." if metric.buckets else ""
    series = f"{metric.series} a tunnel" if metric.is_per_tunnel else str(metric.series)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help}{buckets} | {series} |"


def _row(reason: Reason, info: ReasonInfo) -> str:
    soon = f"after {PASSING_SECONDS} s" if info.may_pass else "at once"
    stalled = {None: "never", 0: "at once"}.get(info.grace_seconds, f"after {info.grace_seconds} s")
    retried = f"every {info.retry_seconds} s or slower" if info.retry_seconds else "with backoff"
    return f"| `{reason}` | {info.meaning} | {soon} | {stalled} | {retried} |"


_BASTION, _JUMP_HOST = (
    {"host": name, "hostKey": {"fingerprints": ["SHA256:" + "p" * 43]}} for name in ("bastion", "jump")
)
_FACT = HostKeyFact(algorithm="ssh-ed25519", fingerprint="SHA256:" + "e" * 43)
_PUBLIC = PublicKeyFact(key="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5...", fingerprint="SHA256:" + "k" * 43)


def _subject(**way: Any) -> Subject:
    """What the examples speak of."""
    spec = {"engine": "PostgreSQL", "database": {"host": "orders.internal"}, "tunnel": {**_BASTION, **way}}
    metadata = {"namespace": "shop", "name": "orders"}
    manifest = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
    config = forwarder_config(DatabaseTunnel.parse(manifest), Defaults())
    return Subject(config, ("198.51.100.4",), _PUBLIC, (HopFact(host_keys=(_FACT,)),) * len(config.hops))


def _example(reason: Reason, info: ReasonInfo) -> Iterator[str]:
    """What brings a reason about, and its message in full, for instance."""
    yield f"`{reason}`. {info.cause}"
    yield f"> {explain(reason, info.example, _subject())}"
    if info.behind:
        yield ""
        yield "Behind a jump host:"
        yield f"> {explain(reason, info.example, _subject(jumpHosts=[_JUMP_HOST]))}"


def _engine_row(engine: Engine, info: EngineInfo) -> str:
    probe = info.quiet_probe or "nothing"
    return f"| {engine} | {info.protocol} | {info.default_port} | `{info.uri_scheme}` | {probe} | {info.tls_rule} |"


def fields_of(schema: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The fields within `path` and those within them, by their paths; `[]` stands for a list's items."""
    for name, field in schema.get("properties", {}).items():
        inner = f"{path}.{name}"
        yield inner, field
        yield from fields_of(field, inner)
        if "properties" in field.get("items", {}):
            yield from fields_of(field["items"], f"{inner}[]")


def _field_row(path: str, field: Mapping[str, Any]) -> str:
    default = f"`{field['default']}`" if field.get("default") not in (None, {}, "") else ""
    text = field.get("description", "").replace("|", "\\|")
    return f"| `{path}` | {_type_of(field)} | {default} | {text} |"


def _type_of(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return " \\| ".join(map(str, field["enum"]))
    if field.get("type") == "array":
        return f"list of {_type_of(field['items'])}"
    if "minimum" in field and "maximum" in field:
        return f"integer {field['minimum']} to {field['maximum']}"
    return str(field.get("type", "quantity"))


def _docstring_of(enum: type, name: str) -> str:
    """The text under a member of an enumeration, which Python itself does not keep."""
    source = Path(sys.modules[enum.__module__].__file__ or "").read_text()
    found = re.search(rf'    {name} = "[^"]*"\n    """(.*?)"""', source, re.DOTALL)
    return " ".join(found.group(1).split()) if found else ""


def main() -> None:
    """Writes every file."""
    for name, text in GENERATED.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text())
        print(f"wrote {name}")


if __name__ == "__main__":
    main()
