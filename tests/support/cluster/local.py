"""A local Kubernetes: real programs as plain processes, in namespaces of their own.

Everything runs below one process in its own process, network and mount namespaces. When that process ends, for
whatever reason, the kernel ends all others and removes the network with its firewall rules and the mounts; nothing of
another cluster on the machine can be touched, and nothing that runs inside can reach anything but this machine.
What it leaves are empty control groups and its directory; the next start of any, and its own `stop`, remove them.

Pods get veth pairs that are routed, not bridged. NetworkPolicies are enforced by the engine that kind's own network
has.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from tests.support.binaries import binary
from tests.support.cluster.base import (
    AUDIT_POLICY,
    NODE_READY_SECONDS,
    AuditLog,
    Cluster,
    ClusterError,
    ClusterInUseError,
)
from tests.support.cluster.images import busybox_archive
from tests.support.cluster.layout import Layout, NoFreeNetworkError, cgroup_name, free_network, link_name, routes
from tests.support.cluster.pki import Authority
from tests.support.debian import ensure_packages
from tests.support.processes import Process, ProcessError, run, wait_until

PROGRAMS = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
    "coredns",
    "netpol",
)

PACKAGES = {
    "containerd": "runs the local cluster's containers",
    "runc": "runs the local cluster's containers",
    "containernetworking-plugins": "gives the local cluster's pods their network",
    "iptables": "the local cluster's Services and NetworkPolicies",
    "conntrack": "the local cluster's Services",
    "iproute2": "the local cluster's network",
}


class LocalCluster(Cluster):
    """A local cluster; needs root, for namespaces and containers."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._record = self.directory / "processes.json"
        self._settings = self.directory / "settings.json"
        self._forget()

    def _forget(self) -> None:
        """What was read of an earlier run."""
        self._audit, self._audit_offset = AuditLog(), 0
        self.__dict__.pop("_api", None)

    @property
    def layout(self) -> Layout:
        """What it takes on this machine. Raises ClusterError where it was not started."""
        try:
            return Layout(**json.loads(self._settings.read_text())["layout"])
        except OSError:
            raise ClusterError(f"the local cluster {self.name} does not run") from None

    @property
    def host_address(self) -> str:
        return self.layout.host

    def prepare(self) -> None:
        self._programs()

    def start(self, *, survives: bool = False) -> None:
        if survives and self.is_running():
            return
        self._refuse_if_used()
        programs = self._programs()
        self._sweep_the_dead()
        self._forget()
        began = time.monotonic()
        self._prepare(programs)
        try:
            self._launch(survives).wait_until(self._node_ready, "a Ready node", NODE_READY_SECONDS)
        except ProcessError as error:
            raise ClusterError(f"{error}\n{self.logs()}") from error
        print(
            f"local cluster {self.name}: node Ready after {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True
        )

    def _programs(self) -> dict[str, str]:
        """The components' paths, got now if need be, with Debian's packages."""
        if os.geteuid() != 0:
            raise ClusterError(
                "the local cluster needs root (namespaces, containers): run with sudo, or use CLUSTER=kind"
            )
        ensure_packages(PACKAGES)
        return {name: str(binary(name)) for name in PROGRAMS}

    def _refuse_if_used(self) -> None:
        """Whoever asks for a cluster that ends with it must not get, and then end, somebody else's."""
        if len(self._processes()) == 2:
            raise ClusterInUseError(
                f"the cluster {self.name} runs already, for another run of the tests: wait for its end, or stop it "
                f"with: python -m tests.support.cluster down --name {self.name}"
            )

    def stop(self) -> None:
        for process in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        wait_until(lambda: not self._processes(), "the end of the local cluster", 20)
        self._sweep()

    def is_running(self) -> bool:
        return len(self._processes()) == 2 and self.kubeconfig.exists()

    def load_image(self, archive: Path, reference: str) -> None:
        if not self.is_running():
            raise ClusterError(f"the local cluster {self.name} does not run")
        enter: list[str | Path] = ["nsenter", "--target", str(self._processes()[1]), "--mount", "--net"]
        run([*enter, "ctr", "--namespace", "k8s.io", "images", "import", archive.resolve()], timeout_seconds=300)

    def audit_log(self) -> AuditLog:
        with (self.directory / "audit.log").open("rb") as file:
            file.seek(self._audit_offset)
            data = file.read()
        self._audit_offset += len(data)
        self._audit.feed(data)
        return self._audit

    def logs(self) -> str:
        """The ends of all components' logs, for a failed start."""
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in self.directory.glob("log/*")
        )

    # --- start ----------------------------------------------------------------------------------------------------

    def _prepare(self, programs: dict[str, str]) -> None:
        """Writes everything that the processes read."""
        self.directory.mkdir(parents=True, exist_ok=True)
        layout = self._choose_layout()
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
            "netpol": ("netpol", ["system:masters"]),
        }
        for name, (user, groups) in users.items():
            authority.kubeconfig(name, server, user, groups)
        (self.directory / "audit-policy.yaml").write_text(AUDIT_POLICY)
        busybox_archive(self.directory / "pause.tar")
        self._settings.write_text(json.dumps({"layout": asdict(layout), "programs": programs}))

    def _choose_layout(self) -> Layout:
        try:
            return Layout.of(self.directory, free_network(self.directory, routes()))
        except NoFreeNetworkError as error:
            raise ClusterError(str(error)) from error

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
        arguments = ["-m", "tests.support.cluster.node", str(self._settings)]
        root = Path(__file__).parents[3]
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory), "PYTHONPATH": str(root)}
        log = self.directory / "log" / "node.log"
        process = Process([*command, *arguments], log, env=environment, cwd=root, survives=survives).start()
        self._remember(process.pid)
        init = process.wait_until(lambda: _child_with_own_network(process.pid), "the namespaces")
        self._remember(process.pid, init)
        self._connect(init)
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

    def _remember(self, *processes: int) -> None:
        """The process that holds the cluster, and the first one within its namespaces, by its id outside."""
        self._record.write_text(json.dumps([(process, _start_time(process)) for process in processes]))

    def _processes(self) -> list[int]:
        """Those of the recorded processes that still run; an id that is another's by now is left out."""
        try:
            record = json.loads(self._record.read_text())
        except (OSError, ValueError):
            return []
        return [process for process, started in record if _start_time(process) == started is not None]

    def _sweep_the_dead(self) -> None:
        """Removes what this cluster, and any other of the same cache whose processes have ended, left behind."""
        self.stop()
        for record in self.directory.parent.glob(f"*/{self._record.name}"):
            other = LocalCluster(record.parent.name)
            if not other._processes():
                other._sweep()

    def _sweep(self) -> None:
        """Removes what a cluster of this name left. Only empty control groups can be removed."""
        # neighbours' come and go meanwhile: walk passes over what is gone
        for group, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
            if cgroup_name(self.directory) in Path(group).parts:
                with contextlib.suppress(OSError):
                    Path(group).rmdir()
        subprocess.run(["ip", "link", "delete", link_name(self.directory)], capture_output=True, check=False)
        shutil.rmtree(self.directory, ignore_errors=True)


def _start_time(pid: int) -> str | None:
    """When a process began, in clock ticks since boot (proc(5)): together with its id it is unique."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _child_with_own_network(parent: int) -> int:
    """The child that has left this process's network; 0 while there is none."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    here = Path("/proc/self/ns/net").readlink()
    for child in children.read_text().split():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{child}/ns/net").readlink() != here:
                return int(child)
    return 0
