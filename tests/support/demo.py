"""`make demo`: four databases behind a bastion become reachable in a real cluster, and then one by a new key."""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.support.binaries import BinaryError, binary, cache_directory
from tests.support.clients import COMMANDS, POD, Endpoint, first_query, start_client
from tests.support.cluster import Cluster, ClusterError, ExistingCluster, cluster_of, start_cluster
from tests.support.debian import MissingPackageError
from tests.support.images import CLIENT, OPERATOR, ImageError
from tests.support.installation import helm_command, provide_image, uninstall_operator
from tests.support.private_network import BASTION, DATABASES, PrivateNetwork
from tests.support.processes import ROOT, ProcessError
from tests.support.recorded import stop_recorded

EXAMPLES = ROOT / "examples"
NAMESPACE = "demo"
UNACCEPTED = "reports"
"""The tunnel whose key the bastion does not know at first."""

QUERY = "select id, item from orders order by id"

_NAME = "demo"
_WORKING_SECONDS = 120
_ACCEPTED_SECONDS = 150
"""A rejected key is tried again after about a minute, since sshd penalises failed logins."""


def main() -> int:
    """Runs the command line; 1 where the demo cannot be had, with the reason."""
    parser = argparse.ArgumentParser(prog="demo", description=__doc__)
    parser.add_argument("command", choices=("up", "down"))
    command = parser.parse_args().command
    try:
        Demo().up() if command == "up" else down()
    except (BinaryError, ClusterError, ImageError, MissingPackageError, ProcessError) as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    return 0


def down() -> None:
    """Removes everything that `up` started; does nothing where nothing runs."""
    stop_recorded(_directory())
    cluster = cluster_of(_NAME)
    if isinstance(cluster, ExistingCluster):  # it stays, so that what is in it has to go
        cluster.prepare()
        cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout_seconds=120)
        uninstall_operator(cluster)
    cluster.stop()


class Demo:
    """The steps, each printed as it is done."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._told: dict[str, tuple[str, str]] = {}
        self._cluster: Cluster
        self._network: PrivateNetwork

    def up(self) -> None:
        """Starts anew and leaves everything running."""
        down()
        self._step("A Kubernetes cluster")
        self._cluster = start_cluster(_NAME, survives=True)
        self._step("The images: the operator's, and one with database clients")
        operator, client = (provide_image(self._cluster, recipe) for recipe in (OPERATOR, CLIENT))
        self._step("An SSH bastion, and four databases that only it can reach")
        self._start_private_network()
        self._step("The operator, by Helm")
        self._run(helm_command(operator))
        self._step("Five tunnels; the bastion does not know the key of the fifth yet")
        self._apply(client)
        self._watch(lambda states: all(states[one.name] == "True" for one in DATABASES), _WORKING_SECONDS)
        self._run(["kubectl", "get", "databasetunnels", "--namespace", NAMESPACE])
        self._query()
        self._authorize()
        self._say_what_next()

    def _start_private_network(self) -> None:
        self._network = PrivateNetwork(_directory(), self._cluster.host_address, survives=True).start()
        print(f"  sshd at {self._network.bastion.host}:{self._network.bastion.port}; names that only it resolves:")
        for one in DATABASES:
            print(f"  {one.host:20} {one.engine:10} {self._network.addresses[one.host]}:{one.port}")

    def _apply(self, client: str) -> None:
        """The namespace with the keys and the way to the bastion, then all examples, as they stand."""
        self._cluster.kubectl("apply", "-f", EXAMPLES / "00-namespace.yaml")
        self._network.publish(self._cluster, NAMESPACE)
        self._run(["kubectl", "apply", "-f", "examples/"])
        start_client(self._cluster, NAMESPACE, client)

    def _query(self) -> None:
        self._step("A query through each Service, from a pod, with the engine's own client")
        for one in DATABASES:
            endpoint = Endpoint.of(self._tunnel(one.name))
            command = COMMANDS[one.engine](endpoint, QUERY)
            first_query(self._cluster, NAMESPACE, command)
            self._run(["kubectl", "exec", "--namespace", NAMESPACE, POD, "--", *command])

    def _authorize(self) -> None:
        self._step(f"The tunnel {UNACCEPTED} says what is missing")
        self._watch(lambda states: states[UNACCEPTED] == "False", _WORKING_SECONDS)
        path = '{.status.conditions[?(@.type=="Ready")].message}{"\\n"}'
        self._run(["kubectl", "get", "databasetunnel", UNACCEPTED, "-n", NAMESPACE, "-o", f"jsonpath={path}"])
        self._step("The bastion's administrator adds that line; the key is tried again within about a minute")
        self._network.authorize(self._tunnel(UNACCEPTED)["status"]["hops"][0]["authorizedKeysLine"])
        self._watch(lambda states: states[UNACCEPTED] == "True", _ACCEPTED_SECONDS)
        self._run(["kubectl", "get", "databasetunnels", "--namespace", NAMESPACE, "-o", "wide"])

    def _say_what_next(self) -> None:
        self._step("It goes on running. Look around")
        print(f"  export KUBECONFIG={self._cluster.kubeconfig}")
        print(f"  export PATH={binary('kubectl').parent}:$PATH")
        print(f"  kubectl describe databasetunnel {UNACCEPTED} -n {NAMESPACE}")
        print(f"  kubectl get service,deployment,networkpolicy,pod -n {NAMESPACE}")
        print("  kubectl explain databasetunnel.spec --recursive")
        print(f"  tail -f {self._network.bastion.log}    # what {BASTION} sees")
        print("and remove it with\n  make demo-down")

    # --- telling --------------------------------------------------------------------------------------------------

    def _step(self, text: str) -> None:
        print(f"\n==> {time.monotonic() - self._began:5.1f} s  {text}", flush=True)

    def _run(self, command: list[str]) -> None:
        """Shows a command and what it prints, as in a terminal. Raises ClusterError where it fails."""
        print(f"$ {shlex.join(command)}", flush=True)
        programs = f"{binary('kubectl').parent}:{binary('helm').parent}:{os.environ['PATH']}"
        environment = {**self._cluster.environment(), "PATH": programs}
        done = subprocess.run(command, cwd=ROOT, env=environment, timeout=300, check=False)
        if done.returncode:
            raise ClusterError(f"{shlex.join(command)}: exit code {done.returncode}")

    def _tunnel(self, name: str) -> dict[str, Any]:
        return self._cluster.get("databasetunnel", name, "-n", NAMESPACE)

    def _watch(self, is_enough: Callable[[dict[str, str]], bool], timeout_seconds: float) -> None:
        """Prints each change of a tunnel's Ready until it is enough. Raises ClusterError at the deadline."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            ready = self._ready()
            for name in (name for name in ready if self._told.get(name) != ready[name]):
                print(
                    f"  {time.monotonic() - self._began:5.1f} s  {name:10} Ready={': '.join(ready[name])}", flush=True
                )
            self._told = ready
            if is_enough({name: status for name, (status, _) in ready.items()}):
                return
            if time.monotonic() > deadline:
                raise ClusterError(f"not within {timeout_seconds} s; now: {yaml.safe_dump(ready)}")
            time.sleep(0.3)

    def _ready(self) -> dict[str, tuple[str, str]]:
        """Status and reason of each tunnel's Ready."""
        tunnels = self._cluster.get("databasetunnels", "-n", NAMESPACE)["items"]
        found = {}
        for tunnel in tunnels:
            conditions = {one["type"]: one for one in tunnel.get("status", {}).get("conditions", ())}
            ready = conditions.get("Ready", {"status": "none", "reason": "not seen yet"})
            found[tunnel["metadata"]["name"]] = (ready["status"], ready["reason"])
        return found


def _directory() -> Path:
    return cache_directory() / _NAME


if __name__ == "__main__":
    sys.exit(main())
