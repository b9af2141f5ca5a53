"""`kubectl dbtunnel public-key`: the tunnel's public keys, a line each."""

import argparse
import sys

from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.cli.plugin.handout_text import NO_KEY
from dbtunnel.cli.plugin.options import add_common, cluster_of
from dbtunnel.domain.diagnosis import printable

EXAMPLE = "  kubectl dbtunnel public-key orders -n shop | ssh-keygen -lf -"

_KEY_LIMIT = 4096


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The tunnel alone."""
    add_common(parser)


def run(arguments: argparse.Namespace) -> int:
    """1 where no forwarder has told of a key yet."""
    keys = public_keys(cluster_of(arguments).tunnel(arguments.name))
    for key in keys:
        print(key)
    if not keys:
        print(NO_KEY, file=sys.stderr)
    return 0 if keys else 1


def public_keys(tunnel: DatabaseTunnel) -> list[str]:
    """The current key first, then one that is to replace it, then those of single SSH servers."""
    return [printable(key.key, _KEY_LIMIT) for key in tunnel.status.public_keys or () if key.key]
