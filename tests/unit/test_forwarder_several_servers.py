"""Several SSH connections while the bastion is away and comes back: those beside the first may be the first there."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from dbtunnel.api.reasons import Reason
from dbtunnel.forwarder import keyring
from dbtunnel.forwarder.failures import transport_failure
from dbtunnel.forwarder.pace import Pace
from tests.support.connection_world import KEYS, REVOKED, Shape, World
from tests.support.fake_ssh import SILENT_SECONDS
from tests.support.virtual_time import at_once, now, run

BASTION, FALLBACK = 0, 1
SOON = 1.5
"""Seconds: what has happened is looked at each second."""


def live(story: Callable[[World], Awaitable[None]], monkeypatch: pytest.MonkeyPatch, fails: Reason) -> None:
    """With two connections to the fallback, since the bastion fails."""
    monkeypatch.setattr(keyring, "in_daemon_thread", at_once)

    async def main() -> None:
        world = World(Shape(connections=2))
        world.servers[BASTION].fails = fails
        connecting = asyncio.ensure_future(world.connector.run())
        await asyncio.sleep(2 * SILENT_SECONDS)
        assert ends_of(world) == [FALLBACK, FALLBACK]
        await story(world)
        assert not connecting.done()
        connecting.cancel()
        await asyncio.wait([connecting])
        world.bound.close()

    run(main())


def ends_of(world: World) -> list[int]:
    world.current()
    return [one.hop for one in world.taking()]


def lose_the_second(world: World) -> None:
    next(one for one in world.taking() if one.link is not world.connector.link).end()


def test_what_has_taken_the_place_of_the_first_is_made_again_when_it_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while what it replaced still has a session."""

    async def story(world: World) -> None:
        old = world.connector.link
        assert old
        old.enter()
        pace = world.connector._route._ends[BASTION].pace
        await asyncio.sleep(max(pace.not_before - now(), 0))
        world.servers[BASTION].fails = None
        lose_the_second(world)
        await asyncio.sleep(SOON)
        assert ends_of(world) == [BASTION, BASTION]
        await asyncio.sleep(60)
        for one in world.taking():
            one.end()
        assert world.connector.link is None
        await asyncio.sleep(SOON)
        assert ends_of(world) == [BASTION, BASTION]
        assert not old.lost.is_set()

    live(story, monkeypatch, Reason.CONNECTION_REFUSED)


def test_the_fallback_does_not_take_the_place_of_a_bastion_that_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that waits for it in vain goes on to the fallback, when the other connection has found it well."""

    async def story(world: World) -> None:
        world._write({**world.secret.files, REVOKED: KEYS[2].fingerprint})  # it is tried, whenever its turn was
        await asyncio.sleep(SOON)
        world.servers[BASTION].fails = None
        lose_the_second(world)
        for _ in range(2 * int(SILENT_SECONDS)):
            await asyncio.sleep(1)
            assert ends_of(world) == [BASTION, BASTION]

    live(story, monkeypatch, Reason.CONNECT_TIMEOUT)


async def test_a_connection_that_stood_ends_no_pause_for_what_another_attempt_has_met() -> None:
    pace = Pace(1)
    pace.failed(transport_failure(Reason.BASTION_REFUSING))
    due = pace.not_before
    pace.stood()
    assert (pace.attempts, pace.not_before) == (0, due)
