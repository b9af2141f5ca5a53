"""`python -m tests.support.cluster up|down|status|kubeconfig [--name NAME]`"""

import argparse
import sys

from tests.support.cluster import ClusterError, cluster_of, start_cluster


def main() -> int:
    """Starts, stops or shows a cluster that outlives the command."""
    parser = argparse.ArgumentParser(prog="cluster", description=__doc__)
    parser.add_argument("command", choices=("up", "down", "status", "kubeconfig"))
    parser.add_argument("--name", default="dev", help="clusters of different names run side by side")
    arguments = parser.parse_args()
    cluster = cluster_of(arguments.name)
    try:
        if arguments.command == "up":
            start_cluster(arguments.name, survives=True)
            print(f"export KUBECONFIG={cluster.kubeconfig}")
        elif arguments.command == "down":
            cluster.stop()
        elif arguments.command == "kubeconfig":
            print(cluster.kubeconfig)
        else:
            print("running" if cluster.is_running() else "not running")
    except ClusterError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
