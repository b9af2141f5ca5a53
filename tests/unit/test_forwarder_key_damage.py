"""Private keys that are damaged or hostile: a reason, nothing of the key, and no end of the process."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dbtunnel.api.reasons import Reason
from dbtunnel.forwarder import keyring
from dbtunnel.forwarder.keyring import Keys
from dbtunnel.forwarder.keys import Key, KeyFiles, KeyProblemError, MountedFile, parse_key
from tests.support.keys import KeyPair, Secret, key_pair
from tests.unit.test_forwarder_connect import CONFIG

FORMS = [
    key_pair(algorithm, form=form)
    for algorithm in ("ssh-ed25519", "ecdsa-sha2-nistp256")
    for form in ("openssh", "pkcs8-pem")
]


def files(content: bytes, passphrase: bytes | None = None) -> KeyFiles:
    return KeyFiles(MountedFile(content), MountedFile(passphrase), ("ssh-privatekey",))


def damaged(private: str, position: int, value: int) -> bytes:
    """The key with one byte changed."""
    first, *lines, last = private.split("\n")[:-1]
    content = bytearray(base64.b64decode("".join(lines)))
    content[position % len(content)] = value
    return "\n".join([first, base64.b64encode(content).decode(), last, ""]).encode()


def problem_of(content: bytes) -> KeyProblemError | None:
    """What is wrong with it."""
    try:
        parse_key(files(content))
    except KeyProblemError as problem:
        return problem
    return None


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FORMS), st.integers(0, 1000), st.integers(0, 255))
def test_a_damaged_key_is_a_key_or_a_reason(pair: KeyPair, position: int, value: int) -> None:
    problem = problem_of(damaged(pair.private, position, value))
    if problem is not None:
        assert problem.reason in (Reason.PRIVATE_KEY_INVALID, Reason.PASSPHRASE_REQUIRED)
        assert pair.private.split("\n")[1][:20] not in problem.seen


def test_a_private_key_that_is_damaged_is_not_taken_for_a_public_one() -> None:
    """Its public half is still there."""
    first_check_number = 98
    problem = problem_of(damaged(key_pair().private, first_check_number, 0x55))
    assert problem is not None
    assert problem.reason is Reason.PRIVATE_KEY_INVALID


async def test_a_key_that_takes_too_long_to_decrypt_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not tried again until it changes; the next one is."""
    monkeypatch.setattr(keyring, "PARSE_SECONDS", 0.1)
    private = key_pair(passphrase="x").private
    first, *lines, last = private.split("\n")[:-1]
    content = bytearray(base64.b64decode("".join(lines)))
    rounds = content.index(b"bcrypt", 30) + 6 + 4 + 4 + 16  # the options: salt and rounds
    content[rounds : rounds + 4] = (200).to_bytes(4, "big")
    slow = "\n".join([first, base64.b64encode(content).decode(), last, ""]).encode()
    secret = Secret({"ssh-privatekey": slow.decode(), "passphrase": "x"})
    keys = Keys(secret, CONFIG.key)
    assert [keys.look(), keys.look()] == [True, False]
    await keys.ready()
    assert isinstance(keys.current, KeyProblemError)
    assert keys.current.reason is Reason.PRIVATE_KEY_INVALID
    assert "too many rounds" in keys.current.seen
    secret.files = {"ssh-privatekey": FORMS[0].private}
    assert keys.look()
    await keys.ready()
    assert isinstance(keys.current, Key)
    assert keys.current.fingerprint == FORMS[0].fingerprint
