"""`dbtunnel render`: the children of a manifest, for review before anything is applied."""

import argparse
import sys

import yaml

from dbtunnel.cli.manifests import ManifestError, read_tunnel
from dbtunnel.domain.children import desired_children
from dbtunnel.domain.settings import Installation

EXAMPLE = "  dbtunnel render -f tunnel.yaml -n shop"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What decides the children beside the manifest."""
    parser.add_argument(
        "-f", "--filename", required=True, help="a DatabaseTunnel in YAML or JSON; - for standard input"
    )
    parser.add_argument("-n", "--namespace", default="default", help="namespace where the manifest names none")
    parser.add_argument("--forwarder-image", default="dbtunnel", help="image of the forwarder's pods")
    parser.add_argument("--operator-namespace", default="dbtunnel-system", help="admitted to the admin port")


def run(arguments: argparse.Namespace) -> int:
    """Prints the objects as YAML; 2 where the manifest cannot be used."""
    try:
        tunnel = read_tunnel(arguments.filename, arguments.namespace)
    except ManifestError as error:
        print(error, file=sys.stderr)
        return 2
    installation = Installation(
        forwarder_image=arguments.forwarder_image, operator_namespace=arguments.operator_namespace
    )
    print(yaml.safe_dump_all(desired_children(tunnel, installation), sort_keys=False, width=120), end="")
    return 0
