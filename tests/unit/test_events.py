"""Events: what is posted, and that equal ones are counted in one."""

from datetime import datetime, timedelta
from typing import Any, cast

import aiohttp
import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import PublicKeyFact
from dbtunnel.api.reasons import Reason
from dbtunnel.controller.client import LEASE_LOST, ApiError, Client, Kind
from dbtunnel.controller.events import FOLD_SECONDS, KEPT_EVENTS, NOTE_LIMIT, RETRY_SECONDS, Events
from dbtunnel.controller.queue import TunnelKey
from dbtunnel.domain.news import all_news
from dbtunnel.domain.observed import Report
from dbtunnel.domain.status import decide
from tests.support.values import INSTALLATION, NOW, failing, manifest, observed, tunnel
from tests.support.world import settled

ORDERS = manifest()
KEY = TunnelKey("shop", "orders")
CUT = " ... (whole in the tunnel's status)"


class Api:
    """Events by name."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        self.fails: list[Exception] = []
        """What comes of the next requests."""
        self.loses_an_answer = False

    async def create(self, _: Kind, document: dict[str, Any]) -> None:
        if self.fails:
            raise self.fails.pop(0)
        if document["metadata"]["name"] in self.events:
            raise ApiError(409, "AlreadyExists", "is there")
        self.events[document["metadata"]["name"]] = document
        self._answer()

    async def patch(self, _: Kind, namespace: str, name: str, change: dict[str, Any]) -> None:
        assert namespace == "shop"
        if self.fails:
            raise self.fails.pop(0)
        if name not in self.events:
            raise ApiError(404, "NotFound", "is gone")
        self.events[name].update(change)
        self._answer()

    def _answer(self) -> None:
        lost, self.loses_an_answer = self.loses_an_answer, False
        if lost:
            raise aiohttp.ServerDisconnectedError

    def counts(self) -> list[tuple[str, int]]:
        return [(one["reason"], one.get("series", {}).get("count", 1)) for one in self.events.values()]


class Board:
    def __init__(self) -> None:
        self.api, self.now = Api(), NOW
        self.events = Events(cast(Client, self.api), self._clock)

    def _clock(self) -> datetime:
        return self.now

    async def post(self, reason: str = "Ready", note: str = "The tunnel works.", after: float = 0) -> float | None:
        self.now += timedelta(seconds=after)
        self.events.add(ORDERS, "Normal", reason, note)
        return await self.events.post(KEY)

    async def try_again(self, after: float) -> float | None:
        self.now += timedelta(seconds=after)
        return await self.events.post(KEY)


async def test_equal_ones_are_counted_in_one_and_others_stand_apart() -> None:
    board = Board()
    for _ in range(3):
        await board.post("ConnectionLost", "bastion: lost", after=60)
        await board.post(after=60)
    await board.post("ConnectionLost", "jump host: lost")
    assert board.api.counts() == [("ConnectionLost", 3), ("Ready", 3), ("ConnectionLost", 1)]
    first = next(iter(board.api.events.values()))
    assert first["eventTime"] == "2026-11-05T12:01:00.250000Z"
    assert first["series"]["lastObservedTime"] == "2026-11-05T12:05:00.250000Z"


async def test_after_a_while_an_equal_one_is_news() -> None:
    board = Board()
    await board.post()
    await board.post(after=FOLD_SECONDS)
    assert board.api.counts() == [("Ready", 1), ("Ready", 1)]


async def test_one_that_has_expired_is_posted_anew() -> None:
    board = Board()
    await board.post()
    board.api.events.clear()
    await board.post()
    await board.post()
    assert board.api.counts() == [("Ready", 2)]


async def test_one_that_is_refused_is_told_in_the_log_and_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    board = Board()
    board.api.fails = [ApiError(403, "Forbidden", "no")]
    assert await board.post() is None
    assert [record.getMessage() for record in caplog.records] == ["event not posted"]
    await board.post()
    assert board.api.counts() == [("Ready", 1)]


UNANSWERED = [
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientOSError(104, "reset"),
    TimeoutError(),
    ApiError(429, "TooManyRequests", "later"),
    ApiError(500, "InternalError", "a webhook fails"),
    ApiError(409, LEASE_LOST, "who wakes up writes nothing yet"),
]


@pytest.mark.parametrize("error", UNANSWERED, ids=repr)
async def test_one_that_meets_a_dropped_connection_is_posted_later_with_its_own_time(error: Exception) -> None:
    board = Board()
    board.api.fails = [error]
    assert await board.post("ConnectionLost") == RETRY_SECONDS
    assert board.api.counts() == []
    assert await board.post("Ready", after=60) is None
    assert board.api.counts() == [("ConnectionLost", 1), ("Ready", 1)]
    assert next(iter(board.api.events.values()))["eventTime"] == "2026-11-05T12:00:00.250000Z"
    assert await board.try_again(after=60) is None, "each is posted once"
    assert board.api.counts() == [("ConnectionLost", 1), ("Ready", 1)]


async def test_one_whose_answer_was_lost_is_not_posted_twice() -> None:
    board = Board()
    board.api.loses_an_answer = True
    assert await board.post() == RETRY_SECONDS
    assert await board.try_again(5) is None
    assert board.api.counts() == [("Ready", 1)]
    board.api.loses_an_answer = True
    assert await board.post() == RETRY_SECONDS
    assert await board.try_again(5) is None
    assert board.api.counts() == [("Ready", 2)], "nor counted twice"


async def test_the_waits_grow_and_end_after_an_hour(caplog: pytest.LogCaptureFixture) -> None:
    board = Board()
    board.api.fails = [TimeoutError() for _ in range(100)]
    wait, waits = await board.post(), []
    while wait is not None:
        waits.append(wait)
        wait = await board.try_again(wait)
    assert waits == [5, 5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560]
    assert [record.getMessage() for record in caplog.records] == ["event waits"] * 11 + ["event not posted"]
    board.api.fails.clear()
    await board.try_again(1)
    assert board.api.counts() == []


async def test_the_latest_few_of_a_tunnel_are_kept() -> None:
    board = Board()
    board.api.fails = [TimeoutError() for _ in range(20)]
    for number in range(20):
        await board.post(f"Reason{number}")
    await board.try_again(5)
    assert [reason for reason, _ in board.api.counts()] == [f"Reason{number}" for number in range(20 - KEPT_EVENTS, 20)]


async def test_of_a_tunnel_that_goes_nothing_is_kept() -> None:
    board = Board()
    board.api.fails = [TimeoutError()]
    await board.post()
    board.events.forget(KEY)
    assert await board.try_again(5) is None
    assert board.api.counts() == []


async def posted_note(note: str) -> str:
    board = Board()
    await board.post(note=note)
    (one,) = board.api.events.values()
    return str(one["note"])


@pytest.mark.parametrize("note", ["x" * NOTE_LIMIT, "\u00e9" * (NOTE_LIMIT // 2)])
async def test_a_note_is_whole_as_far_as_the_api_takes_it(note: str) -> None:
    assert await posted_note(note) == note


@pytest.mark.parametrize("note", ["x" * (NOTE_LIMIT + 1), "\u00e9" * NOTE_LIMIT, "x" * 5000, " " * 5000])
async def test_a_longer_note_is_cut_and_says_so(note: str) -> None:
    found = await posted_note(note)
    assert len(found.encode()) <= NOTE_LIMIT
    assert found.endswith(" ... (whole in the tunnel's status)")
    assert note.startswith(found.removesuffix(CUT))


@pytest.mark.parametrize("key_bytes", range(460, 1000, 20))
async def test_no_note_ends_within_a_key(key_bytes: int) -> None:
    before, key, after = (
        "Add to authorized_keys: restrict,port-forwarding ssh-rsa ",
        "A" * key_bytes,
        " shop/orders " * 40,
    )
    found = await posted_note(before + key + after)
    assert found.endswith(CUT)
    assert key in found or "AA" not in found


async def test_the_note_of_a_long_key_that_is_rejected_has_all_of_the_line_or_none_of_its_key() -> None:
    key = PublicKeyFact(key="ssh-rsa " + "A" * 716, fingerprint="SHA256:" + "k" * 43)
    document = failing(tunnel(), ConditionType.AUTHENTICATED, Reason.KEY_REJECTED, public_key=key)
    status = decide(tunnel(), observed(tunnel(), document), INSTALLATION, NOW).status
    ((_, reason, note),) = all_news(ORDERS, status)
    assert (reason, len(note) > NOTE_LIMIT) == ("KeyRejected", True)
    found = await posted_note(note)
    assert found.endswith(CUT)
    assert "A" * 716 in found or "AAA" not in found
    assert len(found) > 200


# --- with what is reconciled ------------------------------------------------------------------------------------------


async def test_an_event_that_could_not_be_posted_is_posted_by_the_next_reconcile() -> None:
    world = await settled()
    world.forwarders.known["pod-1"] = Report(failing(tunnel(), ConditionType.AUTHENTICATED, Reason.KEY_REJECTED))
    world.cluster.drops_events = True
    assert await world.reconcile(10) == 5
    assert (world.condition("Ready"), world.cluster.events) == (("False", "KeyRejected"), [])
    world.cluster.drops_events = False
    await world.reconcile(15)
    assert world.cluster.done == ["ensure", "prune"], "the status is as it was"
    assert world.cluster.events == [("Warning", "KeyRejected")]


async def test_an_event_is_posted_though_what_comes_after_the_status_fails() -> None:
    world = await settled()
    world.forwarders.known["pod-1"] = Report(failing(tunnel(), ConditionType.KEY_READY, Reason.SECRET_NOT_FOUND))
    world.cluster.refuses_refresh = True
    with pytest.raises(ApiError):
        await world.reconcile(10)
    assert world.cluster.events == [("Warning", "SecretNotFound")]
