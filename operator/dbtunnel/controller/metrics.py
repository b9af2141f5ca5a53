"""The operator's metrics in Prometheus' text format (version 0.0.4); each is declared once, here."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counter:
    """Values that only grow, by their labels."""

    kind = "counter"

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name, self.text, self.labels = name, text, labels
        self._values: dict[tuple[str, ...], float] = defaultdict(float)

    def add(self, *labels: str, amount: float = 1) -> None:
        """Counts; one value for each label."""
        self._values[labels] += amount

    def samples(self) -> Mapping[tuple[str, ...], float]:
        """Values by label values."""
        return self._values


class Gauge:
    """A value that is looked up when it is asked for."""

    kind = "gauge"

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name, self.text, self.labels = name, text, labels
        self.read: Callable[[], Mapping[tuple[str, ...], float]] = dict

    def samples(self) -> Mapping[tuple[str, ...], float]:
        """Values by label values."""
        return self.read()


class Metrics:
    """Every metric of the operator."""

    def __init__(self) -> None:
        self.reconciles = Counter("dbtunnel_reconciles_total", "Reconciles of tunnels.", "result")
        self.reconcile_seconds = Counter("dbtunnel_reconcile_seconds_total", "Time spent in reconciles.")
        self.api_writes = Counter("dbtunnel_api_writes_total", "Writes to the API server.", "kind", "verb")
        self.repairs = Counter("dbtunnel_repairs_total", "Children that were not as wanted.", "kind")
        self.queue_depth = Gauge("dbtunnel_queue_depth", "Tunnels that wait for a reconcile.")
        self.tunnels = Gauge("dbtunnel_tunnels", "Tunnels by the status of their condition Ready.", "ready")
        self.last_reconcile = Gauge("dbtunnel_last_reconcile_age_seconds", "Time since the last finished reconcile.")

    def text(self) -> str:
        """All of them, for a scrape."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        for metric in vars(self).values():
            yield f"# HELP {metric.name} {metric.text}"
            yield f"# TYPE {metric.name} {metric.kind}"
            for labels, value in sorted(metric.samples().items()):
                pairs = ",".join(f'{name}="{_escaped(text)}"' for name, text in zip(metric.labels, labels, strict=True))
                yield f"{metric.name}{{{pairs}}} {value:g}" if pairs else f"{metric.name} {value:g}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
