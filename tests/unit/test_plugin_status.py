"""What `kubectl dbtunnel status` and `check` show."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, timedelta
from typing import Any

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import ForwarderStatus, HopFact, HostKeyFact, LayerFact, LayerStatus
from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.cli.plugin.check import as_forwarders_see_it
from dbtunnel.cli.plugin.replicas import Replica, samples
from dbtunnel.cli.plugin.status_text import (
    BYTES,
    DATABASE_FAILURES,
    FAILURES,
    METRICS,
    PARKED,
    RECEIVED,
    REFUSED,
    SENT,
    SESSIONS,
    View,
    conditions_of,
    is_ready,
    status_text,
)
from dbtunnel.cli.terminal import COLUMNS, Style
from dbtunnel.domain.observed import Problem
from dbtunnel.domain.settings import Defaults
from dbtunnel.domain.status import decide, rejected
from dbtunnel.forwarder import metrics as forwarder_metrics
from dbtunnel.forwarder.metrics import METRICS as DECLARED
from dbtunnel.forwarder.metrics import Metrics
from tests.support.generated import ROOT
from tests.support.values import INSTALLATION, NOW, current_pod, failing, manifest, observed, tunnel, working

ORDERS = tunnel()
FINGERPRINT = "SHA256:" + "h" * 43
SHOWN = HopFact(
    active=True,
    host_keys=(HostKeyFact(algorithm="ssh-ed25519", fingerprint=FINGERPRINT),),
    server_version="SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u7",
    cipher="aes128-gcm@openssh.com",
)
VIEW = View(Style(color=False, unicode=False), NOW + timedelta(hours=2), UTC)

COUNTED = {
    (SESSIONS, ""): 12.0,
    (PARKED, ""): 1.0,
    (BYTES, SENT): 1_300_000.0,
    (BYTES, RECEIVED): 42.0,
    (FAILURES, "ConnectionRefused"): 3.0,
    (FAILURES, "KeyRejected"): 1.0,
    (DATABASE_FAILURES, "HostBlocked"): 2.0,
    (REFUSED, "Parking"): 2.0,
    (REFUSED, "ConnectionLimit"): 5.0,
}

WORKS = """\
shop/orders: PostgreSQL orders.internal:5432
clients connect to orders.shop.svc:5432

LAYER              STATE  FOR  REASON
WorkloadReady      ok     2h
KeyReady           ok     2h
TransportReady     ok     2h
Authenticated      ok     2h
DatabaseReachable  ok     2h
Ready              ok     2h

SSH SERVER              IN USE BY  VERSION
bastion 203.0.113.7:22  1 replica  OpenSSH_9.2p1 Debian-2+deb12u7

REPLICA                        READY  AGE  SESSIONS  PARKED     SENT  RECEIVED
orders-tunnel-5b9f6c7d8-abcde  yes     2h        12       1  1.2 MiB      42 B

Failed attempts to connect since these replicas began: ConnectionRefused 3,
KeyRejected 1.
Clients and probes without a database since these replicas began: HostBlocked 2.

READY
The tunnel works.
"""


def having(document: ForwarderStatus, of: DatabaseTunnel = ORDERS) -> DatabaseTunnel:
    """The tunnel with the status that the operator writes of a report."""
    return of.model_copy(update={"status": decide(of, observed(of, document), INSTALLATION, NOW).status})


def replica(name: str = "orders-tunnel-5b9f6c7d8-abcde", **facts: Any) -> Replica:
    uid = name[:30]
    pod = current_pod(ORDERS, uid, name=name)
    known = {"created": NOW.isoformat(), "node": "node-1", "status": working(ORDERS, uid), "metrics": COUNTED}
    return Replica(**{"pod": pod, **known, **facts})


def test_a_tunnel_that_works() -> None:
    assert status_text(having(working(ORDERS, hops=(SHOWN,))), [replica()], VIEW) == WORKS


def test_the_page_shows_the_same() -> None:
    assert f"```text\n{WORKS}```\n" in (ROOT / "docs/plugin.md").read_text()


def test_wide() -> None:
    text = status_text(having(working(ORDERS, hops=(SHOWN,))), [replica()], replace(VIEW, wide=True))
    rows = [line.split() for line in text.splitlines()]
    assert [
        "REPLICA",
        "READY",
        "AGE",
        "SESSIONS",
        "PARKED",
        "SENT",
        "RECEIVED",
        "SSH",
        "CLIENTS",
        "REFUSED",
        "NODE",
    ] in rows
    assert [
        "orders-tunnel-5b9f6c7d8-abcde",
        "yes",
        "2h",
        "12",
        "1",
        "1.2",
        "MiB",
        "42",
        "B",
        "0",
        "0",
        "7",
        "node-1",
    ] in rows
    assert f"aes128-gcm@openssh.com  ssh-ed25519 {FINGERPRINT}" in text
    assert f"Current            SHA256:{'k' * 43}" in text


def test_what_failed_and_what_to_do() -> None:
    text = status_text(having(failing(ORDERS, ConditionType.AUTHENTICATED, Reason.KEY_REJECTED)), [], VIEW)
    assert "Authenticated      FAILED   2h   KeyRejected\nDatabaseReachable  unknown  2h   Progressing\n" in text
    assert "No forwarder runs." in text
    assert "Last failure: KeyRejected, 12:00:00 (2h ago)" in text
    line = having(working(ORDERS)).status.hops[0].authorized_keys_line  # type: ignore[index]
    assert text.endswith(f": (below)\n\n{line}\n")
    assert "NOT READY: KeyRejected" in text


def test_what_was_seen_of_the_database_is_told() -> None:
    seen = "PostgreSQL answers, offers TLS, and its certificate holds for orders.internal, until 2027-01-01"
    fact = LayerFact(status=LayerStatus.TRUE, reason=Reason.SUCCEEDED, seen=seen)
    text = status_text(having(working(ORDERS, database=fact)), [], VIEW)
    assert f" database: {seen} " in " ".join(text.split())


def test_what_pins_the_host_keys_is_yaml() -> None:
    document = failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.HOST_KEY_UNKNOWN, hops=(SHOWN,))
    text = status_text(having(document), [], VIEW)
    assert text.endswith(f"(below)\n\nspec:\n  tunnel:\n    hostKey:\n      fingerprints:\n      - {FINGERPRINT}\n")


def test_a_failure_that_is_over_is_told_with_its_message() -> None:
    failed = having(failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_REFUSED))
    text = status_text(having(working(ORDERS), failed), [], VIEW)
    assert "Last failure: ConnectionRefused, 12:00:00 (2h ago)\n  bastion 203.0.113.7:22: " in text


def test_a_key_that_is_not_accepted_yet_is_told() -> None:
    keys = [
        {"key": "ssh-ed25519 A", "fingerprint": "SHA256:a", "use": "Current", "accepted": True},
        {"key": "ssh-ed25519 B", "fingerprint": "SHA256:b", "use": "Next", "accepted": False},
    ]
    of = DatabaseTunnel.parse(manifest(status={"publicKeys": keys}))
    assert "KEY      ACCEPTED  FINGERPRINT\nCurrent  yes       SHA256:a\nNext     no        SHA256:b" in status_text(
        of, [], VIEW
    )


def test_a_tunnel_without_a_status() -> None:
    text = status_text(ORDERS, "not asked", VIEW)
    assert "does the operator run?" in text
    assert "not asked" in text
    assert "has not seen the latest change" in text


@pytest.mark.parametrize("name", ["orders-tunnel-5b9f6c7d8-abcde", "o" * 63 + "-5b9f6c7d8-abcde"])
def test_it_fits_the_terminal(name: str) -> None:
    of = tunnel(
        {"tunnel": {"host": "bastion-of-the-shop-in-frankfurt.internal.example.com", "fallbacks": [{"host": "b"}]}}
    )
    documents = [
        working(of, hops=(SHOWN, HopFact())),
        failing(of, ConditionType.TRANSPORT_READY, Reason.HOST_KEY_MISMATCH, hops=(SHOWN, SHOWN)),
        failing(of, ConditionType.DATABASE_REACHABLE, Reason.DATABASE_TIMEOUT, "x " * 200, hops=(SHOWN, SHOWN)),
    ]
    for document in documents:
        text = status_text(having(document, of), [replica(name), replica("p", status=None, problem="y " * 99)], VIEW)
        assert [line for line in text.splitlines() if len(line) > COLUMNS] == []
        assert name in text.splitlines() or f"\n{name}  " in text


def test_nothing_that_a_server_or_a_pod_says_forges_anything() -> None:
    hostile = "\x1b[2J\nREADY\r\u202e"
    status: Mapping[str, Any] = {
        "conditions": [
            {"type": "Ready", "status": "False", "reason": hostile, "message": hostile, "lastTransitionTime": hostile},
            {"type": "KeyReady", "status": hostile, "reason": hostile, "message": "", "lastTransitionTime": "1"},
        ],
        "hops": [{"role": "Bastion", "host": "203.0.113.7", "port": 22, "active": True, "serverVersion": hostile,
                  "cipher": hostile, "hostKeyFingerprints": [hostile], "authorizedKeysLine": hostile}],
        "publicKeys": [{"key": hostile, "fingerprint": hostile, "use": hostile}],
        "endpoint": {"host": hostile, "port": 1, "clusterIP": hostile},
        "lastFailure": {"time": hostile, "reason": hostile, "message": hostile},
    }  # fmt: skip
    of = DatabaseTunnel.parse(manifest(status=status))
    bad = replica("p", metrics={(FAILURES, hostile): 3.0}, problem=hostile, created=hostile, node=hostile)
    for wide in (False, True):
        text = status_text(of, [bad], replace(VIEW, wide=wide))
        assert not {char for char in text if char != "\n" and not " " <= char <= "~"}
        assert "READY" not in text.splitlines()


def test_the_metrics_that_are_read_are_declared() -> None:
    assert set(METRICS) <= {metric.name for metric in DECLARED}


def test_what_a_forwarder_prints_is_read() -> None:
    counted = Metrics()
    counted.add(forwarder_metrics.CLIENTS_OPEN, 3)
    counted.add(forwarder_metrics.BYTES, 70_000_000_000, SENT)
    counted.add(forwarder_metrics.SSH_FAILURES, 2, "KeyRejected")
    found = samples(counted.text())
    assert found[SESSIONS, ""] == 3
    assert found[BYTES, SENT] == 70_000_000_000
    assert found[FAILURES, "KeyRejected"] == 2


def test_what_is_no_sample_is_passed_over() -> None:
    text = '# HELP a b\na 1\nb{c="d",e="f"} 2\nc{d="e"} 3\nd 1.5e3\n\nnot a sample\ne 1.2.3\nf NaN'
    assert samples(text) == {("a", ""): 1, ("c", "e"): 3, ("d", ""): 1500}


# --- check --------------------------------------------------------------------------------------------------------


def test_check_believes_forwarders_and_not_the_written_status() -> None:
    written = having(failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_REFUSED))
    seen = as_forwarders_see_it(written, [replica()], VIEW.now)
    assert is_ready(seen)
    assert not is_ready(written)

    turned_away = replica(status=failing(ORDERS, ConditionType.AUTHENTICATED, Reason.KEY_REJECTED))
    seen = as_forwarders_see_it(having(working(ORDERS)), [turned_away], VIEW.now)
    assert not is_ready(seen)
    assert "NOT READY: KeyRejected" in status_text(seen, [turned_away], VIEW)


def test_check_tells_of_a_forwarder_that_does_not_answer() -> None:
    silent = replica(status=None, problem="no answer")
    seen = as_forwarders_see_it(having(working(ORDERS)), [silent], VIEW.now)
    assert "NOT READY: ForwarderUnreachable" in status_text(seen, [silent], VIEW)
    assert not is_ready(as_forwarders_see_it(having(working(ORDERS)), [], VIEW.now)), "none runs"


def test_check_asks_the_newest_pods() -> None:
    """Those before them end: what they say is shown, and counts for nothing."""
    old = replica("old", status=failing(ORDERS, ConditionType.AUTHENTICATED, Reason.KEY_REJECTED))
    old = replace(old, pod=replace(old.pod, revision="before"))
    assert is_ready(as_forwarders_see_it(having(working(ORDERS)), [old, replica("new")], VIEW.now))
    assert not is_ready(as_forwarders_see_it(having(working(ORDERS)), [replica("new"), old], VIEW.now))


def unmakeable(reason: Reason, generation: int = 3) -> DatabaseTunnel:
    """A tunnel whose objects cannot be made, as the operator says of a generation; its earlier pods run."""
    seen = observed(ORDERS, working(ORDERS), problem=Problem(reason, "Service orders"))
    of = DatabaseTunnel.parse(manifest({"metadata.generation": generation}))
    return ORDERS.model_copy(update={"status": decide(of, seen, INSTALLATION, NOW).status})


@pytest.mark.parametrize("replicas", [[replica()], []], ids=["earlier pods run", "no pod runs"])
@pytest.mark.parametrize("reason", [Reason.NAME_CONFLICT, Reason.REJECTED, Reason.QUOTA_EXCEEDED, Reason.PROGRESSING])
def test_check_takes_from_the_operator_what_became_of_its_objects(reason: Reason, replicas: list[Replica]) -> None:
    written = unmakeable(reason)
    seen = as_forwarders_see_it(written, replicas, VIEW.now)
    shown, kept = conditions_of(seen), conditions_of(written)
    assert f"NOT READY: {reason}\n" in status_text(seen, replicas, VIEW)
    assert not is_ready(seen)
    assert [shown[kind] for kind in ("WorkloadReady", "Ready", "Reconciling", "Stalled")] == [
        kept[kind] for kind in ("WorkloadReady", "Ready", "Reconciling", "Stalled")
    ]
    assert seen.status.last_failure == written.status.last_failure
    assert shown["KeyReady"].status == ("True" if replicas else "Unknown"), "forwarders know the layers"


def test_check_does_not_take_what_the_operator_says_of_an_earlier_spec() -> None:
    assert is_ready(as_forwarders_see_it(unmakeable(Reason.NAME_CONFLICT, generation=2), [replica()], VIEW.now))


def test_check_tells_of_a_spec_that_the_operator_cannot_read() -> None:
    status = rejected(3, having(working(ORDERS)).status, "spec.new: not known", NOW)
    seen = as_forwarders_see_it(ORDERS.model_copy(update={"status": status}), [replica()], VIEW.now)
    assert not is_ready(seen)
    assert "cannot read the spec: spec.new: not known" in " ".join(status_text(seen, [], VIEW).split())


def test_check_wants_as_many_forwarders_as_the_installer() -> None:
    installation = replace(INSTALLATION, defaults=Defaults(replicas=3))
    status = decide(ORDERS, observed(ORDERS, working(ORDERS)), installation, NOW).status
    of = ORDERS.model_copy(update={"status": status})
    seen = as_forwarders_see_it(of, [replica()], VIEW.now)
    assert conditions_of(seen)["WorkloadReady"].message == "1 of 3 forwarders run and answer."
    assert not is_ready(seen)
    assert is_ready(as_forwarders_see_it(of, [replica(name) for name in "abc"], VIEW.now))


@pytest.mark.parametrize("replicas", [None, 0])
def test_check_wants_one_forwarder_where_nobody_says_more(replicas: int | None) -> None:
    """0: of a tunnel that was suspended until a moment ago."""
    status = having(working(ORDERS)).status.model_copy(update={"replicas": replicas})
    assert is_ready(as_forwarders_see_it(ORDERS.model_copy(update={"status": status}), [replica()], VIEW.now))
