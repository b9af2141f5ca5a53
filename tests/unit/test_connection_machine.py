"""The connection's states (docs/architecture.md) under random interleavings of all that happens to it.

The real Connector, with a bastion, a fallback and keys that rotate, and the real Listener with its clients and their
channels, on a clock that skips every wait; what is faked is the SSH connections. Hypothesis chooses what happens when;
what must always hold is checked each second and after each event.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby, pairwise
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.forwarder import keyring, listener, route
from dbtunnel.forwarder.client import Client
from dbtunnel.forwarder.connection import Connector, Sources
from dbtunnel.forwarder.keyring import Keyring
from dbtunnel.forwarder.listener import Listener, listening_socket
from dbtunnel.forwarder.metrics import CLIENTS_OPEN, CLIENTS_PARKED, SSH_UP, Metrics
from dbtunnel.forwarder.pace import FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS, LONGEST_RETURN_SECONDS
from dbtunnel.forwarder.probes import Prober
from dbtunnel.forwarder.state import State
from tests.support.fake_ssh import ANSWER_SECONDS, SILENT_SECONDS, Attempt, Connection, Server
from tests.support.keys import Secret, key_pair
from tests.support.virtual_time import at_once, now, run
from tests.unit.test_forwarder_connect import CONFIG

LOOK_SECONDS = 1.0
"""How often the files are looked at, and whether there is a better connection. What is read then is acted upon the
next time."""
PARKING_SECONDS, PARKED_AT_MOST = 30, 3
SOONEST_SECONDS = FIRST_BACKOFF_SECONDS / 2
EAGER_DOUBLINGS = 2
"""Of the pause, while somebody may be parked since the begin of an outage."""
SLOWEST_SECONDS = 90
"""The shortest and the longest pause, with their jitter."""
SOON = 0.01
"""What is lost to the clock's floating point."""

KEYS = [key_pair() for _ in range(3)]
CURRENT, NEXT, REVOKED = "ssh-privatekey", "ssh-privatekey-next", "ssh-privatekey-revoked"

FAILURES = (Reason.CONNECTION_REFUSED, Reason.BASTION_REFUSING, Reason.CONNECT_TIMEOUT)
"""What a server may do to everybody."""


class WatchedSecret(Secret):
    """Knows what the forwarder has seen of it."""

    def __init__(self, files: dict[str, str]) -> None:
        super().__init__(files)
        self.seen: list[dict[str, str]] = []
        """What stood there when it was looked at, each time that it had been written anew."""

    def stamp(self) -> object:
        if not self.seen or self.files is not self.seen[-1]:
            self.seen.append(self.files)
        return len(self.seen)


class KnownClient(Client):
    """A client and its other end, and what became of it. Its connection is one that needs no network, so that what one
    end does the other knows at once.
    """

    def __init__(self, connected: socket.socket, address: tuple[str, int], host: Any, number: int) -> None:
        super().__init__(connected, address, host, number)
        self.came_at = now()
        self.left_at: float | None = None
        self.refused_at: float | None = None
        self.parked_then = 0.0
        """How many clients were parked when it was refused."""

    def refuse(self, *how: str) -> None:
        if not self.is_gone:
            self.refused_at, self.parked_then = now(), cast(Listener, self._host)._metrics.get(CLIENTS_PARKED)
        super().refuse(*how)

    @property
    def waits(self) -> bool:
        return not self.is_gone and not self.was_joined


class World:
    """All of it, and what can happen: each of `EVENTS` takes a number that chooses among what there is."""

    def __init__(self) -> None:
        seconds = replace(CONFIG.seconds, parking_max=PARKING_SECONDS)
        config = replace(CONFIG, parking_max_clients=PARKED_AT_MOST, seconds=seconds, fallbacks=(CONFIG.bastion,))
        self.servers = [Server(number) for number in range(2)]
        self.attempts: list[Attempt] = []
        self.made: dict[Connection, int] = {}
        """Each with the number of the files that it was made with."""
        self.clients: dict[KnownClient, tuple[socket.socket, socket.socket]] = {}
        """With both ends of their connections."""
        self.secret, self.changed_at = WatchedSecret({CURRENT: KEYS[0].private}), 0.0
        self.untried_since: float | None = None
        self.was_revoked: set[str] = set()
        self.metrics = Metrics()
        with mock.patch.object(route, "Login", side_effect=self._login):
            sources = [Sources(self.secret), Sources(self.secret)]
            self.connector = Connector(config, sources, State(config, "pod-1"), self.metrics)
        self.listener = Listener(config, self.connector, cast(Prober, SimpleNamespace()), self.metrics)
        self.bound = listening_socket("127.0.0.1", 0)
        self.address = self.bound.getsockname()
        self.drains = False

    def _login(self, _config: object, number: int, ring: Keyring, _state: object) -> Server:
        server = self.servers[number]
        server.keyring, server.on_attempt, server.files = ring, self.note, lambda: len(self.secret.seen)
        return server

    # --- what happens ---------------------------------------------------------------------------------------------

    def client_comes(self, _: int = 0) -> None:
        if not self.drains:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            theirs.send(b"hello")
            both = ours.dup(), theirs
            self.listener._take(ours, ("127.0.0.1", len(self.clients)))
            (client,) = self.listener._clients - self.clients.keys()
            self.clients[cast(KnownClient, client)] = both

    def client_leaves(self, number: int) -> None:
        """Half of them with a reset: so ends a connection of this kind where something was not read."""
        if present := [client for client in self.present() if client.left_at is None]:
            client = present[number // 2 % len(present)]
            client.left_at = now()
            ours, theirs = self.clients[client]
            if number % 2:
                ours.send(b"unread")
            theirs.close()

    def connection_ends(self, number: int) -> None:
        """The current one, or one that was replaced."""
        if standing := [one for one in self.made if one.stands]:
            standing[number % len(standing)].end()

    def server_changes(self, number: int) -> None:
        """One or both; every other time they let in."""
        for server in (self.servers, self.servers[:1], self.servers[1:])[number // 2 % 3]:
            server.fails = None if number % 2 else FAILURES[number // 6 % len(FAILURES)]

    def outage(self, number: int) -> None:
        """All connections end, and no server lets in."""
        for server in self.servers:
            server.fails = FAILURES[number % len(FAILURES)]
        for one in self.made:
            one.end()

    def key_is_known_or_not(self, number: int) -> None:
        self.servers[number // 3 % 2].rejected ^= {KEYS[number % 3].fingerprint}

    def key_changes(self, number: int) -> None:
        self._write({CURRENT: KEYS[number % 3].private})

    def next_key_comes(self, number: int) -> None:
        self._write({**self.secret.files, NEXT: KEYS[number % 3].private})

    def key_is_revoked(self, number: int) -> None:
        self.was_revoked.add(KEYS[number % 3].fingerprint)
        self._write({**self.secret.files, REVOKED: KEYS[number % 3].fingerprint})

    def _write(self, files: dict[str, str]) -> None:
        if files != self.secret.files:
            self.secret.files, self.changed_at, self.untried_since = files, now(), now()

    def drain_begins(self, _: int) -> None:
        self.drains = True
        self.listener.refuse_new()
        with socket.socket() as late:
            assert late.connect_ex(self.address) == errno.ECONNREFUSED

    def all_is_well(self) -> None:
        self._write({name: text for name, text in self.secret.files.items() if name != REVOKED})
        for server in self.servers:
            server.fails, server.rejected = None, set()

    def note(self, attempt: Attempt) -> None:
        before = self.attempts[-1] if self.attempts else attempt
        if attempt.hop > before.hop and attempt.began == before.ended:
            attempt.files = before.files  # all servers are tried, and then news is taken up
        self.attempts.append(attempt)
        current = self.current()
        if current and current.hop <= attempt.hop:
            is_news = attempt.files != self.made[current]
            assert is_news or current.key.fingerprint != self.wanted(), "what stands is not made again"

    def present(self) -> list[KnownClient]:
        return [client for client in self.clients if not client.is_gone]

    def current(self) -> Connection | None:
        for attempt in self.attempts:
            if attempt.made:
                self.made.setdefault(attempt.made, attempt.files)
        return next((one for one in self.made if one.link is self.connector.link), None)

    def is_revoked(self, fingerprint: str) -> bool:
        return fingerprint == self.secret.files.get(REVOKED)

    def wanted(self) -> str | None:
        """The fingerprint of the key that is to be used, by what stands in the Secret."""
        texts = [self.secret.files[name] for name in (NEXT, CURRENT) if name in self.secret.files]
        found = [pair.fingerprint for text in texts for pair in KEYS if pair.private == text]
        return next((one for one in found if not self.is_revoked(one)), None)

    # --- what must hold -------------------------------------------------------------------------------------------

    def check(self) -> None:
        current = self.current()
        self.check_connections(current)
        self.check_clients(current)
        self.check_files(current)

    def check_files(self, current: Connection | None) -> None:
        """Other files are tried at once, unless what there is was made with the key that is wanted."""
        latest = self.attempts[-1]
        is_tried = self.secret.files == self.secret.seen[latest.files - 1]
        if is_tried or not self.wanted() or (current and current.key.fingerprint == self.wanted()):
            self.untried_since = None
        if self.untried_since is not None:
            idle_since = now() if latest.ended is None else latest.ended
            assert now() - max(self.untried_since, idle_since) <= 2 * LOOK_SECONDS + SOON

    def check_connections(self, current: Connection | None) -> None:
        assert self.connector.up.is_set() == (current is not None) == (self.connector.down_since is None)
        assert self.metrics.get(SSH_UP) == (current is not None)
        assert (self.connector.link is None) == (current is None)
        assert current is None or current.stands or current.is_closed
        for one in self.made:
            is_needed = one is current or one.link.uses or now() - one.made_at <= LOOK_SECONDS + SOON
            assert is_needed or not one.stands, "what was replaced stands for its users alone"
            assert one.ended_at is None or not one.link.uses, "nobody uses what is gone"
            assert one.key.fingerprint in self.was_revoked or not one.had_users, "none is closed while it has users"
            if self.is_revoked(one.key.fingerprint) and one.stands:
                assert now() - self.changed_at <= 2 * LOOK_SECONDS + SOON, "what a revoked key made is ended"

    def check_clients(self, current: Connection | None) -> None:
        present = self.present()
        assert self.listener.clients == len(present), "no client is lost"
        assert self.listener.empty.is_set() == (not present)
        waiting = sum(client.waits for client in present)
        assert 0 <= self.metrics.get(CLIENTS_PARKED) <= min(waiting, PARKED_AT_MOST), "who has left parks no more"
        for client in self.clients:
            self.check_client(client, current)

    def check_client(self, client: KnownClient, current: Connection | None) -> None:
        if client.left_at is not None:
            assert client.is_gone or now() - client.left_at <= 3 * ANSWER_SECONDS + SOON, "who has left is forgotten"
        elif client.waits:
            assert now() - client.came_at <= PARKING_SECONDS + ANSWER_SECONDS + SOON, "nobody waits for ever"
            since = max(client.came_at, current.made_at if current and current.stands else now())
            assert now() - since < 2 * ANSWER_SECONDS + SOON, "nobody waits while there is a connection"
        elif client.refused_at is not None and not client.was_joined:
            in_time = client.refused_at - client.came_at < PARKING_SECONDS - SOON
            assert client.parked_then == PARKED_AT_MOST or not in_time, "nobody is refused who might wait"

    def check_pace(self) -> None:
        """No attempt comes sooner than its server's turn, unless the files have changed."""
        for _, same in groupby(self.attempts, lambda attempt: attempt.seen):
            attempts = list(same)
            for number in range(len(self.servers)):
                self._check_pace(number, [attempt for attempt in attempts if attempt.hop == number])

    def _check_pace(self, number: int, attempts: Sequence[Attempt]) -> None:
        """Of one server, with the same files. A connection that is lost may be made again soon."""
        ends = [one.ended_at for one in self.made if one.hop == number and one.ended_at is not None]
        doublings, began = 0, 0.0
        for before, after in pairwise(attempts):
            if before.files != before.seen:
                doublings = 0  # in the next round it is tried anew, with the other servers
                continue
            soonest = [end + SOONEST_SECONDS for end in ends if before.began <= end < after.began]
            if before.failure and before.ended is not None:
                began = began if doublings else before.ended
                usual = min(SOONEST_SECONDS * 2**doublings, LONGEST_BACKOFF_SECONDS / 2)
                least = REASONS[before.failure.reason].retry_seconds or usual
                soonest.append(before.ended + least)
                doublings += doublings < EAGER_DOUBLINGS or before.ended >= began + PARKING_SECONDS
            assert after.began >= min(soonest, default=0.0) - SOON, "each in its turn"
            doublings = doublings if before.failure and len(soonest) == 1 else 0


EVENTS = (
    World.client_comes,
    World.client_comes,
    World.client_comes,
    World.client_leaves,
    World.client_leaves,
    World.connection_ends,
    World.server_changes,
    World.server_changes,
    World.outage,
    World.key_changes,
    World.key_changes,
    World.next_key_comes,
    World.key_is_known_or_not,
    World.key_is_revoked,
    World.drain_begins,
)

HAPPENINGS = st.lists(
    st.tuples(
        st.sampled_from((0, 0.02, 0.02, 0.02, 0.3, 1.5, 1.5, 12, 70)), st.sampled_from(EVENTS), st.integers(0, 17)
    ),
    min_size=20,
    max_size=40,
)
"""Seconds to wait, what happens then, and to which."""


async def pass_time(world: World, seconds: float) -> None:
    end = now() + seconds
    while (left := end - now()) > 0:
        await asyncio.sleep(min(left, 1))
        world.check()


async def settle(world: World) -> None:
    """In the end all is well again, and all that is promised then is kept."""
    world.all_is_well()
    await pass_time(world, SLOWEST_SECONDS + 2 * SILENT_SECONDS + 2 * LOOK_SECONDS)
    assert world.connector.link, "there is a connection"
    world.client_comes()
    await pass_time(world, LONGEST_RETURN_SECONDS)
    assert not any(client.waits for client in world.present())
    current = world.current()
    assert current
    assert (current.hop, current.key.fingerprint) == (0, world.wanted()), "it is the best that there is"
    while world.present():
        world.client_leaves(1)
        await pass_time(world, 1)
    assert not current.link.uses, "nothing is left of those who have left"
    assert not world.metrics.get(CLIENTS_OPEN)


async def finish(world: World, connecting: "asyncio.Task[None]") -> None:
    """The process ends, with a client."""
    world.client_comes()
    await pass_time(world, 1)
    connecting.cancel()
    world.listener.cut()
    world.listener.refuse_new()
    assert isinstance((await asyncio.gather(connecting, return_exceptions=True))[0], asyncio.CancelledError)
    await asyncio.sleep(ANSWER_SECONDS)
    assert not any(one.stands for one in world.made)
    assert not world.present()
    for ends in world.clients.values():
        for end in ends:
            end.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def live_through(happenings: Sequence[Any]) -> None:
    world = World()
    world.listener.start(world.bound)
    connecting = asyncio.ensure_future(world.connector.run())
    await asyncio.sleep(SOON)
    for seconds, happen, number in happenings:
        await pass_time(world, seconds)
        happen(world, number)
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # a task that was cancelled has ended by now
        world.check()
        assert not connecting.done(), connecting
    await settle(world)
    world.check_pace()
    await finish(world, connecting)


EXAMPLES = int(os.environ.get("DBTUNNEL_EXAMPLES", "0"))
"""How many random ones to try; by default the same ones each time, so that what fails is what was changed."""


@settings(max_examples=EXAMPLES or 150, derandomize=not EXAMPLES)
@given(HAPPENINGS)
def test_what_must_hold_holds_whatever_happens(happenings: Sequence[Any]) -> None:
    with (
        mock.patch.object(listener, "Client", KnownClient),
        mock.patch.object(keyring, "in_daemon_thread", at_once),
    ):
        run(live_through(happenings))
