"""Events: what is posted, and that equal ones are counted in one."""

from datetime import datetime, timedelta
from typing import Any, cast

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import PublicKeyFact
from dbtunnel.api.reasons import Reason
from dbtunnel.controller.client import ApiError, Client, Kind
from dbtunnel.controller.events import FOLD_SECONDS, NOTE_LIMIT, Events
from dbtunnel.domain.news import all_news
from dbtunnel.domain.status import decide
from tests.support.values import INSTALLATION, NOW, failing, manifest, observed, tunnel

ORDERS = manifest()
CUT = " ... (whole in the tunnel's status)"


class Api:
    """Events by name."""

    def __init__(self) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        self.refuses = 0

    async def create(self, _: Kind, document: dict[str, Any]) -> None:
        if self.refuses:
            raise ApiError(self.refuses, "Forbidden", "no")
        self.events[document["metadata"]["name"]] = document

    async def patch(self, _: Kind, namespace: str, name: str, change: dict[str, Any]) -> None:
        assert namespace == "shop"
        if name not in self.events:
            raise ApiError(404, "NotFound", "is gone")
        self.events[name].update(change)

    def counts(self) -> list[tuple[str, int]]:
        return [(one["reason"], one.get("series", {}).get("count", 1)) for one in self.events.values()]


class Board:
    def __init__(self) -> None:
        self.api, self.now = Api(), NOW
        self.events = Events(cast(Client, self.api), self._clock)

    def _clock(self) -> datetime:
        return self.now

    async def post(self, reason: str = "Ready", note: str = "The tunnel works.", after: float = 0) -> None:
        self.now += timedelta(seconds=after)
        await self.events.post(ORDERS, "Normal", reason, note)


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


async def test_one_that_cannot_be_posted_is_told_in_the_log_and_not_counted(caplog: pytest.LogCaptureFixture) -> None:
    board = Board()
    board.api.refuses = 403
    await board.post()
    assert [record.getMessage() for record in caplog.records] == ["event not posted"]
    board.api.refuses = 0
    await board.post()
    assert board.api.counts() == [("Ready", 1)]


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
