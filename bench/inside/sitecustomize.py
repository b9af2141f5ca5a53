"""Python loads this at its start where this folder is on PYTHONPATH: it notes which line runs, again and again as
processor time goes by. SIGUSR1 has it write what it has noted since the last time, into the file that the environment
names. A line stands for what it calls in C and in the kernel, too.
"""

import atexit
import json
import os
import resource
import signal
from pathlib import Path
from types import FrameType

FILE_VARIABLE = "PROFILE_FILE"

_EACH_SECONDS = 0.001
"""Linux asks no more often than its clock ticks, each 1 to 10 ms."""


class _Notes:
    """Seconds of processor time, in Python's process and in the kernel, by file, function and line."""

    def __init__(self) -> None:
        self._spent: dict[tuple[str, str, int], list[float]] = {}
        self._before = self._now()

    def note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """What has been used since the last time goes to the line that runs now."""
        if frame:
            now = self._now()
            code = frame.f_code
            spent = self._spent.setdefault((code.co_filename, code.co_qualname, frame.f_lineno), [0.0, 0.0])
            for place in (0, 1):
                spent[place] += now[place] - self._before[place]
            self._before = now

    def write(self, *_: object) -> None:
        """Writes them, and begins anew."""
        target = Path(os.environ[FILE_VARIABLE])
        lines = [[*place, *spent] for place, spent in self._spent.items()]
        new = target.with_suffix(".new")
        new.write_text(json.dumps({"lines": lines, "maps": Path("/proc/self/smaps").read_text()}))
        new.rename(target)
        self._spent.clear()
        self._before = self._now()

    @staticmethod
    def _now() -> tuple[float, float]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime, usage.ru_stime


if FILE_VARIABLE in os.environ:
    notes = _Notes()
    signal.signal(signal.SIGPROF, notes.note)
    signal.signal(signal.SIGUSR1, notes.write)
    signal.setitimer(signal.ITIMER_PROF, _EACH_SECONDS, _EACH_SECONDS)
    atexit.register(signal.setitimer, signal.ITIMER_PROF, 0)  # Python's end forgets handlers before the timer
