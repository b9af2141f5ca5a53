"""`kubectl_complete-dbtunnel`: what kubectl's own completion asks for `kubectl dbtunnel`."""

import argparse
import contextlib
import sys
from collections.abc import Sequence

from dbtunnel.cli import UnusableInputError
from dbtunnel.cli.completion import choices_of, options_of, subcommands
from dbtunnel.cli.plugin.main import COMMANDS, build_parser
from dbtunnel.cli.plugin.options import cluster_of

_NO_FILES = 4
"""ShellCompDirectiveNoFileComp of Cobra, the library of kubectl's command line."""

_PLACE = ("-n", "--namespace", "--context", "--kubeconfig")
"""Options of which nothing is known here."""


def main(argv: Sequence[str] | None = None) -> int:
    """The words so far, the last of them unfinished or empty; prints a candidate a line, then Cobra's directive."""
    words = sys.argv[1:] if argv is None else list(argv)
    print("\n".join([*candidates(words), f":{_NO_FILES}"]))
    return 0


def candidates(words: Sequence[str]) -> list[str]:
    """What may stand in the place of the last word."""
    *before, unfinished = words or [""]
    return [one for one in _possible(before, unfinished) if one.startswith(unfinished)]


def _possible(before: Sequence[str], unfinished: str) -> Sequence[str]:
    if not before:
        return tuple(COMMANDS)
    parser = subcommands(build_parser(before[:1])).get(before[0])
    if parser is None or before[-1] in _PLACE:
        return ()
    if before[-1] in (choices := choices_of(parser)):
        return choices[before[-1]]
    return options_of(parser) if unfinished.startswith("-") else _names(before[1:])


def _names(words: Sequence[str]) -> Sequence[str]:
    """The tunnels of the namespace; none where the cluster does not tell."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    for options in (("-n", "--namespace"), ("--context",), ("--kubeconfig",)):
        parser.add_argument(*options)
    with contextlib.suppress(UnusableInputError, argparse.ArgumentError):
        return cluster_of(parser.parse_known_args(words)[0]).tunnel_names()
    return ()


if __name__ == "__main__":
    sys.exit(main())
