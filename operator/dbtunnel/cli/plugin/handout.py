"""`kubectl dbtunnel handout`: what each SSH server's administrator needs, for a mail or a ticket."""

import argparse
import sys

from dbtunnel.cli.plugin.handout_text import NO_KEY, handout_markdown, handout_text, parts_of
from dbtunnel.cli.plugin.options import add_common, cluster_of, style_of

EXAMPLE = "  kubectl dbtunnel handout orders -n shop -o markdown > ticket.md"

_FORMS = {"text": handout_text, "markdown": handout_markdown}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The form."""
    add_common(parser)
    parser.add_argument("-o", "--output", default="text", choices=tuple(_FORMS), help="default %(default)s")


def run(arguments: argparse.Namespace) -> int:
    """1 where a key is not known yet, so that a part has no line."""
    tunnel = cluster_of(arguments).tunnel(arguments.name)
    print(_FORMS[arguments.output](tunnel, style_of(arguments)), end="")
    if all(part.lines for part in parts_of(tunnel)):
        return 0
    print(NO_KEY, file=sys.stderr)
    return 1
