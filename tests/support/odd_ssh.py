"""An SSH server that misbehaves as sshd never does: asyncssh's, in a thread, with what it says changed."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, Self

import asyncssh

from dbtunnel.api.forwarder import ForwarderHop, HostKeyRule


class OddSshServer:
    """Lets everybody in and forwards. `on_connection` gets each connection, to change what it will say.

    Use it as a context manager: leaving ends it with its connections.
    """

    def __init__(self, on_connection: Callable[[asyncssh.SSHServerConnection], None] = lambda _: None) -> None:
        self.connections: list[asyncssh.SSHServerConnection] = []
        self._on_connection = on_connection
        self._key = asyncssh.generate_private_key("ssh-ed25519")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="odd ssh server", daemon=True)
        self.port = 0

    @property
    def hop(self) -> ForwarderHop:
        """What a forwarder needs to connect to it."""
        pin = HostKeyRule(fingerprints=(self._key.get_fingerprint(),))
        return ForwarderHop(host="127.0.0.1", port=self.port, user="anybody", host_key=pin)

    def call(self, function: Callable[[], object]) -> None:
        """Runs a function in its thread."""

        async def run() -> None:
            function()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def __enter__(self) -> Self:
        self._thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self._end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _listen(self) -> int:
        self._acceptor = await asyncssh.listen(
            "127.0.0.1", 0, server_factory=lambda: _LetsIn(self), server_host_keys=[self._key], config=None
        )
        return int(self._acceptor.get_port())

    def _end(self) -> None:
        self._acceptor.close()
        for connection in self.connections:
            connection.abort()

    def taken(self, connection: asyncssh.SSHServerConnection) -> None:
        """A connection has been taken."""
        self.connections.append(connection)
        self._on_connection(connection)


class _LetsIn(asyncssh.SSHServer):
    def __init__(self, server: OddSshServer) -> None:
        self._server = server

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._server.taken(conn)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return True

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        return True
