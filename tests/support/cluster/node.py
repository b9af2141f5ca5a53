"""Inside the local cluster's namespaces: the first process, which starts the components and ends with one.

Run as `python -m tests.support.cluster.node SETTINGS.json` by `tests.support.cluster.local`.
"""

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import yaml

from tests.support.cluster.components import (
    cni_config,
    commands,
    containerd_config,
    coredns_config,
    diversions,
    kubelet_config,
    proxy_config,
)

_STEP_SECONDS = 30
"""How long each step may take at most."""


class Node:
    """The components of one cluster, as children of this process."""

    def __init__(self, settings: Mapping[str, Mapping[str, str]]) -> None:
        self.layout, self.programs = settings["layout"], settings["programs"]
        self.directory = Path(self.layout["directory"])
        self._readiness = f"https://{self.layout['node']}:6443/readyz"
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def run(self) -> None:
        """Starts everything and waits; returns when a component has ended."""
        self._mount()
        self._configure()
        all_commands = commands(self.layout, self.programs)
        for name in ("etcd", "containerd"):
            self._start(name, all_commands.pop(name))
        self._connect()
        self._start("kube-apiserver", all_commands.pop("kube-apiserver"))
        self._wait("containerd", lambda: _succeeds("ctr", "version"))
        _run("ctr", "--namespace", "k8s.io", "images", "import", str(self.directory / "pause.tar"))
        self._wait("kube-apiserver", self._api_is_ready)
        for name, command in all_commands.items():
            self._start(name, command)
        (self.directory / "ready").touch()
        self._wait_for_an_end()

    def _mount(self) -> None:
        """Private places for what programs keep under fixed paths."""
        _run("mount", "--make-rprivate", "/")
        for path in ("/run", "/var/log", "/var/lib/cni"):
            Path(path).mkdir(parents=True, exist_ok=True)
            _run("mount", "-t", "tmpfs", "tmpfs", path)
        Path("/run/lock").mkdir()

    def _configure(self) -> None:
        cni = self.directory / "cni"
        cni.mkdir(exist_ok=True)
        (cni / "10-routed.conflist").write_text(json.dumps(cni_config(self.layout)))
        (self.directory / "containerd.toml").write_text(containerd_config(self.layout))
        (self.directory / "kubelet.yaml").write_text(yaml.safe_dump(kubelet_config(self.layout)))
        (self.directory / "kube-proxy.yaml").write_text(yaml.safe_dump(proxy_config(self.layout)))
        (self.directory / "Corefile").write_text(coredns_config(self.layout))
        make_cgroup(Path("/sys/fs/cgroup"), self.layout["cgroup"])

    def _connect(self) -> None:
        """The link to the machine, which `tests.support.cluster.local` puts into this namespace."""
        _run("ip", "link", "set", "lo", "up")
        self._wait("uplink", lambda: Path("/proc/net/dev").read_text().count("uplink") > 0)
        _run("ip", "address", "add", f"{self.layout['node']}/30", "dev", "uplink")
        _run("ip", "link", "set", "uplink", "up")
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        # what is sent to a Service that kube-proxy does not know (yet) is refused here and goes nowhere
        _run("ip", "route", "add", "unreachable", self.layout["services"])
        for rule in diversions(self.layout):
            _run("iptables", "--wait", "--table", "mangle", "--append", "POSTROUTING", *rule)

    def _api_is_ready(self) -> bool:
        """Whoever asks is told."""
        trust = ssl.create_default_context(cafile=self.directory / "pki" / "ca.crt")
        with contextlib.suppress(OSError), urllib.request.urlopen(self._readiness, context=trust, timeout=5):
            return True
        return False

    def _start(self, name: str, command: list[str]) -> None:
        log = self.directory / "log" / f"{name}.log"
        with log.open("ab") as output:
            self._running[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _STEP_SECONDS
        while not condition():
            self._end_with_any()
            if time.monotonic() > deadline:
                raise SystemExit(f"{what}: not there after {_STEP_SECONDS} s")
            time.sleep(0.05)

    def _wait_for_an_end(self) -> None:
        """Reaps every process of the namespace, until a component ends."""
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            self._end_with_any()
            os.waitpid(ended.si_pid if ended else -1, 0)

    def _end_with_any(self) -> None:
        """A component that ends takes the cluster with it, so that it shows."""
        for name, process in self._running.items():
            if process.poll() is not None:
                raise SystemExit(f"{name} ended with {process.returncode}")


def make_cgroup(root: Path, name: str) -> None:
    """The control group that the kubelet keeps its own below: in each hierarchy of version 1, or once in version 2."""
    available = root / "cgroup.controllers"
    if not available.exists():
        for hierarchy in root.iterdir():
            if hierarchy.is_dir() and not hierarchy.is_symlink():
                (hierarchy / name).mkdir(exist_ok=True)
        return
    # the kubelet refuses a group without one of these that the machine has
    wanted = {"cpu", "cpuset", "memory", "hugetlb", "pids"}.intersection(available.read_text().split())
    (root / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in sorted(wanted)))
    (root / name).mkdir(exist_ok=True)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr}")


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main() -> None:
    """Runs until a component ends or this process is told to end."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    settings = json.loads(Path(sys.argv[1]).read_text())
    Node(settings).run()


if __name__ == "__main__":
    main()
