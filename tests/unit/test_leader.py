"""Who holds the Lease, in virtual time, with an API server that may be silent or refuse."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest

from dbtunnel.controller.client import ApiError, Client, Kind
from dbtunnel.controller.leader import (
    ANSWER_SECONDS,
    LEASE_SECONDS,
    RENEW_SECONDS,
    RETRY_SECONDS,
    Election,
    LeaseLostError,
    waking_clock,
)
from dbtunnel.domain.children import Manifest
from tests.support.virtual_time import now, run


class Api:
    """One Lease. `trouble` happens before each request of an identity."""

    def __init__(self) -> None:
        self.lease: Manifest | None = None
        self.trouble: Callable[[], Coroutine[Any, Any, None]] | None = None
        self.writes = 0

    async def _before(self) -> None:
        await asyncio.sleep(0.01)
        if self.trouble:
            await self.trouble()

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        await self._before()
        assert kind.path(namespace, name) == "/apis/coordination.k8s.io/v1/namespaces/system/leases/dbtunnel-operator"
        return self.lease

    async def create(self, _: Kind, document: Manifest) -> Manifest:
        await self._before()
        if self.lease:
            raise ApiError(409, "AlreadyExists", "is there")
        return self._store(document)

    async def replace(self, _: Kind, document: Manifest) -> Manifest:
        await self._before()
        assert self.lease
        if document["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "is another version")
        return self._store(document)

    def _store(self, document: Manifest) -> Manifest:
        self.writes += 1
        metadata = {**document["metadata"], "resourceVersion": str(self.writes)}
        self.lease = {**document, "metadata": metadata}
        return self.lease


class Candidate:
    """One that wants the Lease."""

    def __init__(self, api: Api) -> None:
        self.suspended = 0.0
        """Seconds for which its machine slept, and its event loop with it."""
        self.election = Election(cast(Client, api), "system", "dbtunnel-operator", lambda: now() + self.suspended)
        self.elected = asyncio.Event()
        self.elected_at = 0.0
        self.lost_at = 0.0
        self.task = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        watch = asyncio.create_task(self._note())
        try:
            await self.election.hold(self.elected)
        except LeaseLostError:
            self.lost_at = now()
        finally:
            watch.cancel()

    async def _note(self) -> None:
        await self.elected.wait()
        self.elected_at = now()

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def hang() -> None:
    await asyncio.Event().wait()


async def refuse() -> None:
    raise ApiError(503, "", "not now")


async def forbid() -> None:
    raise ApiError(403, "Forbidden", "no leases for you")


async def disown() -> None:
    raise ApiError(401, "Unauthorized", "who are you?")


def test_of_many_one_is_elected_and_goes_on() -> None:
    async def main() -> None:
        api = Api()
        candidates = [Candidate(api) for _ in range(5)]
        await asyncio.sleep(1000)
        elected = [one for one in candidates if one.elected.is_set()]
        assert len(elected) == 1
        assert api.lease
        assert api.lease["spec"]["holderIdentity"] == elected[0].election.identity
        assert api.lease["spec"]["leaseTransitions"] == 1
        assert not elected[0].task.done()
        for one in candidates:
            await one.end()

    run(main())


def test_a_lease_that_is_given_up_is_taken_at_once() -> None:
    async def main() -> None:
        api = Api()
        first = Candidate(api)
        await asyncio.sleep(1)
        second = Candidate(api)
        await asyncio.sleep(100)
        ended = now()
        await first.end()
        await second.elected.wait()
        assert now() - ended < 3
        await second.end()

    run(main())


@pytest.mark.parametrize("trouble", [None, refuse])
def test_who_gives_the_lease_up_writes_nothing_from_then_on(
    trouble: Callable[[], Coroutine[Any, Any, None]] | None,
) -> None:
    async def main() -> None:
        api = Api()
        first = Candidate(api)
        await asyncio.sleep(100)
        assert first.election.holds()
        api.trouble = trouble
        first.task.cancel()
        await asyncio.sleep(0.001)
        assert not first.election.holds(), "not while it is being given up either"
        await first.end()
        assert not first.election.holds()

    run(main())


def test_a_lease_whose_holder_is_gone_is_taken_once_it_is_over() -> None:
    async def main() -> None:
        api = Api()
        first = Candidate(api)
        await asyncio.sleep(100)
        left = api.lease
        await first.end()
        api.lease = left
        second = Candidate(api)
        await second.elected.wait()
        assert LEASE_SECONDS <= now() - 100 <= LEASE_SECONDS + 3
        await second.end()

    run(main())


@pytest.mark.parametrize("trouble", [hang, refuse, forbid])
def test_who_cannot_renew_stops_before_another_may_begin(trouble: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        api = Api()
        first = Candidate(api)
        await asyncio.sleep(100)
        silent_since = now()
        api.trouble = trouble
        await first.task
        assert 5 < first.lost_at - silent_since < LEASE_SECONDS
        await first.end()

    run(main())


def test_what_is_written_after_a_silence_is_given_up_before_another_may_begin() -> None:
    async def main() -> None:
        api = Api()
        first = Candidate(api)
        assert not first.election.holds()
        await asyncio.sleep(100)
        assert first.election.holds()
        api.trouble, over = hang, now() + LEASE_SECONDS
        for _ in range(RENEW_SECONDS - RETRY_SECONDS):
            assert 0 < first.election.seconds_left() <= over - now(), "what is begun ends with the Lease"
            await asyncio.sleep(1)
        await asyncio.sleep(RETRY_SECONDS)
        assert not first.election.holds()
        assert first.election.seconds_left() == 0
        assert not first.task.done()
        await first.end()

    run(main())


def test_who_wakes_up_on_a_machine_that_was_suspended_asks_for_the_lease_before_it_writes() -> None:
    async def main() -> None:
        first = Candidate(Api())
        await asyncio.sleep(100)
        assert first.election.holds()
        first.suspended = RENEW_SECONDS
        assert not first.election.holds()
        await asyncio.sleep(RETRY_SECONDS + 0.1)
        assert first.election.holds(), "nobody has taken it meanwhile"
        await first.end()

    run(main())


def test_the_clock_is_one_that_goes_on_in_a_suspended_machine_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "CLOCK_BOOTTIME", 7, raising=False)
    monkeypatch.setattr(time, "clock_gettime", {7: 70.0, time.CLOCK_MONOTONIC: 10.0}.__getitem__)
    assert waking_clock() == 70
    monkeypatch.delattr(time, "CLOCK_BOOTTIME")
    assert waking_clock() == 10


def test_a_short_silence_ends_nobody() -> None:
    async def main() -> None:
        api = Api()
        first = Candidate(api)
        await asyncio.sleep(100)
        for _ in range(20):
            api.trouble = refuse
            await asyncio.sleep(5)
            api.trouble = None
            await asyncio.sleep(5)
        assert not first.task.done()
        await first.end()

    run(main())


def test_a_candidate_waits_for_an_api_server_that_is_not_there() -> None:
    async def main() -> None:
        api = Api()
        api.trouble = hang
        first = Candidate(api)
        await asyncio.sleep(1000)
        assert not first.elected.is_set()
        api.trouble = None
        await asyncio.wait_for(first.elected.wait(), 10)
        await first.end()

    run(main())


@pytest.mark.parametrize("trouble", [forbid, disown])
@pytest.mark.parametrize("is_taken", [False, True])
def test_a_candidate_without_the_rights_ends_and_says_which(
    trouble: Callable[[], Coroutine[Any, Any, None]], *, is_taken: bool
) -> None:
    async def main() -> None:
        api = Api()
        first = Candidate(api)
        await asyncio.sleep(100 if is_taken else 0)
        second = Candidate(api)
        await asyncio.sleep(100 if is_taken else 0)
        api.trouble = trouble
        await asyncio.sleep(LEASE_SECONDS - RETRY_SECONDS - 1)
        assert second.task.done() != is_taken, "an uninstall takes the rights first, and then the operator"
        with pytest.raises(
            ApiError, match="403 Forbidden: no leases for you" if trouble is forbid else "401 Unauthorized"
        ):
            await second.task
        await first.end()

    run(main())


@pytest.mark.parametrize("trouble", [hang, refuse])
def test_who_stands_by_is_one_that_the_api_server_answers(trouble: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        api = Api()
        first = Candidate(api)
        await asyncio.sleep(100)
        api.trouble = trouble
        second = Candidate(api)
        await asyncio.sleep(1)
        assert not second.election.stands_by(), "it has never been answered"
        api.trouble = None
        await asyncio.sleep(ANSWER_SECONDS + RETRY_SECONDS)
        assert second.election.stands_by()
        api.trouble = trouble
        await asyncio.sleep(LEASE_SECONDS - RETRY_SECONDS - 1)
        assert second.election.stands_by()
        await asyncio.sleep(RETRY_SECONDS + 1)
        assert not second.election.stands_by()
        await first.end()
        await second.end()

    run(main())


def test_a_holder_whose_lease_another_took_stops() -> None:
    async def main() -> None:
        api = Api()
        first = Candidate(api)
        await asyncio.sleep(100)
        assert api.lease
        spec = {**api.lease["spec"], "holderIdentity": "another"}
        await api.replace(Kind("Lease", "", ""), {**api.lease, "spec": spec})
        await asyncio.sleep(RETRY_SECONDS + 0.1)
        assert first.lost_at, "it stops as soon as it sees the other"
        assert not first.election.holds()
        assert api.lease["spec"]["holderIdentity"] == "another"

    run(main())
