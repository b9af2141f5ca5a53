"""The mounted Secret: each way in which it can be wrong is told, and nothing of a key ever is."""

import os
from pathlib import Path

import asyncssh
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dbtunnel.api.forwarder import MOUNTED_FILE_LIMIT, ForwarderKey
from dbtunnel.api.reasons import Reason
from dbtunnel.forwarder.keys import KeyFiles, KeyProblemError, MountedFile, MountedKeys, parse_key, read_file
from tests.support.keys import KeyPair, key_pair, write_key_directory

NAMES = ForwarderKey(secret="orders-ssh", key="ssh-privatekey", passphrase_key="passphrase")
PAIR = key_pair()


def locked(pair: KeyPair, form: str = "openssh") -> str:
    """The key under the passphrase `open sesame`, with a derivation that costs no time."""
    key = asyncssh.import_private_key(pair.private)
    return key.export_private_key(form, "open sesame", rounds=1, ignore_few_rounds=True).decode()


LOCKED = locked(PAIR)


def files(key: str | bytes | None, passphrase: str | None = None, names: tuple[str, ...] = ("other",)) -> KeyFiles:
    content = key.encode() if isinstance(key, str) else key
    return KeyFiles(MountedFile(content), MountedFile(passphrase.encode() if passphrase is not None else None), names)


def problem(of: KeyFiles) -> KeyProblemError:
    with pytest.raises(KeyProblemError) as raised:
        parse_key(of)
    return raised.value


# --- keys that can be used --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["ssh-ed25519", "ecdsa-sha2-nistp256", "ssh-rsa"])
@pytest.mark.parametrize("form", ["openssh", "pkcs8-pem"])
@pytest.mark.parametrize("passphrase", [None, "open sesame"])
def test_keys_of_every_kind_and_form(algorithm: str, form: str, passphrase: str | None) -> None:
    pair = key_pair(algorithm, form=form, bits=2048)
    key = parse_key(files(locked(pair, form) if passphrase else pair.private, passphrase))
    assert (key.public.key, key.public.fingerprint) == (pair.public, pair.fingerprint)
    assert key.public.accepted is None


@pytest.mark.parametrize(
    "text",
    [
        PAIR.private.replace("\n", "\r\n"),
        PAIR.private.rstrip("\n"),
        f"\n{PAIR.private}\n\n",
    ],
    ids=["line ends of Windows", "no last line end", "empty lines around"],
)
def test_what_editors_make_of_a_key(text: str) -> None:
    assert parse_key(files(text)).public.key == PAIR.public


@pytest.mark.parametrize("passphrase", ["open sesame", "open sesame\n", "open sesame\r\n"])
def test_a_line_end_after_the_passphrase_is_not_meant(passphrase: str) -> None:
    assert parse_key(files(LOCKED, passphrase)).public.key == PAIR.public


def test_a_passphrase_that_is_not_needed_does_no_harm() -> None:
    assert parse_key(files(PAIR.private, "unused")).public.key == PAIR.public


# --- keys that cannot -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_files", "reason", "seen"),
    [
        (files(None, names=()), Reason.SECRET_NOT_FOUND, ""),
        (files(None, names=("id_rsa", "id_rsa.pub")), Reason.SECRET_KEY_MISSING, "id_rsa, id_rsa.pub"),
        (files(""), Reason.PRIVATE_KEY_INVALID, "it is empty"),
        (files(" \n"), Reason.PRIVATE_KEY_INVALID, "it is empty"),
        (files("c3NoLWtleQ=="), Reason.PRIVATE_KEY_INVALID, "its 12 bytes have no BEGIN line"),
        (files(b"\xff\x00"), Reason.PRIVATE_KEY_INVALID, "its 2 bytes have no BEGIN line"),
        (
            files(PAIR.private[:200]),
            Reason.PRIVATE_KEY_INVALID,
            "its 200 bytes have a BEGIN line and no END line: it is cut off",
        ),
        (
            files("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"),
            Reason.PRIVATE_KEY_INVALID,
            "its 75 bytes have BEGIN and END lines and do not parse in between",
        ),
        (files(f"{PAIR.public} me@home\n"), Reason.PUBLIC_KEY_GIVEN, ""),
        (files(LOCKED), Reason.PASSPHRASE_REQUIRED, ""),
        (files(LOCKED, "\n"), Reason.PASSPHRASE_REQUIRED, ""),
        (files(LOCKED, "wrong"), Reason.PASSPHRASE_WRONG, ""),
    ],
)
def test_a_key_that_cannot_be_used(given_files: KeyFiles, reason: Reason, seen: str) -> None:
    found = problem(given_files)
    assert (found.reason, found.seen) == (reason, seen)


@pytest.mark.parametrize("form", ["pkcs8-pem", "pkcs1-pem"])
def test_older_forms_of_an_encrypted_key(form: str) -> None:
    pair = key_pair("ssh-rsa", bits=2048)
    text = locked(pair, form)
    assert problem(files(text)).reason is Reason.PASSPHRASE_REQUIRED
    assert problem(files(text, "wrong")).reason is Reason.PASSPHRASE_WRONG
    assert parse_key(files(text, "open sesame")).public.key == pair.public


def test_a_certificate_is_no_key() -> None:
    key = asyncssh.import_private_key(PAIR.private)
    certificate = key.generate_user_certificate(key, "me").export_certificate()
    assert problem(files(certificate)).reason in (Reason.PUBLIC_KEY_GIVEN, Reason.PRIVATE_KEY_INVALID)


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from(["OPENSSH", "RSA", "EC", "ENCRYPTED", ""]), st.booleans())
def test_whatever_is_mounted_leads_to_a_key_or_a_problem(data: bytes, kind: str, base64: bool) -> None:
    import base64 as encoding

    label = f"{kind} PRIVATE KEY".strip()
    inner = encoding.encodebytes(data).decode() if base64 else data.decode("latin-1")
    found = problem(files(f"-----BEGIN {label}-----\n{inner}\n-----END {label}-----\n".encode("latin-1"), "words"))
    assert found.seen.isprintable()


@example(11, "[")  # in the BEGIN line, of which asyncssh makes a pattern
@given(st.integers(0, len(PAIR.private) - 1), st.characters(min_codepoint=32, max_codepoint=126))
def test_a_key_with_a_letter_changed_shows_nothing_of_itself(place: int, letter: str) -> None:
    broken = PAIR.private[:place] + letter + PAIR.private[place + 1 :]
    found: object = None
    try:
        found = parse_key(files(broken))
    except KeyProblemError as error:
        found = (error, error.seen)
    assert PAIR.private.splitlines()[2][:20] not in repr(found)


# --- reading the directory --------------------------------------------------------------------------------------------


def test_a_directory_as_the_kubelet_mounts_it(tmp_path: Path) -> None:
    write_key_directory(tmp_path, {"ssh-privatekey": PAIR.private, "ssh-publickey": PAIR.public})
    found = MountedKeys(tmp_path, NAMES).read()
    assert found.names == ("ssh-privatekey", "ssh-publickey"), "the kubelet's own entries are not told"
    assert found.passphrase == MountedFile()
    assert parse_key(found).public.key == PAIR.public


def test_a_change_is_seen_without_reading(tmp_path: Path) -> None:
    keys = MountedKeys(tmp_path / "key", NAMES)
    stamps = [keys.stamp()]
    for files in ({}, {"ssh-privatekey": PAIR.private}, {"ssh-privatekey": PAIR.private}, {"passphrase": "x"}):
        write_key_directory(tmp_path / "key", files)
        stamps.append(keys.stamp())
        assert keys.stamp() == stamps[-1]
    assert len(set(stamps)) == len(stamps)
    assert str(PAIR.private) not in repr(stamps)


def test_a_key_of_the_longest_name(tmp_path: Path) -> None:
    """With a suffix it would be longer than a file's name may be."""
    name = "k" * 253
    write_key_directory(tmp_path, {name: PAIR.private})
    found = MountedKeys(tmp_path, ForwarderKey(secret="orders-ssh", key=name, passphrase_key="passphrase")).read()
    assert parse_key(found).public.key == PAIR.public
    assert found.following() is None


def test_the_next_key_has_a_passphrase_of_its_own_or_that_of_the_current(tmp_path: Path) -> None:
    current = {"ssh-privatekey": PAIR.private, "passphrase": "open sesame", "ssh-privatekey-next": LOCKED}
    write_key_directory(tmp_path, current)
    following = MountedKeys(tmp_path, NAMES).read().following()
    assert following
    assert parse_key(following).public.key == PAIR.public
    write_key_directory(tmp_path, {**current, "passphrase-next": "open barley"})
    following = MountedKeys(tmp_path, NAMES).read().following()
    assert following
    assert problem(following).reason is Reason.PASSPHRASE_WRONG


def test_a_secret_that_is_not_there_and_one_that_comes(tmp_path: Path) -> None:
    assert problem(MountedKeys(tmp_path / "absent", NAMES).read()).reason is Reason.SECRET_NOT_FOUND
    assert problem(MountedKeys(tmp_path, NAMES).read()).reason is Reason.SECRET_NOT_FOUND
    write_key_directory(tmp_path, {"id_ed25519": PAIR.private})
    found = problem(MountedKeys(tmp_path, NAMES).read())
    assert (found.reason, found.seen) == (Reason.SECRET_KEY_MISSING, "id_ed25519")


def test_names_are_bounded_and_printable(tmp_path: Path) -> None:
    for number in range(15):
        (tmp_path / f"{number:02}{'x' * 200}").touch()
    (tmp_path / "00\x1b[2J\n").touch()
    names = MountedKeys(tmp_path, NAMES).read().names
    assert names[0] == r"00\x1b[2J\n"
    assert len(names) == 11
    assert names[-1] == "6 more"
    assert all(len(name) <= 100 and name.isprintable() for name in names)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "most").write_bytes(b"x" * MOUNTED_FILE_LIMIT)
    (tmp_path / "more").write_bytes(b"x" * (MOUNTED_FILE_LIMIT + 1))
    assert len(read_file(tmp_path, "most").content or b"") == MOUNTED_FILE_LIMIT
    assert read_file(tmp_path, "more") == MountedFile(problem="it has more than 65536 bytes")


def test_what_is_not_a_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("directory", "pipe", ".."):
        found = read_file(tmp_path, name)
        assert found.content is None
        assert found.problem, name
    assert read_file(tmp_path / "pipe", "below") == MountedFile()
    assert problem(KeyFiles(read_file(tmp_path, "directory"), MountedFile(), ())).reason is Reason.PRIVATE_KEY_INVALID


def test_no_text_of_a_file_shows_its_content() -> None:
    secret = files("-----BEGIN SECRET", "open sesame")
    for text in (repr(secret), str(secret), repr(secret.key)):
        assert "SECRET" not in text
        assert "sesame" not in text
