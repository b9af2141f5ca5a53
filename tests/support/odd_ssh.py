"""An SSH server that misbehaves as sshd never does: asyncssh's, in a thread, with what it says changed."""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Any, Self

import asyncssh

from dbtunnel.api.forwarder import ForwarderHop, HostKeyRule


class OddSshServer:
    """Lets everybody in and forwards. Use it as a context manager: leaving ends it with its connections."""

    def __init__(
        self, on_connection: Callable[[asyncssh.SSHServerConnection], None] = lambda _: None, **options: Any
    ) -> None:
        """`options`: of asyncssh.listen, such as the algorithms that it takes."""
        self.connections: list[asyncssh.SSHServerConnection] = []
        self.on_connection = on_connection
        """Gets each connection from now on, to change what it will say."""
        self.most_channels: int | None = None
        """How many it opens on a connection, as servers do that count a forwarding as a session."""
        self.refusal: asyncssh.ChannelOpenError | None = None
        """With what it refuses each channel."""
        self._options = options
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
        usual = {"server_factory": lambda: _LetsIn(self), "server_host_keys": [self._key], "config": None}
        self._acceptor = await asyncssh.listen("127.0.0.1", 0, **usual, **self._options)
        return int(self._acceptor.get_port())

    def _end(self) -> None:
        self._acceptor.close()
        for connection in self.connections:
            connection.abort()

    def taken(self, connection: asyncssh.SSHServerConnection) -> None:
        """A connection has been taken."""
        self.connections.append(connection)
        self.on_connection(connection)


class _LetsIn(asyncssh.SSHServer):
    def __init__(self, server: OddSshServer) -> None:
        self._server = server

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection: Any = conn
        self._server.taken(conn)

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return True

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> Any:
        most = self._server.most_channels
        if most is not None and len(self._connection._channels) >= most:
            raise asyncssh.ChannelOpenError(asyncssh.OPEN_RESOURCE_SHORTAGE, "too many sessions")
        if self._server.refusal:
            raise self._server.refusal
        return True


# --- logins that break ------------------------------------------------------------------------------------------------

Fault = Callable[[Any], None]
"""What a server does to a connection, an SSHServerConnection, instead of going on."""

_DISCONNECT, _KEXINIT, _KEX_REPLY = 1, 20, 31

_WITHHELD = "withheld"
"""Attribute of a connection: number and body of the message in whose place the fault comes."""

_MESSAGES = {
    "after the version line": _KEXINIT,
    "within KEXINIT": _KEXINIT,
    "in the key exchange": _KEX_REPLY,  # SSH_MSG_KEX_ECDH_REPLY, RFC 5656
    "at NEWKEYS": 21,
    "at the service request": 6,  # SSH_MSG_SERVICE_ACCEPT
    "before the key is looked at": 51,  # SSH_MSG_USERAUTH_FAILURE, the answer to the method "none"
    "when the key is offered": 60,  # SSH_MSG_USERAUTH_PK_OK
    "when the key has signed": 52,  # SSH_MSG_USERAUTH_SUCCESS
    "at the first channel": 91,  # SSH_MSG_CHANNEL_OPEN_CONFIRMATION
}
"""The message of the server's (RFC 4250, section 4.1.2) that does not come, by stage."""

STAGES = ("before the version line", *_MESSAGES, "after the login")
"""Where a login may break."""


def close(connection: Any) -> None:
    """Ends the connection as a server that ends does."""
    connection._transport.close()


def reset(connection: Any) -> None:
    """Ends it as a server that crashes does."""
    linger = connection._transport.get_extra_info("socket")
    linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection._transport.abort()


def fall_silent(connection: Any) -> None:
    """Says nothing more, and does not close."""
    connection._send = lambda data: None


def say_garbage(connection: Any) -> None:
    """Sends more than any packet has, without an end of its own; silence follows."""
    connection._transport.write(bytes(range(256)) * 2048)
    fall_silent(connection)


def say_the_unexpected(connection: Any) -> None:
    """Sends a message that is whole and has no meaning there: a server's part of a key exchange; silence follows."""
    connection.send_packet(_KEX_REPLY, b"")
    fall_silent(connection)


def say_it_wrong(connection: Any) -> None:
    """Sends the message with its last byte missing, or one too many where it has none; silence follows."""
    message, body = getattr(connection, _WITHHELD, (_KEX_REPLY, b""))
    connection.send_packet(message, body[:-1] or b"x")
    fall_silent(connection)


FAULTS: Mapping[str, Fault] = {
    "close": close,
    "reset": reset,
    "silence": fall_silent,
    "garbage": say_garbage,
    "unexpected": say_the_unexpected,
    "malformed": say_it_wrong,
}
"""How a login may break."""


def say_goodbye(code: int, text: str) -> Fault:
    """Sends SSH_MSG_DISCONNECT with a reason code (RFC 4253, section 11.1), and closes."""

    def fault(connection: Any) -> None:
        words = text.encode()
        connection.send_packet(_DISCONNECT, struct.pack(">II", code, len(words)) + words + struct.pack(">I", 0))
        close(connection)

    return fault


def break_at(stage: str, fault: Fault) -> Callable[[asyncssh.SSHServerConnection], None]:
    """For OddSshServer: what it does to each connection, so that the fault comes at the stage."""

    def on_connection(connection: asyncssh.SSHServerConnection) -> None:
        odd: Any = connection
        if stage == STAGES[0]:
            odd._send_version = lambda: fault(odd)
        elif stage == STAGES[-1]:
            _after(odd, _MESSAGES["when the key has signed"], fault)
        else:
            _instead(odd, _MESSAGES[stage], fault, halved=stage == "within KEXINIT")

    return on_connection


def say_before(message: int, kind: int, body: bytes) -> Callable[[asyncssh.SSHServerConnection], None]:
    """For OddSshServer: another message right before the first of a kind, on each connection."""

    def on_connection(connection: asyncssh.SSHServerConnection) -> None:
        odd: Any = connection
        send_packet = odd.send_packet

        def send(number: int, *parts: bytes, **more: Any) -> None:
            if number == message:
                odd.send_packet = send_packet
                send_packet(kind, body)
            send_packet(number, *parts, **more)

        odd.send_packet = send

    return on_connection


def _instead(odd: Any, message: int, fault: Fault, *, halved: bool) -> None:
    """The fault in the place of a message, or after half of it."""
    send_packet, send = odd.send_packet, odd._send

    def send_half(data: bytes) -> None:
        send(data[: len(data) // 2])

    def send_until(kind: int, *parts: bytes, **more: Any) -> None:
        if kind != message:
            send_packet(kind, *parts, **more)
            return
        odd.send_packet = send_packet
        setattr(odd, _WITHHELD, (kind, b"".join(parts)))
        if halved:
            odd._send = send_half
            send_packet(kind, *parts, **more)
            odd._send = send
        fault(odd)

    odd.send_packet = send_until


def _after(odd: Any, message: int, fault: Fault) -> None:
    """The fault once a message has been sent."""
    send_packet = odd.send_packet

    def send_then(kind: int, *parts: bytes, **more: Any) -> None:
        send_packet(kind, *parts, **more)
        if kind == message:
            odd.send_packet = send_packet
            fault(odd)

    odd.send_packet = send_then
