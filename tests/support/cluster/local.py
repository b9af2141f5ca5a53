"""A local Kubernetes: real programs as plain processes, in namespaces of their own.

Everything runs below one process in its own process, network and mount namespaces. When that process ends, for
whatever reason, the kernel ends all others and removes the network with its firewall rules and the mounts; nothing of
another cluster on the machine can be touched, and nothing that runs inside can reach anything but this machine.
What it leaves are empty control groups and its directory; the next start, and `stop`, remove them.

Pods get veth pairs that are routed, not bridged. Nothing here enforces a NetworkPolicy; kind's own network does.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support.binaries import binary
from tests.support.cluster.base import AUDIT_POLICY, NODE_READY_SECONDS, Cluster, ClusterError, read_audit_log
from tests.support.cluster.images import busybox_archive
from tests.support.cluster.pki import Authority
from tests.support.debian import ensure_packages
from tests.support.processes import Process, run, wait_until

PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
    "coredns",
)

PACKAGES = {
    "containerd": "runs the local cluster's containers",
    "runc": "runs the local cluster's containers",
    "containernetworking-plugins": "gives the local cluster's pods their network",
    "iptables": "the local cluster's Services",
    "conntrack": "the local cluster's Services",
    "iproute2": "the local cluster's network",
    "busybox-static": "the local cluster's pause container",
}


@dataclass(frozen=True)
class Layout:
    """Addresses and paths of one local cluster, all derived from its name."""

    directory: str
    link: str
    """Name of the host's end of the veth pair."""
    host: str
    """This machine's address, as pods see it."""
    node: str
    """The node's address: API server, kubelet, DNS."""
    network: str
    """Holds all of the cluster's addresses."""
    pods: str
    services: str
    first_service: str
    cgroup: str

    @classmethod
    def of(cls, name: str, directory: Path) -> "Layout":
        """The layout of the cluster `name`; two names get different networks, but for one chance in 64."""
        number = 64 + zlib.crc32(name.encode()) % 64
        prefix = f"10.{number}"
        return cls(
            directory=str(directory),
            link=f"dbt{number}",
            host=f"{prefix}.255.1",
            node=f"{prefix}.255.2",
            network=f"{prefix}.0.0/16",
            pods=f"{prefix}.0.0/20",
            services=f"{prefix}.128.0/20",
            first_service=f"{prefix}.128.1",
            cgroup=f"dbtunnel-{name}",
        )


class LocalCluster(Cluster):
    """A local cluster; needs root, for namespaces and containers."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.layout = Layout.of(name, self.directory)
        self._record = self.directory / "process.json"

    @property
    def host_address(self) -> str:
        return self.layout.host

    def start(self, *, survives: bool = False) -> None:
        if self.is_running():
            return
        if os.geteuid() != 0:
            raise ClusterError(
                "the local cluster needs root (namespaces, containers): run with sudo, or use CLUSTER=kind"
            )
        ensure_packages(PACKAGES)
        programs = {name: str(binary(name)) for name in PROGRAMS}
        self._sweep()
        began = time.monotonic()
        self._prepare(programs)
        process = self._launch(survives)
        process.wait_until(self._node_ready, "a Ready node", NODE_READY_SECONDS)
        print(
            f"local cluster {self.name}: node Ready after {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True
        )

    def stop(self) -> None:
        process = self._recorded_process()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            wait_until(lambda: self._recorded_process() is None, "the end of the local cluster", 20)
        self._sweep()

    def is_running(self) -> bool:
        return self._recorded_process() is not None and self.kubeconfig.exists()

    def load_image(self, archive: Path, reference: str) -> None:
        enter: list[str | Path] = ["nsenter", "--target", str(self._init_process()), "--mount", "--net"]
        run([*enter, "ctr", "--namespace", "k8s.io", "images", "import", archive.resolve()], timeout_seconds=300)

    def audit_events(self) -> list[dict[str, Any]]:
        return read_audit_log(self.directory / "audit.log")

    def logs(self) -> str:
        """The ends of all components' logs, for a failed start."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in self.directory.glob("log/*")
        )

    # --- start ----------------------------------------------------------------------------------------------------

    def _prepare(self, programs: dict[str, str]) -> None:
        """Writes everything that the processes read."""
        layout = self.layout
        authority = Authority(self.directory / "pki")
        server = f"https://{layout.node}:6443"
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        authority.issue("apiserver", "kube-apiserver", addresses=[*names, layout.node, layout.first_service])
        authority.issue("apiserver-kubelet-client", "kube-apiserver-kubelet-client", ["system:masters"])
        authority.signing_key()
        users = {
            "admin": ("kubernetes-admin", ["system:masters"]),
            "coredns": ("coredns", ["system:masters"]),
            "kube-controller-manager": ("system:kube-controller-manager", []),
            "kube-scheduler": ("system:kube-scheduler", []),
            "kube-proxy": ("system:kube-proxy", []),
            "kubelet": ("system:node:node", ["system:nodes"]),
        }
        for name, (user, groups) in users.items():
            authority.kubeconfig(name, server, user, groups)
        (self.directory / "audit-policy.yaml").write_text(AUDIT_POLICY)
        busybox_archive(self.directory / "pause.tar")
        settings = {"layout": asdict(layout), "programs": programs}
        (self.directory / "settings.json").write_text(json.dumps(settings))

    def _launch(self, survives: bool) -> Process:
        command: list[str | Path] = [
            "unshare",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "--mount",
            "--net",
            sys.executable,
        ]
        arguments = ["-m", "tests.support.cluster.node", str(self.directory / "settings.json")]
        root = Path(__file__).parents[3]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory), "PYTHONPATH": str(root)}
        log = self.directory / "log" / "node.log"
        process = Process([*command, *arguments], log, env=environment, cwd=root, survives=survives).start()
        record = {"pid": process.pid, "started": _start_time(process.pid)}
        self._record.write_text(json.dumps(record))
        self._connect(process.wait_until(self._init_process, "the namespaces") or 0)
        return process

    def _connect(self, init: int) -> None:
        """A link between this machine and the cluster's network, and the way to all of the cluster's addresses."""
        layout = self.layout
        ends = ["ip", "link", "add", layout.link, "type", "veth", "peer", "name", "uplink", "netns", str(init)]
        run(ends)
        run(["ip", "address", "add", f"{layout.host}/30", "dev", layout.link])
        run(["ip", "link", "set", layout.link, "up"])
        run(["ip", "route", "add", layout.network, "via", layout.node, "dev", layout.link, "src", layout.host])

    def _node_ready(self) -> bool:
        admin = self.directory / "pki" / "admin.kubeconfig"
        if not (self.directory / "ready").exists():
            return False
        shutil.copy(admin, self.kubeconfig)
        return self.node_is_ready()

    # --- stop -----------------------------------------------------------------------------------------------------

    def _recorded_process(self) -> int | None:
        """The process that holds the cluster, unless its id is another's by now."""
        try:
            record = json.loads(self._record.read_text())
        except (OSError, ValueError):
            return None
        alive = _start_time(record["pid"]) == record["started"] is not None
        return int(record["pid"]) if alive else None

    def _init_process(self) -> int | None:
        """The first process within the namespaces, by its id outside."""
        outer = self._recorded_process()
        path = Path(f"/proc/{outer}/task/{outer}/children")
        words = path.read_text().split() if outer and path.exists() else []
        inside = [int(word) for word in words if _has_own_network(int(word))]
        return inside[0] if inside else None

    def _sweep(self) -> None:
        """Removes what a cluster of this name left. Only empty control groups can be removed."""
        for controller in Path("/sys/fs/cgroup").glob(f"**/{self.layout.cgroup}"):
            groups = sorted((path for path in controller.glob("**/") if path.is_dir()), reverse=True)
            for group in [*groups, controller]:
                with contextlib.suppress(OSError):
                    group.rmdir()
        subprocess.run(["ip", "link", "delete", self.layout.link], capture_output=True, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)


def _start_time(pid: int) -> str | None:
    """When a process began, in clock ticks since boot (proc(5)): together with its id it is unique."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _has_own_network(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    except OSError:
        return False
