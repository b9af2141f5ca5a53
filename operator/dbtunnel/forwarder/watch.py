"""Sockets that are served straight from the selector.

asyncio makes a Handle for each event and runs it through a queue and a context, which costs more than moving a small
packet does. A loop with a `HotSelector` calls the sockets' handlers while it selects; other loops, those of systems
without epoll among them, serve the same sockets by asyncio's own means.
"""

import asyncio
import contextlib
import logging
import math
import os
import select
import selectors
import weakref
from collections.abc import Callable
from typing import Protocol

READ, WRITE = 1, 4
"""What to watch a socket for: bytes to read or its end, room to write. Any other bit of an event: it has failed."""

_EVENTS_AT_ONCE = 256

_LOG = logging.getLogger(__name__)

Handler = Callable[[int], None]
"""Told what has happened: READ, WRITE, or bits besides. It may be told of what is over by then."""


class Watcher(Protocol):
    """Who tells of sockets' events."""

    def watch(self, fd: int, events: int, handler: Handler, end: Callable[[], None]) -> None:
        """Begins to watch a socket; `end` ends it where a bug in its handler raises something."""

    def change(self, fd: int, events: int) -> None:
        """Watches it for something else from now on; for nothing: not even for its failure."""

    def forget(self, fd: int) -> None:
        """No longer watches it; before it is closed."""

    def at_end_of_pass(self, call: Callable[[], None]) -> None:
        """Calls once what is known to have happened has been handled."""


class HotSelector(selectors.DefaultSelector):
    """A selector for asyncio that serves watched sockets itself."""

    def __init__(self) -> None:
        super().__init__()
        # of the same epoll instance, which its own object closes too
        self._epoll = select.epoll.fromfd(os.dup(self.fileno()))
        self._handlers: dict[int, Handler] = {}
        self._ends: dict[int, Callable[[], None]] = {}
        self._silent: set[int] = set()
        self._ending: list[Callable[[], None]] = []

    def watch(self, fd: int, events: int, handler: Handler, end: Callable[[], None]) -> None:
        """As Watcher."""
        self._handlers[fd], self._ends[fd] = handler, end
        if events:
            self._epoll.register(fd, events)
        else:
            self._silent.add(fd)

    def change(self, fd: int, events: int) -> None:
        """As Watcher."""
        if fd in self._silent:
            if events:
                self._silent.discard(fd)
                self._epoll.register(fd, events)
        elif events:
            self._epoll.modify(fd, events)
        else:
            # epoll tells of a failure whatever it is asked for, again and again
            self._epoll.unregister(fd)
            self._silent.add(fd)

    def forget(self, fd: int) -> None:
        """As Watcher."""
        if self._handlers.pop(fd, None) is None:
            return
        del self._ends[fd]
        if fd in self._silent:
            self._silent.discard(fd)
        else:
            self._epoll.unregister(fd)

    def at_end_of_pass(self, call: Callable[[], None]) -> None:
        """As Watcher."""
        self._ending.append(call)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """What asyncio's own sockets have to tell; the others have been served meanwhile."""
        if self._ending:  # callbacks and timers have asked for it
            self._end_pass()
            timeout = 0  # it may have given the loop something to do
        others: list[tuple[selectors.SelectorKey, int]] = []
        for fd, events in self._epoll.poll(_milliseconds(timeout), _EVENTS_AT_ONCE):
            handler = self._handlers.get(fd)
            if handler is not None:
                try:
                    handler(events)
                except Exception:  # a bug; the loop and the other sockets go on
                    self._failed(fd)
            elif key := self.get_map().get(fd):
                others.append((key, _as_selectors(events) & key.events))
        self._end_pass()
        return others

    def _end_pass(self) -> None:
        while self._ending:
            calls, self._ending = self._ending, []
            for call in calls:
                try:
                    call()
                except Exception:
                    _LOG.exception("serving sockets failed")

    def _failed(self, fd: int) -> None:
        if fd in self._handlers:
            _end_after_failure(self._ends[fd])
        if fd in self._handlers:
            self.change(fd, 0)  # else it would be served again and again

    def close(self) -> None:
        """Ends it."""
        self._epoll.close()
        super().close()


def _milliseconds(timeout: float | None) -> float:
    """Seconds, in whole milliseconds; rounded up, else the loop would spin until a timer is due."""
    if timeout is None:
        return -1
    return math.ceil(timeout * 1000) / 1000 if timeout > 0 else 0


def _as_selectors(events: int) -> int:
    """epoll's events as those of `selectors`, which takes a failure for both."""
    return (events & ~WRITE and selectors.EVENT_READ) | (events & ~READ and selectors.EVENT_WRITE)


def _end_after_failure(end: Callable[[], None]) -> None:
    _LOG.exception("serving a socket failed")
    try:
        end()
    except Exception:
        _LOG.exception("ending it failed")


class LoopWatcher:
    """Watches by means of any loop. It does not hear of the failure of a socket that is watched for nothing."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handlers: dict[int, tuple[Handler, Callable[[], None]]] = {}
        self._watched: dict[int, int] = {}

    def watch(self, fd: int, events: int, handler: Handler, end: Callable[[], None]) -> None:
        """As Watcher."""
        self._handlers[fd] = handler, end
        self.change(fd, events)

    def change(self, fd: int, events: int) -> None:
        """As Watcher."""
        before = self._watched.get(fd, 0)
        self._watched[fd] = events
        if events & READ and not before & READ:
            self._loop.add_reader(fd, self._happened, fd, READ)
        if before & READ and not events & READ:
            self._loop.remove_reader(fd)
        if events & WRITE and not before & WRITE:
            self._loop.add_writer(fd, self._happened, fd, WRITE)
        if before & WRITE and not events & WRITE:
            self._loop.remove_writer(fd)

    def _happened(self, fd: int, events: int) -> None:
        handler, end = self._handlers[fd]
        try:
            handler(events)
        except Exception:
            _end_after_failure(end)
            if fd in self._handlers:
                self.change(fd, 0)

    def forget(self, fd: int) -> None:
        """As Watcher."""
        if self._handlers.pop(fd, None) is not None:
            self._watched.pop(fd)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.remove_reader(fd)
                self._loop.remove_writer(fd)

    def at_end_of_pass(self, call: Callable[[], None]) -> None:
        """As Watcher."""
        self._loop.call_soon(call)


_watchers: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Watcher]" = weakref.WeakKeyDictionary()


def hot_loop(kind: type[asyncio.SelectorEventLoop]) -> asyncio.SelectorEventLoop:
    """A loop of a kind, with a HotSelector where the system has epoll."""
    if not hasattr(select, "epoll"):
        return kind()
    selector = HotSelector()
    loop = kind(selector)
    _watchers[loop] = selector
    return loop


def watcher() -> Watcher:
    """That of the running loop."""
    loop = asyncio.get_running_loop()
    if loop not in _watchers:
        _watchers[loop] = LoopWatcher(loop)
    return _watchers[loop]
