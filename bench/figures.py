"""Arithmetic on what was measured: medians, ratios within a round, whether an aim is met. Pure."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Samples = Mapping[str, Sequence[float]]
"""The values of a row by contender, one a round."""


@dataclass(frozen=True)
class Spread:
    """What several rounds gave."""

    median: float
    least: float
    most: float


@dataclass(frozen=True)
class Aim:
    """A bound: of the ratio to another contender within each round, or of the value itself."""

    bound: float
    against: str | None = None


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that is not exceeded by so many percent of all."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most."""
    return Spread(statistics.median(values), min(values), max(values))


def ratios(samples: Samples, one: str, other: str) -> list[float]:
    """One contender's value by another's, round by round; rounds without both are left out, as is a zero below."""
    pairs = zip(samples.get(one, ()), samples.get(other, ()), strict=False)
    return [value / base for value, base in pairs if base]


def is_met(samples: Samples, ours: str, aim: Aim, *, higher_is_better: bool) -> bool | None:
    """Whether the median keeps to the bound; None where it was not measured."""
    values = samples.get(ours, ()) if aim.against is None else ratios(samples, ours, aim.against)
    if not values:
        return None
    median = statistics.median(values)
    return median >= aim.bound if higher_is_better else median <= aim.bound


def order(names: Sequence[str], number: int) -> list[str]:
    """Who comes when in a round: one way and the other in turn, so that nobody always comes first or last."""
    return list(names) if number % 2 == 0 else list(reversed(names))
