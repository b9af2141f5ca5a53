"""What a server says stands in quotes that it cannot end, wherever it gets into a message."""

from collections.abc import Callable
from dataclasses import replace

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.api.engines import WireProtocol
from dbtunnel.api.forwarder import DatabaseFact
from dbtunnel.api.reasons import Reason
from dbtunnel.api.status import Hop
from dbtunnel.cli.advice import told
from dbtunnel.cli.terminal import Style
from dbtunnel.domain import database
from dbtunnel.domain.certificate import Certificate
from dbtunnel.domain.diagnosis import Subject, explain, quoted, unquoted
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.news import all_news
from dbtunnel.domain.observed import Pod
from dbtunnel.domain.settings import Defaults
from dbtunnel.domain.status import decide
from dbtunnel.forwarder.evidence import judge, unexpected
from dbtunnel.forwarder.failures import (
    Failure,
    Progress,
    channel_failure,
    connect_failure,
    jump_failure,
    no_common_algorithm,
    transport_failure,
)
from tests.support.values import INSTALLATION, NOW, manifest, observed, tunnel, working
from tests.unit.test_forwarder_failures import VERSION, heard

EVIL = 'refused" bastion 203.0.113.7:22: Host key changed; pin it: {"a": "\\'
"""Ends a quote, names the SSH server, pretends to begin a patch, and escapes what comes after it."""

SUBJECT = Subject(forwarder_config(tunnel({"tunnel.jumpHosts": [{"host": "jump"}]}), Defaults()))
ORDERS = tunnel()
HOP = Hop(role="Bastion", host="203.0.113.7", port=22, host_key_fingerprints=("ssh-ed25519 SHA256:evil",))
IN, OUT = Progress(host_key_verified=True, limit_seconds=9), Progress(limit_seconds=9)
OPEN = asyncssh.ChannelOpenError
MYSQL_ERROR = b"\xff" + (1040).to_bytes(2, "little") + EVIL.encode()
POSTGRESQL_ERROR = b"C53300\0M" + EVIL.encode() + b"\0\0"


def judged(protocol: WireProtocol, first: bytes) -> Failure:
    with pytest.raises(Failure) as raised:
        judge(protocol, first)
    return raised.value


PLACES: dict[str, Callable[[], Failure]] = {
    "turned away": lambda: connect_failure(asyncssh.DisconnectError(12, EVIL), OUT, heard(VERSION)),
    "before its version": lambda: connect_failure(asyncssh.ConnectionLost("x"), OUT, heard(EVIL.encode())),
    "full": lambda: connect_failure(asyncssh.ConnectionLost("x"), OUT, heard(b"Exceeded MaxStartups" + EVIL.encode())),
    "goodbye": lambda: connect_failure(asyncssh.DisconnectError(2, EVIL), OUT, heard(VERSION)),
    "exchange": lambda: connect_failure(asyncssh.KeyExchangeFailed(EVIL), OUT, heard(VERSION)),
    "algorithms": lambda: no_common_algorithm("MAC", "hmac-sha2-256", EVIL),
    "login": lambda: connect_failure(asyncssh.DisconnectError(2, EVIL), IN, heard(VERSION)),
    "tries": lambda: connect_failure(asyncssh.Error(2, f"Too many authentication failures {EVIL}"), IN, heard(VERSION)),
    "prohibited": lambda: channel_failure(OPEN(1, EVIL), 9),
    "database": lambda: channel_failure(OPEN(2, EVIL), 9),
    "channels": lambda: channel_failure(OPEN(4, EVIL), 9),
    "channel's connection": lambda: channel_failure(asyncssh.DisconnectError(2, EVIL), 9),
    "jump host prohibits": lambda: jump_failure(OPEN(1, EVIL), 0, "bastion:22", 9),
    "jump host's connection": lambda: jump_failure(OPEN(2, EVIL), 0, "bastion:22", 9),
    "jump host's channels": lambda: jump_failure(OPEN(4, EVIL), 0, "bastion:22", 9),
    "another protocol": lambda: unexpected(EVIL.encode()),
    "PostgreSQL": lambda: judged(
        WireProtocol.POSTGRESQL, b"E" + (4 + len(POSTGRESQL_ERROR)).to_bytes(4, "big") + POSTGRESQL_ERROR
    ),
    "MySQL": lambda: judged(WireProtocol.MYSQL, len(MYSQL_ERROR).to_bytes(3, "little") + b"\0" + MYSQL_ERROR),
    "log of a container": lambda: transport_failure(*last_words()),
    "registry": lambda: transport_failure(*words_of_a_registry()),
}


def words_of_a_registry() -> tuple[Reason, str]:
    """What the kubelet heard where it asked for an image."""
    container = {"state": {"waiting": {"reason": "ErrImagePull", "message": f"failed to pull: {EVIL}"}}}
    pod = Pod.of({"metadata": {"uid": "u", "name": "p"}, "status": {"containerStatuses": [container]}})
    assert pod.problem
    return pod.problem.reason, pod.problem.seen


def last_words() -> tuple[Reason, str]:
    """The end of a forwarder's log, which the kubelet tells of one that ended."""
    container = {
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"reason": "Error", "exitCode": 1, "message": EVIL}},
    }
    pod = Pod.of({"metadata": {"uid": "u", "name": "p"}, "status": {"containerStatuses": [container]}})
    assert pod.problem
    return pod.problem.reason, pod.problem.seen


@pytest.mark.parametrize("place", PLACES)
def test_a_server_cannot_speak_for_the_message(place: str) -> None:
    failure = PLACES[place]()
    message = explain(failure.reason, failure.seen, SUBJECT)
    assert "Host key changed" in message
    assert "Host key changed" not in unquoted(message)
    shown = "\n".join(told(message, [HOP], Style(color=False, unicode=True)))
    assert " ".join(shown.split()) == message, "nothing is cut away, and nothing to paste stands below"


@pytest.mark.parametrize("fact", [{"server_version": EVIL}, {"auth_plugin": EVIL}], ids=str)
def test_what_a_database_says_of_itself_is_quoted(fact: dict[str, str]) -> None:
    message = database.told(DatabaseFact(protocol="MySQL", **fact), None, "db", NOW)  # type: ignore[arg-type]
    assert "refused" in message
    assert "refused" not in unquoted(message)


FORGED = "Clients leave before their login: call +1 900 EVIL now"
"""What the operator's own sentence of clients begins with."""

WORDS = ["", '"', '\\"', "\\", '" ', '". ']
"""What a server may put before it, to end the quote it stands in."""


def certified(*names: str, issuer: str = "CA") -> Certificate:
    return Certificate(names, issuer, NOW)


DATABASES: dict[str, Callable[[str], tuple[DatabaseFact, Certificate | None]]] = {
    "version": lambda text: (DatabaseFact(protocol="MySQL", server_version=text), None),
    "auth plugin": lambda text: (DatabaseFact(protocol="MySQL", auth_plugin=text), None),
    "name of its certificate": lambda text: (DatabaseFact(protocol="PostgreSQL"), certified("db", text)),
    "issuer of its certificate": lambda text: (DatabaseFact(protocol="PostgreSQL"), certified("db", issuer=text)),
}


def reachable(seen: str) -> tuple[str, list[tuple[str, str, str]], str]:
    """What the message of Ready is then, the Events that are posted, and the message of DatabaseReachable."""
    forwarder = working(ORDERS)
    document = replace(forwarder, database=replace(forwarder.database, seen=seen))
    status = decide(ORDERS, observed(ORDERS, document), INSTALLATION, NOW).status
    messages = {one.type: one.message for one in status.conditions or ()}
    return messages["Ready"], list(all_news(manifest(), status)), messages["DatabaseReachable"]


@pytest.mark.parametrize("before", WORDS)
@pytest.mark.parametrize("place", DATABASES)
def test_a_database_cannot_speak_for_ready_or_for_an_event(place: str, before: str) -> None:
    fact, certificate = DATABASES[place](before + FORGED)
    ready, news, shown = reachable(database.told(fact, certificate, "db", NOW))
    assert "call +1 900" in shown, "it is told, as what the database says"
    assert ready == "The tunnel works."
    assert [one[1:] for one in news] == [("Ready", ready)]


def test_nor_for_an_event_that_is_due() -> None:
    """Once, and in the operator's own words."""
    fact, _ = DATABASES["version"](FORGED)
    ready, news, _ = reachable(database.told(fact, None, "db", NOW, leaver="10.0.0.7"))
    assert ready.startswith("The tunnel works. Clients leave before their login, as 10.0.0.7 did.")
    assert [one[1] for one in news] == ["Ready", "ClientsLeave"]
    assert not [text for text in (ready, news[1][2]) if "EVIL" in text]


@given(st.text(), st.integers(1, 60))
def test_a_quote_is_bounded_and_ends_at_its_last_character(text: str, limit: int) -> None:
    shown = quoted(text, limit)
    assert len(shown) <= limit + 2
    assert shown.isascii()
    assert shown.isprintable()
    assert unquoted(f"{shown}: rest") == '"' * len(shown) + ": rest"


def test_quotes_and_backslashes_are_escaped_and_nothing_is_half() -> None:
    assert quoted('a "b" \\ \n') == r'"a \"b\" \\ \n"'
    assert quoted('ab"', 3) == '"ab"'
