"""Other bastions take the first one's place while it cannot be used, and give it back."""

import threading
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from dbtunnel.api.forwarder import ForwarderKey, ForwarderStatus, HostKeyRule
from tests.support.bastion import Bastion
from tests.support.databases import DATABASE, PASSWORD, PostgresServer
from tests.support.forwarder import KEY, PASSPHRASE_KEY, Forwarder, hop_to, seconds
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import wait_until

StartForwarder = Callable[..., Forwarder]
StartBastion = Callable[..., Bastion]

LAYERS = ("key", "transport", "authentication", "database")

RETURN_SECONDS = 25
"""The first check comes after ten seconds at most, the second after thirty."""


def connect(forwarder: Forwarder) -> "psycopg.Connection[tuple[Any, ...]]":
    options: dict[str, Any] = {"host": "127.0.0.1", "port": forwarder.port, "connect_timeout": 15}
    return psycopg.connect(user="app", password=PASSWORD, dbname=DATABASE, **options)


def ask(session: "psycopg.Connection[tuple[Any, ...]]") -> int:
    row = session.execute("select count(*) from orders").fetchone()
    assert row is not None
    return int(row[0])


def uses(forwarder: Forwarder, number: int, timeout_seconds: float = 15) -> ForwarderStatus:
    """Waits until new clients go through this bastion alone, and the database answers."""

    def fulfilled(status: ForwarderStatus) -> bool:
        active = [place for place, hop in enumerate(status.hops) if hop.active]
        return active == [number] and all(getattr(status, name).status == "True" for name in LAYERS)

    return forwarder.wait(fulfilled, f"hop {number} in use", timeout_seconds)


@pytest.fixture
def fallback(further_bastions: StartBastion, client_key: KeyPair) -> Bastion:
    """Another way to the same databases."""
    return further_bastions({"orders.internal": "127.0.0.1"}, client_key.public)


@pytest.fixture
def start_pair(start_forwarder: StartForwarder, fallback: Bastion) -> StartForwarder:
    """Starts a forwarder with a bastion and a fallback."""

    def start(database_port: int, files: Any = None, /, **changes: Any) -> Forwarder:
        return start_forwarder(database_port, files, **{"fallbacks": (hop_to(fallback),), **changes})

    return start


# --- it takes over ----------------------------------------------------------------------------------------------------


def test_the_first_is_used_while_it_works(
    start_pair: StartForwarder, fallback: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start_pair(postgres.port)
    uses(forwarder, 0)
    assert "Connection from" not in fallback.log_text()


def test_a_fallback_serves_clients_that_came_while_the_first_was_lost_and_gives_back_without_cutting_a_session(
    start_pair: StartForwarder, bastion: Bastion, fallback: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start_pair(postgres.port)
    uses(forwarder, 0)
    served: list[int] = []
    stop = threading.Event()

    def arrive() -> None:
        while not stop.is_set():
            with connect(forwarder) as session:
                served.append(ask(session))

    clients = [threading.Thread(target=arrive) for _ in range(4)]
    bastion.stop()
    began = time.monotonic()
    for client in clients:
        client.start()
    status = uses(forwarder, 1)
    assert time.monotonic() - began < 10, "before anybody's time in the parking is over"
    failure = status.hops[0].failure
    assert failure is not None
    assert failure.reason == "ConnectionRefused"
    wait_until(lambda: len(served) >= 20, "clients to be served")

    with connect(forwarder) as session:
        assert ask(session) == 3
        bastion.start()
        status = uses(forwarder, 0, RETURN_SECONDS)
        assert status.hops[0].failure is None
        wait_until(lambda: "Accepted publickey" in bastion.log_text(), "a login at the first")
        before = len(served)
        wait_until(lambda: len(served) >= before + 20, "clients to be served by the first")
        assert fallback.connections() == 1, "that of the session"
        assert ask(session) == 3
    stop.set()
    for client in clients:
        client.join(20)
    assert set(served) == {3}
    assert forwarder.metric('dbtunnel_forwarder_clients_refused_total{reason="Parking"}') == 0
    wait_until(lambda: fallback.connections() == 0, "the connection to the fallback to end with its last session")


def test_a_fallback_takes_over_from_a_bastion_that_hangs(
    start_pair: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start_pair(postgres.port, seconds=seconds(connect_timeout=2))
    uses(forwarder, 0)
    bastion.pause()
    began = time.monotonic()
    forwarder.wait(lambda status: status.transport.status == "False", "the keepalive to give up")
    with connect(forwarder) as session:
        assert ask(session) == 3
    assert time.monotonic() - began < 10
    uses(forwarder, 1)
    bastion.resume()


@pytest.mark.parametrize("wrong", ["host key", "no pin", "key", "secret"])
def test_a_first_bastion_that_cannot_be_trusted_or_logged_in_to_is_passed_over_and_told(
    start_forwarder: StartForwarder,
    bastion: Bastion,
    fallback: Bastion,
    postgres: PostgresServer,
    client_key: KeyPair,
    wrong: str,
) -> None:
    own = ForwarderKey(secret="fallback-ssh", key=KEY, passphrase_key=PASSPHRASE_KEY)
    changes: dict[str, Any] = {"fallbacks": (hop_to(fallback),)}
    files: Any = None
    if wrong == "host key":
        changes["bastion"] = hop_to(bastion, host_key=hop_to(fallback).host_key)
    if wrong == "no pin":
        changes["bastion"] = hop_to(bastion, host_key=HostKeyRule())
    if wrong == "key":
        bastion.unauthorize()
    if wrong == "secret":
        files = {}
        changes["fallbacks"] = (hop_to(fallback, key=own),)
        changes["hop_files"] = {(1, "key"): {KEY: client_key.private}}
    forwarder = start_forwarder(postgres.port, files, **changes)
    status = uses(forwarder, 1)
    failure = status.hops[0].failure
    assert failure is not None
    assert (
        failure.reason
        == {
            "host key": "HostKeyMismatch",
            "no pin": "HostKeyUnknown",
            "key": "KeyRejected",
            "secret": "SecretNotFound",
        }[wrong]
    )
    passed = [one for one in forwarder.events() if one["event"] == "passed over"]
    assert [(one["hop"], one["reason"]) for one in passed] == [
        (f"bastion {bastion.host}:{bastion.port}", failure.reason)
    ]
    assert bastion.log_text().count("Accepted publickey") == 0


def test_the_failure_of_the_first_is_told_where_no_fallback_helps(
    start_pair: StartForwarder, bastion: Bastion, fallback: Bastion, postgres: PostgresServer
) -> None:
    bastion.stop()
    fallback.unauthorize()
    forwarder = start_pair(postgres.port)
    fact = forwarder.wait_for("transport", "ConnectionRefused")
    assert fact.hop == 0
    told = forwarder.status().hops[1].failure
    assert told is not None
    assert (told.reason, told.hop) == ("KeyRejected", 1)
    bastion.start()
    uses(forwarder, 0)


def test_the_second_fallback_is_used_where_the_first_one_cannot_be(
    start_pair: StartForwarder,
    further_bastions: StartBastion,
    bastion: Bastion,
    fallback: Bastion,
    postgres: PostgresServer,
    client_key: KeyPair,
) -> None:
    second = further_bastions({"orders.internal": "127.0.0.1"}, client_key.public)
    bastion.stop()
    fallback.stop()
    forwarder = start_pair(postgres.port, fallbacks=(hop_to(fallback), hop_to(second)))
    uses(forwarder, 2)
    fallback.start()
    uses(forwarder, 1, RETURN_SECONDS)
    bastion.start()
    uses(forwarder, 0, 2 * RETURN_SECONDS)


# --- it does not take over where it should not ------------------------------------------------------------------------


def test_a_new_key_that_the_first_rejects_leaves_the_connection_where_it_is(
    start_pair: StartForwarder, bastion: Bastion, fallback: Bastion, postgres: PostgresServer, client_key: KeyPair
) -> None:
    new = key_pair()
    fallback.authorize(client_key.public, new.public)
    forwarder = start_pair(postgres.port)
    uses(forwarder, 0)
    with connect(forwarder) as session:
        forwarder.write_secret({KEY: new.private})
        forwarder.wait(
            lambda status: bool(status.next_key and status.next_key.fact.reason == "KeyRejected"), "a refusal"
        )
        assert forwarder.status().authentication.status == "True"
        assert ask(session) == 3
        with connect(forwarder) as another:
            assert ask(another) == 3
        assert [hop.active for hop in forwarder.status().hops] == [True, False]
        bastion.authorize(new.public)
        forwarder.write_secret({KEY: new.private, "touched": "now"})
        uses(forwarder, 0)
        assert ask(session) == 3


def test_a_database_that_does_not_answer_is_no_reason_to_leave_a_bastion(
    start_pair: StartForwarder, fallback: Bastion
) -> None:
    forwarder = start_pair(1)
    fact = forwarder.wait_for("database", "DatabaseRefused")
    assert fact.hop == 0
    assert "Connection from" not in fallback.log_text()


# --- behind jump hosts ------------------------------------------------------------------------------------------------


def test_a_fallback_is_reached_through_the_jump_host_with_one_login_there(
    start_pair: StartForwarder,
    further_bastions: StartBastion,
    bastion: Bastion,
    fallback: Bastion,
    postgres: PostgresServer,
    client_key: KeyPair,
) -> None:
    jump_host = further_bastions(None, client_key.public)
    bastion.stop()
    forwarder = start_pair(postgres.port, jump_hosts=(hop_to(jump_host),))
    status = forwarder.wait(lambda status: status.database.status == "True", "the fallback")
    assert [hop.active for hop in status.hops] == [False, True, True]
    assert jump_host.log_text().count("Accepted publickey") == 1
    bastion.start()
    forwarder.wait(lambda status: status.hops[0].active, "the first", RETURN_SECONDS)
    with connect(forwarder) as session:
        assert ask(session) == 3
    wait_until(lambda: (jump_host.connections(), fallback.connections()) == (1, 0), "the old connection to end")


def test_while_a_jump_host_is_down_no_fallback_is_blamed(
    start_pair: StartForwarder, further_bastions: StartBastion, postgres: PostgresServer, client_key: KeyPair
) -> None:
    jump_host = further_bastions(None, client_key.public)
    jump_host.stop()
    forwarder = start_pair(postgres.port, jump_hosts=(hop_to(jump_host),))
    fact = forwarder.wait_for("transport", "ConnectionRefused")
    assert fact.hop == 2
    jump_host.start()
    forwarder.wait(lambda status: status.hops[0].active, "the first")
