"""Private keys, from the mounted Secret."""

import errno
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import asyncssh

from dbtunnel.api.forwarder import (
    CERTIFICATE_SUFFIX,
    MOUNTED_FILE_LIMIT,
    NEXT_SUFFIX,
    REVOKED_SUFFIX,
    ForwarderKey,
    PublicKeyFact,
)
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.diagnosis import printable
from dbtunnel.forwarder import putty
from dbtunnel.forwarder.certificates import Certificate, CertificateError, read_certificate

_NAMES_SHOWN = 10

_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
"""The last: no Secret has a key of a name that long, and a suffix may make one of it."""


_KINDS = frozenset({"ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa"})
"""Types of keys with which a login is tried."""

_ENCRYPTED_PEM = (b"Proc-Type: 4,ENCRYPTED", b"-----BEGIN ENCRYPTED PRIVATE KEY-----")

_OTHER_FORMATS = {
    b"SSH PRIVATE KEY FILE FORMAT 1.1": "it is a key for version 1 of SSH, which servers do not speak any more",
    b"---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----": "it is in the format of ssh.com: convert it with"
    " `puttygen KEY -O private-openssh-new -o NEW`",
}

_UNKNOWN_ENCRYPTION = "it is encrypted in a way that is not known here: `ssh-keygen -p -f KEY` encrypts it anew"


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
    """What stands in the key directory. Nobody keeps it longer than it takes to parse the keys."""

    key: MountedFile
    passphrase: MountedFile
    names: tuple[str, ...]
    next_key: MountedFile = MountedFile()
    next_passphrase: MountedFile = MountedFile()
    revoked: MountedFile = MountedFile()
    certificate: MountedFile = MountedFile()
    """Of the key, by an authority that the server trusts."""
    next_certificate: MountedFile = MountedFile()

    def following(self) -> "KeyFiles | None":
        """The next key, as if it were the only one; None where there is none. Without a passphrase of its own it has
        that of the current key.
        """
        if self.next_key == MountedFile():
            return None
        own = self.next_passphrase != MountedFile()
        passphrase = self.next_passphrase if own else self.passphrase
        return replace(self, key=self.next_key, passphrase=passphrase, certificate=self.next_certificate)

    def revoked_words(self) -> frozenset[str]:
        """What names keys that must not be used: their fingerprints, or public halves, whatever stands between."""
        return frozenset((self.revoked.content or b"").decode("utf-8", "replace").split())


class KeySource(Protocol):
    """Where keys are read, again and again: they may come late and may change."""

    def stamp(self) -> object:
        """Another value where the files are others. Reads none of them."""

    def read(self) -> KeyFiles:
        """What stands there now."""


@dataclass(frozen=True)
class Key:
    """A private key that can sign. Its text shows the public half alone."""

    private: asyncssh.SSHKey = field(repr=False)
    public: PublicKeyFact
    certificate: Certificate | None = None
    """With which it is offered in place of its public half."""

    @property
    def fingerprint(self) -> str:
        """Tells it from other keys."""
        return self.public.fingerprint

    @property
    def identity(self) -> str:
        """Tells it from other keys, and from itself with another certificate or none."""
        return f"{self.fingerprint} {self.certificate.name}" if self.certificate else self.fingerprint

    @property
    def plain(self) -> "Key":
        """The key without its certificate."""
        return replace(self, certificate=None)

    def offers(self, now: float) -> Iterator["Key"]:
        """As what it is offered: with its certificate while that is valid, and without. `now` is Unix time."""
        if self.certificate and self.certificate.is_valid(now):
            yield self
        yield self.plain

    def is_named_in(self, words: Collection[str]) -> bool:
        """Whether its fingerprint, or the base64 of its public half, is among the words."""
        return self.fingerprint in words or self.public.key.split()[1] in words


def read_file(directory: Path, name: str) -> MountedFile:
    """A mounted file, of at most MOUNTED_FILE_LIMIT bytes. Never waits, as reading a pipe would."""
    try:
        with open(directory / name, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return MountedFile(problem="it is not a regular file")
            content = file.read(MOUNTED_FILE_LIMIT + 1)
    except OSError as error:
        if error.errno in _NO_FILE:
            return MountedFile()
        return MountedFile(problem=f"the file cannot be read: {error.strerror}")
    if len(content) > MOUNTED_FILE_LIMIT:
        return MountedFile(problem=f"it has more than {MOUNTED_FILE_LIMIT} bytes")
    return MountedFile(content)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


@dataclass(frozen=True)
class MountedKeys:
    """The directory of the mounted Secret."""

    directory: Path
    names: ForwarderKey

    def stamp(self) -> object:
        """Which files there are, and which versions of them."""
        try:
            return tuple(sorted((entry.name, file_stamp(Path(entry.path))) for entry in os.scandir(self.directory)))
        except OSError:
            return None

    def read(self) -> KeyFiles:
        """What the mounted Secret has."""
        key, passphrase = self.names.key, self.names.passphrase_key
        return KeyFiles(
            key=read_file(self.directory, key),
            passphrase=read_file(self.directory, passphrase),
            names=tuple(_names(self.directory)),
            next_key=read_file(self.directory, key + NEXT_SUFFIX),
            next_passphrase=read_file(self.directory, passphrase + NEXT_SUFFIX),
            revoked=read_file(self.directory, key + REVOKED_SUFFIX),
            certificate=read_file(self.directory, key + CERTIFICATE_SUFFIX),
            next_certificate=read_file(self.directory, key + NEXT_SUFFIX + CERTIFICATE_SUFFIX),
        )


def file_stamp(path: Path) -> tuple[int, ...]:
    """Which version of a file stands there, without reading it; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def parse_key(files: KeyFiles) -> Key:
    """The key. Takes a tenth of a second where it is encrypted. Raises KeyProblemError."""
    if files.key.problem:
        raise KeyProblemError(Reason.PRIVATE_KEY_INVALID, files.key.problem)
    if files.key.content is None:
        if not files.names:
            raise KeyProblemError(Reason.SECRET_NOT_FOUND)
        raise KeyProblemError(Reason.SECRET_KEY_MISSING, ", ".join(files.names))
    read = _parsed(files.key.content, _passphrase(files.passphrase))
    private = read.private
    certificate = _certificate(files.certificate, read)
    public = " ".join(private.export_public_key().decode("ascii").split()[:2])
    fingerprint, expires = private.get_fingerprint(), certificate.expires if certificate else None
    return Key(private, PublicKeyFact(key=public, fingerprint=fingerprint, certificate_not_after=expires), certificate)


def _certificate(file: MountedFile, key: putty.PuttyKey) -> Certificate | None:
    """That of the file beside the key, else the one that the key's file holds itself. Raises KeyProblemError."""
    content = key.certificate if file == MountedFile() else file.content
    problem = file.problem
    try:
        if not problem:
            return read_certificate(content, key.private) if content is not None else None
    except CertificateError as error:
        problem = str(error)
    what = (
        f"its certificate, under that name with {CERTIFICATE_SUFFIX},"
        if file != MountedFile()
        else "the certificate within"
    )
    raise KeyProblemError(Reason.PRIVATE_KEY_INVALID, f"{what} does not serve: {problem}") from None


def _passphrase(file: MountedFile) -> str | None:
    # `echo secret > file` and most editors end a file with a newline that nobody means
    return file.content.decode("utf-8", "surrogateescape").rstrip("\r\n") if file.content else None


def _parsed(content: bytes, passphrase: str | None) -> putty.PuttyKey:
    """The key. What the parser says of a bad one is not passed on: it could quote it."""
    try:
        if content.lstrip().startswith(putty.FIRST_WORD):
            key = putty.parse(content, passphrase.encode("utf-8", "surrogateescape") if passphrase else None)
        else:
            key = putty.PuttyKey(asyncssh.import_private_key(content, passphrase))
    except putty.PuttyKeyError as error:
        raise KeyProblemError(Reason.PRIVATE_KEY_INVALID, str(error)) from None
    except asyncssh.KeyEncryptionError as error:
        if str(error).startswith("Unknown"):
            raise KeyProblemError(Reason.PRIVATE_KEY_INVALID, _UNKNOWN_ENCRYPTION) from None
        raise KeyProblemError(_passphrase_reason(passphrase)) from None
    except Exception as error:  # a damaged key can make asyncssh raise anything, re.error too
        raise _problem(content, passphrase, str(error)) from None
    kind = key.private.get_algorithm()
    if kind not in _KINDS:
        raise KeyProblemError(Reason.PRIVATE_KEY_INVALID, _unusable(kind))
    return key


def _unusable(kind: str) -> str:
    if kind.startswith("sk-"):
        return "it is of use with its security key (FIDO) alone, which no pod can touch; make an Ed25519 key"
    return f"it is of the type {printable(kind, 40)}, which SSH servers do not take; make an Ed25519 key"


def _passphrase_reason(passphrase: str | None) -> Reason:
    return Reason.PASSPHRASE_WRONG if passphrase else Reason.PASSPHRASE_REQUIRED


def _problem(content: bytes, passphrase: str | None, error: str) -> KeyProblemError:
    # of these a wrong passphrase makes, by chance, something that passes for decrypted
    is_encrypted = b"-----END" in content and any(mark in content for mark in _ENCRYPTED_PEM)
    if is_encrypted or "passphrase" in error.lower() or "decrypt" in error.lower():
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
    for mark, told in _OTHER_FORMATS.items():
        if mark in content:
            return told
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
