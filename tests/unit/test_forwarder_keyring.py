"""Which keys are offered, in which order, and what is told of them."""

import gc
from collections.abc import Iterator
from functools import partial
from types import FunctionType, ModuleType

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.settings import Defaults
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.keyring import Keyring, Keys
from dbtunnel.forwarder.state import State
from tests.support.keys import KeyPair, Secret, key_pair
from tests.support.values import tunnel
from tests.unit.test_forwarder_connect import CONFIG

KEY, NEXT, REVOKED = "ssh-privatekey", "ssh-privatekey-next", "ssh-privatekey-revoked"

ONE, TWO, THREE = (key_pair() for _ in range(3))

REJECTED = Failure(ConditionType.AUTHENTICATED, Reason.KEY_REJECTED)


class Ring:
    """A keyring over a Secret that changes."""

    def __init__(self) -> None:
        self.secret, self.state = Secret({}), State(CONFIG, "")
        self.keys = Keyring(Keys(self.secret, CONFIG.key), partial(self.state.set_keys, 0))

    async def has(self, **files: KeyPair | str) -> None:
        """The Secret's content from now on; `next` and `revoked` stand for the suffixes."""
        names = {"key": KEY, "next": NEXT, "revoked": REVOKED}
        self.secret.files = {
            names.get(name, name): value if isinstance(value, str) else value.private for name, value in files.items()
        }
        assert self.keys.keys.look()
        await self.keys.keys.ready()

    def offers(self, now: float = 0) -> list[KeyPair]:
        return [pair_of(key.fingerprint) for key in self.keys.offers(now)]

    def accept(self, pair: KeyPair) -> None:
        self.keys.accepted(next(key for key in self.keys.offers(0) if key.fingerprint == pair.fingerprint))

    def refuse(self, pair: KeyPair, failure: Failure = REJECTED, until: float = 60) -> None:
        key = next(key for key in self.keys.offers(0) if key.fingerprint == pair.fingerprint)
        self.keys.refused(key, failure, until)

    def told(self) -> Iterator[tuple[str, KeyPair | None, bool | None]]:
        """Use, key and whether it was accepted, as in the status."""
        status = self.state.status
        if status.public_key:
            yield "Current", pair_of(status.public_key.fingerprint), status.public_key.accepted
        if status.next_key:
            public = status.next_key.public_key
            yield "Next", pair_of(public.fingerprint) if public else None, public.accepted if public else None

    def next_fact(self) -> tuple[str, str, str]:
        found = self.state.status.next_key
        assert found
        return found.name, found.fact.status, found.fact.reason


def pair_of(fingerprint: str) -> KeyPair:
    return next(pair for pair in (ONE, TWO, THREE) if pair.fingerprint == fingerprint)


async def ring(**files: KeyPair | str) -> Ring:
    made = Ring()
    await made.has(**files)
    return made


# --- a next key -------------------------------------------------------------------------------------------------------


async def test_the_next_key_is_offered_first_and_the_current_one_after_it() -> None:
    keys = await ring(key=ONE, next=TWO)
    assert keys.offers() == [TWO, ONE]
    assert list(keys.told()) == [("Current", ONE, None), ("Next", TWO, None)]
    assert keys.next_fact() == (NEXT, "Unknown", "Progressing")


async def test_an_accepted_next_key_is_told_and_stays_until_it_takes_the_place_of_the_current_one() -> None:
    keys = await ring(key=ONE, next=TWO)
    keys.accept(TWO)
    assert list(keys.told()) == [("Current", ONE, None), ("Next", TWO, True)]
    assert keys.next_fact() == (NEXT, "True", "Succeeded")
    await keys.has(key=TWO)
    assert keys.offers() == [TWO]
    assert list(keys.told()) == [("Current", TWO, True)]


async def test_a_rejected_next_key_rests_and_is_offered_again_later_or_when_the_secret_changes() -> None:
    keys = await ring(key=ONE, next=TWO)
    keys.refuse(TWO, until=60)
    keys.accept(ONE)
    assert (keys.offers(59), keys.offers(60)) == ([ONE], [TWO, ONE])
    assert list(keys.told()) == [("Current", ONE, True), ("Next", TWO, False)]
    assert keys.next_fact() == (NEXT, "False", "KeyRejected")
    await keys.has(key=ONE, next=TWO, other="changed")
    assert keys.offers() == [TWO, ONE]


async def test_where_all_rest_all_are_offered() -> None:
    keys = await ring(key=ONE, next=TWO)
    keys.refuse(TWO)
    keys.refuse(ONE)
    assert keys.offers() == [TWO, ONE]
    assert keys.keys.best(0) is None


async def test_a_next_key_that_is_none_is_told_and_the_current_one_goes_on() -> None:
    keys = await ring(key=ONE, next="garbage")
    assert keys.offers() == [ONE]
    assert list(keys.told()) == [("Current", ONE, None), ("Next", None, None)]
    assert keys.next_fact() == (NEXT, "False", "PrivateKeyInvalid")


async def test_a_next_key_alone_is_enough() -> None:
    keys = await ring(next=TWO)
    assert keys.offers() == [TWO]


async def test_the_same_key_twice_is_one() -> None:
    keys = await ring(key=ONE, next=ONE)
    assert keys.offers() == [ONE]
    assert list(keys.told()) == [("Current", ONE, None)]


# --- a changed key ----------------------------------------------------------------------------------------------------


async def test_a_changed_key_is_the_next_until_it_is_accepted() -> None:
    keys = await ring(key=ONE)
    keys.accept(ONE)
    await keys.has(key=TWO)
    assert keys.offers() == [TWO, ONE]
    assert list(keys.told()) == [("Current", ONE, True), ("Next", TWO, None)]
    keys.accept(TWO)
    assert keys.offers() == [TWO]
    assert list(keys.told()) == [("Current", TWO, True)]


async def test_a_key_that_was_never_accepted_is_not_kept_when_it_changes() -> None:
    keys = await ring(key=ONE)
    await keys.has(key=TWO)
    assert keys.offers() == [TWO]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"key": "garbage"}, "PrivateKeyInvalid"),
        ({"key": ONE.public}, "PublicKeyGiven"),
        ({"key": key_pair(passphrase="right").private, "passphrase": "wrong"}, "PassphraseWrong"),
        ({"key": key_pair(passphrase="right").private}, "PassphraseRequired"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_what_is_no_key_in_its_place_leaves_the_accepted_one_in_use(files: dict[str, str], reason: str) -> None:
    keys = await ring(key=ONE)
    keys.accept(ONE)
    await keys.has(**files)
    assert keys.offers() == [ONE]
    assert list(keys.told()) == [("Current", ONE, True), ("Next", None, None)]
    assert keys.next_fact() == (KEY, "False", reason)


async def test_a_second_bad_change_keeps_the_same_key() -> None:
    keys = await ring(key=ONE)
    keys.accept(ONE)
    await keys.has(key="garbage")
    await keys.has(key=TWO)
    keys.refuse(TWO)
    await keys.has(key=THREE)
    assert keys.offers() == [THREE, ONE]


async def test_a_next_key_that_is_taken_back_leads_back_to_the_current_one() -> None:
    keys = await ring(key=ONE, next=TWO)
    keys.accept(TWO)
    await keys.has(key=ONE)
    assert keys.offers() == [ONE, TWO]
    keys.accept(ONE)
    assert keys.offers() == [ONE]


@pytest.mark.parametrize("left", [{}, {"other": "here"}], ids=["no Secret", "no such key"])
async def test_a_removed_key_is_not_kept(left: dict[str, str]) -> None:
    keys = await ring(key=ONE)
    keys.accept(ONE)
    await keys.has(**left)
    with pytest.raises(Failure) as failure:
        keys.offers()
    assert failure.value.reason is (Reason.SECRET_KEY_MISSING if left else Reason.SECRET_NOT_FOUND)


# --- revoked ones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [ONE.fingerprint, ONE.public, f"# leaked\n256 {ONE.fingerprint} me@here (ED25519)\n", f"restrict {ONE.public} x"],
    ids=["fingerprint", "public half", "as ssh-keygen -l prints it", "line of authorized_keys"],
)
async def test_a_revoked_key_is_not_offered(text: str) -> None:
    keys = await ring(key=ONE, next=TWO, revoked=text)
    assert keys.offers() == [TWO]
    await keys.has(key=ONE, revoked=text)
    with pytest.raises(Failure) as failure:
        keys.offers()
    assert (failure.value.reason, failure.value.seen) == (Reason.PRIVATE_KEY_INVALID, f"it is listed under {REVOKED}")


async def test_a_revoked_key_is_not_kept() -> None:
    keys = await ring(key=ONE)
    keys.accept(ONE)
    (one,) = keys.keys.offers(0)
    await keys.has(key=TWO)
    assert not keys.keys.keys.is_revoked(one)
    await keys.has(key=TWO, revoked=ONE.fingerprint)
    assert keys.keys.keys.is_revoked(one)
    assert keys.offers() == [TWO]


# --- what is kept in memory -------------------------------------------------------------------------------------------


def kept_by(root: object) -> Iterator[object]:
    """Everything that can be reached from an object, but for code."""
    found, left = {id(root)}, [root]
    while left:
        one = left.pop()
        yield one
        for other in gc.get_referents(one):
            if id(other) not in found and not isinstance(other, type | FunctionType | ModuleType):
                found.add(id(other))
                left.append(other)


@pytest.mark.parametrize("passphrase", ["open sesame", "open barley"], ids=["right", "wrong"])
async def test_neither_text_nor_passphrase_of_a_key_is_kept(passphrase: str) -> None:
    locked = key_pair(passphrase="open sesame").private
    keys = await ring(key=locked, passphrase=passphrase, next=ONE.private)
    keys.secret.files = {}
    texts = (locked.splitlines()[1], ONE.private.splitlines()[1], passphrase)
    kept = [one for one in kept_by(keys.keys) if isinstance(one, str | bytes)]
    assert kept
    for one in kept:
        text = one.decode("latin-1") if isinstance(one, bytes) else one
        assert not any(secret in text for secret in texts)


# --- several servers --------------------------------------------------------------------------------------------------


async def test_what_servers_say_of_the_same_key_is_told_together_and_each_goes_its_way() -> None:
    """A jump host that knows the next key, and a bastion that does not."""
    config = forwarder_config(tunnel({"tunnel.jumpHosts": [{"host": "jump.example"}]}), Defaults())
    state, secret = State(config, ""), Secret({KEY: ONE.private})
    keys = Keys(secret, config.key)
    bastion, jump_host = (Keyring(keys, partial(state.set_keys, number)) for number in (0, 1))
    keys.look()
    await keys.ready()
    for server in (jump_host, bastion):
        server.accepted(server.offers(0)[0])
    secret.files = {KEY: TWO.private}
    keys.look()
    await keys.ready()
    two, one = bastion.offers(0)
    jump_host.accepted(two)
    assert state.status.next_key
    assert state.status.next_key.fact.reason == "Progressing", "the bastion has not been asked"
    assert state.status.next_key.public_key
    assert state.status.next_key.public_key.accepted is None
    bastion.refused(two, REJECTED, 60)
    bastion.accepted(one)
    assert ([key.fingerprint for key in jump_host.offers(0)], [key.fingerprint for key in bastion.offers(0)]) == (
        [TWO.fingerprint],
        [ONE.fingerprint],
    )
    assert state.status.public_key
    assert state.status.public_key.fingerprint == ONE.fingerprint
    assert state.status.next_key.fact.reason == "KeyRejected"
    assert state.status.next_key.public_key
    assert state.status.next_key.public_key.accepted is False
    bastion.accepted(two)
    assert state.status.next_key is None
    assert (state.status.public_key.fingerprint, state.status.public_key.accepted) == (TWO.fingerprint, True)
