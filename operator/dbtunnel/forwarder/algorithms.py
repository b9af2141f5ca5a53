"""Which SSH algorithms are offered, in order of preference."""

import functools
import time
from collections.abc import Sequence

from asyncssh.encryption import get_encryption_algs
from asyncssh.kex import get_kex_algs
from asyncssh.mac import get_mac_algs
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from dbtunnel.api.forwarder import Algorithms

_AES_GCM = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com")
_CHACHA20 = ("chacha20-poly1305@openssh.com",)
_OTHER_CIPHERS = (
    "aes256-ctr",
    "aes192-ctr",
    "aes128-ctr",
)

_TRIED_BYTES, _TRIES = 32768, 5
"""A packet of a bulk stream, and how often it is sealed to see how long that takes: about 0.1 ms in all."""

_KEY_EXCHANGES = (
    "mlkem768x25519-sha256",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group16-sha512",
    "diffie-hellman-group18-sha512",
    "diffie-hellman-group14-sha256",
    "diffie-hellman-group-exchange-sha256",
)

_MACS = (
    "hmac-sha2-256-etm@openssh.com",
    "hmac-sha2-512-etm@openssh.com",
    "hmac-sha2-256",
    "hmac-sha2-512",
)

_SIGNATURES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "rsa-sha2-256",
    "rsa-sha2-512",
)

_OLD_CIPHERS = ("aes256-cbc", "aes128-cbc")
_OLD_KEY_EXCHANGES = ("diffie-hellman-group14-sha1", "diffie-hellman-group-exchange-sha1", "diffie-hellman-group1-sha1")
_OLD_MACS = ("hmac-sha1-etm@openssh.com", "hmac-sha1")
_OLD_SIGNATURES = ("ssh-rsa",)


def offered(choice: Algorithms, *, compression: bool) -> dict[str, tuple[str, ...]]:
    """asyncssh's options for a choice. SHA-1 is offered with Legacy alone."""
    old = choice is Algorithms.LEGACY
    return {
        "encryption_algs": _available(ciphers() + (_OLD_CIPHERS if old else ()), get_encryption_algs()),
        "kex_algs": _available(_KEY_EXCHANGES + (_OLD_KEY_EXCHANGES if old else ()), get_kex_algs()),
        "mac_algs": _available(_MACS + (_OLD_MACS if old else ()), get_mac_algs()),
        "signature_algs": _SIGNATURES + (_OLD_SIGNATURES if old else ()),
        "compression_algs": ("zlib@openssh.com", "none") if compression else ("none",),
    }


@functools.cache
def ciphers() -> tuple[str, ...]:
    """Those that are not outdated, the fastest first, which is tried once in a process: AES-GCM by far where the
    processor has instructions for it, ChaCha20 where it has none.
    """
    packet = bytes(_TRIED_BYTES)
    is_fast = _seconds(AESGCM(bytes(16)), packet) <= _seconds(ChaCha20Poly1305(bytes(32)), packet)
    return (_AES_GCM + _CHACHA20 if is_fast else _CHACHA20 + _AES_GCM) + _OTHER_CIPHERS


def _seconds(cipher: AESGCM | ChaCha20Poly1305, packet: bytes) -> float:
    """How long it takes to seal a packet; the least of a few, since other processes may come between."""
    taken: list[float] = []
    for number in range(_TRIES):
        began = time.perf_counter()
        cipher.encrypt(number.to_bytes(12, "big"), packet, None)
        taken.append(time.perf_counter() - began)
    return min(taken)


def _available(names: tuple[str, ...], known: Sequence[bytes]) -> tuple[str, ...]:
    """Those that the OpenSSL of this process has; asyncssh refuses a list with one that it lacks."""
    return tuple(name for name in names if name.encode("ascii") in known)
