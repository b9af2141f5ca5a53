"""The table: its rows with their aims, and the loads that fill them."""

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field

from bench import loads, memory
from bench.contenders import DIRECT, RELAY, SSH, SSH_GCM
from bench.figures import Aim
from bench.lane import Lane
from bench.loads import Figures, Sizes


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    title: str
    unit: str
    aims: Sequence[Aim] = ()
    higher_is_better: bool = False
    digits: int = 0
    """Behind the point."""
    without: Mapping[str, str] = field(default_factory=dict)
    """Contenders of which it cannot tell anything, and why: the table shows that."""


_NO_PROCESS = {DIRECT: "no process"}
_NO_BASTION = {RELAY: "no bastion", **_NO_PROCESS}

ROWS: Sequence[Row] = (
    Row("down-1", "bulk down, 1 stream", "MiB/s", (Aim(1.6, SSH), Aim(1.1, SSH_GCM)), higher_is_better=True),
    Row("down-4", "bulk down, 4 streams", "MiB/s", (Aim(1.6, SSH), Aim(1.1, SSH_GCM)), higher_is_better=True),
    Row("up-1", "bulk up, 1 stream", "MiB/s", (Aim(1.9, SSH), Aim(1.3, SSH_GCM)), higher_is_better=True),
    Row(
        "cpu-down",
        "forwarder's processor time, down",
        "s/GiB",
        (Aim(1.05, RELAY), Aim(1.0, SSH)),
        digits=2,
        without=_NO_PROCESS,
    ),
    Row(
        "cpu-up",
        "forwarder's processor time, up",
        "s/GiB",
        (Aim(1.05, RELAY), Aim(1.0, SSH)),
        digits=2,
        without=_NO_PROCESS,
    ),
    Row("connects", "connects, 4 at a time (`pgbench -C`)", "1/s", (Aim(3.5, SSH),), higher_is_better=True),
    Row("latency", "mean latency at 400 transactions a second", "ms", (Aim(0.33, SSH),), digits=2),
    Row("late", "of these over 10 ms", "%", (Aim(0),), digits=1),
    Row("ping-p50", "ping of one byte, median", "µs", (Aim(0.9, SSH),)),
    Row("ping-p99", "ping of one byte, 99th percentile", "µs"),
    Row("ping-p99-bulk", "the same beside a bulk stream", "µs", (Aim(0.5, SSH),)),
    Row("select-1", "`pgbench -S`, 1 client", "1/s", higher_is_better=True),
    Row("select-8", "`pgbench -S`, 8 clients", "1/s", (Aim(1.1, SSH),), higher_is_better=True),
    Row("select-32", "`pgbench -S`, 32 clients", "1/s", (Aim(1.1, SSH),), higher_is_better=True),
    Row("down-20ms", "bulk down, round trip of 20 ms", "MiB/s", (Aim(4, SSH),), higher_is_better=True),
    Row("down-100ms", "bulk down, round trip of 100 ms", "MiB/s", (Aim(4, SSH),), higher_is_better=True),
    Row("idle", "memory (RSS), idle", "MiB", (Aim(35),), without=_NO_PROCESS),
    Row("channels", "memory, 500 open channels", "MiB", (Aim(40),), without=_NO_PROCESS),
    Row("stalled", "memory, 16 stalled readers", "MiB", (Aim(64),), without=_NO_PROCESS),
    Row("uploads", "memory, 500 uploaders, bastion frozen", "MiB", (Aim(128),), without=_NO_BASTION),
    Row("uploads-dropped", "memory, 500 uploaders, link black-holed", "MiB", (Aim(128),), without=_NO_PROCESS),
    Row("start", "start to first byte", "ms", (Aim(150),), without=_NO_PROCESS),
)
"""In the order of the table. Ratios are to the contender of the aim, in the same round."""


@dataclass(frozen=True)
class Load:
    """What is done, where, and which rows it fills."""

    measure: Callable[[Lane, Sizes], Figures]
    site: str
    """One of `SITES`."""
    rows: tuple[str, ...]
    most_rounds: int = 100
    """For figures that hardly vary."""
    starts_itself: bool = False
    """Whether it starts the process; else one process serves all loads of a site."""

    @property
    def without(self) -> Set[str]:
        """Contenders that it says nothing of."""
        return set.intersection(*(set(row.without) for row in ROWS if row.name in self.rows))


LOADS: Sequence[Load] = (
    Load(loads.bulk_down, "peer", ("down-1", "cpu-down")),
    Load(loads.bulk_down_4, "peer", ("down-4",)),
    Load(loads.bulk_up, "peer", ("up-1", "cpu-up")),
    Load(loads.ping, "peer", ("ping-p50", "ping-p99")),
    Load(loads.ping_beside_bulk, "peer", ("ping-p99-bulk",)),
    Load(memory.idle, "peer", ("idle",), most_rounds=2, starts_itself=True),
    Load(memory.open_channels, "peer", ("channels",), most_rounds=2, starts_itself=True),
    Load(memory.stalled_readers, "peer", ("stalled",), most_rounds=2, starts_itself=True),
    Load(memory.uploads_to_a_frozen_bastion, "peer", ("uploads",), most_rounds=2, starts_itself=True),
    Load(loads.start, "peer", ("start",), starts_itself=True),
    Load(memory.uploads_into_a_black_hole, "cable", ("uploads-dropped",), most_rounds=2, starts_itself=True),
    Load(loads.connects, "database", ("connects",)),
    Load(loads.paced, "database", ("latency", "late")),
    Load(loads.select_1, "database", ("select-1",)),
    Load(loads.select_8, "database", ("select-8",)),
    Load(loads.select_32, "database", ("select-32",)),
    Load(loads.bulk_20ms, "20ms", ("down-20ms",), most_rounds=2),
    Load(loads.bulk_100ms, "100ms", ("down-100ms",), most_rounds=2),
)
"""Those at one site stand together: it is opened once."""


def loads_of(names: Collection[str]) -> list[Load]:
    """The loads that fill these rows; all of them where none is named."""
    return [load for load in LOADS if not names or set(load.rows) & set(names)]
