"""The operator in a cluster as people install it: its image, and the chart by the real helm."""

import os
import re
import subprocess
import tempfile
from pathlib import Path

from dbtunnel.api.resource import GROUP, PLURAL
from tests.support.binaries import binary
from tests.support.cluster import Cluster, ClusterError
from tests.support.images import CLIENT, OPERATOR, Recipe, build, retagged
from tests.support.processes import ROOT, wait_until

RELEASE, NAMESPACE = "dbtunnel", "dbtunnel-system"

WORKLOAD = f"deployment/{RELEASE}-dbtunnel-operator"
"""The operator's pods, as kubectl names them."""

METRICS_SERVICE = f"{RELEASE}-dbtunnel-operator-metrics"

CRD = f"{PLURAL}.{GROUP}"

_VARIABLES = {OPERATOR: "IMAGE", CLIENT: "CLIENT_IMAGE"}
"""Name images that a cluster has already, or pulls from its registry."""

_INSTALL_SECONDS = 120


def image_reference(recipe: Recipe) -> str:
    """The image's name: the given one, else that of this code, built now if need be."""
    return os.environ.get(_VARIABLES[recipe]) or build(recipe).reference


def provide_image(cluster: Cluster, recipe: Recipe) -> str:
    """Makes an image known to the cluster's nodes. Returns its reference."""
    given = os.environ.get(_VARIABLES[recipe])
    if given:
        return given
    image = build(recipe)
    cluster.load_image(image.archive, image.reference)
    return image.reference


def provide_next_image(cluster: Cluster) -> str:
    """Makes the operator's image known to the nodes under another tag, as that of another version. Returns it."""
    if os.environ.get(_VARIABLES[OPERATOR]):
        return os.environ["NEXT_IMAGE"]
    with tempfile.TemporaryDirectory() as directory:
        image = retagged(build(OPERATOR), "next", Path(directory))
        cluster.load_image(image.archive, image.reference)
    return image.reference


def helm_command(image: str, *options: str) -> list[str]:
    """The command line that installs the operator, or upgrades it."""
    repository, _, tag = image.rpartition(":")
    settings = [f"image.repository={repository}", f"image.tag={tag}", *options]
    return [
        *("helm", "upgrade", "--install", RELEASE, "charts/dbtunnel-operator"),
        *("--namespace", NAMESPACE, "--create-namespace"),
        *(word for setting in settings for word in ("--set", setting)),
        *("--hide-notes", "--wait", "--timeout", f"{_INSTALL_SECONDS}s"),
    ]


def install_operator(cluster: Cluster, image: str, *options: str) -> str:
    """Installs the operator and waits until it runs. Returns what helm says. Raises ClusterError."""
    return helm(cluster, *helm_command(image, *options)[1:])


def roll_back_operator(cluster: Cluster) -> str:
    """Back to the revision before, and waits until that runs. Returns what helm says. Raises ClusterError."""
    return helm(cluster, "rollback", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout", f"{_INSTALL_SECONDS}s")


def uninstall_operator(cluster: Cluster) -> None:
    """Removes the operator with its definition, which the chart itself keeps, and so every tunnel."""
    helm(cluster, "uninstall", RELEASE, "--namespace", NAMESPACE, "--ignore-not-found", "--wait")
    cluster.kubectl("delete", "crd", CRD, "--ignore-not-found", timeout_seconds=120)
    cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout_seconds=120)


def stated_takeover() -> tuple[int, int]:
    """Seconds until another operator writes, as the documentation states them: where the leader was told to end, and
    where it is gone.
    """
    stated = re.search(
        r"told to end within (\d+) s, from one that is killed, frozen or cut off\s+within (\d+) s",
        (ROOT / "docs/installation.md").read_text(),
    )
    assert stated
    return int(stated[1]), int(stated[2])


def helm(cluster: Cluster, *arguments: str) -> str:
    """What helm prints, run in the project's folder. Raises ClusterError with what it said where it fails."""
    done = subprocess.run(
        [binary("helm"), *arguments],
        cwd=ROOT,
        env=cluster.environment(),
        capture_output=True,
        text=True,
        timeout=_INSTALL_SECONDS + 60,
        check=False,
    )
    if done.returncode:
        raise ClusterError(f"helm {' '.join(arguments)}: {done.stderr or done.stdout}")
    return done.stdout


def printed_in(cluster: Cluster, namespace: str, target: str, program: str) -> str:
    """What a program prints that runs in a pod of ours. Raises ClusterError."""
    return cluster.kubectl("exec", target, "-n", namespace, "--", "/opt/dbtunnel/bin/python", "-c", program)


def wait_for_way(cluster: Cluster, host: str, port: int) -> None:
    """Until pods are led to a Service: nodes make their rules for it seconds after it is there."""
    connect = f"import socket; socket.create_connection(({host!r}, {port}), 2); print('yes')"

    def is_led() -> bool:
        try:
            return "yes" in printed_in(cluster, NAMESPACE, WORKLOAD, connect)
        except ClusterError:
            return False

    wait_until(is_led, f"a way to {host}", 60)
