"""Where the time and the memory of a row go: `python -m bench profile`.

It needs nothing of the system but /proc: no perf, no debugger, no rights. The forwarder notes which of its lines runs
(`inside/sitecustomize.py`), which makes it a little slower. Few rounds, in alternating order; what else the machine
does, shows.
"""

import itertools
import json
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from bench import loads
from bench.contenders import CONTENDERS, OURS, Contender, start_ours
from bench.figures import order
from bench.inside.sitecustomize import FILE_VARIABLE
from bench.lane import Lane
from bench.loads import Figures, Sizes
from bench.machine import machine_line
from bench.measure import Say
from bench.places import Line, imports_table, lines_table, memory_table, milestones
from bench.report import table
from bench.rows import ROWS, Load, Row
from bench.sites import SITES, Site
from bench.spent import Spent, settle, spent_until_now, total
from tests.support.processes import Process, wait_until

_EACH = {"1/s": ("µs each", 1e6, 0), "MiB/s": ("s/GiB", 1024, 2)}
"""Of rows that are rates: what the processor time of one is told in, how many of a second's are in that, and digits."""

_NOTING = {"PYTHONPATH": str(Path(__file__).parent / "inside")}
LONG = Sizes(seconds=2, pgbench=("-T", "2"), paced=("-T", "2"), pings=10**6)
ROUNDS = 3
"""Longer than the benchmark measures, together: a clock that ticks each 4 ms needs time to see much."""


def profile(directory: Path, chosen: Sequence[Load], sizes: Sizes, say: Say) -> str:
    """A report of each load, in Markdown."""
    told = [machine_line(), ""]
    for name, here in itertools.groupby(chosen, key=lambda load: load.site):
        with SITES[name](directory / name) as site:
            for load in here:
                say(", ".join(load.rows))
                told += [f"### {', '.join(row.title for row in rows_of(load))}", ""]
                told += [*_report(load, site, directory / name, sizes), ""]
    return "\n".join(told)


def rows_of(load: Load) -> list[Row]:
    """The rows that a load fills."""
    return [row for row in ROWS if row.name in load.rows]


def _report(load: Load, site: Site, directory: Path, sizes: Sizes) -> list[str]:
    if load.measure is loads.start:
        return _of_start(site, directory)
    if load.starts_itself:
        return _of_memory(load, site, directory, sizes)
    return _of_time(load, site, directory, sizes)


# --- the forwarder, which tells of itself -----------------------------------------------------------------------------


class NotingLane(Lane):
    """Our forwarder, which notes what it does; the last notes are kept when it is ended."""

    def __init__(self, site: Site, directory: Path) -> None:
        self._told = directory / "profile.json"
        self.notes: Mapping[str, Any] = {}
        self._spent: dict[tuple[str, str, int], tuple[float, float]] = {}
        super().__init__(_ours({**_NOTING, FILE_VARIABLE: str(self._told)}), site, directory)

    def take(self) -> None:
        """Has it tell its notes and begin anew."""
        assert self._process, "not started"
        self._told.unlink(missing_ok=True)
        self._process.signal(signal.SIGUSR1)
        wait_until(self._told.exists, "the notes", interval_seconds=0.01)
        self.notes = json.loads(self._told.read_text())

    def keep(self) -> None:
        """Adds the lines that it told of last to those of before."""
        for *place, user, kernel in self.notes["lines"]:
            before = self._spent.get(tuple(place), (0.0, 0.0))
            self._spent[tuple(place)] = before[0] + user, before[1] + kernel

    def lines(self) -> list[Line]:
        """Those that were kept."""
        return [(*place, *spent) for place, spent in self._spent.items()]

    def stop(self) -> None:
        """Ends it."""
        if self._process:
            self.take()
        super().stop()


def _ours(environment: Mapping[str, str]) -> Contender:
    def begin(site: Site, directory: Path, port: int) -> Process:
        return start_ours(site, directory, port, environment)

    return Contender(CONTENDERS[OURS].title, begin)


# --- the reports ------------------------------------------------------------------------------------------------------


def _of_time(load: Load, site: Site, directory: Path, sizes: Sizes) -> list[str]:
    """Who had the processors, beside those whom its aims name; and which of the forwarder's lines had its part."""
    against = {aim.against for row in rows_of(load) for aim in row.aims}
    with ExitStack() as stack:
        ours = stack.enter_context(NotingLane(site, directory / "noting"))
        lanes: dict[str, Lane] = {CONTENDERS[OURS].title: ours}
        for name in CONTENDERS:
            if name in against:
                lanes[CONTENDERS[name].title] = stack.enter_context(Lane(CONTENDERS[name], site, directory / name))
        measured: dict[str, list[tuple[Figures, Spent]]] = {title: [] for title in lanes}
        for number in range(ROUNDS):
            for title in order(list(lanes), number):
                measured[title].append(_measured(load, lanes[title], ours, sizes))
    together = {title: _together(rounds) for title, rounds in measured.items()}
    return [*table(_spent(rows_of(load), together)), "", *lines_table(ours.lines())]


def _measured(load: Load, lane: Lane, ours: NotingLane, sizes: Sizes) -> tuple[Figures, Spent]:
    """One round. What ours notes while others are measured is left out."""
    lane.ensure_started()
    ours.ensure_started()
    ours.take()
    settle(lane)
    before = spent_until_now(lane)
    figures = load.measure(lane, sizes)
    spent = spent_until_now(lane).since(before)
    if lane is ours:
        ours.take()
        ours.keep()
    return figures, spent


def _together(rounds: Sequence[tuple[Figures, Spent]]) -> tuple[Figures, Spent]:
    """The medians of what was measured, and all that was spent."""
    names = rounds[0][0].keys()
    return {name: median(figures[name] for figures, _ in rounds) for name in names}, total(each for _, each in rounds)


def _spent(rows: Sequence[Row], measured: Mapping[str, tuple[Figures, Spent]]) -> list[list[str]]:
    units = [(row, *_EACH[row.unit]) for row in rows if row.unit in _EACH]
    heads = [f"{role}, {unit}" for _, unit, _, _ in units for role in ("forwarder", "sshd")]
    roles = ("forwarder", "in the kernel", "sshd", "server", "clients", "unused", *heads)
    lines = [["processors used", *(f"{row.name}, {row.unit}" for row in rows), *roles]]
    for title, (figures, spent) in measured.items():
        values = [f"{figures[row.name]:.{row.digits}f}" for row in rows]
        shares = [spent.share("forwarder"), spent.kernel_share("forwarder")]
        shares += [*(spent.share(role) for role in ("sshd", "server", "clients")), spent.unused / spent.at]
        each = [
            f"{factor * spent.share(role) / figures[row.name]:.{digits}f}"
            for row, _, factor, digits in units
            for role in ("forwarder", "sshd")
        ]
        lines.append([title, *values, *(f"{share:.2f}" for share in shares), *each])
    return lines


def _of_memory(load: Load, site: Site, directory: Path, sizes: Sizes) -> list[str]:
    """What the memory is of, at the end of the load."""
    with NotingLane(site, directory / "noting") as lane:
        load.measure(lane, sizes)
        return memory_table(lane.notes["maps"])


def _of_start(site: Site, directory: Path) -> list[str]:
    """What the time goes by with, and what is imported meanwhile, of another start."""
    with Lane(CONTENDERS[OURS], site, directory / "start") as lane:
        seconds = lane.start()
        first_byte, cpu_seconds = time.time(), lane.cpu_seconds()
    log = (directory / "start" / "forwarder.log").read_text()
    events = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    with Lane(_ours({"PYTHONPROFILEIMPORTTIME": "1"}), site, directory / "imports") as lane:
        lane.start()
    imports = (directory / "imports" / "forwarder.log").read_text()
    return [*milestones(first_byte - seconds, first_byte, cpu_seconds, events), "", *imports_table(imports)]
