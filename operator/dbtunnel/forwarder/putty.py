"""Private keys in PuTTY's own format, .ppk, of versions 2 and 3 (PuTTY's manual, appendix C).

What is read becomes OpenSSH's form, in memory, for asyncssh to take: its parts are the same in another order.
"""

import binascii
import hashlib
import hmac
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

import asyncssh
from asyncssh.packet import SSHPacket, String, UInt32
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.argon2 import Argon2d, Argon2i, Argon2id

FIRST_WORD = b"PuTTY-User-Key-File-"
"""With which such a file begins."""

CERTIFIED = "-cert-v01@openssh.com"
"""The end of a certificate's algorithm, after that of the key."""

MOST_MEMORY = 64 * 1024
"""KiB that the derivation of a key may take, eight times what PuTTY takes: a pod has 256 MiB by default."""

MOST_WORK = 16 * 1024 * 1024
"""KiB times passes: some 20 seconds of a processor. PuTTY's own take a tenth of a second."""

_FLAVOURS: Mapping[bytes, type[Argon2id | Argon2i | Argon2d]] = {
    b"Argon2id": Argon2id,
    b"Argon2i": Argon2i,
    b"Argon2d": Argon2d,
}

_ONE_DERIVATION = threading.Lock()
"""Keys are read several at a time, and the memory is bounded for all of them."""


class PuttyKeyError(ValueError):
    """The file cannot be used. Its text shows nothing of the key."""


@dataclass(frozen=True)
class PuttyKey:
    """What a file holds."""

    private: asyncssh.SSHKey = field(repr=False)
    certificate: bytes | None = None
    """One line as in a -cert.pub file; PuTTY may keep it within the key."""


@dataclass(frozen=True)
class _File:
    """The outer layer. Names of headers are without `Argon2-`, blobs decoded and not decrypted."""

    version: bytes
    algorithm: bytes
    headers: Mapping[bytes, bytes] = field(repr=False)
    public: bytes = field(repr=False)
    private: bytes = field(repr=False)

    def authenticated(self, private: bytes) -> bytes:
        """What the MAC is made of, with the private part in clear."""
        parts = (self.algorithm, self.headers[b"Encryption"], self.headers[b"Comment"], self.public, private)
        return b"".join(map(String, parts))


def parse(content: bytes, passphrase: bytes | None) -> PuttyKey:
    """The key. Raises PuttyKeyError, and asyncssh.KeyEncryptionError where the passphrase is wrong or needed."""
    try:
        file = _outer_layer(content)
        is_encrypted = file.headers[b"Encryption"] != b"none"
        if is_encrypted and not passphrase:
            raise asyncssh.KeyEncryptionError("it is encrypted")
        private = _verified(file, (passphrase or b"") if is_encrypted else b"")
        if private is None and is_encrypted:
            raise asyncssh.KeyEncryptionError("the passphrase does not fit")
        if private is None:
            raise PuttyKeyError("its Private-MAC does not fit: it was changed or damaged")
        return _key(file, private)
    except (PuttyKeyError, asyncssh.KeyEncryptionError):
        raise
    except Exception:  # of which the text could quote the key
        raise PuttyKeyError("it is a damaged key of PuTTY's") from None


def _outer_layer(content: bytes) -> _File:
    """Headers and blobs, in whatever order. PuTTY takes any of the three line ends."""
    lines = iter(content.strip().replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"))
    first, _, algorithm = next(lines).partition(b": ")
    headers: dict[bytes, bytes] = {}
    blobs: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name.endswith(b"-Lines"):
            blobs[name] = binascii.a2b_base64(b"".join(islice(lines, _number(value, 10_000))))
        else:
            headers[name] = value
    version = first.removeprefix(FIRST_WORD)
    if version not in (b"2", b"3") or headers[b"Encryption"] not in (b"none", b"aes256-cbc"):
        raise PuttyKeyError("it is a key of PuTTY's in a version that is not known: have puttygen write it anew")
    return _File(version, algorithm.strip(), headers, blobs[b"Public-Lines"], blobs[b"Private-Lines"])


def _number(text: bytes, most: int) -> int:
    if not text.isdigit() or len(text) > 9 or int(text) > most:
        raise PuttyKeyError("it asks for more memory or time than a key of PuTTY's needs: save it anew with puttygen")
    return int(text)


# --- decryption -------------------------------------------------------------------------------------------------------


def _verified(file: _File, passphrase: bytes) -> bytes | None:
    """The private part in clear; None where its MAC does not fit."""
    secrets = _of_version_2(passphrase) if file.version == b"2" else _of_version_3(file, passphrase)
    private = file.private
    if file.headers[b"Encryption"] != b"none":
        decryptor = Cipher(algorithms.AES256(secrets.key), modes.CBC(secrets.iv)).decryptor()
        private = decryptor.update(private) + decryptor.finalize()
    found = hmac.digest(secrets.mac_key, file.authenticated(private), secrets.mac)
    return private if hmac.compare_digest(found, binascii.a2b_hex(file.headers[b"Private-MAC"])) else None


@dataclass(frozen=True, repr=False)
class _Secrets:
    """What comes of the passphrase."""

    key: bytes
    iv: bytes
    mac_key: bytes
    mac: str
    """Name of the hash."""


def _of_version_2(passphrase: bytes) -> _Secrets:
    key = b"".join(_sha1(UInt32(number) + passphrase) for number in (0, 1))[:32]
    return _Secrets(key, bytes(16), _sha1(b"putty-private-key-file-mac-key" + passphrase), "sha1")


def _sha1(content: bytes) -> bytes:
    return hashlib.sha1(content).digest()  # noqa: S324 - what the format has


def _of_version_3(file: _File, passphrase: bytes) -> _Secrets:
    if file.headers[b"Encryption"] == b"none":
        return _Secrets(b"", b"", b"", "sha256")
    headers = file.headers
    memory = _number(headers[b"Argon2-Memory"], MOST_MEMORY)
    derivation = _FLAVOURS[headers[b"Key-Derivation"]](
        salt=binascii.a2b_hex(headers[b"Argon2-Salt"]),
        length=80,
        iterations=_number(headers[b"Argon2-Passes"], MOST_WORK // max(memory, 1)),
        lanes=_number(headers[b"Argon2-Parallelism"], 64),
        memory_cost=memory,
    )
    with _ONE_DERIVATION:
        derived = derivation.derive(passphrase)
    return _Secrets(derived[:32], derived[32:48], derived[48:], "sha256")


# --- the key ----------------------------------------------------------------------------------------------------------


def _key(file: _File, private: bytes) -> PuttyKey:
    """The key, and the certificate where the public half is one."""
    algorithm = file.algorithm.removesuffix(CERTIFIED.encode("ascii"))
    public = SSHPacket(file.public)
    public.get_string()  # the algorithm
    certificate = None
    if algorithm != file.algorithm:
        public.get_string()  # the certificate's nonce; the key's own parts follow
        certificate = file.algorithm + b" " + binascii.b2a_base64(file.public, newline=False)
    parts = _LAYOUTS.get(algorithm, _elliptic)(public, SSHPacket(private))
    key = asyncssh.import_private_key(_as_openssh(algorithm, parts))
    if certificate is None and key.public_data != file.public:
        raise PuttyKeyError("its public half is not that of its private half")
    return PuttyKey(key, certificate)


def _rsa(public: SSHPacket, private: SSHPacket) -> list[bytes]:
    exponent, modulus = public.get_string(), public.get_string()
    d, p, q, inverse = (private.get_string() for _ in range(4))
    return [modulus, exponent, d, inverse, p, q]


def _elliptic(public: SSHPacket, private: SSHPacket) -> list[bytes]:
    curve, point = public.get_string(), public.get_string()
    return [curve, point, private.get_string()]


def _edwards(public: SSHPacket, private: SSHPacket) -> list[bytes]:
    point, seed = public.get_string(), private.get_string()
    return [point, seed.ljust(len(point), b"\0") + point]


def _dsa(public: SSHPacket, private: SSHPacket) -> list[bytes]:
    return [*(public.get_string() for _ in range(4)), private.get_string()]


_LAYOUTS = {b"ssh-rsa": _rsa, b"ssh-ed25519": _edwards, b"ssh-ed448": _edwards, b"ssh-dss": _dsa}
"""The parts of a key in OpenSSH's order, each a string or an mpint, which are written alike."""


def _as_openssh(algorithm: bytes, parts: list[bytes]) -> bytes:
    """The key as OpenSSH writes it, not encrypted (OpenSSH's PROTOCOL.key)."""
    section = UInt32(0) * 2 + b"".join(map(String, (algorithm, *parts, b"")))
    section += bytes(range(1, 1 + -len(section) % 8))
    blobs = b"".join(map(String, (b"none", b"none", b""))) + UInt32(1) + String(b"") + String(section)
    text = binascii.b2a_base64(b"openssh-key-v1\0" + blobs)
    return b"-----BEGIN OPENSSH PRIVATE KEY-----\n" + text + b"-----END OPENSSH PRIVATE KEY-----\n"
