"""`kubectl dbtunnel status`: what the operator wrote, and what each forwarder counts."""

import argparse

from dbtunnel.cli.plugin.cluster import Cluster, DeniedError
from dbtunnel.cli.plugin.options import add_view_arguments, cluster_of, view_of
from dbtunnel.cli.plugin.replicas import Replica, read_replicas
from dbtunnel.cli.plugin.status_text import status_text

EXAMPLE = "  kubectl dbtunnel status orders -n shop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much to show."""
    add_view_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """0, whatever the status says. Who may not ask the pods sees what the tunnel's own status has."""
    cluster = cluster_of(arguments)
    tunnel = cluster.tunnel(arguments.name)
    print(status_text(tunnel, _replicas(cluster, arguments.name), view_of(arguments)), end="")
    return 0


def _replicas(cluster: Cluster, name: str) -> list[Replica] | str:
    try:
        return read_replicas(cluster, name)
    except DeniedError as error:
        return f"Sessions, bytes and replicas are not shown: {error}"
