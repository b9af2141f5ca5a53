"""The TCP connection under SSH, our own, so that what a server says before its version line is not lost.

sshd says there why it turns a client away (RFC 4253, section 4.2, allows such lines); asyncssh drops them.
"""

import asyncio
import re
from collections.abc import Callable
from typing import cast

import asyncssh

_KEPT_BYTES = 16384
"""How much of the greeting is kept."""

_VERSION = re.compile(rb"^SSH-[^\n]*\n", re.MULTILINE)

_KEXINIT = b"\x14"

_BEFORE_LISTS = 4 + 1 + 1 + 16
"""Bytes of SSH_MSG_KEXINIT before its lists: length, padding length, message number, cookie."""

_ADDRESS_DELAY_SECONDS = 0.25
"""RFC 8305: when to try the next address while the first does not answer."""

HIGH_WATER = 1024 * 1024
"""Bytes that may wait for the SSH connection before clients are no longer read."""


class Congestion:
    """Clients that are not read, since their SSH connection has more to send than it can.

    asyncssh holds no writer back for it: 100 uploading clients and a stopped server grew its buffer to 196 MiB.
    """

    def __init__(self) -> None:
        self.is_on = False
        """Whether more waits than should."""
        self._held: set[Callable[[], None]] = set()

    def holds(self, relieve: Callable[[], None]) -> bool:
        """Whether the client must not be read now; `relieve` is called when it may be."""
        if self.is_on:
            self._held.add(relieve)
        return self.is_on

    def forget(self, relieve: Callable[[], None]) -> None:
        """The client is gone."""
        self._held.discard(relieve)

    def begin(self) -> None:
        """More than HIGH_WATER waits."""
        self.is_on = True

    def end(self) -> None:
        """Most of it has gone."""
        self.is_on = False
        held, self._held = self._held, set()
        for relieve in held:
            relieve()


class Greeting(asyncio.Protocol):
    """Stands before asyncssh's protocol: keeps the greeting, and tells when the connection is congested."""

    def __init__(self, inner: asyncio.Protocol, congestion: Congestion) -> None:
        self._inner = inner
        self._congestion = congestion
        self.heard = b""
        """What the server first said, as far as it is in the clear."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        cast(asyncio.Transport, transport).set_write_buffer_limits(high=HIGH_WATER)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes up to the end of the server's first packet; those after it go to asyncssh directly."""
        self.heard = (self.heard + data)[:_KEPT_BYTES]
        if self.host_key_algorithms() or len(self.heard) == _KEPT_BYTES:
            self.data_received = self._inner.data_received  # type: ignore[method-assign]
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """The server sends no more."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """More than HIGH_WATER waits."""
        self._congestion.begin()
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Most of it has gone."""
        self._inner.resume_writing()
        self._congestion.end()

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


class Dialer:
    """Opens the TCP connection; given to asyncssh as its `tunnel`."""

    def __init__(self) -> None:
        self.greeting: Greeting | None = None
        self.transport: asyncio.Transport | None = None
        self.congestion = Congestion()

    async def create_connection(
        self, factory: Callable[[], asyncssh.SSHClientConnection], host: str, port: int
    ) -> tuple[asyncio.BaseTransport, asyncssh.SSHClientConnection]:
        """As asyncssh asks for it. Raises OSError."""
        inner = factory()
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(
            lambda: Greeting(cast(asyncio.Protocol, inner), self.congestion),
            host,
            port,
            happy_eyeballs_delay=_ADDRESS_DELAY_SECONDS,
        )
        self.greeting, self.transport = protocol, transport
        return transport, inner

    @property
    def host_key_algorithms(self) -> frozenset[str]:
        """What the server offers; none while that is not known."""
        return self.greeting.host_key_algorithms() if self.greeting else frozenset()

    def is_closing(self) -> bool:
        """Whether the connection is gone or about to go."""
        return self.transport is None or self.transport.is_closing()

    def abort(self) -> None:
        """Ends the connection at once."""
        if self.transport:
            self.transport.abort()
