"""What is told of a database that answers."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.api.forwarder import DatabaseFact
from dbtunnel.api.status import DatabaseTunnelStatus
from dbtunnel.domain.certificate import Certificate
from dbtunnel.domain.database import told
from dbtunnel.domain.news import client_news
from dbtunnel.domain.status import decide
from tests.support.values import INSTALLATION, observed, tunnel, working

NOW = datetime(2026, 11, 5, 12, tzinfo=UTC)
END = datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
CERTIFICATE = Certificate(("orders.internal", "*.db.internal"), "Shop CA", END)
WITH_TLS = DatabaseFact(protocol="PostgreSQL", tls_offered=True)


@pytest.mark.parametrize(
    ("fact", "sentence"),
    [
        (DatabaseFact(protocol="PostgreSQL"), "PostgreSQL answers."),
        (DatabaseFact(protocol="PostgreSQL", tls_offered=False), "PostgreSQL answers: no TLS offered."),
        (WITH_TLS, "PostgreSQL answers: TLS offered."),
        (
            DatabaseFact(
                protocol="MySQL", server_version="8.0.36", tls_offered=True, auth_plugin="caching_sha2_password"
            ),
            'MySQL answers: version "8.0.36", TLS offered, login by "caching_sha2_password".',
        ),
    ],
)
def test_a_database_without_a_certificate(fact: DatabaseFact, sentence: str) -> None:
    assert told(fact, None, "orders.internal", NOW) == sentence


def test_a_certificate_that_clients_take() -> None:
    assert told(WITH_TLS, CERTIFICATE, "orders.internal", NOW) == (
        'PostgreSQL answers: TLS offered. Its certificate is for "orders.internal", "*.db.internal", issued by'
        ' "Shop CA", and expires at 2027-01-02T03:04:05Z.'
    )


def test_a_name_that_it_does_not_bear() -> None:
    assert told(WITH_TLS, CERTIFICATE, "10.0.0.5", NOW).endswith(
        ' It does not bear the name "10.0.0.5", so clients that verify names refuse it. Set'
        " spec.database.tls.serverName to a name that it bears, or have it issued for this one."
    )


def test_one_that_has_expired() -> None:
    text = told(WITH_TLS, CERTIFICATE, "orders.internal", END)
    assert text.endswith("expired at 2027-01-02T03:04:05Z. Clients that verify it refuse it. Have it renewed.")


def test_clients_that_leave_before_their_login() -> None:
    text = told(DatabaseFact(protocol="MySQL"), None, "orders.internal", NOW, leaver="10.0.0.7")
    assert text.startswith("MySQL answers. Clients leave before their login, as 10.0.0.7 did. ")
    assert text.endswith(" or raise max_connect_errors.")


@given(st.lists(st.text(), max_size=200), st.text(), st.text(max_size=253), st.text(max_size=128))
def test_hostile_text_is_bounded_and_one_line(names: list[str], issuer: str, server_name: str, version: str) -> None:
    """As long as a layer's fact may be, and the warning is whole."""
    fact = DatabaseFact(protocol="MySQL", server_version=version, auth_plugin=version[:64], tls_offered=True)
    server_name = "".join(char for char in server_name if char.isascii() and char.isalnum())
    text = told(fact, Certificate(tuple(names), issuer, NOW), server_name, NOW, handshake_fails=True)
    assert len(text) <= 1024
    assert text.isascii()
    assert text.isprintable()
    assert len(told(fact, None, server_name, NOW, leaver="ffff:" * 7 + "ffff%eth0")) <= 1024


# --- and what the status tells of it ----------------------------------------------------------------------------------

TWO = tunnel({"replicas": 2})


def status_of(*seen: str) -> DatabaseTunnelStatus:
    """Of forwarders that have seen this of the database."""
    fact = working(TWO).database
    documents = (working(TWO, database=replace(fact, seen=text)) for text in seen)
    return decide(TWO, observed(TWO, *documents), INSTALLATION, NOW).status


def message(status: DatabaseTunnelStatus, kind: str = "DatabaseReachable") -> str:
    return next(one.message for one in status.conditions or () if one.type == kind)


def test_of_replicas_the_one_is_heard_that_has_more_to_tell() -> None:
    assert message(status_of("MySQL answers.", "MySQL answers. But.")) == "MySQL answers. But."


def test_that_clients_leave_before_their_login_is_an_event_once() -> None:
    answers = told(DatabaseFact(protocol="MySQL"), None, "", NOW)
    quiet, left = (
        status_of(answers, answers),
        status_of(answers, told(DatabaseFact(), None, "", NOW, leaver="10.0.0.7")),
    )
    assert client_news(quiet.document(), quiet) is None
    news = client_news(quiet.document(), left)
    assert news
    assert news[:2] == ("Warning", "ClientsLeave")
    assert news[2].startswith("Clients leave before their login, as 10.0.0.7 did.")
    assert message(left).endswith(news[2])
    assert message(left, "Ready") == f"The tunnel works. {news[2]}"
    assert client_news(left.document(), left) is None
