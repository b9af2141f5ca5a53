"""What is done to a contender, and the figures that come of it. Throughput, latency, start; memory is in memory.py."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.figures import percentile
from bench.lane import Lane, finished

Figures = Mapping[str, float]
"""Values by the name of the row that shows them."""

_TPS = re.compile(r"^tps = ([0-9.]+)", re.MULTILINE)
_MIB = 2**20
_RATE = 400
"""Transactions a second of the load that is far from the limit."""
_LATE_MILLISECONDS = 10
_LARGEST_PING_COUNT = 10**6


@dataclass(frozen=True)
class Sizes:
    """How much is measured at a time."""

    skip: float = 0.2
    """Seconds that are not counted at the begin of a stream."""
    seconds: float = 2
    """Of each measurement but those by pgbench."""
    pgbench: tuple[str, ...] = ("-T", "2")
    """How long pgbench goes on."""
    paced: tuple[str, ...] = ("-T", "2")
    """How long it goes on at a moderate rate."""
    pings: int = 3000
    far_skip: float = 1.5
    """As `skip`, over a long link: until windows have grown."""
    channels: int = 500
    readers: int = 16
    quiet: float = 1
    """Seconds for which memory has to stay as it is."""


FULL = Sizes()
QUICK = Sizes(seconds=1, pgbench=("-T", "1"), paced=("-T", "1"), pings=1000, quiet=0.5)
TINY = Sizes(
    skip=0,
    seconds=0.05,
    pgbench=("-t", "20"),
    paced=("-t", "10"),
    pings=20,
    far_skip=0,
    channels=8,
    readers=2,
    quiet=0.1,
)
"""For the test that all of it runs."""


def bulk_down(lane: Lane, sizes: Sizes) -> Figures:
    """One stream, and what it costs."""
    before = lane.cpu_seconds()
    counted, seconds, total = lane.load("down", 1, sizes.skip, sizes.seconds)
    return {"down-1": counted / seconds / _MIB, **_cpu("cpu-down", lane, before, total)}


def bulk_down_4(lane: Lane, sizes: Sizes) -> Figures:
    """Four streams at once."""
    counted, seconds, _ = lane.load("down", 4, sizes.skip, sizes.seconds)
    return {"down-4": counted / seconds / _MIB}


def bulk_up(lane: Lane, sizes: Sizes) -> Figures:
    """One stream, and what it costs."""
    before = lane.cpu_seconds()
    counted, seconds, total = lane.load("up", sizes.skip, sizes.seconds)
    return {"up-1": counted / seconds / _MIB, **_cpu("cpu-up", lane, before, total)}


def bulk_20ms(lane: Lane, sizes: Sizes) -> Figures:
    """One stream over a link of 20 ms."""
    counted, seconds, _ = lane.load("down", 1, sizes.far_skip, sizes.seconds)
    return {"down-20ms": counted / seconds / _MIB}


def bulk_100ms(lane: Lane, sizes: Sizes) -> Figures:
    """One stream over a link of 100 ms."""
    counted, seconds, _ = lane.load("down", 1, sizes.far_skip, sizes.seconds)
    return {"down-100ms": counted / seconds / _MIB}


def ping(lane: Lane, sizes: Sizes) -> Figures:
    """One byte there and back, again and again, and nobody else."""
    times = lane.load("ping", sizes.pings, sizes.seconds)
    return {"ping-p50": percentile(times, 50), "ping-p99": percentile(times, 99)}


def ping_beside_bulk(lane: Lane, sizes: Sizes) -> Figures:
    """The same while another client receives as much as comes."""
    neighbour = lane.begin("down", 1, 0, 1.25 * sizes.seconds)
    times = lane.load("ping", _LARGEST_PING_COUNT, sizes.seconds)
    finished(neighbour)
    return {"ping-p99-bulk": percentile(times, 99)}


def connects(lane: Lane, sizes: Sizes) -> Figures:
    """Four clients that connect anew for each query."""
    return {"connects": _transactions_a_second(lane, "-C", "-S", "-c", "4", "-j", "2", *sizes.pgbench)}


def select_1(lane: Lane, sizes: Sizes) -> Figures:
    """One client, as fast as it goes."""
    return {"select-1": _transactions_a_second(lane, "-S", "-c", "1", *sizes.pgbench)}


def select_8(lane: Lane, sizes: Sizes) -> Figures:
    """Eight clients."""
    return {"select-8": _transactions_a_second(lane, "-S", "-c", "8", "-j", "2", *sizes.pgbench)}


def select_32(lane: Lane, sizes: Sizes) -> Figures:
    """More clients than the machine has processors for."""
    return {"select-32": _transactions_a_second(lane, "-S", "-c", "32", "-j", "2", *sizes.pgbench)}


def paced(lane: Lane, sizes: Sizes) -> Figures:
    """Eight clients that together make 400 transactions a second."""
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        lane.pgbench("-S", "-c", "8", "-R", str(_RATE), "-l", *sizes.paced, directory=Path(directory))
        log = "".join(path.read_text() for path in Path(directory).glob("pgbench_log.*"))
    times = transaction_milliseconds(log)
    late = sum(time > _LATE_MILLISECONDS for time in times)
    return {"latency": sum(times) / len(times), "late": 100 * late / len(times)}


def start(lane: Lane, sizes: Sizes) -> Figures:  # noqa: ARG001
    """From the start of the process to the first byte."""
    milliseconds = lane.start() * 1000
    lane.stop()
    return {"start": milliseconds}


def transaction_milliseconds(log: str) -> list[float]:
    """The latencies in a log of pgbench's; with a rate, from when each should have begun."""
    return [int(line.split()[2]) / 1000 for line in log.splitlines()]


def _transactions_a_second(lane: Lane, *options: str) -> float:
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        found = _TPS.search(lane.pgbench(*options, directory=Path(directory)))
    assert found, "pgbench tells it"
    return float(found[1])


def _cpu(name: str, lane: Lane, before: float, total: float) -> Figures:
    """Processor seconds for each GiB that was passed on; nothing where there is no process."""
    return {} if lane.is_direct else {name: (lane.cpu_seconds() - before) / total * 2**30}
