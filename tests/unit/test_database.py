"""What is told of a database that answers."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.api.forwarder import DatabaseFact
from dbtunnel.domain.certificate import Certificate
from dbtunnel.domain.database import told

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


@given(st.lists(st.text(), max_size=200), st.text(), st.text(max_size=253), st.text(max_size=128))
def test_hostile_text_is_bounded_and_one_line(names: list[str], issuer: str, server_name: str, version: str) -> None:
    """As long as a layer's fact may be, and the warning is whole."""
    fact = DatabaseFact(protocol="MySQL", server_version=version, auth_plugin=version[:64], tls_offered=True)
    server_name = "".join(char for char in server_name if char.isascii() and char.isalnum())
    text = told(fact, Certificate(tuple(names), issuer, NOW), server_name, NOW, handshake_fails=True)
    assert len(text) <= 1024
    assert text.isascii()
    assert text.isprintable()
