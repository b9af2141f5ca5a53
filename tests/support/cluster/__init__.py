"""Starts a real Kubernetes: kind where a Docker engine answers, else a local cluster of plain processes.

`CLUSTER=kind|local|existing` forces one. All are used through `Cluster`.
"""

import os
import shutil
import subprocess

from tests.support.cluster.base import Cluster, ClusterError, ClusterInUseError
from tests.support.cluster.existing import ExistingCluster
from tests.support.cluster.kind import KindCluster
from tests.support.cluster.local import LocalCluster

KINDS: dict[str, type[Cluster]] = {"kind": KindCluster, "local": LocalCluster, "existing": ExistingCluster}
"""What `CLUSTER` may say."""

__all__ = ["KINDS", "Cluster", "ClusterError", "ExistingCluster", "cluster_of", "start_cluster"]


def start_cluster(name: str, *, survives: bool = False) -> Cluster:
    """A cluster whose node is Ready. `survives`: it goes on after this process, until `stop` is called for its name."""
    cluster = cluster_of(name)
    try:
        cluster.start(survives=survives)
    except ClusterInUseError:
        raise
    except BaseException:
        cluster.stop()
        raise
    return cluster


def cluster_of(name: str) -> Cluster:
    """The cluster of that name, whether or not it runs."""
    kind = os.environ.get("CLUSTER") or ("kind" if _docker_answers() else "local")
    if kind not in KINDS:
        raise ClusterError(f"CLUSTER is {kind!r}; write one of {', '.join(KINDS)}")
    return KINDS[kind](name)


def _docker_answers() -> bool:
    if not shutil.which("docker"):
        return False
    try:
        return subprocess.run(["docker", "info"], capture_output=True, check=False, timeout=20).returncode == 0
    except subprocess.TimeoutExpired:
        return False
