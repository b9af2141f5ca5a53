"""`dbtunnel crd`: the CustomResourceDefinition, as it stands in `crds/`."""

import argparse

import yaml

from dbtunnel.api.crd import crd

EXAMPLE = "  dbtunnel crd | kubectl apply -f -"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes none."""


def run(_: argparse.Namespace) -> int:
    """Prints it as YAML."""
    print(yaml.safe_dump(crd(), sort_keys=False, width=120), end="")
    return 0
