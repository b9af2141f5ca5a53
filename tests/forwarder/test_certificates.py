"""User certificates at a real sshd: the way in, what they permit, and what is told where they do not let in."""

from collections.abc import Callable

import pytest

from dbtunnel.api.forwarder import Algorithms
from dbtunnel.domain.authorized_keys import authorized_keys_line
from tests.forwarder.test_rotation import answers, connect, is_well, logins
from tests.support.bastion import USER, Bastion
from tests.support.databases import PostgresServer
from tests.support.forwarder import KEY, Forwarder, hop_to
from tests.support.key_tools import MadeKey, certificate_of, openssh_key
from tests.support.keys import KeyPair, key_pair
from tests.support.mounts import MOUNT_POINT
from tests.support.processes import wait_until

StartForwarder = Callable[..., Forwarder]

CERTIFICATE, NEXT = f"{KEY}-cert.pub", f"{KEY}-next"


@pytest.fixture(scope="module")
def authority() -> KeyPair:
    return key_pair()


@pytest.fixture
def trusting(bastion: Bastion, authority: KeyPair) -> Bastion:
    """A bastion that knows no key, and whoever the authority has signed for."""
    bastion.unauthorize()
    bastion.trust_authority(authority)
    return bastion


def issued(
    key: MadeKey | KeyPair, authority: KeyPair, *options: str, users: str = USER, validity: str = "-1h:+1h"
) -> str:
    usual = ("-I", "orders@shop", "-z", "42", "-n", users, "-V", validity)
    return certificate_of(key.public, authority, *usual, *options)


def secret(key: MadeKey | KeyPair, certificate: str) -> dict[str, str]:
    text = key.text if isinstance(key, MadeKey) else key.private
    return {KEY: text, CERTIFICATE: certificate}


def accepted_certificates(bastion: Bastion) -> list[str]:
    """The IDs of those that sshd let in, each with what it counted it as."""
    words = (
        line.split(" ID ")[1].split()[0] for line in bastion.log_text().splitlines() if "Accepted publickey" in line
    )
    return list(words)


# --- the way in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [("ed25519",), ("ecdsa", "-b", "521"), ("rsa", "-b", "2048")], ids=lambda kind: kind[0]
)
def test_a_certificate_logs_in_at_once(
    start_forwarder: StartForwarder, trusting: Bastion, postgres: PostgresServer, authority: KeyPair, kind: tuple[str]
) -> None:
    """Nothing else is tried before: the server ends a login after its first failure."""
    trusting.trust_authority(authority, "MaxAuthTries 1")
    key = openssh_key(*kind)
    forwarder = start_forwarder(postgres.port, secret(key, issued(key, authority)))
    status = forwarder.wait(is_well, "the tunnel to work")
    assert status.public_key
    assert (status.public_key.key, status.public_key.accepted) == (key.public, True)
    assert accepted_certificates(trusting) == ["orders@shop"]
    with connect(forwarder) as session:
        assert answers(session)
    (event,) = [event for event in forwarder.events() if event["event"] == "connected"]
    assert 'ID "orders@shop", serial 42, for dbtunnel, valid from' in event["certificate"]


def test_an_rsa_certificate_with_old_algorithms(
    start_forwarder: StartForwarder, trusting: Bastion, postgres: PostgresServer, authority: KeyPair
) -> None:
    """As OpenSSH before 7.2 has it: no name for certificates but that of SHA-1."""
    trusting.trust_authority(authority, "PubkeyAcceptedAlgorithms ssh-rsa-cert-v01@openssh.com,ssh-rsa")
    key = openssh_key("rsa", "-b", "2048")
    legacy = hop_to(trusting, algorithms=Algorithms.LEGACY)
    forwarder = start_forwarder(postgres.port, secret(key, issued(key, authority)), bastion=legacy)
    forwarder.wait(is_well, "the tunnel to work")


def test_the_key_alone_is_taken_where_the_certificate_is_not(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair, authority: KeyPair
) -> None:
    forwarder = start_forwarder(postgres.port, secret(client_key, issued(client_key, authority)))
    forwarder.wait(is_well, "the tunnel to work")
    assert logins(bastion) == (1, 0), "in the same login"
    (event,) = [event for event in forwarder.events() if event["event"] == "certificate not accepted"]
    assert 'ID "orders@shop", serial 42' in event["seen"]


def test_an_expired_certificate_is_not_offered_and_the_key_alone_is(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair, authority: KeyPair
) -> None:
    bastion.trust_authority(authority)
    expired = issued(client_key, authority, validity="-2h:-1h")
    forwarder = start_forwarder(postgres.port, secret(client_key, expired))
    forwarder.wait(is_well, "the tunnel to work")
    assert "-CERT" not in bastion.log_text()
    (event,) = [event for event in forwarder.events() if event["event"] == "certificate not valid now"]
    assert 'ID "orders@shop", serial 42' in event["certificate"]
    expires = forwarder.metric(
        f'dbtunnel_forwarder_key_certificate_expiry_timestamp_seconds{{key="{client_key.fingerprint}"}}'
    )
    assert expires > 1_700_000_000


def test_principals_may_be_those_of_a_list_on_the_server(
    start_forwarder: StartForwarder, trusting: Bastion, postgres: PostgresServer, authority: KeyPair
) -> None:
    """So a certificate that does not name the user is offered all the same."""
    key = key_pair()
    (trusting.directory / "principals").write_text("database-team\n")
    trusting.trust_authority(authority, f"AuthorizedPrincipalsFile {MOUNT_POINT}/principals")
    forwarder = start_forwarder(postgres.port, secret(key, issued(key, authority, users="database-team")))
    forwarder.wait(is_well, "the tunnel to work")


# --- what it permits --------------------------------------------------------------------------------------------------

NOTHING_ELSE = ("-O", "clear", "-O", "permit-port-forwarding", "-O", "force-command=/bin/false")
"""What the documentation says."""


@pytest.mark.parametrize("options", [NOTHING_ELSE, (*NOTHING_ELSE, "-O", "source-address=127.0.0.0/8")])
def test_a_certificate_that_permits_forwarding_alone(
    start_forwarder: StartForwarder,
    trusting: Bastion,
    postgres: PostgresServer,
    authority: KeyPair,
    options: tuple[str, ...],
) -> None:
    key = key_pair()
    forwarder = start_forwarder(postgres.port, secret(key, issued(key, authority, *options)))
    forwarder.wait(is_well, "the tunnel to work")
    with connect(forwarder) as session:
        assert answers(session)


def test_a_certificate_that_does_not_permit_forwarding(
    start_forwarder: StartForwarder, trusting: Bastion, postgres: PostgresServer, authority: KeyPair
) -> None:
    key = key_pair()
    forwarder = start_forwarder(postgres.port, secret(key, issued(key, authority, "-O", "clear")))
    forwarder.wait_for("database", "ForwardingProhibited")


@pytest.mark.parametrize("is_right", [True, False], ids=["this database", "another"])
def test_an_authority_in_authorized_keys_with_the_limits_of_a_key(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, authority: KeyPair, *, is_right: bool
) -> None:
    """The line of the status, for the authority in place of the key: it permits what it would permit the key."""
    target = ("orders.internal", postgres.port if is_right else 1)
    line = authorized_keys_line(authority.public, "shop/orders", target)
    bastion.authorize(f'cert-authority,principals="{USER}",{line}')
    key = key_pair()
    forwarder = start_forwarder(postgres.port, secret(key, issued(key, authority, *NOTHING_ELSE)))
    if is_right:
        forwarder.wait(is_well, "the tunnel to work")
    else:
        forwarder.wait_for("database", "ForwardingProhibited")


# --- what is told -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("users", "validity", "options", "told"),
    [
        (USER, "-2h:-1h", (), "has expired and was not offered: have it renewed"),
        (USER, "+1h:+2h", (), "is not valid yet and was not offered"),
        ("somebody", "-1h:+1h", (), "it is not for the user dbtunnel"),
        (USER, "-1h:+1h", ("-O", "source-address=192.0.2.1"), "the server's log says why"),
    ],
    ids=["expired", "not yet valid", "another user", "another address"],
)
def test_a_certificate_that_does_not_let_in(
    start_forwarder: StartForwarder,
    trusting: Bastion,
    postgres: PostgresServer,
    authority: KeyPair,
    users: str,
    validity: str,
    options: tuple[str, ...],
    told: str,
) -> None:
    key = key_pair()
    certificate = issued(key, authority, *options, users=users, validity=validity)
    forwarder = start_forwarder(postgres.port, secret(key, certificate))
    fact = forwarder.wait_for("authentication", "KeyRejected")
    assert told in fact.seen
    assert f'(ID "orders@shop", serial 42, for {users}, valid from' in fact.seen
    assert authority.fingerprint in fact.seen
    message = next(event["message"] for event in forwarder.events() if event.get("reason") == "KeyRejected")
    assert f"does not accept the key. {fact.seen} Add this line" in message
    assert message.endswith(f"{key.public} shop/orders"), "the line is the key's own"


def test_a_certificate_of_another_key(
    start_forwarder: StartForwarder, trusting: Bastion, postgres: PostgresServer, authority: KeyPair
) -> None:
    key, other = key_pair(), key_pair()
    forwarder = start_forwarder(postgres.port, secret(key, issued(other, authority)))
    fact = forwarder.wait_for("key", "PrivateKeyInvalid")
    assert f"the certificate of another key, {other.fingerprint}" in fact.seen
    assert "Connection from" not in trusting.log_text()


# --- renewal ----------------------------------------------------------------------------------------------------------


def test_a_renewed_certificate_is_used_at_once_and_cuts_nobody(
    start_forwarder: StartForwarder, trusting: Bastion, postgres: PostgresServer, authority: KeyPair
) -> None:
    key = key_pair()
    forwarder = start_forwarder(postgres.port, secret(key, issued(key, authority)))
    forwarder.wait(is_well, "the tunnel to work")
    with connect(forwarder) as session:
        forwarder.write_secret(secret(key, issued(key, authority, "-I", "renewed@shop")))
        wait_until(lambda: "renewed@shop" in accepted_certificates(trusting), "a login with it")
        assert answers(session)
        with connect(forwarder) as another:
            assert answers(another)
        assert trusting.connections() == 2
    wait_until(lambda: trusting.connections() == 1, "the first connection to end with its last session")
    assert logins(trusting) == (2, 0)
    assert is_well(forwarder.status())


def test_a_renewed_certificate_that_is_bad_harms_nobody(
    start_forwarder: StartForwarder, trusting: Bastion, postgres: PostgresServer, authority: KeyPair
) -> None:
    key = key_pair()
    forwarder = start_forwarder(postgres.port, secret(key, issued(key, authority)))
    forwarder.wait(is_well, "the tunnel to work")
    forwarder.write_secret(secret(key, issued(key, key_pair(), "-I", "stranger@shop")))
    status = forwarder.wait(
        lambda status: bool(status.next_key and status.next_key.fact.reason == "KeyRejected"), "it to be told"
    )
    assert is_well(status)
    assert status.next_key
    assert status.next_key.name == KEY
    assert 'ID "stranger@shop"' in status.next_key.fact.seen
    trusting.kill_sessions()
    wait_until(lambda: accepted_certificates(trusting) == ["orders@shop"] * 3, "another login with the one before")


def test_the_next_key_has_a_certificate_of_its_own(
    start_forwarder: StartForwarder, trusting: Bastion, postgres: PostgresServer, authority: KeyPair
) -> None:
    key, following = key_pair(), key_pair()
    files = secret(key, issued(key, authority))
    forwarder = start_forwarder(postgres.port, files)
    forwarder.wait(is_well, "the tunnel to work")
    certificate = issued(following, authority, "-I", "next@shop")
    forwarder.write_secret({**files, NEXT: following.private, f"{NEXT}-cert.pub": certificate})
    forwarder.wait(lambda status: bool(status.next_key and status.next_key.fact.status == "True"), "the next key")
    forwarder.write_secret(secret(following, certificate))
    forwarder.wait(lambda status: status.next_key is None, "the next key to be the current one")
    assert accepted_certificates(trusting) == ["orders@shop", "next@shop"], "no connection is made anew"
