"""The run: sites one after the other, at each its loads, in each round every contender once.

What fails is told and left out: a run takes minutes, and the rest is worth having.
"""

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.contenders import CONTENDERS
from bench.figures import order
from bench.lane import Lane
from bench.loads import Sizes
from bench.rows import Load
from bench.sites import SITES
from tests.support.processes import ProcessError

Say = Callable[[str], None]

_FAILURES = (ProcessError, OSError, subprocess.TimeoutExpired)


@dataclass(frozen=True)
class Results:
    """What a run has given."""

    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """By row and contender, a value a round."""
    failures: list[str] = field(default_factory=list)


def measure(
    directory: Path, loads: Sequence[Load], sizes: Sizes, rounds: int, say: Say, names: Collection[str] = CONTENDERS
) -> Results:
    """Does it all; `names`: the contenders."""
    results = Results()

    def attempt(what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except _FAILURES as error:
            results.failures.append(f"{what}: {error}")
            say(f"{what} failed: {error}")

    def measure_site(site_name: str, here: Sequence[Load]) -> None:
        with ExitStack() as stack:
            site = stack.enter_context(SITES[site_name](directory / site_name))
            lanes = {
                name: stack.enter_context(Lane(CONTENDERS[name], site, directory / site_name / name)) for name in names
            }
            for load in here:
                attempt(", ".join(load.rows), partial(_measure_load, load, lanes, sizes, rounds, results, say))

    for site_name, here in itertools.groupby(loads, key=lambda load: load.site):
        attempt(site_name, partial(measure_site, site_name, list(here)))
    return results


def _measure_load(load: Load, lanes: Mapping[str, Lane], sizes: Sizes, rounds: int, results: Results, say: Say) -> None:
    names = [name for name in lanes if name not in load.without]
    count = min(rounds, load.most_rounds)
    for number in range(count):
        found: dict[str, Mapping[str, float]] = {}
        for name in order(names, number):
            if not load.starts_itself:
                lanes[name].ensure_started()
            found[name] = load.measure(lanes[name], sizes)
        for row in load.rows:
            values = {name: found[name][row] for name in names if row in found[name]}
            for name, value in values.items():
                results.values.setdefault(row, {}).setdefault(name, []).append(value)
            told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
            say(f"{row}, round {number + 1} of {count}: {told}")


def say_with_time() -> Say:
    """Prints lines with the seconds since now."""
    begun = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - begun:5.0f} s  {line}", file=sys.stderr, flush=True)

    return say
