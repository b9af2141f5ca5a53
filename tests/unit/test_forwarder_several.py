"""Several SSH connections in virtual time: how they are made, lost and made again."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import Reason
from dbtunnel.forwarder import app, keyring, route
from dbtunnel.forwarder.connection import Connector, Sources
from dbtunnel.forwarder.keyring import Keyring
from dbtunnel.forwarder.link import STREAM_CLIENTS, Link
from dbtunnel.forwarder.metrics import SSH_UP, Metrics
from dbtunnel.forwarder.state import State
from tests.support.fake_ssh import Attempt, Connection, Server, let_stream
from tests.support.keys import Secret, key_pair
from tests.support.virtual_time import at_once, now, run
from tests.unit.test_forwarder_connect import CONFIG

COUNT, HOUR = 3, 3600


class World:
    """A forwarder with three connections to one bastion."""

    def __init__(self) -> None:
        config = replace(CONFIG, connections=COUNT)
        self.bastion = Server(0)
        self.bastion.on_attempt = self._note
        self.attempts: list[Attempt] = []
        self.secret = Secret({"ssh-privatekey": key_pair().private})
        self.metrics, self.state = Metrics(), State(config, "")
        with mock.patch.object(route, "Login", side_effect=self._login):
            self.connector = Connector(config, [Sources(self.secret)], self.state, self.metrics)

    def _login(self, _config: object, _number: int, ring: Keyring, _state: object) -> Server:
        self.bastion.keyring = ring
        return self.bastion

    def _note(self, attempt: Attempt) -> None:
        assert all(one.ended is not None for one in self.attempts), "one after the other"
        self.attempts.append(attempt)
        self.state.succeeded(ConditionType.KEY_READY)

    @property
    def standing(self) -> list[Connection]:
        return [one.made for one in self.attempts if one.made and one.made.stands]

    def first(self) -> Connection:
        return next(one for one in self.standing if one.link is self.connector.link)

    def is_well(self) -> bool:
        layers = self.state.status.key, self.state.status.transport, self.state.status.authentication
        return self.connector.link is not None and all(layer.status == "True" for layer in layers)


def live(story: Callable[[World], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyring, "in_daemon_thread", at_once)

    async def main() -> None:
        world = World()
        connecting = asyncio.ensure_future(world.connector.run())
        await asyncio.sleep(2)
        await story(world)
        assert not connecting.done()
        connecting.cancel()
        await asyncio.wait([connecting])
        await asyncio.sleep(0)
        assert world.standing == []
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main())


Live = Callable[[Callable[[World], Awaitable[None]]], None]


@pytest.fixture
def in_world(monkeypatch: pytest.MonkeyPatch) -> Live:
    return partial(live, monkeypatch=monkeypatch)


def test_all_are_made_and_none_more(in_world: Live) -> None:
    async def story(world: World) -> None:
        assert len(world.standing) == COUNT
        await asyncio.sleep(HOUR)
        assert len(world.attempts) == COUNT
        assert len({one.link.windows for one in world.standing}) == 1, "what waits here has one bound"
        assert world.metrics.get(SSH_UP) == world.state.status.connections == COUNT

    in_world(story)


def test_clients_are_spread(in_world: Live) -> None:
    async def story(world: World) -> None:
        used: list[Link | None] = []
        for _ in range(7):
            link = world.connector.least_used()
            assert link
            link.enter()
            used.append(link)
        assert sorted(used.count(one.link) for one in world.standing) == [2, 2, 3]

    in_world(story)


def test_clients_keep_out_of_the_way_of_a_stream(in_world: Live) -> None:
    async def story(world: World) -> None:
        busy, *others = (one.link for one in world.standing)
        for link in others:
            link.enter()
        for mebibytes, seconds, is_stream in ((1, 1.0, False), (1, 0.1, True), (16, 3.0, True), (16, 6.0, False)):
            await asyncio.sleep(10)
            for _ in range(4):
                await asyncio.sleep(seconds)
                busy.carried(mebibytes * 2**20)
            assert (world.connector.least_used() is not busy) == is_stream, "4 MiB a second, however seldom told of"
        for one in world.standing:
            let_stream(one.link)
        assert world.connector.least_used() is busy, "all have a stream: the fewest count"

    in_world(story)


def test_a_stream_keeps_no_more_away_than_it_counts_for(in_world: Live) -> None:
    """Else a connection beside one with a stream would take all there are, more than a server has descriptors for."""

    async def story(world: World) -> None:
        busy = world.standing[0].link
        let_stream(busy)
        for _ in range((COUNT - 1) * STREAM_CLIENTS):
            link = world.connector.least_used()
            assert link
            assert link is not busy
            link.enter()
        assert world.connector.least_used() is busy

    in_world(story)


def test_what_was_a_stream_is_forgotten(in_world: Live) -> None:
    async def story(world: World) -> None:
        link = world.standing[0].link
        let_stream(link)
        assert link.has_stream()
        await asyncio.sleep(1)
        assert not link.has_stream()

    in_world(story)


@pytest.mark.parametrize("is_first", [True, False])
def test_the_loss_of_one_is_no_failure(in_world: Live, is_first: bool) -> None:
    async def story(world: World) -> None:
        first = world.first()
        lost = first if is_first else next(one for one in world.standing if one is not first)
        lost.end()
        assert world.is_well()
        assert world.connector.down_since is None
        assert world.metrics.get(SSH_UP) == COUNT - 1
        await asyncio.sleep(1)
        assert world.metrics.get(SSH_UP) == COUNT
        assert world.is_well()

    in_world(story)


def test_all_lost_at_once_are_back_soon(in_world: Live) -> None:
    async def story(world: World) -> None:
        await asyncio.sleep(60)
        for one in world.standing:
            one.end()
        assert not world.is_well()
        await asyncio.sleep(2)
        assert len(world.standing) == COUNT

    in_world(story)


@pytest.mark.parametrize(("reason", "most"), [(Reason.CONNECTION_REFUSED, 300), (Reason.BASTION_REFUSING, 240)])
def test_further_ones_that_cannot_be_had_are_asked_for_seldom(in_world: Live, reason: Reason, most: int) -> None:
    async def story(world: World) -> None:
        for one in world.standing:
            if one is not world.first():
                one.end()
        world.bastion.fails = reason
        before = len(world.attempts)
        await asyncio.sleep(HOUR)
        assert HOUR / 100 < len(world.attempts) - before < most
        assert world.is_well()
        world.bastion.fails = None
        await asyncio.sleep(60)
        assert len(world.standing) == COUNT

    in_world(story)


def test_a_bastion_that_lets_in_and_cuts_is_not_asked_all_the_time(in_world: Live) -> None:
    async def story(world: World) -> None:
        before, began = len(world.attempts), now()
        while now() - began < HOUR:
            await asyncio.sleep(0.1)
            for one in world.standing:
                if one is not world.first():
                    one.end()
        assert len(world.attempts) - before < 2 * HOUR / 15
        assert world.is_well()

    in_world(story)


def test_a_key_that_leads_the_others_elsewhere_leads_them_all(in_world: Live) -> None:
    """A connection that was made with another key than the first is the first of others."""

    async def story(world: World) -> None:
        following: Any = key_pair()
        world.secret.files = {**world.secret.files, "ssh-privatekey-next": following.private}
        await asyncio.sleep(3)
        assert {one.key.fingerprint for one in world.standing} == {following.fingerprint}
        assert len(world.standing) == COUNT

    in_world(story)


@pytest.mark.parametrize("part", ["_add", "_keep_looking"])
def test_a_bug_in_what_goes_on_beside_ends_the_process(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """The rest would go on, and nobody would know what is not done any more."""

    async def broken(_: Connector) -> None:
        await asyncio.sleep(1)
        raise RuntimeError("a bug")

    monkeypatch.setattr(Connector, part, broken)
    monkeypatch.setattr(keyring, "in_daemon_thread", at_once)

    async def main() -> None:
        world = World()
        connecting = asyncio.ensure_future(world.connector.run())
        with pytest.raises(ExceptionGroup) as raised:
            async with asyncio.timeout(10):
                await app._until_stopped(cast(Any, SimpleNamespace(drain=asyncio.Event())), [connecting])
        assert raised.group_contains(RuntimeError, match="a bug")
        assert world.attempts
        assert world.standing == []

    run(main())
