"""A real Argo CD beside a cluster: its own programs as plain processes, and a git repository of this machine.

What its installation manifests set up as pods is left out; the cluster has its definitions, its settings and a project.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from tests.support.binaries import binary
from tests.support.cluster import Cluster, ClusterError
from tests.support.debian import ensure_packages
from tests.support.processes import Process, free_port, run, wait_until
from tests.support.tunnels import Manifest, apply

NAMESPACE = "argocd"

PACKAGES = {"redis-server": "Argo CD's cache", "git": "the repository from which Argo CD syncs"}

SYNC_SECONDS = 90
"""How long a sync from an empty cluster may take, on a busy machine."""

_PART = {"app.kubernetes.io/part-of": "argocd"}
"""Argo CD reads no setting without this label."""

_STATE = "{{.status.sync.status}} {{len .status.history}}\n"


class Repository:
    """A git repository with one branch, `main`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True)
        self._git("init", "--quiet", "--initial-branch=main")

    @property
    def url(self) -> str:
        """How Argo CD reaches it."""
        return f"file://{self.directory}"

    def commit(self, files: Mapping[str, str]) -> str:
        """Makes these files the whole content of the branch. Returns the commit."""
        for path in self.directory.iterdir():
            if path.is_dir() and path.name != ".git":
                shutil.rmtree(path)
        for name, text in files.items():
            (self.directory / name).parent.mkdir(parents=True, exist_ok=True)
            (self.directory / name).write_text(text)
        self._git("add", "--all")
        self._git("commit", "--quiet", "--allow-empty", "--message=Change")
        return self._git("rev-parse", "HEAD").strip()

    def _git(self, *arguments: str) -> str:
        author = ("-c", "user.name=test", "-c", "user.email=test@example.com")
        return run(["git", *author, *arguments], cwd=self.directory)


class ArgoCD:
    """Argo CD's controller, with what it needs; it acts upon the cluster with all rights."""

    def __init__(self, cluster: Cluster, directory: Path, settings: Mapping[str, str]) -> None:
        """`settings`: the data of the ConfigMap argocd-cm."""
        ensure_packages(PACKAGES)
        self.cluster, self._directory, self._settings = cluster, directory, dict(settings)
        self._processes: list[Process] = []
        self._redis, self._repo_server = free_port(), free_port()

    def start(self) -> Self:
        """Starts it; it takes Applications from then on."""
        self._prepare_cluster()
        redis = ["redis-server", "--port", str(self._redis), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        cache = ("--redis", f"127.0.0.1:{self._redis}", "--metrics-port")
        server = ("--port", str(self._repo_server), "--disable-tls", "--client-ca-path=", *cache, str(free_port()))
        controller = (
            *("--kubeconfig", str(self.cluster.kubeconfig), "--namespace", NAMESPACE, *cache, str(free_port())),
            *("--repo-server", f"127.0.0.1:{self._repo_server}", "--repo-server-plaintext"),
            *("--app-resync", "10", "--self-heal-timeout-seconds", "1"),
        )
        self._start("redis", redis)
        self._start("argocd-repo-server", [str(binary("argocd")), *server])
        self._start("argocd-application-controller", [str(binary("argocd")), *controller])
        return self

    def stop(self) -> None:
        """Ends it, in the midst of whatever it does: nothing of it is kept."""
        for process in reversed(self._processes):
            process.kill()

    def change(self, **settings: str) -> None:
        """Changes settings of argocd-cm, underscores for dots; read while it runs."""
        self._settings |= {name.replace("_", "."): value for name, value in settings.items()}
        apply(self.cluster, _config_map(self._settings))

    def application(self, name: str) -> Manifest:
        """The Application as it is; empty where there is none."""
        return self.cluster.find(f"application/{name}", NAMESPACE) or {}

    def refresh(self, name: str) -> None:
        """Has it look at git and the cluster anew; returns once it has."""
        mark = "argocd.argoproj.io/refresh"
        self.cluster.kubectl("annotate", "applications.argoproj.io", name, "-n", NAMESPACE, f"{mark}=hard")
        wait_until(lambda: mark not in self.application(name)["metadata"].get("annotations", {}), "a refresh", 30)

    def wait_for(self, name: str, health: str, sync: str = "Synced", timeout_seconds: float = SYNC_SECONDS) -> Manifest:
        """The Application, once it has both and no operation is under way."""

        def found() -> Manifest | None:
            application = self.application(name)
            status = application.get("status", {})
            phase = status.get("operationState", {}).get("phase")
            is_done = phase == "Succeeded" and "operation" not in application
            is_so = [status.get(part, {}).get("status") for part in ("sync", "health")] == [sync, health]
            return status if is_done and is_so else None

        wait_until(found, f"{name}: {sync}, {health}", timeout_seconds, interval_seconds=0.3, describe=self.told(name))
        return self.application(name)

    def told(self, name: str) -> Any:
        """Describes the state for a test that fails."""
        return lambda: json.dumps(self.application(name).get("status"), indent=1) + self._processes[-1].log_end()

    @contextmanager
    def states(self, name: str) -> Iterator[Callable[[], set[str]]]:
        """The states of an Application from now on: sync, and how many syncs there were."""
        log = self._directory / f"states-{name}.log"
        log.unlink(missing_ok=True)
        watch = ["get", "applications.argoproj.io", name, "-n", NAMESPACE, "-w", "-o", f"go-template={_STATE}"]
        process = Process([binary("kubectl"), *watch], log, env=self.cluster.environment()).start()
        process.wait_until(log.read_text, "the first state")
        yield lambda: set(log.read_text().splitlines())
        process.stop()

    def _start(self, name: str, command: list[str]) -> None:
        log = self._directory / f"{name}.log"
        self._processes.append(Process(command, log, env=self._environment(name), cwd=self._directory).start())

    def _environment(self, name: str) -> dict[str, str]:
        folder = self._directory / "argocd"
        folder.mkdir(parents=True, exist_ok=True)
        # its image has one that checks signatures of commits; these have none
        (folder / "git-verify-wrapper.sh").write_text("#!/bin/sh\n")
        (folder / "git-verify-wrapper.sh").chmod(0o755)
        programs = ":".join(str(binary(one).parent) for one in ("helm", "kustomize"))
        return {
            "ARGOCD_BINARY_NAME": name,
            "ARGOCD_FAKE_IN_CLUSTER": "true",
            "ARGOCD_GPG_ENABLED": "false",
            # seconds between waves, for controllers to see what changed; health alone has to tell
            "ARGOCD_SYNC_WAVE_DELAY": "0",
            **{f"ARGOCD_{kind}_DATA_PATH": str(folder) for kind in ("TLS", "SSH")},
            "ARGOCD_PLUGINSOCKFILEPATH": str(folder),
            "ARGOCD_ASK_PASS_SOCK": str(folder / "ask-pass.sock"),
            "KUBECONFIG": str(self.cluster.kubeconfig),
            "PATH": f"{folder}:{programs}:{os.environ['PATH']}",
            "TMPDIR": str(folder),
            "HOME": str(folder),
        }

    def _serves_applications(self) -> bool:
        # kubectl wait fails on a definition that has no condition yet
        try:
            self.cluster.get("applications.argoproj.io,appprojects.argoproj.io", "-n", NAMESPACE)
        except ClusterError:
            return False
        return True

    def _prepare_cluster(self) -> None:
        apply(self.cluster, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        self.cluster.kubectl("apply", "--server-side", "-f", binary("argocd-crds.yaml"))
        wait_until(self._serves_applications, "the definitions", interval_seconds=0.2)
        project = {
            "sourceRepos": ["*"],
            "destinations": [{"namespace": "*", "server": "*"}],
            "clusterResourceWhitelist": [{"group": "*", "kind": "*"}],
        }
        secret = {"kind": "Secret", "metadata": _named("argocd-secret"), "stringData": {"server.secretkey": "unused"}}
        apply(
            self.cluster,
            _config_map(self._settings),
            {"apiVersion": "v1", **secret},
            {**_ARGOPROJ, "kind": "AppProject", "metadata": _named("default"), "spec": project},
        )


_ARGOPROJ = {"apiVersion": "argoproj.io/v1alpha1"}


def _named(name: str) -> Manifest:
    return {"name": name, "namespace": NAMESPACE, "labels": _PART}


def _config_map(data: Mapping[str, str]) -> Manifest:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _named("argocd-cm"), "data": dict(data)}
