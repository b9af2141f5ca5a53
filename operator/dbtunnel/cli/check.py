"""`dbtunnel check`: the "test connection" button, on any machine and with no cluster."""

import argparse
import asyncio
import json
import os
import sys
from datetime import UTC, datetime

import yaml

from dbtunnel.cli import UnusableInputError
from dbtunnel.cli.check_text import text_of
from dbtunnel.cli.local import local_tunnel
from dbtunnel.cli.options import add_local_arguments
from dbtunnel.cli.results import CheckResult, result_of
from dbtunnel.cli.terminal import add_color_argument, style_for
from dbtunnel.forwarder import logs
from dbtunnel.forwarder.check import check
from dbtunnel.forwarder.hardening import harden
from dbtunnel.forwarder.loop import ForwarderLoop
from dbtunnel.forwarder.watch import hot_loop

_INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ends, as shells have it."""

_WIDTH = 100_000
"""Columns of YAML: what is to be pasted stays on one line."""

EXAMPLE = """\
  dbtunnel check -f tunnel.yaml -i ~/.ssh/id_ed25519

Each SSH server is tried once, fallbacks too, with no retry, and the database
through each that lets the key in. Nothing is sent to a server whose host key
is not pinned; what it shows is printed, with the lines that pin it.
Exit code: 0 clients would be served, 1 a layer failed, 2 unusable input.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The manifest and the key, and how to print."""
    add_local_arguments(parser, required=True)
    parser.add_argument(
        "--probe",
        action="store_true",
        help="ask the database even where forwarders do not: where spec.probe.mode says so, and MySQL, which counts it"
        " as one connection error of the SSH server's address (max_connect_errors)",
    )
    parser.add_argument("-o", "--output", default="text", choices=("text", "json", "yaml"), help="default %(default)s")
    add_color_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """0 where clients would be served, 1 where a layer failed, 2 where the input cannot be used."""
    try:
        result = _checked(arguments)
    except UnusableInputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED
    print(_shown(result, arguments), end="")
    return 0 if result.ready else 1


def _checked(arguments: argparse.Namespace) -> CheckResult:
    tunnel, config, sources = local_tunnel(arguments)
    logs.configure("critical", "text")  # what there is to tell is in the result
    harden()
    with asyncio.Runner(loop_factory=lambda: hot_loop(ForwarderLoop)) as runner:
        findings = runner.run(check(config, sources, always_probe=arguments.probe))
    return result_of(tunnel, config, findings, datetime.now(UTC))


def _shown(result: CheckResult, arguments: argparse.Namespace) -> str:
    if arguments.output == "json":
        return json.dumps(result.document(), indent=2) + "\n"
    if arguments.output == "yaml":
        return yaml.safe_dump(result.document(), sort_keys=False, width=_WIDTH)
    return text_of(result, style_for(sys.stdout, arguments.color, os.environ))
