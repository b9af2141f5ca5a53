"""AES-GCM as SSH has it (RFC 5647): what seals and opens packets, for our own way and for asyncssh's alike.

asyncssh makes a cipher of the key for every packet and slices what it is given. A box has one cipher for as long as the
key lasts, works in place, and can stand where asyncssh has its own, so that one counter numbers the packets of both.
"""

import functools
from os import urandom
from typing import Any

from asyncssh.encryption import Encryption, GCMEncryption
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TAG = 16
"""Bytes of the tag that follows a packet (RFC 5647, section 6.3)."""

_COUNTS = 2**64


class Box(Encryption):
    """One direction with one key. The nonce is four fixed bytes and a counter (RFC 5647, section 7.1)."""

    def __init__(self, stock: GCMEncryption) -> None:
        """Goes on where asyncssh's has come to."""
        cipher: Any = stock._cipher
        self.aead = AESGCM(cipher._key)
        self._fixed: bytes = cipher._iv[:4]
        self._count = int.from_bytes(cipher._iv[4:], "big")
        self.opened: bytes | None = None
        """What asyncssh gets for the packet that it asks for next, where it is decrypted already."""

    def nonce(self) -> bytes:
        """That of the next packet; none is ever used twice."""
        count = self._count
        self._count = (count + 1) % _COUNTS
        return self._fixed + count.to_bytes(8, "big")

    def again(self) -> None:
        """What could not be opened asyncssh will try to open, with the same nonce, and find the same."""
        self._count = (self._count - 1) % _COUNTS

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:  # noqa: ARG002
        """As asyncssh asks for it."""
        sealed = self.aead.encrypt(self.nonce(), packet, header)
        return header + sealed[:-TAG], sealed[-TAG:]

    def decrypt_header(self, seq: int, first_block: bytes, header_len: int) -> tuple[bytes, bytes]:  # noqa: ARG002
        """As asyncssh asks for it; the length is in the clear."""
        return first_block, first_block[:header_len]

    def decrypt_packet(
        self,
        seq: int,  # noqa: ARG002
        first: bytes,
        rest: bytes,
        header_len: int,
        mac: bytes,
    ) -> bytes | None:
        """As asyncssh asks for it; None where the tag is wrong."""
        if self.opened is not None:
            opened, self.opened = self.opened, None
            return opened
        try:
            return self.aead.decrypt(self.nonce(), first[header_len:] + rest + mac, first[:header_len])
        except InvalidTag:
            return None


def boxed(encryption: object) -> Box | None:
    """What asyncssh uses as a box; None where it is not AES-GCM."""
    if isinstance(encryption, Box):
        return encryption
    return Box(encryption) if isinstance(encryption, GCMEncryption) else None


@functools.cache
def what_differs() -> str:
    """What a box does otherwise than asyncssh; empty if nothing, which is tried once in a process."""
    try:
        return _compared()
    except Exception as error:  # another asyncssh or cryptography, in which what is used here is not there
        return f"the self-check failed: {type(error).__name__}: {error}"


def _compared() -> str:
    key, iv, head = urandom(16), bytes(11) + b"\xff", b"\0\0\0\x20"
    ours, theirs = Box(GCMEncryption.new("aes128-gcm", key, iv)), Box(GCMEncryption.new("aes128-gcm", key, iv))
    sealing, opening = (GCMEncryption.new("aes128-gcm", key, iv) for _ in range(2))
    room, plain = bytearray(32 + TAG), bytearray(32)
    for packet in (urandom(32), b"after the carry".ljust(32), urandom(32)):
        ours.aead.encrypt_into(ours.nonce(), packet, head, room)
        sealed, tag = sealing.encrypt_packet(0, head, packet)
        if sealed + tag != head + room:
            return "asyncssh seals packets otherwise"
        theirs.aead.decrypt_into(theirs.nonce(), room, head, plain)
        if plain != packet:
            return "packets do not open"
        if opening.decrypt_packet(0, sealed[:4], bytes(room[:-TAG]), 4, tag) != packet:
            return "asyncssh opens packets otherwise"
    return ""
