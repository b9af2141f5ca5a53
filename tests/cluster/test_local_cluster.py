"""The local cluster comes quickly, stays by itself, and goes with whatever process has it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.binaries import binary
from tests.support.cluster import ClusterError, cluster_of, start_cluster
from tests.support.cluster.base import ClusterInUseError
from tests.support.cluster.images import BUSYBOX_IMAGE
from tests.support.cluster.layout import cgroup_name, link_name
from tests.support.cluster.local import LocalCluster
from tests.support.processes import Process, wait_until

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    not isinstance(cluster_of("support"), LocalCluster), reason="another kind of cluster was asked for"
)

HOLD = """\
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
from tests.support.cluster import start_cluster
start_cluster({name!r})
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def local() -> Iterator[LocalCluster]:
    """A cluster that does not run, beside the one of the other tests."""
    cluster = LocalCluster(f"support-{os.getpid()}")
    yield cluster
    cluster.stop()


def _hold(cluster: LocalCluster, tmp_path: Path) -> Process:
    """A process of its own that starts the cluster, as a run of the tests does."""
    command = [sys.executable, "-c", HOLD.format(name=cluster.name)]
    environment = {**os.environ, "CLUSTER": "local"}
    return Process(command, tmp_path / "holder.log", cwd=ROOT, env=environment).start()


def _command(cluster: LocalCluster, word: str) -> str:
    command = [sys.executable, "-m", "tests.support.cluster", word, "--name", cluster.name]
    environment = {**os.environ, "CLUSTER": "local"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def _processes_of(cluster: LocalCluster) -> set[int]:
    """Every process in the cluster's network, by its id on this machine; pods have networks of their own."""
    return {process for process in _all_processes() if _works_for(cluster, process)}


def _all_processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _works_for(cluster: LocalCluster, process: int) -> bool:
    """Whether it runs in the cluster's control group, or was started with its directory."""
    directory = Path(f"/proc/{process}")
    with suppress(OSError):
        words = (directory / "cmdline").read_text(errors="replace") + (directory / "cgroup").read_text()
        return str(cluster.directory) in words or cgroup_name(cluster.directory) in words
    return False


def _what_is_left(cluster: LocalCluster) -> list[str]:
    """Everything of the cluster that this machine still has."""
    left = [f"process {process}" for process in _processes_of(cluster)]
    left += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{cgroup_name(cluster.directory)}")]
    left += [name for _, name in socket.if_nameindex() if name == link_name(cluster.directory)]
    left += [line for line in Path("/proc/mounts").read_text().splitlines() if str(cluster.directory) in line]
    return left + [str(path) for path in [cluster.directory] if path.exists()]


def _run_a_pod(cluster: LocalCluster) -> None:
    cluster.kubectl("run", "shell", "--image", BUSYBOX_IMAGE, "--image-pull-policy=Never")
    cluster.kubectl("wait", "--for=condition=Ready", "pod/shell", "--timeout=60s", timeout_seconds=70)


def test_a_node_is_ready_in_seconds_and_down_leaves_nothing(local: LocalCluster) -> None:
    """`up` outlives its command; a second `up` changes nothing. 20 seconds is the aim, 60 for a busy machine."""
    began = time.monotonic()
    said = _command(local, "up")
    seconds = time.monotonic() - began
    print(f"cluster-up to a Ready node: {seconds:.1f} s")

    assert re.search(r"node Ready after \d+\.\d s", said)
    assert seconds < 60
    assert _command(local, "status") == "running\n"
    assert _command(local, "kubeconfig") == f"{local.kubeconfig}\n"
    processes = _processes_of(local)
    _command(local, "up")
    assert _processes_of(local) == processes

    _run_a_pod(local)
    _command(local, "down")
    assert _what_is_left(local) == []
    assert _command(local, "status") == "not running\n"
    _command(local, "down")


def test_another_runs_cluster_is_left_alone_and_swept_by_the_next_start_once_that_run_is_killed(
    local: LocalCluster, tmp_path: Path
) -> None:
    holder = _hold(local, tmp_path)
    holder.wait_until(lambda: "held" in holder.log_end(), "the cluster's start", 100)

    with pytest.raises(ClusterInUseError, match=f"down --name {local.name}"):
        start_cluster(local.name)

    assert local.node_is_ready()
    _run_a_pod(local)
    assert len(_processes_of(local)) > 8, "components, a shim and the pod"

    os.kill(holder.pid, signal.SIGKILL)

    wait_until(lambda: not _processes_of(local), "the end of all processes", 10)
    again = start_cluster(local.name)
    assert "shell" not in again.kubectl("get", "pods", "-o", "name")
    again.stop()
    assert _what_is_left(local) == []


def test_an_interrupted_start_leaves_nothing(local: LocalCluster, tmp_path: Path) -> None:
    """As Ctrl-C does while the cluster comes up."""
    holder = _hold(local, tmp_path)
    wait_until(lambda: len(_processes_of(local)) > 3, "some components", 60)

    os.kill(holder.pid, signal.SIGINT)

    holder.wait(30)
    assert "held" not in holder.log_end()
    assert _what_is_left(local) == []


def test_two_clusters_run_side_by_side_and_the_start_of_any_removes_what_a_dead_one_left(
    cluster: LocalCluster, local: LocalCluster, tmp_path: Path
) -> None:
    dead = LocalCluster(f"{local.name}-dead")
    holder = _hold(dead, tmp_path)
    wait_until(lambda: len(_processes_of(dead)) > 3, "some components", 60)
    holder.kill()
    wait_until(lambda: not _processes_of(dead), "the end of all processes", 10)
    assert dead.directory.exists()

    other = start_cluster(local.name)

    assert _what_is_left(dead) == []
    assert other.host_address != cluster.host_address
    for one in (cluster, other):
        assert one.node_is_ready()
    other.stop()
    assert cluster.node_is_ready()


def test_nothing_is_sent_beyond_this_machine(cluster: LocalCluster) -> None:
    """The cluster's network knows the way to itself and to this machine, and to nowhere else."""
    found = subprocess.run(
        ["nsenter", "--target", str(_init_of(cluster)), "--net", "ip", "-4", "route", "show", "default"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout == ""


def _init_of(cluster: LocalCluster) -> int:
    """A process that lives in the cluster's network: its API server."""
    for process in _processes_of(cluster):
        with suppress(OSError):
            if "kube-apiserver" in Path(f"/proc/{process}/cmdline").read_text():
                return process
    raise AssertionError("no API server")


def test_a_component_that_cannot_start_is_named_with_its_log(
    local: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "kube-scheduler"
    broken.write_text("#!/bin/sh\necho no such flag >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(
        "tests.support.cluster.local.binary", lambda name: broken if name == "kube-scheduler" else binary(name)
    )

    with pytest.raises(ClusterError, match=r"(?s)kube-scheduler ended with 3.*no such flag"):
        start_cluster(local.name)
    assert _what_is_left(local) == []
