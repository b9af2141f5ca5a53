"""What the operator does since no watch tells everything, and when it says that it is stuck."""

import argparse
import asyncio
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import kopf
import pytest

from dbtunnel.controller import operator as module
from dbtunnel.controller.client import TUNNEL, ApiError, Client, Kind
from dbtunnel.controller.handlers import WATCHED, Backoffs, StuckError, build_registry, configure
from dbtunnel.controller.metrics import Metrics
from dbtunnel.controller.operator import STUCK_SECONDS, NotServedError, Operator
from dbtunnel.controller.queue import TunnelKey, WorkQueue
from dbtunnel.controller.settings import SETTINGS, Settings
from dbtunnel.controller.store import Store
from dbtunnel.domain.children import Manifest
from tests.support.values import changed, manifest
from tests.support.virtual_time import now, run

KEY = TunnelKey("shop", "orders")


class Api:
    """The API server's lists; `refusals` by namespace."""

    def __init__(self) -> None:
        self.tunnels: list[Manifest] = [manifest({"metadata.resourceVersion": "5"})]
        self.refusals: dict[str, Exception] = {}
        self.lists: list[float] = []

    async def list(self, kind: Kind, namespace: str = "", selector: str = "") -> tuple[list[Manifest], int]:
        assert bool(selector) == (kind is not TUNNEL)
        if kind is TUNNEL:
            self.lists.append(round(now(), 1))
        if namespace in self.refusals:
            raise self.refusals[namespace]
        found = [one for one in self.tunnels if namespace in ("", one["metadata"]["namespace"])]
        return found if kind is TUNNEL else [], 10


def operator(api: Api, **environment: str) -> Operator:
    flags = argparse.Namespace(**{setting.field: None for setting in SETTINGS})
    settings = Settings.read(flags, {"DBTUNNEL_FORWARDER_IMAGE": "image", **environment})

    async def read(*_: object) -> bytes:
        raise AssertionError

    return Operator(settings, cast(Client, api), Metrics(), read)


def forbidden() -> ApiError:
    return ApiError(403, "Forbidden", "no")


# --- resync -----------------------------------------------------------------------------------------------------------


async def watched(api: Api, seconds: float, then: Callable[[Operator], object] = lambda _: None) -> Operator:
    """An operator that resyncs for some time, with what happens 100 s after its start."""
    subject = operator(api)
    await subject.start()
    task = asyncio.create_task(subject.resync_forever())
    await asyncio.sleep(100)
    then(subject)
    await asyncio.sleep(seconds - 100)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return subject


def test_lists_are_compared_every_few_minutes() -> None:
    api = Api()
    run(watched(api, 3600))
    gaps = [later - earlier for earlier, later in itertools.pairwise(api.lists[2:])]
    assert all(240 <= gap <= 360 for gap in gaps)
    assert len(set(gaps)) > 1, "at no two operators' same time"


def test_every_tunnel_is_reconciled_at_a_resync_though_nothing_was_heard_of_it() -> None:
    async def main() -> list[float]:
        times: list[float] = []

        async def handle(key: TunnelKey) -> None:
            assert key == KEY
            times.append(now())

        subject = operator(Api())
        await subject.start()
        tasks = [asyncio.create_task(one) for one in (subject.resync_forever(), subject.queue.work(handle))]
        await asyncio.sleep(3600)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return times

    assert 10 <= len(run(main())) <= 17


def test_a_watch_that_begins_anew_causes_a_resync() -> None:
    api = Api()

    def begin_anew(subject: Operator) -> None:
        for _ in range(1000):
            subject.listed()

    run(watched(api, 130, begin_anew))
    assert [time for time in api.lists if time > 50] == [102]


def test_a_resync_waits_until_the_watches_have_begun() -> None:
    api = Api()

    async def main() -> None:
        subject = operator(api)
        await subject.start()
        task = asyncio.create_task(subject.resync_forever())
        for _ in range(20):
            subject.listed()
            await asyncio.sleep(1)
        await asyncio.sleep(100)
        task.cancel()

    run(main())
    assert api.lists == [0, 21]


def test_a_resync_waits_for_no_watch_that_begins_all_the_time() -> None:
    api = Api()

    async def main() -> None:
        subject = operator(api)
        await subject.start()
        task = asyncio.create_task(subject.resync_forever())
        for _ in range(100):
            subject.listed()
            await asyncio.sleep(1)
        task.cancel()

    run(main())
    assert api.lists == [0, 30, 60, 90]


def test_what_went_before_the_watches_began_is_noticed_soon() -> None:
    api = Api()
    run(watched(api, 130))
    assert len(api.lists) == 2
    assert 4 <= api.lists[1] <= 6


def test_a_resync_that_failed_is_tried_again_soon() -> None:
    api = Api()

    def fail(_: Operator) -> None:
        api.refusals[""] = TimeoutError()

    run(watched(api, 500, fail))
    failed = [time for time in api.lists if time > 100]
    assert len(failed) > 10
    assert all(later - earlier <= 6.1 for earlier, later in itertools.pairwise(failed))


def test_a_definition_that_goes_ends_the_operator() -> None:
    api = Api()
    with pytest.raises(NotServedError):
        run(operator_without_definition(api))


async def operator_without_definition(api: Api) -> None:
    subject = operator(api)
    await subject.start()
    api.refusals[""] = ApiError(404, "NotFound", "the server could not find the requested resource")
    await subject.resync_forever()


# --- some namespaces --------------------------------------------------------------------------------------------------


def test_each_namespace_is_listed_by_itself_and_what_is_known_of_others_stays() -> None:
    async def main() -> None:
        api = Api()
        billing = changed(api.tunnels[0], {"metadata.namespace": "billing", "metadata.uid": "other"})
        api.tunnels.append(billing)
        subject = operator(api, DBTUNNEL_NAMESPACES="shop,billing")
        await subject.start()
        assert len(subject.store.tunnels()) == 2
        api.tunnels.remove(billing)
        await subject.resync()
        assert [one["metadata"]["namespace"] for one in subject.store.tunnels()] == ["shop"]

    run(main())


def test_a_namespace_that_went_with_its_rights_does_not_end_the_service_of_others() -> None:
    async def main() -> None:
        api = Api()
        api.refusals["gone"] = forbidden()
        subject = operator(api, DBTUNNEL_NAMESPACES="gone,shop")
        await subject.start()
        assert len(subject.store.tunnels()) == 1

    run(main())


@pytest.mark.parametrize("namespaces", ["", "shop,billing"])
def test_without_any_rights_it_ends(namespaces: str) -> None:
    async def main() -> None:
        api = Api()
        api.refusals = {name: forbidden() for name in ("", "shop", "billing")}
        await operator(api, DBTUNNEL_NAMESPACES=namespaces).start()

    with pytest.raises(ApiError, match="403"):
        run(main())


# --- liveness ---------------------------------------------------------------------------------------------------------


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))


async def test_tunnels_that_wait_while_nothing_is_done_are_a_reason_to_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    subject = operator(Api())
    clock.now += STUCK_SECONDS * 10
    assert subject.health() == {"lastReconcileAgeSeconds": STUCK_SECONDS * 10, "queueDepth": 0}, "nothing to do"
    subject.queue.add(KEY)
    with pytest.raises(StuckError, match="1 tunnels wait"):
        subject.health()


async def test_a_reconcile_that_never_ends_is_a_reason_to_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    subject = operator(Api())

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(subject.reconciler, "reconcile", hang)
    task = asyncio.create_task(subject.handle(KEY))
    await asyncio.sleep(0)
    subject.health()
    clock.now += STUCK_SECONDS + 1
    with pytest.raises(StuckError, match="a reconcile has taken 601 s"):
        subject.health()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert subject.health()["queueDepth"] == 0


async def test_an_api_server_that_refuses_everything_for_long_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    subject = operator(Api())

    async def fail(*_: object) -> None:
        clock.now += 30
        raise TimeoutError

    monkeypatch.setattr(subject.reconciler, "reconcile", fail)
    for number in range(100):
        subject.queue.add(TunnelKey("shop", str(number)))
        with pytest.raises(TimeoutError):
            await subject.handle(KEY)
        subject.health()


def test_kopf_answers_such_a_probe_at_once_with_an_error() -> None:
    assert issubclass(StuckError, kopf.PermanentError)


# --- Kopf -------------------------------------------------------------------------------------------------------------


async def test_watches_outlast_any_outage_and_notice_one_that_is_silent() -> None:
    settings = kopf.OperatorSettings()
    await configure(settings=settings)
    backoffs = settings.networking.error_backoffs
    assert isinstance(backoffs, Backoffs)
    waits = list(itertools.islice(backoffs, 10_000))
    assert len(waits) == 10_000
    assert max(waits) <= 15
    assert list(itertools.islice(backoffs, 3)) == waits[:3], "each request begins anew"
    assert settings.watching.inactivity_timeout <= 120
    assert settings.persistence.diffbase_storage.build(body=kopf.Body(cast(Any, manifest()))) == {}


async def test_events_are_stored_and_enqueued_and_lists_are_told_of() -> None:
    store, queue, listed = Store(), WorkQueue(), []

    async def close() -> None:
        pass

    registry = build_registry(store, queue, dict, lambda: listed.append(1), close)
    handlers = {str(handler.id): handler.fn for handler in registry._watching.get_all_handlers()}
    assert sorted(handlers) == sorted(kind.plural for kind in WATCHED)
    seen: Any = handlers["databasetunnels"]
    for kind, at in ((None, "5"), ("ADDED", "5"), ("MODIFIED", "6")):
        await seen(event={"type": kind, "object": manifest({"metadata.resourceVersion": at})})
    assert store.tunnel(KEY) is not None
    assert (queue.depth, len(listed)) == (1, 1)
    await seen(event={"type": "DELETED", "object": manifest({"metadata.resourceVersion": "7"})})
    assert store.tunnel(KEY) is None
