"""The TCP connection under SSH, with something else at its ends."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from dbtunnel.forwarder.greeting import Greeting
from dbtunnel.forwarder.transport import HIGH_WATER, MOST_WAITING, Congestion, Dialer, Wire
from tests.support.stuck_ssh import until


class Inner(asyncio.Protocol):
    """What it is told."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.told: list[Any] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.told.append("made")

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.told.append(exc)


class Ends:
    """A wire and the other end of its connection."""

    def __init__(self, family: socket.AddressFamily) -> None:
        host = "::1" if family is socket.AF_INET6 else "127.0.0.1"
        with socket.create_server((host, 0), family=family) as bound:
            self.peer = socket.create_connection(bound.getsockname()[:2])
            self.address = self.peer.getsockname()
            connected, _ = bound.accept()
        connected.setblocking(False)
        self.inner, self.congestion = Inner(), Congestion()
        self.wire = Wire(connected, Greeting(self.inner), self.congestion)
        self.wire.begin()
        self.peer.setblocking(False)

    async def received(self, size: int) -> bytes:
        """So many bytes that the wire has written."""
        content = bytearray()

        def is_there() -> bool:
            try:
                content.extend(self.peer.recv(2**20))
            except BlockingIOError:
                return False
            return len(content) >= size

        await until(is_there)
        return bytes(content)


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[Ends]:
    both = Ends(request.param)
    yield both
    both.wire.abort()
    both.peer.close()


async def test_bytes_go_both_ways(ends: Ends) -> None:
    ends.peer.send(b"SSH-2.0-x\r\n")
    await until(lambda: ends.inner.received == b"SSH-2.0-x\r\n")
    for _ in range(3):
        ends.wire.write(b"abc")
    ends.wire.room(2)[:] = b"de"
    assert await ends.received(11) == b"abcabcabcde"
    assert ends.wire.get_extra_info("peername") == ends.address
    assert ends.wire.get_extra_info("cipher", "none") == "none"
    assert 0 < ends.wire.round_trip_seconds() < 1


async def test_more_than_the_socket_takes_arrives_whole(ends: Ends) -> None:
    content = bytes(range(256)) * 4096 * 12
    for at in range(0, len(content), 2**20):
        ends.wire.write(content[at : at + 2**20])
    assert ends.congestion.is_on
    assert await ends.received(len(content)) == content
    await until(lambda: not ends.congestion.is_on)


async def test_clients_are_held_from_a_high_mark_to_a_low_one(ends: Ends) -> None:
    ends.wire.write(bytes(HIGH_WATER))
    assert not ends.congestion.is_on
    ends.wire.write(b"x")
    assert ends.congestion.is_on
    await ends.received(HIGH_WATER + 1)
    await until(lambda: not ends.congestion.is_on)


async def test_a_server_that_has_us_answer_and_does_not_read_is_left(ends: Ends) -> None:
    for _ in range(64):
        ends.wire.write(bytes(2**20))
    assert ends.wire.is_closing()
    assert len(ends.wire._waiting) < 3 * MOST_WAITING
    await until(lambda: len(ends.inner.told) == 2)
    assert isinstance(ends.inner.told[1], OSError)


async def test_what_is_written_before_the_end_still_leaves(ends: Ends) -> None:
    """asyncssh says goodbye and has the transport closed in the next moment."""
    ends.wire.write(b"goodbye")
    asyncio.get_running_loop().call_soon(ends.wire.abort)
    assert await ends.received(7) == b"goodbye"
    await until(ends.wire.is_closing)
    ends.wire.write(b"lost")
    assert ends.wire.round_trip_seconds() == 0


async def test_the_end_of_the_other_side_is_told(ends: Ends) -> None:
    ends.peer.shutdown(socket.SHUT_WR)
    await until(lambda: ends.inner.told == ["made", None])
    assert ends.wire.is_closing()


@pytest.mark.parametrize("linger", [0, 1], ids=["reset", "close"])
async def test_last_words_are_taken_up_before_the_end(ends: Ends, linger: int) -> None:
    """By tasks, one after the other, of which each begins when the one before has ended."""

    tasks = []

    async def take_up(word: str) -> None:
        ends.inner.told.append(word)

    def begin(word: str) -> "asyncio.Task[None]":
        tasks.append(asyncio.ensure_future(take_up(word)))
        return tasks[-1]

    def data_received(_: bytes) -> None:
        begin("first").add_done_callback(lambda _: begin("second") and None)

    ends.inner.data_received = data_received  # type: ignore[method-assign, assignment]
    ends.peer.send(b"first, second")
    if not linger:
        ends.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ends.peer.close()
    await until(lambda: len(ends.inner.told) == 4)
    assert ends.inner.told[:3] == ["made", "first", "second"]


async def test_a_reset_is_told(ends: Ends) -> None:
    ends.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    ends.peer.close()
    await until(lambda: len(ends.inner.told) == 2)
    assert isinstance(ends.inner.told[1], ConnectionResetError)


async def test_a_bug_in_taking_what_came_ends_the_connection(ends: Ends, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: int) -> int:
        raise RuntimeError("a bug")

    ends.wire.consume = broken
    ends.peer.send(b"x")
    await until(lambda: ends.inner.told == ["made", None])
    assert [record.message for record in caplog.records] == ["serving a socket failed"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_a_dialer_takes_over_the_socket_that_is_connected_first(host: str) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as bound:
        dialer = Dialer()
        inner: Any = Inner()
        assert dialer.is_closing()
        wire, _ = await dialer.create_connection(lambda: inner, host, bound.getsockname()[1])
        peer, _ = bound.accept()
        peer.send(b"SSH-2.0-x\r\n")
        await until(lambda: inner.received == b"SSH-2.0-x\r\n")
        connected = wire.get_extra_info("socket")
        assert not connected.getblocking()
        assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "asyncio has set it before"
        assert not dialer.is_closing()
        dialer.abort()
        assert peer.recv(1) == b""
        peer.close()
