"""The connection's states (docs/architecture.md) under random interleavings of all that happens to it.

A forwarder with a bastion and a fallback, with or without jump hosts, several connections and limits. Its keys rotate,
its clients come, work and go, and it drains, on a clock that skips every wait. Hypothesis chooses what it is and what
happens when; what must always hold is checked each second and after each event.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dbtunnel.forwarder import keyring, listener
from dbtunnel.forwarder.metrics import CLIENTS_OPEN
from dbtunnel.forwarder.pace import LONGEST_RETURN_SECONDS
from tests.support.connection_rules import LOOK_SECONDS, SOON, check, check_pace, is_needless
from tests.support.connection_world import KnownClient, Shape, World
from tests.support.fake_ssh import ANSWER_SECONDS, SILENT_SECONDS
from tests.support.virtual_time import at_once, now, run

SLOWEST_SECONDS = 90
"""The longest pause, with its jitter."""

SHAPES = st.builds(
    Shape,
    connections=st.sampled_from((None, None, 2, 3)),
    jump_hosts=st.sampled_from((0, 0, 1, 2)),
    max_clients=st.sampled_from((None, None, 1, 2)),
    idle=st.sampled_from((None, None, 20)),
    drain=st.sampled_from(((3, 30), (3, 30), (0, 5), (0, 0))),
)

EVENTS = (
    World.client_comes,
    World.client_comes,
    World.client_comes,
    World.client_leaves,
    World.client_leaves,
    World.client_asks,
    World.database_answers,
    World.database_answers,
    World.cancels_come,
    World.cancels_come,
    World.connection_ends,
    World.stream_goes,
    World.server_changes,
    World.server_changes,
    World.outage,
    World.key_changes,
    World.key_changes,
    World.next_key_comes,
    World.key_is_known_or_not,
    World.key_is_revoked,
    World.may_be_told_to_end,
)

HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from((0, 0.02, 0.02, 0.02, 0.3, 1.5, 1.5, 12, 70)), st.sampled_from(EVENTS), st.integers(0, 23)
    ),
    min_size=20,
    max_size=40,
)
"""Seconds to wait, what happens then, and to which."""


A_CLIENT_COMES = (0, World.client_comes, 0)

KEY_OF_THE_JUMP_HOST_IS_REVOKED = [
    (0, World.key_is_known_or_not, 7),  # the second key, by the jump host
    (0, World.next_key_comes, 1),
    (12, World.client_comes, 0),
    (1.5, World.key_is_revoked, 0),
    (12, World.client_comes, 0),
]
"""Only the bastion takes the next key: what seldom comes about by chance."""

BASTION_ANSWERS_ANOTHER_ATTEMPT = [
    *[A_CLIENT_COMES] * 12,
    (0.3, World.client_comes, 0),
    (0, World.outage, 0),
    (0, World.server_changes, 5),
    (1.5, World.client_comes, 0),
    (0, World.connection_ends, 0),
    (0, World.server_changes, 16),
    (0, World.next_key_comes, 0),
    (0, World.connection_ends, 0),
]
"""While the fallback serves, an attempt that the bastion leaves unanswered outlasts one that it lets in."""

BASTION_REFUSES_ANOTHER_ATTEMPT = [
    *[A_CLIENT_COMES] * 17,
    (0, World.server_changes, 16),
    (0.3, World.outage, 1),
    (0.3, World.client_comes, 0),
]
"""An attempt that it leaves unanswered outlasts one after which it is not to be asked for long."""

TWO_ATTEMPTS_GO_ON_TO_THE_FALLBACK = [
    *[A_CLIENT_COMES] * 14,
    (0, World.server_changes, 18),
    (70, World.key_changes, 1),
    (0, World.connection_ends, 1),
    (12, World.client_comes, 0),
    (0, World.connection_ends, 0),
    (0.3, World.client_comes, 0),
]
"""The bastion leaves both unanswered; once one is let in by the fallback the other need not be."""


async def pass_time(world: World, seconds: float) -> None:
    end = now() + seconds
    while (left := end - now()) > 0:
        await asyncio.sleep(min(left, 1))
        check(world)


async def pass_until(world: World, seconds: float, condition: Callable[[], bool], what: str) -> None:
    end = now() + seconds
    while not condition():
        assert now() < end, what
        await pass_time(world, 1)


async def settle(world: World) -> None:
    """In the end all is well again, and all that is promised then is kept."""
    world.all_is_well()
    await pass_time(world, 2 * LOOK_SECONDS)  # what was seen before is acted upon: a key may have been revoked till now
    longest = SLOWEST_SECONDS + len(world.servers) * SILENT_SECONDS + 2 * LOOK_SECONDS
    await pass_until(world, longest, lambda: world.connector.link is not None, "there is a connection")
    world.client_comes()
    await pass_until(
        world, longest + LONGEST_RETURN_SECONDS, world.is_well, "there are the best, and as many as wanted"
    )
    await pass_time(world, 1)
    assert world.is_well()
    assert not any(client.waits for client in world.present())
    taking = world.taking()
    while world.present():
        world.client_leaves(1)
        await pass_time(world, 1)
    assert not any(one.link.uses for one in taking), "nothing is left of those who have left"
    assert not world.metrics.get(CLIENTS_OPEN)


async def finish(world: World, *running: "asyncio.Task[None]") -> None:
    """The process drains, if it has not, with clients that are at work, at rest and in a transaction."""
    for _ in range(3):
        world.client_comes()
    await pass_time(world, 1)
    for number in (1, 3):
        world.database_answers(number)
    if world.draining is None:
        world.is_told_to_end()
    await pass_time(world, world.config.seconds.drain_max + 1)
    for task in running:
        task.cancel()
    ended = await asyncio.gather(*running, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in ended)
    await asyncio.sleep(ANSWER_SECONDS)
    assert not any(attempt.made.stands for attempt in world.attempts if attempt.made)
    assert not world.present()
    with socket.socket() as late:
        assert late.connect_ex(world.address) == errno.ECONNREFUSED
    for ends in world.clients.values():
        for end in ends:
            end.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def live_through(shape: Shape, happenings: Sequence[Any]) -> None:
    world = World(shape)
    world.is_needless = is_needless
    world.listener.start(world.bound)
    running = [asyncio.ensure_future(part.run()) for part in (world.connector, world.listener)]
    await asyncio.sleep(SOON)
    for seconds, happen, number in happenings:
        await pass_time(world, seconds)
        happen(world, number)
        await asyncio.sleep(SOON / 10)  # what follows at once has followed
        check(world)
        assert not any(task.done() for task in running), running
    await settle(world)
    check_pace(world)
    await finish(world, *running)


EXAMPLES = int(os.environ.get("DBTUNNEL_EXAMPLES", "0"))
"""How many random ones to try; by default the same ones each time, so that what fails is what was changed."""


@settings(max_examples=EXAMPLES or 200, derandomize=not EXAMPLES)
@given(SHAPES, HAPPENINGS)
@example(Shape(jump_hosts=1), KEY_OF_THE_JUMP_HOST_IS_REVOKED)
@example(Shape(connections=3, drain=(3, 30)), BASTION_ANSWERS_ANOTHER_ATTEMPT)
@example(Shape(connections=2, drain=(3, 30)), BASTION_REFUSES_ANOTHER_ATTEMPT)
@example(Shape(connections=2, jump_hosts=1, idle=20), TWO_ATTEMPTS_GO_ON_TO_THE_FALLBACK)
def test_what_must_hold_holds_whatever_happens(shape: Shape, happenings: Sequence[Any]) -> None:
    with (
        mock.patch.object(listener, "Client", KnownClient),
        mock.patch.object(keyring, "in_daemon_thread", at_once),
    ):
        run(live_through(shape, happenings))
