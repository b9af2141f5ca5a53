"""What all subcommands take, as kubectl has it."""

import argparse
import os
import sys
from datetime import UTC, datetime

from dbtunnel.cli.plugin.cluster import Cluster, open_cluster
from dbtunnel.cli.plugin.status_text import View
from dbtunnel.cli.terminal import Style, add_color_argument, style_for


def add_common(parser: argparse.ArgumentParser) -> None:
    """The tunnel, and where it is."""
    parser.add_argument("name", metavar="NAME", help="of the DatabaseTunnel")
    parser.add_argument("-n", "--namespace", help="default: that of the context")
    parser.add_argument("--context", help="of the kubeconfig; default: the current one")
    parser.add_argument("--kubeconfig", metavar="FILE", help="default: as kubectl finds it")
    add_color_argument(parser)


def add_view_arguments(parser: argparse.ArgumentParser) -> None:
    """The tunnel, and how much of it to show."""
    add_common(parser)
    parser.add_argument(
        "-o",
        "--output",
        default="text",
        choices=("text", "wide"),
        help="wide: more than fits the terminal (default %(default)s)",
    )


def cluster_of(arguments: argparse.Namespace) -> Cluster:
    """The cluster that was meant. Raises ClusterError."""
    return open_cluster(arguments.kubeconfig, arguments.context, arguments.namespace)


def style_of(arguments: argparse.Namespace) -> Style:
    """How to write to standard output."""
    return style_for(sys.stdout, arguments.color, os.environ)


def view_of(arguments: argparse.Namespace) -> View:
    """How to show a status, in the zone of the machine."""
    wide = getattr(arguments, "output", "text") == "wide"
    return View(style_of(arguments), datetime.now(UTC), zone=None, wide=wide)
