"""The data path and its limits where no SSH server is needed to show them."""

import asyncio
import socket
import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dbtunnel.forwarder.channel import (
    EARLY_LIMIT,
    LARGEST_WINDOW,
    SMALLEST_WINDOW,
    Client,
    Session,
    open_channel,
    window,
)
from dbtunnel.forwarder.connection import Connector
from dbtunnel.forwarder.link import ABANDONED_AT_MOST, OPENING_AT_ONCE, End, Link
from dbtunnel.forwarder.listener import Listener, listening_socket
from dbtunnel.forwarder.metrics import Metrics
from dbtunnel.forwarder.probes import Prober
from dbtunnel.forwarder.transport import Congestion
from tests.support.forwarder import seconds
from tests.unit.test_forwarder_connect import CONFIG


class StuckConnection:
    """An SSH connection whose server does not answer, until it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.answer = asyncio.Event()

    async def create_connection(self, factory: Callable[[], Any], *_: object, **__: object) -> tuple[Any, Any]:
        self.asked += 1
        await self.answer.wait()
        return SimpleNamespace(abort=lambda: None), factory()


def link_over(connection: StuckConnection) -> Link:
    return Link(cast(Any, connection), lambda: False, Congestion(), End())


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def open_one(link: Link, limit: float) -> object:
    return await open_channel(link, lambda: cast(Any, object()), ("orders.internal", 5432), ("127.0.0.1", 1), limit)


async def abandon(link: Link, count: int) -> None:
    outcomes = await asyncio.gather(*(open_one(link, 0.05) for _ in range(count)), return_exceptions=True)
    assert all(isinstance(outcome, TimeoutError) for outcome in outcomes)


async def test_openings_that_nobody_waits_for_hold_nobody_up() -> None:
    """A database that dropped packets is back: those who try now need not wait until the bastion has given up."""
    connection = StuckConnection()
    link = link_over(connection)
    await abandon(link, OPENING_AT_ONCE)
    connection.answer.set()
    assert await open_one(link, 5)


async def test_openings_on_the_bastion_are_bounded() -> None:
    connection = StuckConnection()
    link = link_over(connection)
    for _ in range(6):
        await abandon(link, OPENING_AT_ONCE)
    assert connection.asked == OPENING_AT_ONCE + ABANDONED_AT_MOST
    connection.answer.set()
    assert len(await asyncio.gather(*(open_one(link, 5) for _ in range(2 * OPENING_AT_ONCE)))) == 2 * OPENING_AT_ONCE


async def test_what_a_client_sends_early_is_bounded_to_the_byte() -> None:
    clients: list[Client] = []
    server = await asyncio.get_running_loop().create_server(
        lambda: Client(clients.append, lambda _: None), "127.0.0.1", 0
    )
    content = bytes(range(256)) * 4096
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(content)
    received: list[bytes] = []
    session = SimpleNamespace(send=received.append, room=65536, client_lost=lambda _: None)
    await until(lambda: clients and not clients[0].transport.is_reading())
    clients[0].join(cast(Session, session))
    assert [len(piece) for piece in received] == [EARLY_LIMIT]
    await until(lambda: sum(map(len, received)) == len(content))
    assert b"".join(received) == content
    writer.close()
    server.close()


def test_windows_are_cut_from_one_piece() -> None:
    """One channel has what it can use; a thousand that are not read fill no memory."""
    assert window(0) == window(1) == LARGEST_WINDOW
    assert window(5000) == SMALLEST_WINDOW
    assert sum(window(number) for number in range(500)) < 112 * 2**20


async def test_a_client_is_not_left_waiting_by_a_bug(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        @property
        def link(self) -> Link:
            raise RuntimeError("a bug")

    config = CONFIG.model_copy(update={"seconds": seconds()})
    listener = Listener(config, cast(Connector, Broken()), cast(Prober, None), Metrics())
    bound = listening_socket("127.0.0.1", 0)
    await listener.start(bound)
    reader, writer = await asyncio.open_connection(*bound.getsockname())
    async with asyncio.timeout(10):
        with pytest.raises(ConnectionResetError):
            await reader.read()
        await listener.empty.wait()
    assert "serving a client failed" in caplog.text
    writer.close()
    listener.refuse_new()


async def test_nothing_is_written_to_a_client_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """asyncio logs each write to a lost connection, and a window's worth may be on its way."""
    clients: list[Client] = []
    server = await asyncio.get_running_loop().create_server(
        lambda: Client(clients.append, lambda _: None), "127.0.0.1", 0
    )
    peer = socket.create_connection(server.sockets[0].getsockname())
    await until(lambda: clients)
    session = Session(clients[0], link_over(StuckConnection()), lambda **_: None, lambda _: None, lambda: None)
    clients[0].refuse()
    for _ in range(20):
        session.data_received(b"x" * 32768, None)
    assert caplog.text == ""
    peer.close()
    server.close()


async def test_a_client_that_resets_as_the_database_ends_is_its_own_affair() -> None:
    """shutdown(2) fails then with ENOTCONN; from a callback of asyncssh's that ended the SSH connection for all."""
    clients: list[Client] = []
    lost = asyncio.Event()
    server = await asyncio.get_running_loop().create_server(
        lambda: Client(clients.append, lambda _: lost.set()), "127.0.0.1", 0
    )
    peer = socket.create_connection(server.sockets[0].getsockname())
    await until(lambda: clients)
    session = Session(clients[0], link_over(StuckConnection()), lambda **_: None, lambda _: None, lambda: None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    assert session.eof_received(), "the channel stays until the client's end is heard"
    await asyncio.wait_for(lost.wait(), 10)
    server.close()
