"""Packets to the bastion are dropped, and keepalives have not found out yet: what becomes of clients and sessions."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import Reason
from dbtunnel.forwarder import keyring, listener
from tests.support.connection_world import PARKING_SECONDS, KnownClient, Shape, World
from tests.support.fake_ssh import SILENT_SECONDS, Connection
from tests.support.virtual_time import at_once, run

SOON, LOOK_SECONDS = 0.5, 1.0
BASTION, FALLBACK = 0, 1


def live(
    monkeypatch: pytest.MonkeyPatch, story: Callable[[World], Awaitable[None]], connections: int | None = None
) -> None:
    """A forwarder that is well, and then what the story has."""
    monkeypatch.setattr(listener, "Client", KnownClient)
    monkeypatch.setattr(keyring, "in_daemon_thread", at_once)

    async def main() -> None:
        world = World(Shape(connections=connections))
        world.state.succeeded(ConditionType.KEY_READY)
        world.listener.start(world.bound)
        running = [asyncio.ensure_future(part.run()) for part in (world.connector, world.listener)]
        await asyncio.sleep(SOON)
        await story(world)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    run(main())


def taking(world: World) -> list[Connection]:
    """The connections of the forwarder that take clients; more than one may have been made since."""
    world.current()
    return world.taking()


def comes(world: World) -> KnownClient:
    world.client_comes()
    return KnownClient.latest


async def cut_off(world: World) -> tuple[Connection, KnownClient]:
    """A connection whose packets are dropped, and one who has found out."""
    (cut,) = taking(world)
    cut.drops = True
    client = comes(world)
    await asyncio.sleep(SILENT_SECONDS - SOON)
    assert world.state.status.transport.status == "True", "nobody knows yet"
    return cut, client


def test_another_connection_takes_new_clients_and_sessions_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        session = comes(world)
        await asyncio.sleep(SOON)
        cut, client = await cut_off(world)
        await asyncio.sleep(2 * SOON)
        assert client.was_joined
        (other,) = taking(world)
        assert other is not cut
        assert world.state.status.transport.status == "True"
        cut.drops = False
        assert not session.is_gone
        assert cut.stands, "it goes on with its session"

    live(monkeypatch, story)


@pytest.mark.parametrize("fallback_lets_in", [False, True])
def test_it_is_told_and_clients_are_parked_while_no_other_can_be_had(
    monkeypatch: pytest.MonkeyPatch, fallback_lets_in: bool
) -> None:
    async def story(world: World) -> None:
        world.servers[BASTION].fails = Reason.CONNECT_TIMEOUT
        world.servers[FALLBACK].fails = None if fallback_lets_in else Reason.CONNECTION_REFUSED
        _, client = await cut_off(world)
        await asyncio.sleep(2 * SOON)
        told = world.state.status.transport
        assert (told.status, told.reason) == ("False", "ConnectTimeout")
        late = comes(world)
        await asyncio.sleep(SOON)
        assert client.waits
        assert late.waits
        assert len(world.listener._parked) == 2
        await asyncio.sleep(SILENT_SECONDS)
        assert client.was_joined is late.was_joined is fallback_lets_in
        assert [one.hop for one in taking(world)] == [FALLBACK if fallback_lets_in else BASTION]
        if not fallback_lets_in:
            await asyncio.sleep(PARKING_SECONDS)
            assert client.is_gone
            assert late.is_gone

    live(monkeypatch, story)


def test_a_connection_that_is_heard_again_takes_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        for server in world.servers:
            server.fails = Reason.CONNECTION_REFUSED
        cut, client = await cut_off(world)
        await asyncio.sleep(2 * SOON)
        assert world.listener._parked
        cut.drops = False
        await asyncio.sleep(LOOK_SECONDS + SOON)
        assert client.was_joined
        assert client.link is cut.link

    live(monkeypatch, story)


def test_a_connection_beside_it_takes_new_clients_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: World) -> None:
        cut, other = taking(world)
        cut.drops = True
        clients = [comes(world) for _ in range(4)]
        await asyncio.sleep(SILENT_SECONDS + SOON)
        assert all(client.was_joined for client in clients)
        assert not cut.link.is_usable()
        late = comes(world)
        await asyncio.sleep(SOON)
        assert late.was_joined
        assert late.link is not cut.link
        assert other.stands
        assert taking(world) == [cut, other]
        assert world.state.status.transport.status == "True", "everybody is served"

    live(monkeypatch, story, connections=2)
