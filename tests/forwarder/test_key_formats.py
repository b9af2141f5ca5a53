"""Private keys in every format that OpenSSH and PuTTY write, made by their own tools."""

import re
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dbtunnel.api.reasons import Reason
from dbtunnel.forwarder.keys import Key, KeyFiles, KeyProblemError, MountedFile, parse_key
from dbtunnel.forwarder.putty import MOST_MEMORY, MOST_WORK
from tests.support.bastion import Bastion
from tests.support.databases import PostgresServer
from tests.support.forwarder import KEY, PASSPHRASE_KEY, Forwarder
from tests.support.key_tools import PASSPHRASE, MadeKey, certificate_of, new_putty_key, openssh_key, putty_key
from tests.support.keys import key_pair
from tests.support.processes import run, wait_until

CONVERT = "`puttygen KEY -O private-openssh-new -o NEW`"

KINDS = {
    "Ed25519": ("ed25519",),
    "ECDSA 256": ("ecdsa", "-b", "256"),
    "ECDSA 384": ("ecdsa", "-b", "384"),
    "ECDSA 521": ("ecdsa", "-b", "521"),
    "RSA": ("rsa", "-b", "2048"),
}

FORMS = {"OpenSSH": (), "PEM": ("-m", "PEM"), "PKCS#8": ("-m", "PKCS8")}
"""What ssh-keygen knows. It writes Ed25519 in its own format whatever it is asked for."""

PUTTY = {
    "PPK 2": ("version=2",),
    "PPK 3, Argon2id": ("memory=1024", "passes=2"),
    "PPK 3, Argon2i": ("kdf=argon2i", "memory=1024", "passes=2"),
    "PPK 3, Argon2d, parallel": ("kdf=argon2d", "memory=1024", "passes=2", "parallelism=4"),
}


def parsed(text: str | bytes, passphrase: str | None = None, certificate: str | None = None) -> Key:
    key, words, beside = (
        MountedFile(each.encode() if isinstance(each, str) else each) for each in (text, passphrase, certificate)
    )
    return parse_key(KeyFiles(key, words, ("key",), certificate=beside))


def problem(text: str | bytes, passphrase: str | None = None) -> tuple[Reason, str]:
    with pytest.raises(KeyProblemError) as raised:
        parsed(text, passphrase)
    return raised.value.reason, raised.value.seen


def check(plain: MadeKey, encrypted: MadeKey) -> None:
    """Both are read, the second with its passphrase alone."""
    assert parsed(plain.text).public.key == plain.public
    assert parsed(plain.text, "not needed").public.key == plain.public
    assert parsed(encrypted.text, f"{PASSPHRASE}\n").public.key == encrypted.public
    assert problem(encrypted.text) == (Reason.PASSPHRASE_REQUIRED, "")
    assert problem(encrypted.text, "open barley") == (Reason.PASSPHRASE_WRONG, "")


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_openssh(kind: str, form: str) -> None:
    options = (*KINDS[kind], *FORMS[form])
    check(openssh_key(*options), openssh_key(*options, passphrase=PASSPHRASE))


def test_every_cipher_with_which_openssh_encrypts_keys() -> None:
    ciphers = run(["ssh", "-Q", "cipher"]).split()
    assert len(ciphers) >= 10
    for cipher in ciphers:
        check(openssh_key("ed25519"), openssh_key("ed25519", "-Z", cipher, passphrase=PASSPHRASE))


@pytest.mark.parametrize("form", PUTTY)
@pytest.mark.parametrize("kind", KINDS)
def test_keys_of_putty(kind: str, form: str) -> None:
    key = openssh_key(*KINDS[kind])
    plain, encrypted = putty_key(key, *PUTTY[form]), putty_key(key, *PUTTY[form], passphrase=PASSPHRASE)
    assert plain.text.startswith("PuTTY-User-Key-File-")
    assert "Encryption: aes256-cbc" in encrypted.text
    check(plain, encrypted)


@pytest.mark.parametrize("form", ["private-openssh", "private-openssh-new"])
def test_keys_that_putty_exports(form: str) -> None:
    key = openssh_key("rsa", "-b", "2048")
    check(putty_key(key, form=form), putty_key(key, form=form, passphrase=PASSPHRASE))


def test_a_key_that_putty_made_as_it_does_by_default() -> None:
    check(new_putty_key("ed25519"), putty_key(openssh_key("ed25519"), passphrase=PASSPHRASE))


@pytest.mark.parametrize("line_end", ["\r\n", "\r"], ids=["Windows", "old Macintosh"])
def test_line_ends_of_putty(line_end: str) -> None:
    made = putty_key(openssh_key("ed25519"), passphrase=PASSPHRASE)
    assert parsed(made.text.replace("\n", line_end), PASSPHRASE).public.key == made.public
    assert parsed(f"\n{made.text}\n\n", PASSPHRASE).public.key == made.public


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_of_putty_that_holds_its_certificate(kind: str) -> None:
    key, authority = openssh_key(*KINDS[kind]), key_pair()
    certificate = certificate_of(key.public, authority, "-I", "within", "-n", "dbtunnel")
    read = parsed(putty_key(key, passphrase=PASSPHRASE, certificate=certificate).text, PASSPHRASE)
    assert read.public.key == key.public
    assert read.certificate
    assert read.certificate.key_id == "within"
    another = certificate_of(key.public, authority, "-I", "beside", "-n", "dbtunnel")
    read = parsed(putty_key(key, certificate=certificate).text, certificate=another)
    assert read.certificate
    assert read.certificate.key_id == "beside", "the file's own is the newer one"


# --- what is not ------------------------------------------------------------------------------------------------------


def security_key() -> str:
    """A key of a FIDO token, as ssh-keygen writes it: what it has is a handle, no key."""
    import base64

    def string(content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + content

    parts = (b"sk-ssh-ed25519@openssh.com", bytes(32), b"ssh:")
    section = bytes(8) + b"".join(map(string, parts)) + b"\x01" + string(b"handle") + string(b"") + string(b"")
    section += bytes(range(1, 1 + -len(section) % 8))
    content = b"openssh-key-v1\0" + string(b"none") * 2 + string(b"") + b"\0\0\0\1" + string(b"") + string(section)
    encoded = base64.encodebytes(content).decode()
    return f"-----BEGIN OPENSSH PRIVATE KEY-----\n{encoded}-----END OPENSSH PRIVATE KEY-----\n"


_NOT_TAKEN: dict[str, tuple[Callable[[], str], str]] = {
    "DSA": (lambda: new_putty_key("dsa").text, "of the type ssh-dss, which SSH servers do not take; make an Ed25519"),
    "DSA, PEM": (lambda: putty_key(new_putty_key("dsa"), form="private-openssh").text, "of the type ssh-dss"),
    "Ed448 of PuTTY": (lambda: new_putty_key("ed448").text, "of the type ssh-ed448"),
    "security key": (security_key, "of use with its security key (FIDO) alone"),
    "SSH 1": (lambda: "SSH PRIVATE KEY FILE FORMAT 1.1\n\0\3\0\0", "for version 1 of SSH"),
    "ssh.com": (lambda: putty_key(openssh_key("rsa"), form="private-sshcom").text, CONVERT),
}


@pytest.mark.parametrize("kind", _NOT_TAKEN)
def test_keys_that_are_not_taken_are_told(kind: str) -> None:
    make, seen = _NOT_TAKEN[kind]
    reason, told = problem(make())
    assert reason is Reason.PRIVATE_KEY_INVALID
    assert seen in told


def test_a_public_key_of_puttys() -> None:
    public = putty_key(openssh_key("ed25519"), form="public").text
    assert problem(public) == (Reason.PUBLIC_KEY_GIVEN, "")


@pytest.mark.parametrize("form", ["PEM", "PKCS#8"])
def test_a_wrong_passphrase_is_never_taken_for_a_damaged_key(form: str) -> None:
    """Of every 256 one decrypts to what ends like a key."""
    text = openssh_key("ecdsa", *FORMS[form], passphrase=PASSPHRASE).text
    assert {problem(text, f"open {number}") for number in range(1000)} == {(Reason.PASSPHRASE_WRONG, "")}


def test_an_encrypted_key_that_is_cut_off() -> None:
    text = openssh_key("ecdsa", "-m", "PEM", passphrase=PASSPHRASE).text
    assert problem(text[:200], PASSPHRASE)[1].endswith("it is cut off")


# --- keys of PuTTY that are damaged or hostile ------------------------------------------------------------------------

ENCRYPTED = putty_key(openssh_key("ed25519"), "memory=64", "passes=1", passphrase=PASSPHRASE)
PLAIN = putty_key(openssh_key("ed25519"))


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Memory", str(MOST_MEMORY + 1)),
        ("Memory", "9" * 5000),
        ("Passes", str(MOST_WORK // 64 + 1)),
        ("Parallelism", "65"),
        ("Passes", "-1"),
        ("Passes", "one"),
    ],
)
def test_a_key_that_asks_for_too_much_is_not_derived(header: str, value: str) -> None:
    reason, seen = problem(re.sub(f"(?m)^(Argon2-{header}): .*$", rf"\1: {value}", ENCRYPTED.text), PASSPHRASE)
    assert reason is Reason.PRIVATE_KEY_INVALID
    assert "more memory or time" in seen


@pytest.mark.parametrize(
    ("pattern", "text", "seen"),
    [
        ("^Comment: .*$", "Comment: another", "Private-MAC does not fit"),
        ("^PuTTY-User-Key-File-3", "PuTTY-User-Key-File-1", "in a version that is not known"),
        ("^Encryption: none", "Encryption: rot13", "in a version that is not known"),
        ("^Private-Lines: .*$", "Private-Lines: 99999", "more memory or time"),
        ("^Private-MAC: .*$", "", "a damaged key of PuTTY's"),
        ("^Public-Lines: .*$", "", "a damaged key of PuTTY's"),
    ],
)
def test_a_key_of_putty_that_was_changed(pattern: str, text: str, seen: str) -> None:
    changed = re.sub(f"(?m){pattern}", text, PLAIN.text)
    assert changed != PLAIN.text
    reason, told = problem(changed)
    assert reason is Reason.PRIVATE_KEY_INVALID
    assert seen in told


def test_an_encrypted_key_of_putty_that_was_changed() -> None:
    """Whether it is that or the passphrase cannot be told."""
    changed = re.sub("(?m)^Comment: .*$", "Comment: another", ENCRYPTED.text)
    assert problem(changed, PASSPHRASE) == (Reason.PASSPHRASE_WRONG, "")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([PLAIN, ENCRYPTED]), st.integers(0, 2000), st.integers(0, 255), st.booleans())
def test_a_damaged_key_of_putty_is_a_key_or_a_reason(made: MadeKey, place: int, value: int, cut: bool) -> None:
    content = bytearray(made.text.encode())
    content[place % len(content)] = value
    secret = made.text.split("Private-Lines: 1\n")[1].splitlines()[0]
    try:
        told = parsed(bytes(content[: place % len(content)] if cut else content), PASSPHRASE).public.key
    except KeyProblemError as error:
        told = error.seen
    assert told == made.public or (told.isprintable() and secret[10:30] not in told)


# --- the way in -------------------------------------------------------------------------------------------------------


def test_keys_of_every_kind_and_format_log_in(
    start_forwarder: Callable[..., Forwarder], bastion: Bastion, postgres: PostgresServer
) -> None:
    keys = [openssh_key(*options) for options in KINDS.values()]
    made = [putty_key(key, "memory=1024", "passes=2", passphrase=PASSPHRASE) for key in keys]
    made += [openssh_key(*KINDS["RSA"], "-m", "PEM", passphrase=PASSPHRASE), openssh_key(*KINDS["ECDSA 521"])]
    bastion.authorize(*(key.public for key in made))
    forwarder = start_forwarder(postgres.port, {})
    for key in made:
        forwarder.write_secret({KEY: key.text, PASSPHRASE_KEY: PASSPHRASE})

        def is_in(public: str = key.public) -> bool:
            told = forwarder.status().public_key
            return bool(told and told.accepted and told.key == public)

        wait_until(is_in, f"a login with {key.public.split()[0]}")
        assert forwarder.status().next_key is None
    assert bastion.log_text().count("Accepted publickey for") == len(made)
