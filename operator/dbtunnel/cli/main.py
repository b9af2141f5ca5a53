"""The command `dbtunnel`: a module a subcommand, imported only when it is asked for, so that forwarders start fast."""

import argparse
import gc
import importlib
import sys
from collections.abc import Collection, Sequence
from types import ModuleType

from dbtunnel import __version__

COMMANDS = {
    "operator": "run the operator",
    "forward": "run a forwarder, the process of a tunnel's pod",
    "check": "test the connection that a manifest describes, once and layer by layer",
    "crd": "print the CustomResourceDefinition",
    "render": "print the objects that the operator would make for a manifest",
    "completion": "print what makes a shell complete this command",
}
"""Each is the module of that name in this package, with `EXAMPLE`, `add_arguments(parser)` and
`run(arguments) -> exit code`."""


def build_parser(chosen: Collection[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The command line, with the arguments of the chosen commands; the modules of others are not imported."""
    parser = argparse.ArgumentParser(
        prog="dbtunnel", description="Private databases behind SSH bastions, by host name."
    )
    parser.add_argument("--version", action="version", version=f"dbtunnel {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(
            name, help=help_text, description=help_text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in chosen:
            module = _module(name)
            command.epilog = f"example:\n{module.EXAMPLE}"
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Exit codes: 0 done, 1 failed, 2 unusable input."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser(words[:1]).parse_args(words)
    return int(arguments.run(arguments))


def _module(name: str) -> ModuleType:
    """A subcommand's. What is imported stays: to look for garbage among it, now or later, takes time and finds none."""
    gc.disable()
    try:
        return importlib.import_module(f"dbtunnel.cli.{name}")
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
