"""Options that several commands have."""

import argparse
from pathlib import Path


def add_local_arguments(group: "argparse._ActionsContainer", *, required: bool = False) -> None:
    """The manifest, and the files of this machine that it needs; `required`: whether there is no way without."""
    group.add_argument(
        "-f", "--filename", required=required, help="a DatabaseTunnel in YAML or JSON; - for standard input"
    )
    group.add_argument("-n", "--namespace", default="default", help="namespace where the manifest names none")
    group.add_argument("-i", "--identity", required=required, type=Path, metavar="KEY", help="the private key, a file")
    group.add_argument(
        "--passphrase-file", type=Path, metavar="FILE", help="the keys' passphrase; asked for at a terminal"
    )
    group.add_argument(
        "--known-hosts", type=Path, metavar="FILE", help="host keys, in place of the object of hostKey.knownHostsRef"
    )
    group.add_argument(
        "--hop-identity",
        action="append",
        metavar="HOST:PORT=KEY",
        help="another private key for a jump host or fallback; may be repeated (default: that of -i)",
    )
    group.add_argument(
        "--hop-known-hosts",
        action="append",
        metavar="HOST:PORT=FILE",
        help="host keys of a jump host or fallback, in place of its knownHostsRef; may be repeated",
    )
