"""The private key and the known_hosts text, as they stand in the mounted directories."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

from dbtunnel.api.conditions import Reason
from dbtunnel.api.forwarder import MOUNTED_FILE_LIMIT, ForwarderKey, PublicKeyFact
from dbtunnel.domain.diagnosis import printable

_NAMES_SHOWN = 10


class KeyProblemError(Exception):
    """The key cannot be used. Carries the reason and what was seen, never a part of the key."""

    def __init__(self, reason: Reason, seen: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.seen = seen


@dataclass(frozen=True)
class Key:
    """A private key that can sign. Its text shows the public half alone."""

    private: asyncssh.SSHKey = field(repr=False)
    public: PublicKeyFact


def read_key(directory: Path, names: ForwarderKey) -> Key:
    """The key in the mounted Secret. Raises KeyProblemError."""
    content = _key_file(directory, names.key)
    if content is None:
        present = _names(directory)
        if not present:
            raise KeyProblemError(Reason.SECRET_NOT_FOUND)
        raise KeyProblemError(Reason.SECRET_KEY_MISSING, ", ".join(present))
    passphrase = _passphrase(directory, names.passphrase_key)
    private = _parsed(content, passphrase)
    public = " ".join(private.export_public_key().decode("ascii").split()[:2])
    return Key(private, PublicKeyFact(key=public, fingerprint=private.get_fingerprint()))


def read_text(directory: Path, name: str) -> bytes | None:
    """A mounted file; None where it is not there. At most MOUNTED_FILE_LIMIT bytes and one are read."""
    try:
        with (directory / name).open("rb") as file:
            return file.read(MOUNTED_FILE_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise KeyProblemError(Reason.PRIVATE_KEY_INVALID, f"the file cannot be read: {error.strerror}") from None


def _key_file(directory: Path, name: str) -> bytes | None:
    content = read_text(directory, name)
    if content is not None and len(content) > MOUNTED_FILE_LIMIT:
        raise KeyProblemError(Reason.PRIVATE_KEY_INVALID, f"it has more than {MOUNTED_FILE_LIMIT} bytes")
    return content


def _passphrase(directory: Path, name: str) -> str | None:
    content = read_text(directory, name)
    # `echo secret > file` and most editors end a file with a newline that nobody means
    return content.decode("utf-8", "surrogateescape").rstrip("\r\n") if content else None


def _parsed(content: bytes, passphrase: str | None) -> asyncssh.SSHKey:
    """The key. What the parser says of a bad one is not passed on: it could quote it."""
    try:
        return asyncssh.import_private_key(content, passphrase)
    except asyncssh.KeyEncryptionError:
        reason = Reason.PASSPHRASE_WRONG if passphrase else Reason.PASSPHRASE_REQUIRED
        raise KeyProblemError(reason) from None
    except (asyncssh.KeyImportError, ValueError, UnicodeError) as error:
        raise _problem(content, passphrase, str(error)) from None


def _problem(content: bytes, passphrase: str | None, error: str) -> KeyProblemError:
    if "passphrase" in error.lower():
        return KeyProblemError(Reason.PASSPHRASE_WRONG if passphrase else Reason.PASSPHRASE_REQUIRED)
    try:
        asyncssh.import_public_key(content)
    except (asyncssh.KeyImportError, ValueError, UnicodeError):
        return KeyProblemError(Reason.PRIVATE_KEY_INVALID, _what_it_looks_like(content))
    return KeyProblemError(Reason.PUBLIC_KEY_GIVEN)


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
