"""What a running forwarder uses: what grows where something leaks."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.forwarder import Forwarder
from tests.support.inside.sitecustomize import FILE_VARIABLE
from tests.support.processes import wait_until

_FOLDER = Path(__file__).parent / "inside"


@dataclass(frozen=True)
class Usage:
    """At one moment."""

    descriptors: int
    tasks: int
    """Of asyncio."""
    blocks: int
    """Of Python's memory: about one an object."""
    kibibytes: int
    """Of memory."""


def told_by(directory: Path) -> Mapping[str, str]:
    """The environment with which a forwarder must be started for `usage` to work."""
    return {"PYTHONPATH": str(_FOLDER), FILE_VARIABLE: str(directory / "usage")}


def usage(forwarder: Forwarder) -> Usage:
    """What it uses now."""
    told = forwarder.directory / "usage"
    told.unlink(missing_ok=True)
    forwarder.process.signal(signal.SIGUSR1)
    wait_until(told.exists, "what it uses", interval_seconds=0.01)
    pid, (tasks, blocks) = forwarder.process.pid, map(int, told.read_text().split())
    return Usage(descriptors(pid), tasks, blocks, kibibytes(pid))


def descriptors(*pids: int) -> int:
    """How many files and sockets processes have open."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)


def kibibytes(pid: int) -> int:
    """A process's resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
