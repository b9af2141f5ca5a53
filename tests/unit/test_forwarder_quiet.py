"""Who is quiet, and what becomes of them: idle sessions, and clients that say nothing. The clock skips every wait."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast
from unittest import mock

import pytest

from dbtunnel.forwarder import keyring, listener
from dbtunnel.forwarder.metrics import CLIENTS_REFUSED, SESSIONS_IDLE
from dbtunnel.forwarder.quiet import SILENT_SECONDS
from tests.support.connection_world import KnownClient, Shape, World
from tests.support.fake_ssh import Connection
from tests.support.virtual_time import at_once, now, run

IDLE = 20
"""Seconds."""

LATEST = IDLE * 1.2
"""When an idle session is ended at the latest: it is looked at ten times in that time."""

ANSWER, SIP = 400 * 1024, 4096
"""Bytes: what fits in a channel's first window, and no system takes it all for a client; and what a slow client reads
at a time."""


@contextlib.asynccontextmanager
async def living(shape: Shape) -> AsyncIterator[World]:
    """A forwarder with a connection."""
    world = World(shape)
    world.listener.start(world.bound)
    running = [asyncio.ensure_future(part.run()) for part in (world.connector, world.listener)]
    await asyncio.sleep(3)
    assert world.connector.link
    yield world
    world.listener.refuse_new()
    world.listener.cut()
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


def live(story: Callable[[World], Awaitable[None]], shape: Shape) -> None:
    async def main() -> None:
        async with living(shape) as world:
            await story(world)

    with (
        mock.patch.object(listener, "Client", KnownClient),
        mock.patch.object(keyring, "in_daemon_thread", at_once),
    ):
        run(main())


async def asks_for_much(world: World) -> tuple[KnownClient, socket.socket]:
    """A client whose answer has all come over SSH, and its other end, which has read nothing of it."""
    world.client_comes()
    client = KnownClient.latest
    await asyncio.sleep(1)
    assert client.link
    assert client._channel
    cast(Connection, client.link.connection).says(bytes(ANSWER), client._channel)
    assert client.received_bytes == ANSWER
    assert client._waiting
    return client, world.clients[client][1]


def test_who_steadily_reads_what_came_long_ago_is_not_idle() -> None:
    async def story(world: World) -> None:
        client, peer = await asks_for_much(world)
        read, began = 0, now()
        while read < ANSWER:
            await asyncio.sleep(1)
            read += len(peer.recv(SIP))
        assert now() - began > 2 * LATEST
        assert not client.is_gone
        await asyncio.sleep(LATEST)
        assert client.how == "idle"

    live(story, Shape(idle=IDLE))


def test_who_has_stopped_to_read_is_idle() -> None:
    async def story(world: World) -> None:
        client, peer = await asks_for_much(world)
        peer.recv(SIP)
        await asyncio.sleep(IDLE - 1)
        assert not client.is_gone
        await asyncio.sleep(LATEST - IDLE + 1)
        assert client.how == "idle"
        assert world.metrics.get(SESSIONS_IDLE) == 1

    live(story, Shape(idle=IDLE))


# --- clients that say nothing -----------------------------------------------------------------------------------------


def says_nothing(world: World) -> KnownClient:
    ours, peer = socket.socketpair()
    ours.setblocking(False)
    world.listener._take(ours, ("127.0.0.1", 1))
    world.clients[KnownClient.latest] = ours.dup(), peer
    return KnownClient.latest


@pytest.mark.parametrize(("idle", "patience"), [(None, SILENT_SECONDS), (IDLE, IDLE), (3600, SILENT_SECONDS)])
def test_who_says_nothing_gives_up_its_place(
    idle: int | None, patience: float, caplog: pytest.LogCaptureFixture
) -> None:
    """And nobody else does, however long it is quiet."""

    async def story(world: World) -> None:
        world.client_comes()
        served, silent = KnownClient.latest, says_nothing(world)
        await asyncio.sleep(patience - 1)
        assert not silent.is_gone
        await asyncio.sleep(patience * 0.2 + 1)
        assert silent.how == "Silent"
        assert world.metrics.get(CLIENTS_REFUSED, "Silent") == 1
        assert world.listener.clients == (idle != IDLE)
        assert served.how in ("", "idle")
        (told,) = [vars(line)["fields"] for line in caplog.records if line.message == "clients refused"]
        assert told == {"reason": "Silent", "count": 1, "client": "127.0.0.1"}

    live(story, Shape(idle=idle, max_clients=2))


@pytest.mark.parametrize("idle", [None, IDLE])
def test_who_says_nothing_holds_up_no_drain(idle: int | None) -> None:
    """Who speaks as soon as the last clients are taken is served."""

    async def story(world: World) -> None:
        says_nothing(world)
        late = says_nothing(world)
        world.is_told_to_end()
        await asyncio.sleep(0.2)
        world.clients[late][1].send(b"\0\0\0\x08\x04\xd2\x16\x2f")
        await asyncio.sleep(1)
        assert world.present() == [late]
        world.clients[late][1].close()
        await asyncio.sleep(1)
        assert world.draining
        assert world.draining.done()

    live(story, Shape(idle=idle, drain=(0, 300)))
