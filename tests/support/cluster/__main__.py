"""`python -m tests.support.cluster up|down|status|kubeconfig [--name NAME]`"""

import argparse
import sys

from tests.support.binaries import BinaryError
from tests.support.cluster import ClusterError, cluster_of, start_cluster
from tests.support.debian import MissingPackageError
from tests.support.processes import ProcessError


def main() -> int:
    """Starts, stops or shows a cluster that outlives the command."""
    parser = argparse.ArgumentParser(prog="cluster", description=__doc__)
    parser.add_argument("command", choices=("up", "down", "status", "kubeconfig"))
    parser.add_argument("--name", default="dev", help="clusters of different names run side by side")
    arguments = parser.parse_args()
    try:
        _run(arguments.command, arguments.name)
    except (BinaryError, ClusterError, MissingPackageError, ProcessError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(command: str, name: str) -> None:
    cluster = cluster_of(name)
    if command == "up":
        start_cluster(name, survives=True)
        print(f"export KUBECONFIG={cluster.kubeconfig}")
    elif command == "down":
        cluster.stop()
    elif command == "kubeconfig":
        print(cluster.kubeconfig)
    else:
        print("running" if cluster.is_running() else "not running")


if __name__ == "__main__":
    sys.exit(main())
