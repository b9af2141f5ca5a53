"""The private key, from the mounted Secret."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from dbtunnel.api.forwarder import MOUNTED_FILE_LIMIT, ForwarderKey, PublicKeyFact
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.diagnosis import printable

_NAMES_SHOWN = 10


class KeyProblemError(Exception):
    """The key cannot be used. Carries the reason and what was seen, never a part of the key."""

    def __init__(self, reason: Reason, seen: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.seen = seen


@dataclass(frozen=True)
class MountedFile:
    """A file of a mounted directory. It may be a secret, so its text shows nothing of it."""

    content: bytes | None = field(default=None, repr=False)
    """None where there is no such file, or where it cannot be used."""
    problem: str = ""
    """Why it cannot be used."""


@dataclass(frozen=True)
class KeyFiles:
    """What stands in the key directory; two that are equal lead to the same key."""

    key: MountedFile
    passphrase: MountedFile
    names: tuple[str, ...]


@dataclass(frozen=True)
class Key:
    """A private key that can sign. Its text shows the public half alone."""

    private: asyncssh.SSHKey = field(repr=False)
    public: PublicKeyFact


def read_file(directory: Path, name: str) -> MountedFile:
    """A mounted file, of at most MOUNTED_FILE_LIMIT bytes. Never waits, as reading a pipe would."""
    try:
        with open(directory / name, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return MountedFile(problem="it is not a regular file")
            content = file.read(MOUNTED_FILE_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return MountedFile()
    except OSError as error:
        return MountedFile(problem=f"the file cannot be read: {error.strerror}")
    if len(content) > MOUNTED_FILE_LIMIT:
        return MountedFile(problem=f"it has more than {MOUNTED_FILE_LIMIT} bytes")
    return MountedFile(content)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def read_key_files(directory: Path, names: ForwarderKey) -> KeyFiles:
    """What the mounted Secret has."""
    key, passphrase = read_file(directory, names.key), read_file(directory, names.passphrase_key)
    return KeyFiles(key, passphrase, tuple(_names(directory)))


def parse_key(files: KeyFiles) -> Key:
    """The key. Takes a tenth of a second where it is encrypted. Raises KeyProblemError."""
    if files.key.problem:
        raise KeyProblemError(Reason.PRIVATE_KEY_INVALID, files.key.problem)
    if files.key.content is None:
        if not files.names:
            raise KeyProblemError(Reason.SECRET_NOT_FOUND)
        raise KeyProblemError(Reason.SECRET_KEY_MISSING, ", ".join(files.names))
    private = _parsed(files.key.content, _passphrase(files.passphrase))
    public = " ".join(private.export_public_key().decode("ascii").split()[:2])
    return Key(private, PublicKeyFact(key=public, fingerprint=private.get_fingerprint()))


def _passphrase(file: MountedFile) -> str | None:
    # `echo secret > file` and most editors end a file with a newline that nobody means
    return file.content.decode("utf-8", "surrogateescape").rstrip("\r\n") if file.content else None


def _parsed(content: bytes, passphrase: str | None) -> asyncssh.SSHKey:
    """The key. What the parser says of a bad one is not passed on: it could quote it."""
    try:
        return asyncssh.import_private_key(content, passphrase)
    except asyncssh.KeyEncryptionError:
        raise KeyProblemError(_passphrase_reason(passphrase)) from None
    except Exception as error:  # a damaged key can make asyncssh raise anything, re.error too
        raise _problem(content, passphrase, str(error)) from None


def _passphrase_reason(passphrase: str | None) -> Reason:
    return Reason.PASSPHRASE_WRONG if passphrase else Reason.PASSPHRASE_REQUIRED


def _problem(content: bytes, passphrase: str | None, error: str) -> KeyProblemError:
    if "passphrase" in error.lower() or "decrypt" in error.lower():
        return KeyProblemError(_passphrase_reason(passphrase))
    if _is_public(content):
        return KeyProblemError(Reason.PUBLIC_KEY_GIVEN)
    return KeyProblemError(Reason.PRIVATE_KEY_INVALID, _what_it_looks_like(content))


def _is_public(content: bytes) -> bool:
    if b" PRIVATE KEY-----" in content:
        return False  # a damaged one still shows its public half
    try:
        asyncssh.import_public_key(content)
    except Exception:  # as above
        return False
    return True


def _what_it_looks_like(content: bytes) -> str:
    """A hint that shows nothing of the content."""
    if not content.strip():
        return "it is empty"
    if b"-----BEGIN" not in content:
        return f"its {len(content)} bytes have no BEGIN line"
    if b"-----END" not in content:
        return f"its {len(content)} bytes have a BEGIN line and no END line: it is cut off"
    return f"its {len(content)} bytes have BEGIN and END lines and do not parse in between"


def _names(directory: Path) -> Sequence[str]:
    """Names of the mounted keys; the kubelet's own entries begin with two dots."""
    try:
        names = sorted(path.name for path in directory.iterdir() if not path.name.startswith(".."))
    except OSError:
        return []
    shown = [printable(name, 100) for name in names[:_NAMES_SHOWN]]
    return shown if len(names) <= _NAMES_SHOWN else [*shown, f"{len(names) - _NAMES_SHOWN} more"]
