"""The connection's states (docs/architecture.md) under random interleavings of all that happens to it.

The real Connector and Listener on a clock that skips every wait; what is faked is the SSH server and the opening of
channels. Hypothesis chooses what happens when; what must always hold is checked each second and after each event.
"""

import asyncio
import errno
import socket
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.forwarder import connection
from dbtunnel.forwarder.connection import FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS, Connector, Sources
from dbtunnel.forwarder.failures import Failure, transport_failure
from dbtunnel.forwarder.keys import KeyFiles, MountedFile
from dbtunnel.forwarder.link import End, Link
from dbtunnel.forwarder.listener import Listener, listening_socket
from dbtunnel.forwarder.login import Material
from dbtunnel.forwarder.metrics import CLIENTS_PARKED, SSH_UP, Metrics
from dbtunnel.forwarder.probes import Prober
from dbtunnel.forwarder.state import State
from dbtunnel.forwarder.transport import Congestion
from tests.support.virtual_time import now, run
from tests.unit.test_forwarder_connect import CONFIG

ANSWER_SECONDS = 0.05
"""How long the server takes for a login, and for a channel."""
SILENT_SECONDS = CONFIG.seconds.connect_timeout
LOOK_SECONDS = 1.0
"""How often the files are looked at."""
PARKING_SECONDS, PARKED_AT_MOST = 30, 3
SLOWEST_SECONDS = 90
"""The longest pause, with its jitter."""
SOON = 0.01
"""What is lost to the clock's floating point."""

ALIKE = {
    "refuses": transport_failure(Reason.CONNECTION_REFUSED),
    "turns away": transport_failure(Reason.BASTION_REFUSING, "it says so"),
    "is silent": transport_failure(Reason.CONNECT_TIMEOUT),
}
"""What a bastion does to everybody."""


def key_files(key: int) -> KeyFiles:
    return KeyFiles(MountedFile(b"key %d" % key), MountedFile(), ("ssh-privatekey",))


@dataclass(eq=False)
class Ssh:
    """A fake SSH connection, and what became of it."""

    link: Link = field(init=False)
    made_at: float = field(default_factory=now)
    ended_at: float | None = None
    is_closed: bool = False
    """By the forwarder."""
    had_users: bool = False
    """When it was closed."""

    def __post_init__(self) -> None:
        self.link = Link(cast(Any, self), lambda: not self.stands, Congestion(), End())

    @property
    def stands(self) -> bool:
        return not self.is_closed and self.ended_at is None

    def abort(self) -> None:
        if not self.is_closed:
            self.is_closed, self.had_users = True, self.link.uses > 0
            asyncio.get_running_loop().call_soon(self.end, "closed here")

    def end(self, reason: str) -> None:
        if self.ended_at is None:
            self.ended_at = now()
            self.link.end.happen(reason)


@dataclass
class Attempt:
    """An attempt to log in, and what came of it."""

    material: Material
    began: float
    ended: float | None = None
    failure: Failure | None = None
    made: Ssh | None = None


class Bastion:
    """Stands for Login."""

    def __init__(self) -> None:
        self.does = "lets in"
        self.rejected: set[int] = set()
        self.made: list[Ssh] = []
        self.attempts: list[Attempt] = []

    async def connect(self, material: Material) -> Link:
        attempt = Attempt(material, now())
        self.attempts.append(attempt)
        failure = ALIKE.get(self.does)
        await asyncio.sleep(SILENT_SECONDS if self.does == "is silent" else ANSWER_SECONDS)
        if failure is None and any(material.key == key_files(key) for key in self.rejected):
            failure = Failure(ConditionType.AUTHENTICATED, Reason.KEY_REJECTED)
        attempt.ended, attempt.failure = now(), failure
        if failure:
            raise failure
        attempt.made = Ssh()
        self.made.append(attempt.made)
        return attempt.made.link


class Client:
    """A client as the listener sees it, and what became of it."""

    def __init__(self, listener: Listener, metrics: Metrics) -> None:
        self._listener, self._metrics = listener, metrics
        self.came_at = now()
        self.is_gone = False
        self.served_by: Link | None = None
        self.refused_at: float | None = None
        self.others_parked = 0.0
        """When it was refused."""

    def park(self, *, parked: bool) -> None:
        """The listener counts."""

    def refuse(self) -> None:
        if not self.is_gone and self.refused_at is None:
            self.refused_at, self.others_parked = now(), self._metrics.get(CLIENTS_PARKED)
            asyncio.get_running_loop().call_soon(self.leave)

    def leave(self) -> None:
        if self.is_gone:
            return
        self.is_gone = True
        self._listener._gone(cast(Any, self))
        if self.served_by:
            self.served_by.leave()

    @property
    def waits(self) -> bool:
        return not self.is_gone and self.served_by is None and self.refused_at is None


class FakeListener(Listener):
    """Opens its channels on fake connections."""

    async def _join(self, client: Any, link: Link) -> bool:
        link.enter()
        try:
            await asyncio.sleep(ANSWER_SECONDS)
            if link.lost.is_set():
                return False
            link.enter()
            client.served_by = link
        finally:
            link.leave()
        return True


class World:
    """All of it, and what can happen: each of `EVENTS` takes a number that chooses among what there is."""

    def __init__(self) -> None:
        self.bastion, self.metrics = Bastion(), Metrics()
        seconds = CONFIG.seconds.model_copy(update={"parking_max": PARKING_SECONDS})
        config = CONFIG.model_copy(update={"parking_max_clients": PARKED_AT_MOST, "seconds": seconds})
        self.key, self.changed_at = 0, 0.0
        sources = Sources(lambda: key_files(self.key))
        with mock.patch.object(connection, "Login", return_value=self.bastion):
            self.connector = Connector(config, sources, State(config, "pod-1"), self.metrics)
        prober = cast(Prober, SimpleNamespace())
        self.listener = FakeListener(config, self.connector, prober, self.metrics)
        self.clients: list[Client] = []
        self.drains = False
        self.bound = listening_socket("127.0.0.1", 0)
        self.address = self.bound.getsockname()

    def client_comes(self, _: int = 0) -> None:
        if not self.drains:
            self.clients.append(Client(self.listener, self.metrics))
            self.listener._taken(cast(Any, self.clients[-1]))

    def client_leaves(self, number: int) -> None:
        if present := self.present():
            present[number % len(present)].leave()

    def connection_ends(self, number: int) -> None:
        """The current one, or one that was replaced."""
        if standing := [ssh for ssh in self.bastion.made if ssh.stands]:
            ssh = standing[number % len(standing)]
            ssh.end("reset")
            for client in self.clients:
                if client.served_by is ssh.link:
                    client.leave()

    def bastion_changes(self, number: int) -> None:
        """Every other time it lets in."""
        self.bastion.does = "lets in" if number % 2 else list(ALIKE)[number // 2 % len(ALIKE)]

    def key_changes(self, number: int) -> None:
        if self.key != number % 3:
            self.key, self.changed_at = number % 3, now()

    def key_is_rejected_or_not(self, number: int) -> None:
        self.bastion.rejected ^= {number % 3}

    def drain_begins(self, _: int) -> None:
        self.drains = True
        self.listener.refuse_new()
        with socket.socket() as late:
            assert late.connect_ex(self.address) == errno.ECONNREFUSED

    def present(self) -> list[Client]:
        return [client for client in self.clients if not client.is_gone]

    # --- what must hold -------------------------------------------------------------------------------------------

    def check(self) -> None:
        self.check_connections()
        self.check_clients()
        latest = self.bastion.attempts[-1].material.key if self.bastion.attempts else None
        if latest != key_files(self.key):
            assert now() - self.changed_at <= SILENT_SECONDS + LOOK_SECONDS + SOON, "other files are tried at once"

    def check_connections(self) -> None:
        current = self.connector.link
        assert self.connector.up.is_set() == (current is not None) == (self.connector.down_since is None)
        assert self.metrics.get(SSH_UP) == (current is not None)
        assert current is None or any(ssh.link is current and ssh.stands for ssh in self.bastion.made)
        for ssh in self.bastion.made:
            assert not ssh.had_users, "no connection is closed while it has users"
            assert ssh.link is current or not ssh.stands or ssh.link.uses, (
                "what was replaced stands for its users alone"
            )

    def check_clients(self) -> None:
        present = self.present()
        assert self.listener.clients == len(present), "no client is lost"
        assert self.listener.empty.is_set() == (not present)
        waiting = sum(client.waits for client in present)
        assert 0 <= self.metrics.get(CLIENTS_PARKED) <= min(waiting, PARKED_AT_MOST), "who has left parks no more"
        served_by = now() - 2 * ANSWER_SECONDS - SOON
        """When a client came, at the latest, that has been served if it could be."""
        since = max((ssh.made_at for ssh in self.bastion.made if ssh.link is self.connector.link), default=now())
        for client in self.clients:
            if client.waits:
                assert now() - client.came_at <= PARKING_SECONDS + ANSWER_SECONDS + SOON, "nobody waits for ever"
                assert max(client.came_at, since) > served_by, "nobody waits while there is a connection"
            if client.refused_at is not None and client.refused_at - client.came_at < PARKING_SECONDS - SOON:
                assert client.others_parked == PARKED_AT_MOST, "nobody is refused who might wait"

    def check_pace(self) -> None:
        """No attempt comes sooner than its turn, unless the files have changed."""
        failed = 0
        for before, after in pairwise(self.bastion.attempts):
            failed = failed + 1 if before.failure and before.material == after.material else 0
            if before.material != after.material:
                continue
            if before.made:
                assert before.made.ended_at is not None, "a connection that stands is not made again"
                assert after.began - before.made.ended_at >= FIRST_BACKOFF_SECONDS / 2 - SOON
            elif before.failure and before.ended is not None:
                pause = after.began - before.ended
                usual = min(FIRST_BACKOFF_SECONDS * 2 ** (failed - 1), LONGEST_BACKOFF_SECONDS) / 2
                assert pause >= (REASONS[before.failure.reason].retry_seconds or usual) - SOON


EVENTS = (
    World.client_comes,
    World.client_comes,
    World.client_leaves,
    World.connection_ends,
    World.bastion_changes,
    World.key_changes,
    World.key_changes,
    World.key_is_rejected_or_not,
    World.drain_begins,
)

HAPPENINGS = st.lists(
    st.tuples(st.sampled_from((0, 0.02, 0.3, 1.5, 1.5, 12, 70)), st.sampled_from(EVENTS), st.integers(0, 11)),
    min_size=5,
    max_size=40,
)
"""Seconds to wait, what happens then, and to which."""


async def pass_time(world: World, seconds: float) -> None:
    end = now() + seconds
    while (left := end - now()) > 0:
        await asyncio.sleep(min(left, 1))
        world.check()


async def live_through(happenings: list[Any]) -> None:
    world = World()
    await world.listener.start(world.bound)
    connecting = asyncio.ensure_future(world.connector.run())
    for seconds, happen, number in happenings:
        await pass_time(world, seconds)
        happen(world, number)
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # a task that was cancelled has ended by now
        world.check()
    world.bastion.does, world.bastion.rejected = "lets in", set()
    await pass_time(world, SLOWEST_SECONDS + SILENT_SECONDS + 2 * LOOK_SECONDS)
    assert world.connector.link, "once all is well there is a connection"
    world.client_comes()
    await pass_time(world, 1)
    assert all(client.served_by for client in world.present())
    world.check_pace()
    connecting.cancel()
    world.listener.cut()
    world.listener.refuse_new()
    await asyncio.wait([connecting])
    await asyncio.sleep(ANSWER_SECONDS)
    assert not any(ssh.stands for ssh in world.bastion.made)
    assert not world.present()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@settings(max_examples=150)
@given(HAPPENINGS)
def test_what_must_hold_holds_whatever_happens(happenings: list[Any]) -> None:
    run(live_through(happenings))
