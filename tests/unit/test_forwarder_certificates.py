"""User certificates: which are offered, which take the place of which, and what is told of those of no use."""

from functools import partial

import asyncssh
import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import Reason
from dbtunnel.forwarder.certificates import Certificate, read_certificate
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.keyring import Keyring, Keys
from dbtunnel.forwarder.keys import Key, KeyProblemError
from dbtunnel.forwarder.state import State
from tests.support.keys import KeyPair, Secret, key_pair
from tests.unit.test_forwarder_connect import CONFIG

KEY, CERTIFICATE = "ssh-privatekey", "ssh-privatekey-cert.pub"
NEXT, NEXT_CERTIFICATE = "ssh-privatekey-next", "ssh-privatekey-next-cert.pub"

ONE, TWO, AUTHORITY = key_pair(), key_pair(), key_pair()

REJECTED = Failure(ConditionType.AUTHENTICATED, Reason.KEY_REJECTED)

DAY = 86_400


def signed(
    pair: KeyPair, key_id: str = "orders", *, serial: int = 7, after: int = 0, before: int = 10 * DAY, users: str = "me"
) -> str:
    """A certificate, by its dates in Unix time."""
    made = asyncssh.import_private_key(AUTHORITY.private).generate_user_certificate(
        asyncssh.import_public_key(pair.public),
        key_id,
        serial=serial,
        valid_after=after,
        valid_before=before,
        principals=users,
    )
    return made.export_certificate().decode()


def read(text: str, pair: KeyPair = ONE) -> Certificate:
    return read_certificate(text.encode(), asyncssh.import_private_key(pair.private))


class Ring:
    """A keyring over a Secret that changes, at a time that passes."""

    def __init__(self) -> None:
        self.secret, self.state, self.now = Secret({}), State(CONFIG, ""), float(DAY)
        tell = partial(self.state.set_keys, 0)
        self.keys = Keyring(Keys(self.secret, CONFIG.key), tell, lambda: self.now)

    async def has(self, files: dict[str, str]) -> None:
        self.secret.files = files
        assert self.keys.keys.look()
        await self.keys.keys.ready()

    def offers(self, now: float = 0) -> list[str]:
        return [name_of(key) for key in self.keys.offers(now)]

    def offered(self, name: str) -> Key:
        return next(key for key in self.keys.offers(0) if name_of(key) == name)


def name_of(key: Key) -> str:
    pair = {ONE.fingerprint: "one", TWO.fingerprint: "two"}[key.fingerprint]
    return f"{pair} {key.certificate.key_id}" if key.certificate else pair


async def ring(files: dict[str, str]) -> Ring:
    made = Ring()
    await made.has(files)
    return made


# --- what is offered --------------------------------------------------------------------------------------------------


async def test_a_certificate_is_offered_before_the_key_alone_and_the_next_before_both() -> None:
    keys = await ring({KEY: ONE.private, CERTIFICATE: signed(ONE)})
    assert keys.offers() == ["one orders", "one"]
    files = {**keys.secret.files, NEXT: TWO.private, NEXT_CERTIFICATE: signed(TWO, "next")}
    await keys.has(files)
    assert keys.offers() == ["two next", "two", "one orders", "one"]
    await keys.has({KEY: ONE.private, CERTIFICATE: signed(ONE), NEXT: TWO.private})
    assert keys.offers() == ["two", "one orders", "one"], "the current one's is not the next one's"


async def test_a_certificate_is_offered_from_its_first_second_to_before_its_last() -> None:
    keys = await ring({KEY: ONE.private, CERTIFICATE: signed(ONE, after=2 * DAY, before=3 * DAY)})
    offers = []
    for now in (2 * DAY - 1, 2 * DAY, 3 * DAY - 1, 3 * DAY):
        keys.now = now
        offers.append(keys.offers())
    assert offers == [["one"], ["one orders", "one"], ["one orders", "one"], ["one"]]


async def test_a_renewed_certificate_is_used_by_another_connection() -> None:
    keys = await ring({KEY: ONE.private, CERTIFICATE: signed(ONE)})
    made_with = keys.offered("one orders")
    keys.keys.accepted(made_with)
    assert not keys.keys.replaces(made_with, 0)
    await keys.has({KEY: ONE.private, CERTIFICATE: signed(ONE, "renewed")})
    assert keys.keys.replaces(made_with, 0)
    assert keys.offers() == ["one renewed", "one", "one orders"], "the one before it goes on until then"
    keys.keys.accepted(keys.offered("one renewed"))
    assert keys.offers() == ["one renewed", "one"]


async def test_a_renewed_certificate_that_is_refused_is_told_and_the_one_before_it_goes_on() -> None:
    keys = await ring({KEY: ONE.private, CERTIFICATE: signed(ONE)})
    keys.keys.accepted(keys.offered("one orders"))
    await keys.has({KEY: ONE.private, CERTIFICATE: signed(ONE, "renewed")})
    for name in ("one renewed", "one"):
        keys.keys.refused(keys.offered(name), REJECTED, 60)
    assert keys.offers(59) == ["one orders"]
    status = keys.state.status
    assert status.next_key
    assert (status.next_key.name, status.next_key.fact.reason) == (KEY, "KeyRejected")
    assert status.public_key
    assert status.public_key.accepted


async def test_a_certificate_that_expires_or_goes_costs_no_connection() -> None:
    """It was let in while it was valid; servers do not look again, and the key alone may not be accepted at all."""
    keys = await ring({KEY: ONE.private, CERTIFICATE: signed(ONE)})
    made_with = keys.offered("one orders")
    keys.keys.accepted(made_with)
    await keys.has({KEY: ONE.private})
    assert not keys.keys.replaces(made_with, 0)
    assert keys.state.status.next_key is None
    assert keys.offers() == ["one", "one orders"]
    keys.now = 10 * DAY
    assert not keys.keys.replaces(made_with, 0)
    assert keys.offers() == ["one"]


async def test_a_key_is_accepted_with_its_certificate_or_without() -> None:
    keys = await ring({KEY: ONE.private, CERTIFICATE: signed(ONE)})
    verdicts = []
    for name, is_accepted in (("one orders", False), ("one", True)):
        if is_accepted:
            keys.keys.accepted(keys.offered(name))
        else:
            keys.keys.refused(keys.offered(name), REJECTED, 60)
        assert keys.state.status.public_key
        verdicts.append(keys.state.status.public_key.accepted)
    assert verdicts == [False, True]


async def test_the_end_of_a_certificate_is_told() -> None:
    keys = await ring({KEY: ONE.private, CERTIFICATE: signed(ONE)})
    assert keys.state.status.public_key
    assert keys.state.status.public_key.certificate_not_after == "1970-01-11T00:00:00Z"
    await keys.has({KEY: ONE.private, CERTIFICATE: signed(ONE, before=2**64 - 1)})
    assert keys.state.status.public_key.certificate_not_after is None


async def test_with_a_revoked_key_its_certificate_is_not_offered_either() -> None:
    keys = await ring({KEY: ONE.private, CERTIFICATE: signed(ONE)})
    keys.keys.accepted(keys.offered("one orders"))
    await keys.has({KEY: TWO.private, "ssh-privatekey-revoked": ONE.fingerprint})
    assert keys.offers() == ["two"]


# --- certificates of no use -------------------------------------------------------------------------------------------

_HOST = asyncssh.import_private_key(AUTHORITY.private).generate_host_certificate(
    asyncssh.import_public_key(ONE.public), "host"
)

_BAD = {
    "garbage": ("no certificate", "it cannot be read as a certificate"),
    "empty": ("", "it cannot be read as a certificate"),
    "public key": (ONE.public, "it cannot be read as a certificate"),
    "damaged": (signed(ONE).replace("AAAA", "AAAB", 1), "it cannot be read as a certificate"),
    "host": (_HOST.export_certificate().decode(), "it is a host certificate; one for a user is signed without"),
    "another key's": (signed(TWO), f"it is the certificate of another key, {TWO.fingerprint}"),
}


@pytest.mark.parametrize(("text", "seen"), _BAD.values(), ids=_BAD)
async def test_what_cannot_be_a_certificate_of_the_key_is_told(text: str, seen: str) -> None:
    keys = await ring({KEY: ONE.private, CERTIFICATE: text})
    with pytest.raises(Failure) as raised:
        keys.keys.offers(0)
    assert (raised.value.layer, raised.value.reason) == (ConditionType.KEY_READY, Reason.PRIVATE_KEY_INVALID)
    assert f"its certificate, under that name with -cert.pub, does not serve: {seen}" in raised.value.seen


async def test_a_bad_certificate_harms_no_tunnel_that_works() -> None:
    keys = await ring({KEY: ONE.private, CERTIFICATE: signed(ONE)})
    keys.keys.accepted(keys.offered("one orders"))
    await keys.has({KEY: ONE.private, CERTIFICATE: "garbage"})
    assert isinstance(keys.keys.keys.current, KeyProblemError)
    assert keys.offers() == ["one orders"]
    assert keys.state.status.next_key
    assert keys.state.status.next_key.fact.reason == "PrivateKeyInvalid"


@pytest.mark.parametrize(
    ("now", "user", "told"),
    [
        (10 * DAY, "me", "has expired and was not offered: have it renewed"),
        (DAY - 1, "me", "is not valid yet and was not offered: wait, correct the clock"),
        (DAY, "you", "it is not for the user you. Have it issued for that principal"),
        (DAY, "me", "the server's log says why. Have it trust the authority"),
    ],
)
def test_why_a_server_may_have_refused_a_certificate(now: int, user: str, told: str) -> None:
    refusal = read(signed(ONE, after=DAY)).refusal(user, now)
    assert told in refusal
    expected = '(ID "orders", serial 7, for me, valid from 1970-01-02T00:00:00Z until 1970-01-11T00:00:00Z, signed by'
    assert f"Its certificate {expected} {AUTHORITY.fingerprint})" in refusal


def test_what_an_authority_wrote_is_bounded_and_forges_nothing() -> None:
    users = ",".join(f"user{number}" + "\x1b[2J" * 100 for number in range(50))
    text = read(signed(ONE, "\n\x1b]0;" + "x" * 5000, users=users)).refusal("me", 0)
    assert len(text) <= 600, "no message takes more"
    assert text.isprintable()
    assert "46 more" in text


def test_a_certificate_for_ever_and_for_nobody() -> None:
    told = str(read(signed(ONE, before=2**64 - 1, users="")))
    assert 'ID "orders", serial 7, for nobody by name, valid for ever, signed by' in told
