"""The command `kubectl-dbtunnel`, which kubectl runs as `kubectl dbtunnel`."""

import argparse
import importlib
import sys
from collections.abc import Collection, Sequence

from dbtunnel import __version__
from dbtunnel.cli import UnusableInputError

PROGRAM = "kubectl dbtunnel"

COMMANDS = {
    "status": "layers, SSH servers, sessions and bytes of replicas, what to do",
    "check": "have the running forwarders look now, and tell what they see, past the operator",
    "handout": "print what the administrator of each SSH server needs",
    "trust": "show the host keys that SSH servers offer, and pin them in the spec",
    "public-key": "print the tunnel's public keys, as in authorized_keys",
    "rotate-key": "replace the tunnel's key while it works",
}
"""Each is a module of this package, with `EXAMPLE`, `add_arguments(parser)` and `run(arguments) -> exit code`."""

_INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ends, as shells have it."""


def build_parser(chosen: Collection[str] = tuple(COMMANDS)) -> argparse.ArgumentParser:
    """The command line, with the arguments of the chosen commands; the modules of others are not imported."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Tunnels to private databases, with your own kubeconfig and rights.",
        epilog="Exit codes: 0 done, 1 it works not or not yet, 2 it could not be tried.",
    )
    parser.add_argument("--version", action="version", version=f"kubectl-dbtunnel {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, help_text in COMMANDS.items():
        command = commands.add_parser(
            name, help=help_text, description=help_text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in chosen:
            module = importlib.import_module(f"dbtunnel.cli.plugin.{name.replace('-', '_')}")
            command.epilog = f"example:\n{module.EXAMPLE}"
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Exit codes: 0 done, 1 it works not or not yet, 2 it could not be tried."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = build_parser(words[:1]).parse_args(words)
    try:
        return int(arguments.run(arguments))
    except UnusableInputError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
