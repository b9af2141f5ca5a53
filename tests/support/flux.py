"""Flux beside a cluster: its own controllers as plain processes, and a git server of this machine."""

import itertools
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from tests.support.argocd import Repository
from tests.support.binaries import binary
from tests.support.cluster import Cluster
from tests.support.installation import NAMESPACE as OPERATOR_NAMESPACE
from tests.support.installation import RELEASE, helm
from tests.support.processes import Process, free_port, wait_until
from tests.support.tunnels import Manifest, apply, patch, remove_namespace

NAMESPACE = "flux-system"

CONTROLLERS = ("source-controller", "kustomize-controller", "helm-controller")

DEFINITIONS = [f"{name}-crds.yaml" for name in CONTROLLERS]

PROGRAMS = (*CONTROLLERS, *DEFINITIONS)
"""What has to be got."""

SECONDS = 60
"""How long something may take that Flux looks at every five seconds, on a busy machine."""

_MARKS = ("helm.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/namespace")
"""Labels of what a HelmRelease brought."""


class Flux:
    """Its controllers act upon the cluster with all rights."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster, self._directory = cluster, directory
        self._processes: list[Process] = []
        self._requests = itertools.count(1)
        self._definitions = [word for name in DEFINITIONS for word in ("-f", str(binary(name)))]

    def start(self) -> Self:
        """Starts it; it takes objects from then on."""
        # create: the annotation of a plain apply would be too long
        self.cluster.kubectl("create", *self._definitions)
        apply(self.cluster, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        self.cluster.kubectl("wait", "--for=condition=Established", *self._definitions, "--timeout=20s")
        storage, server = self._directory / "storage", f"127.0.0.1:{free_port()}"
        storage.mkdir(parents=True)
        addresses = (f"--storage-addr={server}", f"--storage-adv-addr={server}")
        self._start("source-controller", f"--storage-path={storage}", *addresses)
        for name in CONTROLLERS[1:]:
            self._start(name, "--requeue-dependency=1s")
        return self

    def stop(self) -> None:
        """Ends it, in the midst of whatever it does, and removes all that it was told."""
        for process in reversed(self._processes):
            process.kill()
        kinds = "kustomizations,gitrepositories,ocirepositories,helmreleases"
        for one in self.cluster.get(kinds, "-n", NAMESPACE)["items"]:
            # nobody is left who would do what the finalizer waits for
            name = f"{one['kind'].lower()}/{one['metadata']['name']}"
            patch(self.cluster, NAMESPACE, name, {"metadata": {"finalizers": None}})
        remove_namespace(self.cluster, NAMESPACE)
        self.cluster.kubectl("delete", *self._definitions, "--wait=false")
        self._leave_the_release()

    def _leave_the_release(self) -> None:
        """To helm's command line, which would meet conflicts with helm-controller as another that manages fields."""
        manifest = helm(self.cluster, "get", "manifest", RELEASE, "--namespace", OPERATOR_NAMESPACE)
        brought = ("-f", "-", "-n", OPERATOR_NAMESPACE)
        self.cluster.kubectl("label", *brought, *(f"{mark}-" for mark in _MARKS), input=manifest)
        listed = self.cluster.kubectl("get", *brought, "-o", "json", "--show-managed-fields", input=manifest)
        for one in json.loads(listed)["items"]:
            managers = [entry["manager"] for entry in one["metadata"]["managedFields"]]
            places = [place for place, name in enumerate(managers) if name == "helm-controller"]
            patches = [{"op": "remove", "path": f"/metadata/managedFields/{place}"} for place in reversed(places)]
            what = f"{one['kind'].lower()}/{one['metadata']['name']}"
            self.cluster.kubectl("patch", what, *brought[2:], "--type=json", "-p", json.dumps(patches))

    def _start(self, name: str, *arguments: str) -> None:
        ends = (f"--{part}-addr=127.0.0.1:{free_port()}" for part in ("metrics", "health"))
        environment = {**self.cluster.environment(), "RUNTIME_NAMESPACE": NAMESPACE, "TMPDIR": str(self._directory)}
        log = self._directory / f"{name}.log"
        self._processes.append(Process([binary(name), *ends, *arguments], log, env=environment).start())

    def ready(self, resource: str) -> Manifest:
        """The condition Ready of an object by `kind/name`, with the object; empty where there is none."""
        found = self.cluster.find(resource, NAMESPACE) or {}
        conditions = found.get("status", {}).get("conditions", ())
        return {"object": found, **next((one for one in conditions if one["type"] == "Ready"), {})}

    def wait_for(self, resource: str, status: str, reason: str = "", revision: str = "") -> Manifest:
        """The condition Ready, once it is so, and of that commit of git where one is given."""

        def found() -> Manifest | None:
            ready = self.ready(resource)
            attempted = ready["object"].get("status", {}).get("lastAttemptedRevision", "")
            is_so = ready.get("status") == status and ready.get("reason", "").endswith(reason)
            return ready if is_so and attempted.endswith(revision) else None

        what = f"{resource}: {status} {reason} {revision}"
        ready = wait_until(found, what, SECONDS, interval_seconds=0.2, describe=lambda: self._told(resource))
        assert ready
        return ready

    def reconcile(self, resource: str) -> Manifest:
        """Has Flux look at an object now, as `flux reconcile` does. The condition Ready once that is done."""
        request = str(next(self._requests))
        mark = {"reconcile.fluxcd.io/requestedAt": request}
        patch(self.cluster, NAMESPACE, resource, {"metadata": {"annotations": mark}})

        def done() -> Manifest | None:
            ready = self.ready(resource)
            return ready if ready["object"]["status"].get("lastHandledReconcileAt") == request else None

        ready = wait_until(
            done, f"{resource}: request {request}", SECONDS, interval_seconds=0.2, describe=lambda: self._told(resource)
        )
        assert ready
        return ready

    def _told(self, resource: str) -> str:
        status = self.ready(resource)["object"].get("status")
        return json.dumps(status, indent=1) + "".join(one.log_end(2000) for one in self._processes)


@contextmanager
def git_server(repository: Repository) -> Iterator[str]:
    """The address of a repository by git's own program behind HTTP: source-controller takes no files."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _GitHandler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        _GitHandler.root = repository.directory.parent
        yield f"http://127.0.0.1:{server.server_port}/{repository.directory.name}/.git"
        server.shutdown()


class _GitHandler(BaseHTTPRequestHandler):
    root: Path

    def do_GET(self) -> None:
        """Asks git's CGI program, and passes on what it answers."""
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, capture_output=True, check=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().split("\r\n"))
        self.send_response(int(fields.pop("Status", "200").split()[0]))
        for name, value in {**fields, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""
