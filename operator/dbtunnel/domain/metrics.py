"""What is counted, and Prometheus' text format (version 0.0.4) of it. Each process declares its metrics once."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from typing import TypeVar

T = TypeVar("T")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Kind(StrEnum):
    """Prometheus' metric types."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True)
class Label:
    """A label; each of its values is a series of its own."""

    name: str
    values: str
    """Which they are, for people."""
    most: int | None
    """How many there can be in a process; None: as many as there are tunnels."""
    known: Sequence[str] = ()
    """Those that have a series from the start, so that the first that is counted is an increase."""


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric, and what it tells. It is itself alone, so that finding its value costs little."""

    name: str
    kind: Kind
    help: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds, of a histogram alone; one without a bound comes after them."""

    @property
    def series(self) -> int:
        """How many series a process can have of it at most; where there is one set for each tunnel, that set's."""
        return prod(label.most or 1 for label in self.labels) * (len(self.buckets) + 3 if self.buckets else 1)

    @property
    def is_per_tunnel(self) -> bool:
        """Whether there are as many of these series as there are tunnels."""
        return any(label.most is None for label in self.labels)


Labels = str | tuple[str, ...]
"""The values of a metric's labels, in the order of their declaration; of a single one its value alone."""


@dataclass
class _Histogram:
    counts: list[int]
    total: float = 0


@dataclass
class Values:
    """The values of the declared metrics."""

    declared: Sequence[Metric]
    _values: dict[tuple[Metric, Labels], float] = field(default_factory=dict)
    _histograms: dict[tuple[Metric, Labels], _Histogram] = field(default_factory=dict)
    _readers: dict[Metric, Callable[[], Mapping[Labels, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for metric in self.declared:
            for label in metric.labels[0].known if len(metric.labels) == 1 else ():
                if metric.kind is Kind.HISTOGRAM:
                    self._histograms[metric, label] = _empty(metric)
                else:
                    self._values[metric, label] = 0

    def add(self, metric: Metric, amount: float = 1, label: Labels = "") -> None:
        """Counts up, or down for a gauge."""
        self._values[metric, label] = self._values.get((metric, label), 0) + amount

    def set(self, metric: Metric, value: float, label: Labels = "") -> None:
        """Sets a gauge."""
        self._values[metric, label] = value

    def get(self, metric: Metric, label: Labels = "") -> float:
        """The current value of a counter or gauge."""
        return self._values.get((metric, label), 0)

    def observe(self, metric: Metric, value: float, label: Labels = "") -> None:
        """Counts a value in its bucket of a histogram."""
        known = self._histograms.get((metric, label))
        if known is None:
            known = self._histograms[metric, label] = _empty(metric)
        known.counts[bisect_left(metric.buckets, value)] += 1
        known.total += value

    def look_up(self, metric: Metric, read: Callable[[], Mapping[Labels, float]]) -> None:
        """Has a gauge looked up whenever it is asked for."""
        self._readers[metric] = read

    def text(self) -> str:
        """All of them, for a scrape."""
        return "".join(f"{line}\n" for metric in self.declared for line in self._lines(metric))

    def _lines(self, metric: Metric) -> Iterator[str]:
        yield f"# HELP {metric.name} {metric.help}"
        yield f"# TYPE {metric.name} {metric.kind}"
        if metric.kind is Kind.HISTOGRAM:
            for label, one in _of(metric, self._histograms) or (() if metric.labels else [("", _empty(metric))]):
                yield from _histogram_lines(metric, _pairs(metric, label), one)
            return
        reader = self._readers.get(metric)
        found = sorted(reader().items(), key=_by_labels) if reader else _of(metric, self._values)
        for label, value in found or (() if metric.labels else [("", 0)]):
            yield _sample(metric.name, _pairs(metric, label), value)


def _empty(metric: Metric) -> _Histogram:
    return _Histogram([0] * (len(metric.buckets) + 1))


def _of(metric: Metric, values: Mapping[tuple[Metric, Labels], T]) -> list[tuple[Labels, T]]:
    return sorted(((label, value) for (known, label), value in values.items() if known is metric), key=_by_labels)


def _by_labels(item: tuple[Labels, object]) -> tuple[str, ...]:
    return _values_of(item[0])


def _values_of(label: Labels) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else label


def _pairs(metric: Metric, label: Labels) -> list[str]:
    # without labels there is one value all the same
    return [f'{one.name}="{_escaped(value)}"' for one, value in zip(metric.labels, _values_of(label), strict=False)]


def _histogram_lines(metric: Metric, pairs: list[str], histogram: _Histogram) -> Iterator[str]:
    count = 0
    for bound, added in zip([*metric.buckets, "+Inf"], histogram.counts, strict=True):
        count += added
        yield _sample(f"{metric.name}_bucket", [*pairs, f'le="{bound}"'], count)
    yield _sample(f"{metric.name}_sum", pairs, round(histogram.total, 6))
    yield _sample(f"{metric.name}_count", pairs, count)


def _sample(name: str, pairs: Iterable[str], value: float) -> str:
    labels = ",".join(pairs)
    number = f"{value:.0f}" if value == int(value) else repr(float(value))
    return f"{name}{{{labels}}} {number}" if labels else f"{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
