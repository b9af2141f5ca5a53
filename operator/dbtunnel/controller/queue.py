"""The work queue: keys of tunnels to reconcile, each at most once waiting and at most once in work."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import NamedTuple

BACKOFF_FIRST_SECONDS = 0.2
BACKOFF_LIMIT_SECONDS = 120.0
"""After a failure a key waits, twice as long each time, up to this."""


class TunnelKey(NamedTuple):
    """Which tunnel."""

    namespace: str
    name: str


Handle = Callable[[TunnelKey], Awaitable[float | None]]
"""Works on a key; returns the seconds after which to do so again, or None. Raising means again, after a backoff."""


class WorkQueue:
    """Keys that wait, now or until a time; `work` takes them.

    A key that is added while it is in work is taken again afterwards. Of several times the earliest counts, and
    whatever takes the key makes a time that was set before moot.
    """

    def __init__(self, jitter: Callable[[], float] = random.random) -> None:
        self._jitter = jitter
        self._ready: asyncio.Queue[TunnelKey] = asyncio.Queue()
        self._waiting: set[TunnelKey] = set()
        """What `_ready` holds, and keys in work that were added again."""
        self._in_work: set[TunnelKey] = set()
        self._timers: dict[TunnelKey, asyncio.TimerHandle] = {}
        self._failures: dict[TunnelKey, int] = {}

    @property
    def depth(self) -> int:
        """Keys that could be worked on now."""
        return len(self._waiting)

    def add(self, key: TunnelKey, delay_seconds: float = 0) -> None:
        """Asks for work on `key`, at once or after a time."""
        if delay_seconds > 0:
            self._set_timer(key, delay_seconds)
        elif key not in self._waiting:
            self._waiting.add(key)
            if key not in self._in_work:
                self._ready.put_nowait(key)

    async def work(self, handle: Handle) -> None:
        """Takes keys for ever; several may run at once."""
        while True:
            key = await self._ready.get()
            # neither taking a key nor a reconcile that changes nothing waits for anything: probes, signals and the
            # lease would wait for a thousand keys
            await asyncio.sleep(0)
            self._begin(key)
            try:
                delay = await handle(key)
            except Exception:
                self.add(key, self._backoff(key))
            else:
                self._failures.pop(key, None)
                if delay is not None:
                    self.add(key, delay)
            finally:
                self._end(key)

    def _begin(self, key: TunnelKey) -> None:
        self._waiting.discard(key)
        self._in_work.add(key)
        timer = self._timers.pop(key, None)
        if timer:
            timer.cancel()

    def _end(self, key: TunnelKey) -> None:
        self._in_work.discard(key)
        if key in self._waiting:
            self._ready.put_nowait(key)

    def _set_timer(self, key: TunnelKey, delay_seconds: float) -> None:
        loop = asyncio.get_running_loop()
        known = self._timers.get(key)
        if known and known.when() <= loop.time() + delay_seconds:
            return
        if known:
            known.cancel()
        self._timers[key] = loop.call_later(delay_seconds, self._due, key)

    def _due(self, key: TunnelKey) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _backoff(self, key: TunnelKey) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        longest = min(BACKOFF_FIRST_SECONDS * 2.0 ** min(failures - 1, 30), BACKOFF_LIMIT_SECONDS)
        return longest * (0.5 + 0.5 * self._jitter())
