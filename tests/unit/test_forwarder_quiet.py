"""Who is quiet, and what becomes of them: the idle timeout, on a clock that skips every wait."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import cast
from unittest import mock

from dbtunnel.forwarder import keyring, listener
from dbtunnel.forwarder.metrics import SESSIONS_IDLE
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
