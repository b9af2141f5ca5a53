"""What an SSH server says before its first encrypted packet.

sshd says there why it turns a client away (RFC 4253, section 4.2, allows such lines); asyncssh drops them.
"""

import asyncio
import re
import time

_KEPT_BYTES = 16384
"""How much of the greeting is kept."""

_VERSION = re.compile(rb"^SSH-(?:2\.0|1\.99)-[^\n]*\n", re.MULTILINE)
"""Of a server that speaks SSH 2 (RFC 4253, sections 4.2 and 5.1); SSH 1 alone is no protocol that there still is."""

_KEXINIT = b"\x14"

_BEFORE_LISTS = 4 + 1 + 1 + 16
"""Bytes of SSH_MSG_KEXINIT before its lists: length, padding length, message number, cookie."""


class Greeting(asyncio.Protocol):
    """Stands before asyncssh's protocol, and keeps the greeting."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self.heard = b""
        """What the server first said, as far as it is in the clear."""
        self.heard_at: float | None = None
        """When it first said something; `time.monotonic`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes up to the end of the server's first packet; those after it go to asyncssh directly."""
        if self.heard_at is None:
            self.heard_at = time.monotonic()
        self.heard = (self.heard + data)[:_KEPT_BYTES]
        if self.host_key_algorithms() or len(self.heard) == _KEPT_BYTES:
            self.data_received = self._inner.data_received  # type: ignore[method-assign]
        self._inner.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._inner.connection_lost(exc)

    @property
    def has_version(self) -> bool:
        """Whether the server has said its version."""
        return _VERSION.search(self.heard) is not None

    def text_before_version(self) -> bytes:
        """What the server said instead of, or before, its version line."""
        return _VERSION.split(self.heard)[0].strip()

    def host_key_algorithms(self) -> frozenset[str]:
        """What the server offers in its SSH_MSG_KEXINIT (RFC 4253, section 7.1); none while it is not there."""
        version = _VERSION.search(self.heard)
        packet = self.heard[version.end() :] if version else b""
        length = int.from_bytes(packet[:4], "big")
        if not packet or len(packet) < 4 + length or packet[5:6] != _KEXINIT:
            return frozenset()
        _, lists = _name_list(packet[_BEFORE_LISTS:])
        names, _ = _name_list(lists)
        return frozenset(names.decode("ascii", "replace").split(","))


def _name_list(data: bytes) -> tuple[bytes, bytes]:
    """A name-list (RFC 4251, section 5) and what follows it."""
    end = 4 + int.from_bytes(data[:4], "big")
    return data[4:end], data[end:]
