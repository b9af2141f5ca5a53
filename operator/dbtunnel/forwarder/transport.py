"""The TCP connection under SSH, our own, so that what a server says before its version line is not lost.

sshd says there why it turns a client away (RFC 4253, section 4.2, allows such lines); asyncssh drops them.
"""

import asyncio
from collections.abc import Callable
from typing import cast

import asyncssh

_KEPT_BYTES = 2048
"""How much of the greeting is kept."""

_ADDRESS_DELAY_SECONDS = 0.25
"""RFC 8305: when to try the next address while the first does not answer."""

HIGH_WATER = 1024 * 1024
"""Bytes that may wait for the SSH connection before clients are no longer read."""


class Greeting(asyncio.Protocol):
    """Stands before asyncssh's protocol: keeps the greeting, and tells when the connection is congested."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self.heard = b""
        self.transport: asyncio.Transport | None = None
        self.has_version = False
        self.is_congested = False
        self.on_relief: Callable[[], None] = lambda: None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=HIGH_WATER)
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Bytes up to the version line; those after it go to asyncssh directly."""
        self.heard = (self.heard + data)[:_KEPT_BYTES]
        self.has_version = any(line.startswith(b"SSH-") for line in self.heard.split(b"\n")[:-1])
        if self.has_version:
            self.data_received = self._inner.data_received  # type: ignore[method-assign]
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        """The server sends no more."""
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """More than HIGH_WATER waits: clients must not be read until it has gone."""
        self.is_congested = True
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Most of it has gone."""
        self.is_congested = False
        self._inner.resume_writing()
        self.on_relief()

    def text_before_version(self) -> bytes:
        """What the server said instead of, or before, its version line."""
        lines = self.heard.split(b"\n")
        return b"\n".join(line for line in lines if not line.startswith(b"SSH-")).strip()


class Dialer:
    """Opens the TCP connection; given to asyncssh as its `tunnel`."""

    def __init__(self) -> None:
        self.greeting: Greeting | None = None

    async def create_connection(
        self, factory: Callable[[], asyncssh.SSHClientConnection], host: str, port: int
    ) -> tuple[asyncio.BaseTransport, asyncssh.SSHClientConnection]:
        """As asyncssh asks for it. Raises OSError."""
        inner = factory()
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.create_connection(
            lambda: Greeting(cast(asyncio.Protocol, inner)), host, port, happy_eyeballs_delay=_ADDRESS_DELAY_SECONDS
        )
        self.greeting = protocol
        return transport, inner

    def abort(self) -> None:
        """Ends the connection at once."""
        if self.greeting and self.greeting.transport:
            self.greeting.transport.abort()
