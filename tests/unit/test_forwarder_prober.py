"""When the database is probed, and whose word counts: hours of it, without a database."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dbtunnel.api.conditions import LAYERS, ConditionType
from dbtunnel.api.forwarder import DatabaseFact, LayerFact
from dbtunnel.api.reasons import PASSING_SECONDS, REASONS, SLOW, Reason
from dbtunnel.domain.certificate import Certificate
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.metrics import DATABASE_CERTIFICATE_EXPIRY, DATABASE_FAILURES, Metrics
from dbtunnel.forwarder.probes import FRESH_SECONDS, Prober, Seen
from dbtunnel.forwarder.state import State
from tests.support.values import INSTALLATION, tunnel
from tests.support.virtual_time import now, run
from tests.unit.test_forwarder_evidence import message

CONFIG = forwarder_config(tunnel(), INSTALLATION.defaults)
INTERVAL = CONFIG.seconds.probe_interval

NO_TLS = Seen(DatabaseFact(protocol="PostgreSQL", tls_offered=False))
NO_HANDSHAKE = Seen(DatabaseFact(protocol="PostgreSQL", tls_offered=True), handshake_fails=True)
CERTIFICATE = Certificate(("other.internal",), "Shop CA", datetime(2027, 1, 1, tzinfo=UTC))
WITH_TLS = Seen(replace(NO_HANDSHAKE.fact, certificate_not_after="2027-01-01T00:00:00Z"), CERTIFICATE)

FULL = b"E\0\0\0\x31SFATAL\0C53300\0Msorry, too many clients already\0\0"
STARTING = message(b"E", b"SFATAL\0C57P03\0Mthe database system is starting up\0\0")
NOT_LET_IN = message(b"E", b'SFATAL\0C28000\0Mno pg_hba.conf entry for host "10.0.0.5"\0\0')
ASKS_FOR_PASSWORD = b"R\0\0\0\x0c\0\0\0\x05abcd"


SLOW_REASONS = [
    reason for reason, info in REASONS.items() if info.type is ConditionType.DATABASE_REACHABLE and info.retry_seconds
]


class World:
    """A prober over one connection that stands, and what its probes see."""

    def __init__(self, sees: Seen) -> None:
        self.sees = sees
        self.metrics, self.state = Metrics(), State(CONFIG, "pod-1")
        for layer in LAYERS[:-1]:
            self.state.succeeded(layer)
        self.link = cast(Link, SimpleNamespace(lost=asyncio.Event(), uses=1))
        up = asyncio.Event()
        up.set()
        connector: Any = SimpleNamespace(up=up, link=self.link, takes_channels=lambda _: True)
        self.prober = Prober(CONFIG, connector, self.state, self.metrics)
        self.prober._probe_with = self._probe
        self.takes_seconds = 0.0
        self.fails_for: Reason | None = None
        self.probed: list[float] = []
        """When."""

    async def _probe(self, *_: object) -> Seen:
        self.probed.append(now())
        await asyncio.sleep(self.takes_seconds)
        if self.fails_for:
            raise Failure(ConditionType.DATABASE_REACHABLE, self.fails_for)
        return self.sees

    def connect_anew(self) -> None:
        """Another connection takes the place of the one that stands."""
        connector: Any = self.prober._connector
        self.link = connector.link = cast(Link, SimpleNamespace(lost=asyncio.Event()))

    @property
    def database(self) -> LayerFact:
        return self.state.status.database

    def hear(self, first: bytes) -> None:
        """A client is told something."""
        self.prober.saw(self.link, first)


def live(sees: Seen, happenings: Sequence[tuple[float, Callable[[World], None]]], seconds: float) -> World:
    """Lets so much time pass, with what happens in it."""

    async def pass_time() -> World:
        world = World(sees)
        probing = asyncio.ensure_future(world.prober.run())
        for when, happen in happenings:
            asyncio.get_running_loop().call_later(when, happen, world)
        await asyncio.sleep(seconds)
        probing.cancel()
        return world

    return run(pass_time())


# --- when -------------------------------------------------------------------------------------------------------------


def test_a_database_that_works_is_probed_at_its_interval() -> None:
    world = live(WITH_TLS, [], 100 * INTERVAL)
    assert 85 <= len(world.probed) <= 115


def test_a_probe_that_the_database_logs_as_an_error_is_seldom() -> None:
    world = live(NO_HANDSHAKE, [], 24 * 3600)
    assert 20 <= len(world.probed) <= 25
    assert world.database.seen.startswith("PostgreSQL answers: TLS offered. The last probe's TLS handshake failed: ")


def test_and_not_any_more_once_the_handshake_succeeds() -> None:
    world = live(NO_HANDSHAKE, [(1, lambda world: setattr(world, "sees", WITH_TLS))], 2 * 3600)
    assert len([when for when in world.probed if when > 3600]) > 40
    assert "handshake failed" not in world.database.seen


def test_a_handshake_that_fails_all_at_once_is_told_beside_what_was_seen_before() -> None:
    world = live(WITH_TLS, [(1, lambda world: setattr(world, "sees", NO_HANDSHAKE))], 2 * INTERVAL)
    assert "handshake failed" in world.database.seen
    assert "Shop CA" in world.database.seen


def fail(reason: Reason) -> Callable[[World], None]:
    """From now on probes fail."""
    return lambda world: setattr(world, "fails_for", reason)


def gaps(world: World, since: float = 0) -> list[float]:
    """Seconds between probes."""
    times = [when for when in world.probed if when >= since]
    return [after - before for before, after in pairwise(times)]


def test_a_database_that_does_not_answer_is_probed_soon_and_then_less_and_less_often() -> None:
    world = live(WITH_TLS, [(0, fail(Reason.DATABASE_REFUSED))], 10 * INTERVAL)
    assert gaps(world)[:5] == pytest.approx([2, 4, 8, 16, 32])
    assert all(0.9 * INTERVAL <= gap <= 1.1 * INTERVAL for gap in gaps(world)[5:])


def test_and_so_it_is_in_the_next_outage() -> None:
    mends = (100, lambda world: setattr(world, "fails_for", None))
    world = live(WITH_TLS, [(0, fail(Reason.DATABASE_REFUSED)), mends, (300, fail(Reason.DATABASE_REFUSED))], 600)
    assert gaps(world, since=300)[:3] == pytest.approx([2, 4, 8])


@pytest.mark.parametrize("reason", SLOW_REASONS)
def test_no_probe_comes_sooner_than_the_reason_s_pace(reason: Reason) -> None:
    """Not even at an interval that is shorter, as a random one here is half of the time."""
    world = live(WITH_TLS, [(0, fail(reason))], 100 * SLOW)
    pace = REASONS[reason].retry_seconds
    assert len(world.probed) > 85
    assert all(pace <= round(gap, 6) <= 1.1 * pace for gap in gaps(world))


def test_the_pace_holds_up_neither_who_asks_nor_a_new_connection() -> None:
    happenings = [(0, fail(Reason.TOO_MANY_CONNECTIONS)), (5, ask), (20, World.connect_anew)]
    world = live(WITH_TLS, happenings, 50)
    assert world.probed == pytest.approx([0, 5, 20], abs=1)


# --- clients that leave before their login ----------------------------------------------------------------------------


def test_that_clients_leave_is_told_with_the_first_address_until_none_has_for_ten_minutes() -> None:
    seen: list[str] = []
    leaves = [(60 + 500 * n, lambda world, n=n: world.prober.left(f"10.0.0.{n}")) for n in range(3)]
    looks = [(when, lambda world: seen.append(world.database.seen)) for when in (59, 61, 1061, 1659, 1661)]
    live(NO_TLS, [*leaves, *looks], 2000)
    assert ["10.0.0.0 did" in text for text in seen] == [False, True, True, True, False]


def test_clients_that_leave_mend_no_condition() -> None:
    world = live(NO_TLS, [(10, lambda world: world.hear(FULL)), (11, lambda world: world.prober.left("10.0.0.7"))], 12)
    assert world.database.reason == "TooManyConnections"


# --- for those who ask ------------------------------------------------------------------------------------------------


def ask(world: World) -> None:
    """Somebody asks for a probe, and goes away at once."""
    asking = asyncio.ensure_future(world.prober.refresh())
    asyncio.get_running_loop().call_later(0.01, asking.cancel)


def test_a_probe_is_had_for_the_asking_and_no_more_than_one_in_ten_seconds() -> None:
    asks = [(5 + number / 10, ask) for number in range(150)]  # for fifteen seconds
    world = live(WITH_TLS, asks, 20)
    assert world.probed[1:] == pytest.approx([5, 5 + FRESH_SECONDS], abs=0.2)


def test_nobody_has_a_probe_that_is_an_error_in_the_database_s_log() -> None:
    assert len(live(NO_HANDSHAKE, [(5, ask)], 20).probed) == 1


def test_who_asks_hears_what_the_probe_has_shown() -> None:
    async def look() -> list[str]:
        world = World(WITH_TLS)
        await world.prober.refresh()
        first = world.database.reason
        cast(Any, world.prober)._connector.link = None
        await world.prober.refresh()
        return [first, world.database.reason]

    assert run(look()) == ["Succeeded"] * 2


def test_who_asks_does_not_wait_for_ever_and_cuts_no_probe() -> None:
    async def look() -> tuple[float, bool]:
        world, began = World(WITH_TLS), now()
        world.takes_seconds = 60
        await asyncio.gather(world.prober.refresh(), world.prober.refresh())
        took, asked = now() - began, cast(Any, world.prober)._asked
        await asyncio.sleep(60)
        return took, asked.result()

    took, works = run(look())
    assert took == pytest.approx(12, abs=0.1)
    assert works


# --- a database without a free connection -----------------------------------------------------------------------------


def test_an_answer_about_tls_is_no_word_against_clients_that_get_no_session() -> None:
    """Else the condition would change with each of them, and with each probe."""
    seen: list[str] = []
    clients = [(10 + 20 * number, lambda world: world.hear(FULL)) for number in range(30)]
    others = [(11 + 20 * number, lambda world: world.hear(b"N")) for number in range(30)]
    looks = [(10.5 + number, lambda world: seen.append(world.database.reason)) for number in range(600)]
    world = live(NO_TLS, [*clients, *others, *looks], 620)
    assert set(seen) == {"TooManyConnections"}
    assert len(world.probed) < 20, "nor is it probed more often for it"
    assert world.metrics.get(DATABASE_FAILURES, "TooManyConnections") == len(clients)


def test_a_session_of_a_client_is() -> None:
    world = live(NO_TLS, [(10, lambda world: world.hear(FULL)), (11, lambda world: world.hear(ASKS_FOR_PASSWORD))], 12)
    assert world.database.reason == "Succeeded"


def test_and_so_is_a_probe_once_no_client_has_complained_for_a_minute() -> None:
    world = live(NO_TLS, [(10, lambda world: world.hear(FULL))], 10 + SLOW)
    assert world.database.reason == "TooManyConnections"
    world = live(NO_TLS, [(10, lambda world: world.hear(FULL))], 10 + 3 * SLOW)
    assert world.database.reason == "Succeeded"


# --- a database that lets nobody in -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("heard", "seconds"), [(STARTING, 2 * PASSING_SECONDS), (NOT_LET_IN, SLOW)])
def test_that_nobody_is_let_in_is_told_for_longer_than_what_passes(heard: bytes, seconds: float) -> None:
    """One that has started is not said for a minute to start."""
    seen: dict[float, str] = {}
    looks = [
        (10 + after, lambda world, after=after: seen.update({after: world.database.reason}))
        for after in (0.1, PASSING_SECONDS + 0.1, seconds - 0.1, seconds + 2 * SLOW)
    ]
    live(NO_TLS, [(10, lambda world: world.hear(heard)), *looks], 10 + 3 * SLOW)
    assert list(seen.values()) == ["DatabaseRefused"] * 3 + ["Succeeded"]


@pytest.mark.parametrize("heard", [STARTING, NOT_LET_IN])
def test_a_client_that_is_let_in_ends_it(heard: bytes) -> None:
    world = live(NO_TLS, [(10, lambda world: world.hear(heard)), (11, lambda world: world.hear(ASKS_FOR_PASSWORD))], 12)
    assert world.database.reason == "Succeeded"


def test_a_client_whose_own_request_is_not_let_in_says_nothing_of_others() -> None:
    """As one without TLS, where the database demands it."""

    def hear_beside_a_session(world: World) -> None:
        world.link.uses = 2
        world.hear(NOT_LET_IN)

    assert live(NO_TLS, [(10, hear_beside_a_session)], 11).database.reason == "Succeeded"


@pytest.mark.parametrize("uses", [1, 2])
def test_an_error_that_is_whole_is_all_that_is_waited_for(uses: int) -> None:
    async def hear() -> bool:
        world = World(NO_TLS)
        world.link.uses = uses
        return world.prober.saw(world.link, NOT_LET_IN)

    assert run(hear())


# --- what is known ----------------------------------------------------------------------------------------------------


def expiry(world: World) -> str:
    """The series of the certificate's expiry, as it is scraped; empty where there is none."""
    lines = world.metrics.text().splitlines()
    name = DATABASE_CERTIFICATE_EXPIRY.name
    return "".join(line.removeprefix(name) for line in lines if line.startswith(name))


def test_the_certificate_outlives_what_clients_show_and_goes_with_tls() -> None:
    def look(world: World) -> None:
        fact = world.state.status.database_fact
        looks.append((fact.certificate_not_after, "Shop CA" in world.database.seen, expiry(world)))

    looks: list[tuple[str | None, bool, str]] = []
    happenings = [
        (1, look),
        (2, lambda world: world.hear(b"S")),
        (3, look),
        (4, lambda world: world.hear(b"N")),
        (5, look),
    ]
    live(WITH_TLS, happenings, 6)
    stamp = f'{{server_name="orders.internal"}} {CERTIFICATE.not_after.timestamp():.0f}'
    assert looks == [("2027-01-01T00:00:00Z", True, stamp)] * 2 + [(None, False, "")]


def test_a_name_that_the_certificate_does_not_bear_is_told_before_any_client_meets_it() -> None:
    world = live(WITH_TLS, [], 1)
    assert world.database.status == "True"
    assert 'It does not bear the name "orders.internal", so clients that verify names refuse it.' in world.database.seen
    assert expiry(world)


@pytest.mark.parametrize("first", [b"S", b"N"])
def test_a_client_shows_nothing_new_most_of_the_time(first: bytes) -> None:
    """Each connect of theirs goes through here."""

    def hear_again(world: World) -> None:
        before = world.state.status
        for _ in range(3):
            world.hear(first)
        assert world.state.status is before

    live(WITH_TLS if first == b"S" else NO_TLS, [(1, hear_again)], 2)
