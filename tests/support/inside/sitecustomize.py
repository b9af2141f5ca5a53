"""Python loads this at its start where this folder is on PYTHONPATH. What nothing of the product tells and nobody could
wait for is had of a process by signals then:

- SIGUSR1 has it write the numbers of its asyncio tasks and of its allocated blocks, what its clock shows and how fast
  that goes, into the file that the environment names.
- SIGUSR2 has its clock go so many times as fast as the environment says; another has it go as all clocks do again. All
  timers of its event loops go by this clock; what others do takes as long as it does.
"""

import asyncio
import gc
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

FILE_VARIABLE, SPEED_VARIABLE = "USAGE_FILE", "CLOCK_SPEED"


class _Clock:
    """In place of time.monotonic."""

    def __init__(self, speed: float) -> None:
        self._real, self._fast = time.monotonic, speed
        # together, since the signal may come in the middle of a look at it
        self._state = self._real(), self._real(), 1.0

    @property
    def speed(self) -> float:
        return self._state[2]

    def __call__(self) -> float:
        shown, since, speed = self._state
        return shown + (self._real() - since) * speed

    def change(self, *_: object) -> None:
        self._state = self(), self._real(), 1.0 if self.speed != 1.0 else self._fast


_clock = _Clock(float(os.environ.get(SPEED_VARIABLE, "1")))


def _tell(*_: object) -> None:
    target = Path(os.environ[FILE_VARIABLE])
    new = target.with_suffix(".new")
    gc.collect()
    new.write_text(f"{len(asyncio.all_tasks())} {sys.getallocatedblocks()} {_clock()} {_clock.speed}")
    new.rename(target)


def _wait_by_it(kind: Any) -> None:
    """Has loops of a kind wait as long as their clock takes."""
    begin = kind.__init__

    def begin_and_wait(loop: Any, selector: Any = None) -> None:
        begin(loop, selector)
        select = loop._selector.select
        loop._selector.select = lambda timeout=None: select(None if timeout is None else timeout / _clock.speed)

    kind.__init__ = begin_and_wait


if FILE_VARIABLE in os.environ:
    signal.signal(signal.SIGUSR1, _tell)
if SPEED_VARIABLE in os.environ:
    time.monotonic = _clock
    _wait_by_it(asyncio.SelectorEventLoop)
    signal.signal(signal.SIGUSR2, _clock.change)
