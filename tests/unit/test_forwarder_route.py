"""Which bastion is tried when, in virtual time: nobody is hammered, nobody is left waiting."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import LayerStatus
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.settings import Defaults
from dbtunnel.forwarder import keyring, route
from dbtunnel.forwarder.connection import Connector, Sources
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.keyring import Keyring
from dbtunnel.forwarder.link import End, Link
from dbtunnel.forwarder.metrics import Metrics
from dbtunnel.forwarder.pace import LONGEST_BACKOFF_SECONDS, LONGEST_RETURN_SECONDS, RESTART_SECONDS, STABLE_SECONDS
from dbtunnel.forwarder.state import State
from dbtunnel.forwarder.transport import Congestion
from tests.support.keys import Secret, key_pair
from tests.support.values import tunnel
from tests.support.virtual_time import at_once, now, run

SERVERS = [{"host": "203.0.113.8"}, {"host": "203.0.113.9"}]
FALLBACKS = {"tunnel.fallbacks": SERVERS}
JUMP_HOST = {"tunnel.jumpHosts": [{"host": "198.51.100.1"}]}

HOUR = 3600


class Network:
    """SSH servers by number: whether each lets in, and when it was asked."""

    def __init__(self, spec: Mapping[str, Any]) -> None:
        self.config = forwarder_config(tunnel(spec), Defaults())
        self.failures: dict[int, Reason] = {}
        """What becomes of an attempt; nothing said: it is let in."""
        self.attempts: dict[int, list[float]] = {number: [] for number in range(len(self.config.hops))}
        self.links: list[Link] = []
        self.secret = Secret({"ssh-privatekey": key_pair().private})
        self.state = State(self.config, "pod-1")
        self.connector = cast(Connector, None)

    def login(self, _config: object, number: int, keyring: Keyring, _state: object) -> "Server":
        return Server(self, number, keyring)

    def change_key(self) -> None:
        """The Secret has another."""
        self.secret.files = {"ssh-privatekey": key_pair().private}

    async def run(self, story: Callable[[], Awaitable[None]]) -> None:
        """Has a forwarder connect while the story goes on."""
        sources = [Sources(self.secret)] * len(self.config.hops)
        self.connector = Connector(self.config, sources, self.state, Metrics())
        connecting = asyncio.ensure_future(self.connector.run())
        await story()
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)

    def lose(self, number: int) -> None:
        """All connections to a server are lost."""
        for link in self.links:
            if link.end.hop == number and not link.lost.is_set():
                link.end.happen("reset")

    @property
    def open(self) -> list[int]:
        """The servers to which there are connections."""
        return [link.end.hop for link in self.links if not link.lost.is_set()]

    @property
    def used(self) -> int | None:
        """The server that new clients go through."""
        link = self.connector.link
        return link.end.hop if link else None


class Server:
    """In the place of a Login."""

    def __init__(self, network: Network, number: int, keyring: Keyring) -> None:
        self._network, self.number, self.keyring = network, number, keyring

    async def connect(self, _known_hosts: object, carrier: Link | None = None) -> Link:
        network = self._network
        network.attempts[self.number].append(now())
        await self.keyring.keys.ready()
        keys = self.keyring.offers(now())
        await asyncio.sleep(0.01)
        reason = network.failures.get(self.number)
        if reason:
            layer = ConditionType.AUTHENTICATED if reason is Reason.KEY_REJECTED else ConditionType.TRANSPORT_READY
            failure = Failure(layer, reason, "", self.number)
            for key in keys if reason is Reason.KEY_REJECTED else ():
                self.keyring.refused(key, failure, now() + 60)
            raise failure
        end = End(self.number)

        def closed() -> None:
            if not end.happened.is_set():
                end.happen("closed")
            if carrier:
                carrier.close()

        packets = cast(Any, SimpleNamespace(why_not=""))
        link = Link(cast(Any, SimpleNamespace(abort=closed)), end.happened.is_set, Congestion(), end, packets)
        link.key, link.carrier = keys[0], carrier
        network.links.append(link)
        network.state.succeeded(ConditionType.KEY_READY)
        return link


@pytest.fixture
def network_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, Any]], Network]:
    def make(spec: Mapping[str, Any]) -> Network:
        network = Network(spec)
        monkeypatch.setattr(route, "Login", network.login)
        monkeypatch.setattr(keyring, "in_daemon_thread", at_once)
        return network

    return make


NetworkOf = Callable[[Mapping[str, Any]], Network]


def test_a_dead_first_bastion_is_asked_now_and_then(network_of: NetworkOf) -> None:
    network = network_of(FALLBACKS)
    network.failures[0] = Reason.CONNECTION_REFUSED

    async def story() -> None:
        await asyncio.sleep(24 * HOUR)
        assert network.used == 1
        gaps = [later - earlier for earlier, later in zip(network.attempts[0], network.attempts[0][1:], strict=False)]
        assert gaps[0] <= 10, "soon at first"
        assert all(gap >= 5 for gap in gaps)
        rare = [gap for gap, began in zip(gaps, network.attempts[0], strict=False) if began > RESTART_SECONDS + HOUR]
        assert len(rare) > 100
        assert all(LONGEST_RETURN_SECONDS / 2 <= gap <= LONGEST_RETURN_SECONDS + 1 for gap in rare)
        assert len(network.attempts[1]) == 1, "the fallback stands, and nobody asks it again"
        assert network.attempts[2] == []

    run(network.run(story))


@pytest.mark.parametrize("replicas", [1, 4])
def test_a_first_bastion_that_rejects_the_key_is_asked_no_faster_than_without_a_fallback(
    network_of: NetworkOf, replicas: int
) -> None:
    network = network_of({**FALLBACKS, "replicas": replicas})
    network.failures[0] = Reason.KEY_REJECTED

    async def story() -> None:
        await asyncio.sleep(HOUR)
        gaps = [later - earlier for earlier, later in zip(network.attempts[0], network.attempts[0][1:], strict=False)]
        assert min(gaps) >= 60 * (1 + (replicas - 1) / 2)
        assert len(gaps) >= 5

    run(network.run(story))


def test_the_first_gets_one_quick_try_before_a_fallback_is_taken(network_of: NetworkOf) -> None:
    network = network_of(FALLBACKS)

    async def story() -> None:
        await asyncio.sleep(60)
        network.lose(0)
        lost_at = now()
        await asyncio.sleep(1)
        assert network.used == 0, "a connection that something in between has cut"
        assert network.attempts[1] == []
        assert network.attempts[0][-1] - lost_at <= 0.2

        await asyncio.sleep(60)
        network.failures[0] = Reason.CONNECTION_REFUSED
        network.lose(0)
        lost_at = now()
        await asyncio.sleep(1)
        assert network.used == 1
        assert network.attempts[1][-1] - lost_at <= 0.3

    run(network.run(story))


def test_a_first_bastion_that_lets_in_and_cuts_again_does_not_keep_clients_waiting(network_of: NetworkOf) -> None:
    """A fallback serves, and the flapping one is returned to less and less often."""
    network = network_of(FALLBACKS)

    async def story() -> None:
        without = 0.0
        for _ in range(HOUR):
            await asyncio.sleep(1)
            if network.used == 0:
                network.lose(0)
            without += 0.1 * (network.used is None)
        assert len(network.attempts[0]) < 40
        assert without < 5

    run(network.run(story))


def test_all_is_asked_again_at_the_usual_pace_while_there_is_no_connection(network_of: NetworkOf) -> None:
    network = network_of(FALLBACKS)
    network.failures = dict.fromkeys(range(3), Reason.CONNECTION_REFUSED)

    async def story() -> None:
        await asyncio.sleep(HOUR)
        assert network.state.status.transport.hop == 0
        for number in range(3):
            rare = [began for began in network.attempts[number] if began > RESTART_SECONDS]
            assert (HOUR - RESTART_SECONDS) / 35 < len(rare) < (HOUR - RESTART_SECONDS) / 14
        network.failures.clear()
        network.failures[0] = Reason.CONNECTION_REFUSED
        await asyncio.sleep(31)
        assert network.used in (1, 2)

    run(network.run(story))


def test_a_lost_fallback_is_replaced_by_whoever_lets_in(network_of: NetworkOf) -> None:
    network = network_of(FALLBACKS)
    network.failures[0] = Reason.CONNECTION_REFUSED

    async def story() -> None:
        await asyncio.sleep(HOUR)
        await asyncio.sleep(network.attempts[0][-1] + LONGEST_BACKOFF_SECONDS - now())
        network.failures = {1: Reason.CONNECTION_REFUSED}
        network.lose(1)
        await asyncio.sleep(1)
        assert network.used == 0, "the first is asked first, however long it was dead"

    run(network.run(story))


def test_the_best_is_returned_to_and_the_others_end(network_of: NetworkOf) -> None:
    network = network_of(FALLBACKS)
    network.failures = {0: Reason.CONNECT_TIMEOUT, 1: Reason.CONNECT_TIMEOUT}

    async def story() -> None:
        await asyncio.sleep(60)
        assert network.used == 2
        del network.failures[1]
        await asyncio.sleep(LONGEST_RETURN_SECONDS)
        assert network.used == 1
        del network.failures[0]
        await asyncio.sleep(LONGEST_RETURN_SECONDS)
        assert network.used == 0
        assert network.open == [0]
        assert network.state.status.transport.status is LayerStatus.TRUE

    run(network.run(story))


def test_failed_checks_leave_the_conditions_alone_and_are_told_of_the_bastion(network_of: NetworkOf) -> None:
    network = network_of(FALLBACKS)

    async def story() -> None:
        await asyncio.sleep(60)
        network.failures[0] = Reason.CONNECTION_REFUSED
        network.lose(0)
        await asyncio.sleep(1)
        for reason in (Reason.CONNECT_TIMEOUT, Reason.KEY_REJECTED):
            network.failures[0] = reason
            await asyncio.sleep(LONGEST_RETURN_SECONDS)
            status = network.state.status
            assert [fact.status for _, fact in network.state.layers()][:3] == [LayerStatus.TRUE] * 3
            failure = status.hops[0].failure
            assert failure is not None
            assert failure.reason == reason

    run(network.run(story))


def test_a_changed_key_is_tried_at_once_and_never_at_a_worse_place_than_the_one_in_use(network_of: NetworkOf) -> None:
    network = network_of(FALLBACKS)
    network.failures[0] = Reason.KEY_REJECTED

    async def story() -> None:
        await asyncio.sleep(HOUR)
        assert network.used == 1
        del network.failures[0]
        network.change_key()
        await asyncio.sleep(2)
        assert network.used == 0, "though its next check is minutes away"
        network.failures[0] = Reason.KEY_REJECTED
        network.change_key()
        await asyncio.sleep(2)
        assert network.used == 0
        assert network.state.status.authentication.reason == Reason.KEY_REJECTED
        assert len(network.attempts[1]) == 1
        assert network.attempts[2] == []

    run(network.run(story))


def test_a_jump_host_that_is_down_is_asked_once_for_all_that_lie_behind_it(network_of: NetworkOf) -> None:
    network = network_of({**FALLBACKS, **JUMP_HOST})
    jump_host = len(network.config.hops) - 1
    network.failures[jump_host] = Reason.KEY_REJECTED

    async def story() -> None:
        await asyncio.sleep(HOUR)
        gaps = [b - a for a, b in zip(network.attempts[jump_host], network.attempts[jump_host][1:], strict=False)]
        assert min(gaps) >= 60
        assert all(network.attempts[number] == [] for number in range(3))
        assert network.state.status.authentication.hop == jump_host

    run(network.run(story))


def test_a_failed_attempt_leaves_no_connection_to_the_jump_host_and_a_good_one_uses_one(network_of: NetworkOf) -> None:
    network = network_of({**FALLBACKS, **JUMP_HOST})
    jump_host = len(network.config.hops) - 1
    network.failures = dict.fromkeys(range(3), Reason.CONNECTION_REFUSED)

    async def story() -> None:
        await asyncio.sleep(60)
        assert network.open == []
        del network.failures[1]
        await asyncio.sleep(31)
        assert sorted(network.open) == [1, jump_host]
        before = len(network.attempts[jump_host])
        await asyncio.sleep(LONGEST_RETURN_SECONDS)
        assert len(network.attempts[jump_host]) > before, "checks of the first go through it too"
        assert sorted(network.open) == [1, jump_host]
        del network.failures[0]
        await asyncio.sleep(LONGEST_RETURN_SECONDS + STABLE_SECONDS)
        assert sorted(network.open) == [0, jump_host]

    run(network.run(story))
    assert network.open == []
