"""An SSH connection over a channel of another: the way behind a jump host (RFC 4254, section 7.2)."""

import asyncio
from collections.abc import Callable
from typing import cast

import asyncssh

from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.transport import Dialer, Greeting

_WINDOW = 16 * 1024 * 1024
"""Bytes that the jump host may send before it is told that they were taken, which they are at once: what clients do not
read waits in the windows of the connection within."""

_ORIGIN = ("127.0.0.1", 0)
"""What the jump host's log shows as the client."""


class _Carried(asyncssh.SSHTCPSession[bytes]):
    """The channel, which is the transport of the SSH connection within."""

    def __init__(self, greeting: Greeting) -> None:
        self._greeting = greeting

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._greeting.connection_made(cast(asyncio.Transport, chan))

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:  # noqa: ARG002
        self._greeting.data_received(data)

    def eof_received(self) -> bool:
        self._greeting.eof_received()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._greeting.connection_lost(exc)

    def pause_writing(self) -> None:
        self._greeting.pause_writing()

    def resume_writing(self) -> None:
        self._greeting.resume_writing()


class JumpDialer(Dialer):
    """Has the jump host open the TCP connection."""

    def __init__(self, carrier: Link) -> None:
        super().__init__()
        self._carrier = carrier

    async def create_connection(
        self, factory: Callable[[], asyncssh.SSHClientConnection], host: str, port: int
    ) -> tuple[asyncio.BaseTransport, asyncssh.SSHClientConnection]:
        """As asyncssh asks for it. Raises asyncssh.ChannelOpenError.

        The opening itself is never cancelled, as that of a client's channel is not; a late success is closed.
        """
        inner = factory()
        greeting = Greeting(cast(asyncio.Protocol, inner), self.congestion)
        opening = asyncio.ensure_future(
            self._carrier.connection.create_connection(lambda: _Carried(greeting), host, port, *_ORIGIN, window=_WINDOW)
        )
        try:
            channel, _ = await asyncio.shield(opening)
        except BaseException:
            opening.add_done_callback(_close_late)
            raise
        self.greeting, self.transport = greeting, cast(asyncio.Transport, channel)
        return self.transport, inner


def _close_late(opening: "asyncio.Future[tuple[asyncssh.SSHTCPChannel[bytes], asyncssh.SSHTCPSession[bytes]]]") -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result()[0].abort()
