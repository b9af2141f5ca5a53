"""The work queue: each key waits once and is in work once, fails with a backoff of its own, and is never lost."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable

from dbtunnel.controller.queue import BACKOFF_LIMIT_SECONDS, TunnelKey, WorkQueue
from tests.support.virtual_time import now, run

A, B = TunnelKey("shop", "a"), TunnelKey("shop", "b")

Handle = Callable[[TunnelKey], Awaitable[float | None]]


def longest() -> float:
    """Jitter that changes nothing."""
    return 1.0


async def worked(queue: WorkQueue, handle: Handle, seconds: float, workers: int = 1) -> None:
    """Works on the queue for some time."""
    tasks = [asyncio.create_task(queue.work(handle)) for _ in range(workers)]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Recorder:
    """Notes when each key was worked on; `results` are what the next works return or raise."""

    def __init__(self, *results: float | Exception | None) -> None:
        self.times: list[tuple[TunnelKey, float]] = []
        self.results = list(results)

    async def __call__(self, key: TunnelKey) -> float | None:
        self.times.append((key, round(now(), 6)))
        result = self.results.pop(0) if self.results else None
        if isinstance(result, Exception):
            raise result
        return result

    def of(self, key: TunnelKey) -> list[float]:
        return [time for one, time in self.times if one == key]


def test_a_key_that_is_added_often_is_worked_on_once() -> None:
    async def main() -> None:
        queue, seen = WorkQueue(), Recorder()
        for _ in range(3):
            queue.add(A)
        assert queue.depth == 1
        queue.add(B)
        assert queue.depth == 2
        await worked(queue, seen, 1000)
        assert seen.times == [(A, 0), (B, 0)]
        assert queue.depth == 0

    run(main())


def test_a_key_that_is_added_while_in_work_is_worked_on_again_and_only_once_more() -> None:
    async def main() -> None:
        queue, begun = WorkQueue(), 0

        async def handle(key: TunnelKey) -> None:
            nonlocal begun
            begun += 1
            if begun == 1:
                queue.add(key)
                queue.add(key)
                assert queue.depth == 1
                await asyncio.sleep(5)

        queue.add(A)
        await worked(queue, handle, 1000, workers=2)
        assert begun == 2

    run(main())


def test_no_two_workers_have_the_same_key_and_others_do_not_wait_for_it() -> None:
    async def main() -> None:
        queue = WorkQueue()
        running: Counter[TunnelKey] = Counter()
        most: Counter[str] = Counter()

        async def handle(key: TunnelKey) -> float:
            running[key] += 1
            most["of a key"] = max(most["of a key"], running[key])
            most["of all"] = max(most["of all"], running.total())
            queue.add(key)
            await asyncio.sleep(1)
            running[key] -= 1
            return 0.1

        for key in (A, B):
            queue.add(key)
        await worked(queue, handle, 20.5, workers=5)
        assert most == {"of a key": 1, "of all": 2}

    run(main())


def test_a_key_is_worked_on_again_when_its_handler_says_so() -> None:
    async def main() -> None:
        queue, seen = WorkQueue(), Recorder(10, 0, None)
        queue.add(A)
        await worked(queue, seen, 1000)
        assert seen.of(A) == [0, 10, 10]

    run(main())


def test_of_several_times_the_earliest_counts_and_the_others_are_moot() -> None:
    async def main() -> None:
        queue, seen = WorkQueue(), Recorder()
        queue.add(A, 30)
        queue.add(A, 10)
        queue.add(A, 20)
        assert queue.depth == 0, "nothing can be worked on yet"
        await worked(queue, seen, 1000)
        assert seen.of(A) == [10]

    run(main())


def test_what_is_worked_on_now_makes_a_later_time_moot() -> None:
    async def main() -> None:
        queue, seen = WorkQueue(), Recorder()
        queue.add(A, 30)
        queue.add(A)
        await worked(queue, seen, 1000)
        assert seen.of(A) == [0]

    run(main())


def test_a_time_that_comes_while_the_key_is_in_work_counts() -> None:
    async def main() -> None:
        queue, times = WorkQueue(), list[float]()

        async def handle(key: TunnelKey) -> None:
            times.append(now())
            if len(times) == 1:
                queue.add(key, 1)
            await asyncio.sleep(5)

        queue.add(A)
        await worked(queue, handle, 1000)
        assert times == [0, 5]

    run(main())


def test_a_key_that_fails_waits_twice_as_long_each_time_up_to_a_limit() -> None:
    async def main() -> None:
        queue, seen = WorkQueue(longest), Recorder(*[ValueError() for _ in range(14)])
        queue.add(A)
        await worked(queue, seen, 10_000)
        times = seen.of(A)
        waits = [round(later - earlier, 6) for earlier, later in itertools.pairwise(times)]
        assert waits == [min(0.2 * 2**number, BACKOFF_LIMIT_SECONDS) for number in range(14)]

    run(main())


def test_a_key_that_fails_keeps_no_other_waiting_and_success_makes_its_backoff_short_again() -> None:
    async def main() -> None:
        queue = WorkQueue(longest)
        failures, seen = {A: 3, B: 0}, Recorder()

        async def handle(key: TunnelKey) -> float | None:
            await seen(key)
            if failures[key]:
                failures[key] -= 1
                raise ValueError
            if key == A and now() < 100:
                failures[A] = 1
                return 100
            return None

        queue.add(A)
        queue.add(B)
        await worked(queue, handle, 10_000)
        assert seen.of(B) == [0]
        assert seen.of(A) == [0, 0.2, 0.6, 1.4, 101.4, 101.6]

    run(main())


def test_news_of_a_key_that_waits_after_a_failure_is_worked_on_at_once() -> None:
    async def main() -> None:
        queue, seen = WorkQueue(longest), Recorder(*[ValueError() for _ in range(9)])
        queue.add(A)
        asyncio.get_running_loop().call_later(60, queue.add, A)
        await worked(queue, seen, 90)
        assert 60 in seen.of(A)
        assert len([time for time in seen.of(A) if time >= 60]) == 1

    run(main())


def test_waits_are_spread_so_that_a_thousand_keys_do_not_come_back_at_once() -> None:
    async def main() -> None:
        spread = iter([0.0, 0.5, 1.0])
        queue = WorkQueue(lambda: next(spread))
        keys = [TunnelKey("shop", name) for name in "abc"]
        failing, seen = set(keys), Recorder()

        async def handle(key: TunnelKey) -> None:
            await seen(key)
            if key in failing:
                failing.remove(key)
                raise ValueError

        for key in keys:
            queue.add(key)
        await worked(queue, handle, 10)
        assert [seen.of(key)[1] for key in keys] == [0.1, 0.15, 0.2]

    run(main())


def test_a_thousand_keys_that_need_nothing_keep_nobody_else_waiting() -> None:
    async def main() -> None:
        queue, seen = WorkQueue(), Recorder()
        for number in range(1000):
            queue.add(TunnelKey("shop", str(number)))
        worker = asyncio.create_task(queue.work(seen))
        most = 0
        while queue.depth:
            before = len(seen.times)
            await asyncio.sleep(0)
            most = max(most, len(seen.times) - before)
        worker.cancel()
        assert most <= 2

    run(main())
