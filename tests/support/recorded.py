"""Servers that one command starts and another stops: `survives=True`, and a file that says which they are."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from tests.support.processes import ProcessError, wait_until

_FILE = "processes.json"
_STOP_SECONDS = 20


def record(directory: Path, pids: Mapping[str, int]) -> None:
    """Remembers process ids by the servers' names, for `stop_recorded`."""
    entries = {name: {"pid": pid, "started": _start_time(pid)} for name, pid in pids.items()}
    (directory / _FILE).write_text(json.dumps(entries))


def stop_recorded(directory: Path) -> None:
    """Ends the servers that were recorded, unless their ids are others' by now, and removes the directory."""
    path = directory / _FILE
    for name, entry in json.loads(path.read_text()).items() if path.exists() else ():
        _stop(name, entry["pid"], entry["started"])
    shutil.rmtree(directory, ignore_errors=True)


def _stop(name: str, pid: int, started: str | None) -> None:
    def ended() -> bool:
        return started is None or _start_time(pid) != started

    # PostgreSQL waits for its clients on SIGTERM and does not on SIGINT, which the others ignore
    for number in (signal.SIGINT, signal.SIGTERM):
        if not ended():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)
    try:
        wait_until(ended, f"the end of {name}", _STOP_SECONDS)
    except ProcessError:
        os.killpg(pid, signal.SIGKILL)
        wait_until(ended, f"the end of {name}", _STOP_SECONDS)


def _start_time(pid: int) -> str | None:
    """When the process began, in clock ticks since boot (proc(5)); None where it has ended. Tells a reused id."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
