"""Keys are replaced while the tunnel works: nobody is cut, a bad key harms nothing, a leaked one ends at once."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbtunnel.api.forwarder import ForwarderStatus
from tests.support import bastion as bastions
from tests.support.bastion import Bastion
from tests.support.databases import DATABASE, PASSWORD, USER, PostgresServer
from tests.support.forwarder import KEY, PASSPHRASE_KEY, Forwarder
from tests.support.keys import KeyPair, key_pair
from tests.support.load import Pgbench, prepare
from tests.support.processes import wait_until

StartForwarder = Callable[..., Forwarder]

NEXT, REVOKED = f"{KEY}-next", f"{KEY}-revoked"


def connect(forwarder: Forwarder) -> "psycopg.Connection[tuple[Any, ...]]":
    target: dict[str, Any] = {"host": "127.0.0.1", "port": forwarder.port, "connect_timeout": 15}
    return psycopg.connect(user=USER, password=PASSWORD, dbname=DATABASE, **target)


def answers(session: "psycopg.Connection[tuple[Any, ...]]") -> bool:
    return session.execute("select 1").fetchone() == (1,)


def channels(forwarder: Forwarder) -> dict[str, int]:
    """How many there are, by the fingerprint of the key; probes count too."""
    return {one.fingerprint: one.channels for one in forwarder.status().sessions}


def is_well(status: ForwarderStatus) -> bool:
    layers = status.key, status.transport, status.authentication, status.database
    return all(layer.status == "True" for layer in layers)


def next_fails(forwarder: Forwarder, name: str, reason: str) -> ForwarderStatus:
    """The status, once it tells that the next key fails for this reason."""

    def fails(status: ForwarderStatus) -> bool:
        following = status.next_key
        return following is not None and (following.name, following.fact.reason) == (name, reason)

    return forwarder.wait(fails, f"the next key to fail: {reason}")


def logins(bastion: Bastion) -> tuple[int, int]:
    """How many logins succeeded, and how many connections ended without one, which sshd may penalise."""
    log = bastion.log_text()
    return log.count("Accepted publickey for"), len(re.findall(r"^(?:Connection|Disconnect).*\[preauth\]$", log, re.M))


@pytest.fixture
def working(start_forwarder: StartForwarder, postgres: PostgresServer) -> Forwarder:
    forwarder = start_forwarder(postgres.port)
    forwarder.wait(is_well, "the tunnel to work")
    return forwarder


# --- a good key -------------------------------------------------------------------------------------------------------


def test_no_transaction_fails_while_keys_are_rotated_and_the_old_one_is_revoked(
    working: Forwarder, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair, tmp_path: Path
) -> None:
    """32 clients, half of which connect anew for each transaction."""
    prepare(postgres)
    following = key_pair()
    loads = [
        Pgbench(tmp_path, working.port, clients=16, seconds=20, connect=connect).start() for connect in (False, True)
    ]
    wait_until(lambda: channels(working).get(client_key.fingerprint, 0) >= 16, "the clients")
    bastion.authorize(client_key.public, following.public)
    working.write_secret({KEY: client_key.private, NEXT: following.private})
    wait_until(lambda: channels(working).get(following.fingerprint), "sessions over the next key's connection")
    bastion.authorize(following.public)
    working.write_secret({KEY: following.private})
    working.wait(lambda status: status.next_key is None, "the next key to be the current one")
    assert channels(working)[client_key.fingerprint] >= 16, "those that stay connected stay where they were"
    assert all(load.is_running for load in loads), "it is over before the rotation"
    counts = [load.transactions() for load in loads]
    print(f"transactions: {counts[0]} over connections that stay, {counts[1]} over new ones, none failed")
    assert min(counts) > 0
    wait_until(lambda: bastion.connections() == 1, "the first connection to end with its last session")
    assert channels(working).keys() == {following.fingerprint}
    assert logins(bastion) == (2, 0)


def test_the_status_shows_both_keys_and_the_sessions_of_each(
    working: Forwarder, bastion: Bastion, client_key: KeyPair
) -> None:
    following = key_pair("ecdsa-sha2-nistp256")
    bastion.authorize(client_key.public, following.public)
    with connect(working) as before:
        working.write_secret({KEY: client_key.private, NEXT: following.private})
        status = working.wait(
            lambda status: bool(status.next_key and status.next_key.fact.status == "True"), "the next key"
        )
        assert status.public_key
        assert status.next_key
        assert status.next_key.public_key
        assert (status.public_key.fingerprint, status.public_key.accepted) == (client_key.fingerprint, True)
        assert (status.next_key.public_key.key, status.next_key.public_key.accepted) == (following.public, True)
        with connect(working) as after:
            assert answers(before)
            assert answers(after)
            found = channels(working)
            assert (found[client_key.fingerprint], found[following.fingerprint]) == (1, 1)
    wait_until(lambda: channels(working).keys() == {following.fingerprint}, "the first connection to end")
    assert is_well(working.status())


def test_a_next_key_moves_into_place_without_another_connection(
    working: Forwarder, bastion: Bastion, client_key: KeyPair
) -> None:
    following = key_pair()
    bastion.authorize(client_key.public, following.public)
    working.write_secret({KEY: client_key.private, NEXT: following.private})
    wait_until(lambda: channels(working).keys() == {following.fingerprint}, "the next key's connection alone")
    working.write_secret({KEY: following.private})
    working.wait(lambda status: status.next_key is None, "the Secret to be read")
    assert logins(bastion) == (2, 0)


# --- a bad one --------------------------------------------------------------------------------------------------------

_LOCKED = key_pair(passphrase="open sesame").private

_BAD: dict[str, tuple[dict[str, str], str]] = {
    "garbage": ({"": "no key at all"}, "PrivateKeyInvalid"),
    "public": ({"": key_pair().public}, "PublicKeyGiven"),
    "rejected": ({"": key_pair().private}, "KeyRejected"),
    "no passphrase": ({"": _LOCKED}, "PassphraseRequired"),
}


@pytest.mark.parametrize("where", [NEXT, KEY], ids=["next", "in place"])
@pytest.mark.parametrize(("content", "reason"), _BAD.values(), ids=_BAD)
def test_a_bad_key_is_told_and_the_tunnel_goes_on(
    working: Forwarder,
    bastion: Bastion,
    client_key: KeyPair,
    where: str,
    content: dict[str, str],
    reason: str,
) -> None:
    with connect(working) as session:
        working.write_secret({KEY: client_key.private, where: content[""]})
        status = next_fails(working, where, reason)
        assert is_well(status)
        assert status.public_key
        assert (status.public_key.fingerprint, status.public_key.accepted) == (client_key.fingerprint, True)
        assert answers(session)
        with connect(working) as another:
            assert answers(another)
    assert working.metric("dbtunnel_forwarder_next_key_failing") == 1
    assert working.get("/readyz") == "ok\n"
    assert logins(bastion)[1] == 0, "no login failed, as sshd counts"
    # it outlives its connection as well
    before = working.metric("dbtunnel_forwarder_ssh_connects_total")
    bastion.restart()
    wait_until(lambda: working.metric("dbtunnel_forwarder_ssh_connects_total") > before, "another connection")
    working.wait(is_well, "the tunnel to work again")
    assert logins(bastion)[1] == 0
    assert "PRIVATE" not in working.log.read_text()


def test_a_wrong_passphrase_of_the_next_key(working: Forwarder, client_key: KeyPair) -> None:
    files = {KEY: client_key.private, NEXT: _LOCKED, PASSPHRASE_KEY: "open barley"}
    working.write_secret(files)
    next_fails(working, NEXT, "PassphraseWrong")
    working.write_secret({**files, f"{PASSPHRASE_KEY}-next": "open sesame"})
    next_fails(working, NEXT, "KeyRejected")
    assert is_well(working.status())


def test_a_rejected_key_is_tried_again_at_once_when_the_secret_changes_and_not_before(
    working: Forwarder, bastion: Bastion, client_key: KeyPair
) -> None:
    following = key_pair()
    files = {KEY: client_key.private, NEXT: following.private}
    working.write_secret(files)
    next_fails(working, NEXT, "KeyRejected")
    bastion.authorize(client_key.public, following.public)
    bastion.kill_sessions()
    wait_until(lambda: logins(bastion)[0] >= 3 and channels(working), "another connection")
    assert channels(working).keys() == {client_key.fingerprint}, "it rests, also where a connection has to be made"
    working.write_secret({**files, "touched": "now"})
    wait_until(lambda: channels(working).keys() == {following.fingerprint}, "the next key's connection")


def test_a_server_that_takes_one_try_alone(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair
) -> None:
    """The next key uses it up; the current one is tried at once in a login of its own."""
    bastion.set_config(*bastions.ONE_TRY)
    forwarder = start_forwarder(postgres.port, {KEY: client_key.private, NEXT: key_pair().private})
    forwarder.wait(is_well, "the tunnel to work")
    next_fails(forwarder, NEXT, "TooManyAuthFailures")
    assert forwarder.metric('dbtunnel_forwarder_ssh_failures_total{reason="TooManyAuthFailures"}') == 1


def test_a_next_key_that_may_not_open_the_database_is_not_used(
    working: Forwarder, bastion: Bastion, client_key: KeyPair
) -> None:
    following = key_pair()
    bastion.authorize(client_key.public, f'restrict,port-forwarding,permitopen="elsewhere:1" {following.public}')
    with connect(working) as session:
        working.write_secret({KEY: client_key.private, NEXT: following.private})
        status = next_fails(working, NEXT, "ForwardingProhibited")
        assert is_well(status)
        assert status.next_key
        assert status.next_key.public_key
        assert status.next_key.public_key.accepted
        assert answers(session)
        with connect(working) as another:
            assert answers(another)
    assert channels(working).keys() == {client_key.fingerprint}


def test_where_the_old_key_is_rejected_too_it_is_the_tunnels_failure(
    working: Forwarder, bastion: Bastion, client_key: KeyPair
) -> None:
    with connect(working) as session:
        bastion.unauthorize()
        working.write_secret({KEY: client_key.private, NEXT: key_pair().private})
        working.wait_for("authentication", "KeyRejected")
        assert answers(session)


# --- a leaked one -----------------------------------------------------------------------------------------------------


def test_the_sessions_of_a_revoked_key_end_at_once_and_no_others(
    working: Forwarder, bastion: Bastion, client_key: KeyPair
) -> None:
    following = key_pair()
    bastion.authorize(client_key.public, following.public)
    with connect(working) as before:
        working.write_secret({KEY: client_key.private, NEXT: following.private})
        wait_until(lambda: following.fingerprint in channels(working), "the next key's connection")
        with connect(working) as after:
            working.write_secret({KEY: following.private, REVOKED: client_key.fingerprint})
            wait_until(lambda: channels(working).keys() == {following.fingerprint}, "the old connection to end")
            with pytest.raises(psycopg.OperationalError):
                before.execute("select 1")
            assert answers(after)
    assert is_well(working.status())


def test_the_only_key_is_revoked(working: Forwarder, client_key: KeyPair) -> None:
    with connect(working) as session:
        working.write_secret({KEY: client_key.private, REVOKED: client_key.public})
        fact = working.wait_for("key", "PrivateKeyInvalid")
        assert fact.seen == f"it is listed under {REVOKED}"
        with pytest.raises(psycopg.OperationalError):
            session.execute("select 1")
    following = key_pair()
    working.write_secret({KEY: following.private, REVOKED: client_key.public})
    working.wait_for("authentication", "KeyRejected")
