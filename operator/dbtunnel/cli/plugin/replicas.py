"""What each forwarder of a tunnel says of itself now."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dbtunnel.api.documents import DocumentError, read
from dbtunnel.api.forwarder import ForwarderStatus
from dbtunnel.cli.plugin.cluster import Cluster, ClusterError, DeniedError, Manifest
from dbtunnel.domain.observed import Pod

_SAMPLE = re.compile(r"^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? ([0-9.eE+-]+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Samples = Mapping[tuple[str, str], float]
"""Values by a metric's name and the value of its only label, empty where it has none."""


@dataclass(frozen=True)
class Replica:
    """A pod, and its forwarder's own words."""

    pod: Pod
    created: str = ""
    node: str = ""
    status: ForwarderStatus | None = None
    metrics: Samples = field(default_factory=dict)
    problem: str = ""
    """Why there are none."""

    def metric(self, name: str, label: str = "") -> float:
        """A value; 0 where it was never counted."""
        return self.metrics.get((name, label), 0)

    def by_label(self, name: str) -> dict[str, float]:
        """The values of a metric by its label."""
        return {label: value for (found, label), value in self.metrics.items() if found == name}


def read_replicas(cluster: Cluster, tunnel: str, *, fresh: bool = False) -> list[Replica]:
    """Each forwarder that runs; `fresh`: after another probe of the database, where it is one that is probed. Raises
    DeniedError where pods may not be listed, or asked.
    """
    pods = sorted(cluster.pods(tunnel), key=lambda pod: str(pod["metadata"].get("creationTimestamp")))
    return [_asked(cluster, pod, "status?fresh=1" if fresh else "status") for pod in pods if not Pod.of(pod).is_ending]


def _asked(cluster: Cluster, manifest: Manifest, path: str) -> Replica:
    pod = Pod.of(manifest)
    created, node = manifest["metadata"].get("creationTimestamp", ""), manifest.get("spec", {}).get("nodeName", "")
    if pod.running_since is None:
        return Replica(pod, created, node, problem=pod.problem.seen if pod.problem else "it does not run yet")
    try:
        status = read(ForwarderStatus, cluster.ask(pod.name, path))
        metrics = samples(cluster.ask(pod.name, "metrics").decode(errors="replace"))
    except DeniedError:
        raise
    except ClusterError as error:
        return Replica(pod, created, node, problem=str(error))
    except DocumentError as error:
        return Replica(pod, created, node, problem=f"its answer is no status document of this version: {error}")
    if status.pod_uid != pod.uid:
        return Replica(pod, created, node, problem="another pod answers in its place")
    return Replica(pod, created, node, status, metrics)


def samples(text: str) -> dict[tuple[str, str], float]:
    """What Prometheus's text format says of metrics with at most one label; of others and of comments nothing."""
    return dict(_samples(text.splitlines()))


def _samples(lines: Iterable[str]) -> Iterable[tuple[tuple[str, str], float]]:
    for line in lines:
        found = _SAMPLE.match(line)
        labels = _LABEL.findall(found[2] or "") if found else []
        if found and len(labels) <= 1:
            try:
                yield (found[1], labels[0][1] if labels else ""), float(found[3])
            except ValueError:
                continue
