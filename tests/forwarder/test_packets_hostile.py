"""An SSH server that says what none says, once a client's channel is open: no client is deceived, nothing is left."""

import contextlib
import gc
import logging
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import asyncssh
import pytest
from asyncssh.packet import Byte, String, UInt32

from dbtunnel.forwarder.metrics import CLIENTS_PARKED, CLIENTS_REFUSED
from tests.support.faults import FaultServer
from tests.support.in_process import DataPath
from tests.support.odd_ssh import OddSshServer
from tests.support.processes import wait_until

Server = asyncssh.SSHServerConnection
Misbehave = Callable[[Any, int], None]
"""What a server does, told its connection and our number of the channel."""

ADJUST, DATA, EXTENDED, EOF, CLOSE, REQUEST, SUCCESS, FAILURE = 93, 94, 95, 96, 97, 98, 99, 100
OPENED, NOT_OPENED = 91, 92
"""SSH_MSG_CHANNEL_... (RFC 4254, section 9)."""

WAYS = pytest.mark.parametrize("own", [True, False], ids=["own", "asyncssh"])


def says(kind: int, *arguments: bytes) -> Misbehave:
    """A message; the channel's number comes first."""
    return lambda server, number: server.send_packet(kind, UInt32(number), *arguments)


def says_in_general(kind: int, *arguments: bytes) -> Misbehave:
    """A message that is not of a channel."""
    return lambda server, _: server.send_packet(kind, *arguments)


def sealed(server: Any, content: bytes) -> bytes:
    """A packet of any content: the padding's length, the message, padding, and a tag that is right."""
    packet, tag = server._send_encryption.encrypt_packet(server._send_seq, UInt32(len(content)), content)
    server._send_seq += 1
    return bytes(packet + tag)


def seals(body: bytes | Callable[[int], bytes]) -> Misbehave:
    """Such a packet; the function is told the channel's number."""
    return lambda server, number: server._send(sealed(server, body if isinstance(body, bytes) else body(number)))


def asks(question: Callable[[Any], Coroutine[Any, Any, object]]) -> Misbehave:
    """A request whose answer it waits for, as a server must."""

    async def ask_and_bear(server: Any) -> None:
        with contextlib.suppress(asyncssh.Error):
            await question(server)

    return lambda server, _: server.create_task(ask_and_bear(server))


def floods(server: Any, number: int) -> None:
    """Far more than any window."""
    for _ in range(1024):
        server.send_packet(DATA, UInt32(number), String(bytes(32768)))


def all_of(*parts: Misbehave) -> Misbehave:
    def say(server: Any, number: int) -> None:
        for part in parts:
            part(server, number)

    return say


ENDS_THE_CONNECTION: dict[str, Misbehave] = {
    "data for a channel that is none": says_in_general(DATA, UInt32(77), String(b"x")),
    "an adjustment for a channel that is none": says_in_general(ADJUST, UInt32(77), UInt32(1)),
    "more data than the window": floods,
    "data after its end": all_of(says(EOF), says(DATA, String(b"x"))),
    "data after the close": all_of(says(CLOSE), says(DATA, String(b"x"))),
    "a window of more than 32 bits": says(ADJUST, UInt32(2**32 - 1)),
    "a second confirmation": says(OPENED, UInt32(9), UInt32(1000), UInt32(1000)),
    "a failure after the confirmation": says(NOT_OPENED, UInt32(1), String("no"), String("")),
    "a success that nobody asked for": says(SUCCESS),
    "data that is shorter than it says": says(DATA, UInt32(100), b"x"),
    "data that is longer than it says": says(DATA, UInt32(1), b"xyz"),
    "an adjustment that is too short": says(ADJUST, b"\0"),
    "an adjustment that is too long": says(ADJUST, UInt32(1), b"\0"),
    "a packet of 300 KiB": seals(
        lambda number: b"\4" + Byte(DATA) + UInt32(number) + String(bytes(300 * 1024)) + bytes(4)
    ),
    "an empty packet": seals(b""),
    "a packet of one byte": seals(b"\0"),
    "a packet of padding": seals(b"\x0f" + bytes(15)),
    "no padding": seals(lambda number: b"\0" + Byte(ADJUST) + UInt32(number) + UInt32(1)),
    "more padding than packet": seals(b"\xff" + bytes(31)),
    "a key exchange of garbage": says_in_general(20, b"x"),
    "new keys without an exchange": says_in_general(21),
    "extensions in the middle": says_in_general(7, UInt32(1), String("x@example.com"), String("y")),
    "a message of the login": says_in_general(52),
    "a request that ends in the middle": says(REQUEST, UInt32(100)),
    "a disconnect": says_in_general(1, UInt32(2), String("good\r\nbye"), String("")),
}

IS_HARMLESS: dict[str, Misbehave] = {
    "a request": says(REQUEST, String("exit-status"), b"\0", UInt32(1)),
    "a request that wants an answer": asks(lambda server: channel_of(server)._make_request(b"no-such@example.com")),
    "extended data": says(EXTENDED, UInt32(1), String(b"an error")),
    "an adjustment by nothing": says(ADJUST, UInt32(0)),
    "empty data": says(DATA, String(b"")),
    "an ignored message": says_in_general(2, String(b"x" * 1000)),
    "a debug message": says_in_general(4, b"\1", String("look"), String("")),
    "an unknown message": says_in_general(192, b"x"),
    "an unknown message of the channel": says(101),
    "a global request": asks(lambda server: server._make_global_request(b"no-such@example.com")),
    "a sign of life": asks(lambda server: server._make_global_request(b"keepalive@openssh.com")),
    "keys of the host": says_in_general(80, String("hostkeys-00@openssh.com"), b"\0", String(b"garbage")),
    "a channel of its own": asks(lambda server: server.create_connection(asyncssh.SSHTCPSession, "a", 1, "b", 2)),
    "padding to no whole block": seals(lambda number: b"\3" + Byte(ADJUST) + UInt32(number) + UInt32(1) + bytes(3)),
}


def echo(peer: socket.socket) -> None:
    while data := peer.recv(65536):
        peer.sendall(data)


@contextmanager
def odd_path(
    own: bool, on_connection: Callable[[Server], None] = lambda _: None, treat: Callable[[socket.socket], None] = echo
) -> Iterator[tuple[OddSshServer, DataPath]]:
    with (
        FaultServer(treat) as database,
        OddSshServer(on_connection) as server,
        DataPath(server.hop, database.port, own=own) as path,
    ):
        yield server, path


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Nothing is to be logged that tells of a bug; an exception that nobody fetched is found by collecting it."""
    caplog.set_level(logging.WARNING)
    yield caplog
    gc.collect()
    assert [record.getMessage() for record in caplog.records] == []


def receive(client: socket.socket, size: int) -> bytes:
    """So many bytes; a socket with a timeout may give fewer at a time."""
    content = b""
    while len(content) < size:
        data = client.recv(size - len(content))
        assert data, f"it ended after {content!r}"
        content += data
    return content


def ask(client: socket.socket, text: bytes = b"ping") -> None:
    client.sendall(text)
    assert receive(client, len(text)) == text


def is_reset(client: socket.socket) -> bool:
    """How the connection ends."""
    try:
        while client.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


def channel_of(server: Any) -> Any:
    (channel,) = server._channels.values()
    return channel


def misbehave(server: OddSshServer, what: Misbehave) -> None:
    """Has the server do it over the only connection, to its only channel."""

    def do() -> None:
        (connection,) = server.connections
        what(connection, channel_of(connection)._send_chan)

    server.call(do)


@WAYS
@pytest.mark.parametrize("what", ENDS_THE_CONNECTION)
def test_what_no_server_may_do_ends_the_connection(log: pytest.LogCaptureFixture, own: bool, what: str) -> None:
    with odd_path(own) as (server, path), path.connect() as client:
        ask(client)
        assert (path.link.packets.why_not == "") is own
        misbehave(server, ENDS_THE_CONNECTION[what])
        assert path.lost.wait(10), "the connection goes on"
        assert what.startswith("data after") or is_reset(client), "a clean end for what is not whole"
        wait_until(lambda: path.listener.clients == 0, "the client to be gone")
        assert path.link.uses == 0
        assert not path.link.packets.channels
        assert not path.connection._channels


@WAYS
@pytest.mark.parametrize("what", IS_HARMLESS)
def test_what_is_strange_and_harmless_is_borne(log: pytest.LogCaptureFixture, own: bool, what: str) -> None:
    with odd_path(own) as (server, path), path.connect() as client:
        ask(client)
        for _ in range(3):
            misbehave(server, IS_HARMLESS[what])
            ask(client)
        assert not path.lost.is_set()


# --- while a channel opens --------------------------------------------------------------------------------------------


def confirms(change: Callable[[Any, tuple[int, ...]], None]) -> Callable[[Server], None]:
    """A server that confirms channels as the function does; it is told of asyncssh's function and its arguments."""

    def changed(connection: Any) -> None:
        confirm = connection.send_channel_open_confirmation
        connection.send_channel_open_confirmation = lambda *arguments: change(confirm, arguments)

    return changed


@WAYS
def test_packets_of_one_byte_and_a_window_of_ten(log: pytest.LogCaptureFixture, own: bool) -> None:
    small = confirms(lambda confirm, arguments: confirm(*arguments[:2], 10, 1))
    with odd_path(own, small) as (_, path), path.connect() as client:
        ask(client)
        client.sendall(b"0123456789" * 20)
        assert receive(client, 6) == b"012345", "what is left of the window, which this server does not widen"


@WAYS
def test_a_window_that_never_opens(log: pytest.LogCaptureFixture, own: bool) -> None:
    shut = confirms(lambda confirm, arguments: confirm(*arguments[:2], 0, 1000))
    with odd_path(own, shut) as (_, path):
        client = path.connect()
        client.sendall(bytes(100_000))
        wait_until(lambda: path.listener.clients == 1, "the client to be taken")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        wait_until(lambda: path.listener.clients == 0, "the client to be gone")
        wait_until(lambda: path.link.uses == 0, "the channel to be gone")
        assert not path.lost.is_set()


@WAYS
def test_packets_of_no_bytes_end_the_connection(log: pytest.LogCaptureFixture, own: bool) -> None:
    none = confirms(lambda confirm, arguments: confirm(*arguments[:3], 0))
    with odd_path(own, none) as (_, path), path.connect():
        assert path.lost.wait(10)
        wait_until(lambda: path.metrics.get(CLIENTS_PARKED) == 1, "the client to wait for another connection")


@WAYS
def test_a_confirmation_that_comes_too_late(log: pytest.LogCaptureFixture, own: bool) -> None:
    """The client has been refused by then; the channel is closed, and with it the connection to the database."""
    kept: list[Callable[[], None]] = []
    late = confirms(lambda confirm, arguments: kept.append(lambda: confirm(*arguments)))
    ended = threading.Event()

    def treat(peer: socket.socket) -> None:
        while peer.recv(65536):
            pass
        ended.set()

    with odd_path(own, late, treat) as (server, path), path.connect() as client:
        assert is_reset(client)
        assert path.metrics.get(CLIENTS_REFUSED, "DatabaseTimeout") == 1
        assert not ended.is_set()
        server.call(kept[0])
        assert ended.wait(10)
        wait_until(lambda: path.link.uses == 0, "the channel to be gone")
        assert not path.lost.is_set()


@WAYS
def test_data_before_the_channel_is_confirmed_ends_the_connection(log: pytest.LogCaptureFixture, own: bool) -> None:
    """Nothing of it reaches a client."""
    early = confirms(lambda *_: None)
    with odd_path(own, early) as (server, path), path.connect() as client:
        wait_until(lambda: path.connection._channels, "the channel to be asked for")
        (number,) = path.connection._channels
        server.call(lambda: server.connections[0].send_packet(DATA, UInt32(number), String(b"x")))
        assert path.lost.wait(10)
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)


# --- endless ----------------------------------------------------------------------------------------------------------


@WAYS
def test_very_many_small_packets_for_a_client_that_does_not_read(log: pytest.LogCaptureFixture, own: bool) -> None:
    """A byte of a window takes little more than a byte of memory, and all of it arrives, in order."""
    pieces = [b"%07d\n" % number for number in range(10_000)]
    content = b"".join(pieces)

    def say(server: Any, number: int) -> None:
        """All at once."""
        head = b"\x0a" + Byte(DATA) + UInt32(number)
        server._send(b"".join(sealed(server, head + String(piece) + bytes(10)) for piece in pieces))

    with odd_path(own) as (server, path), path.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ask(client)
        misbehave(server, say)
        assert receive(client, len(content)) == content
