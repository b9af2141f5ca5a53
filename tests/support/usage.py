"""What a running forwarder uses: what grows where something leaks. And hours of it that pass in seconds."""

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.forwarder import Forwarder
from tests.support.inside.sitecustomize import FILE_VARIABLE, SPEED_VARIABLE
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
    clock: float
    """What its clock shows, in seconds."""
    speed: float
    """Of that."""


def told_by(directory: Path, speed: float = 1) -> Mapping[str, str]:
    """The environment with which a forwarder must be started for `usage` to work, and `hasten` at that speed."""
    variables = {"PYTHONPATH": str(_FOLDER), FILE_VARIABLE: str(directory / "usage")}
    return variables if speed == 1 else {**variables, SPEED_VARIABLE: str(speed)}


def usage(forwarder: Forwarder) -> Usage:
    """What it uses now."""
    told = forwarder.directory / "usage"
    told.unlink(missing_ok=True)
    forwarder.process.signal(signal.SIGUSR1)
    wait_until(told.exists, "what it uses", interval_seconds=0.01)
    pid, (tasks, blocks, clock, speed) = forwarder.process.pid, told.read_text().split()
    return Usage(descriptors(pid), int(tasks), int(blocks), kibibytes(pid), float(clock), float(speed))


def hasten(*forwarders: Forwarder, on: bool) -> None:
    """Has their clocks go fast, or as others do again; all that they wait for goes by these."""
    for forwarder in forwarders:
        assert (usage(forwarder).speed != 1) != on
        forwarder.process.signal(signal.SIGUSR2)
    for forwarder in forwarders:
        wait_until(lambda forwarder=forwarder: (usage(forwarder).speed != 1) == on, "the clock")  # type: ignore[misc]


def descriptors(*pids: int) -> int:
    """How many files and sockets processes have open."""
    return sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)


def kibibytes(pid: int) -> int:
    """A process's resident memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
