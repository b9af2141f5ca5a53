"""`dbtunnel forward`: the process of a tunnel's pod."""

import argparse
import asyncio
import os
import sys
from pathlib import Path

from pydantic import ValidationError

from dbtunnel.api import forwarder as wire
from dbtunnel.forwarder import app, logs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where it listens and finds its files; what it does is in its configuration."""
    parser.add_argument(
        "--listen", type=address, default=f":{wire.DATABASE_PORT}", help="[HOST]:PORT for clients (default %(default)s)"
    )
    parser.add_argument(
        "--admin-listen",
        type=address,
        default=f":{wire.ADMIN_PORT}",
        help="[HOST]:PORT of /livez, /readyz, /status and /metrics (default %(default)s)",
    )
    parser.add_argument(
        "--key-directory",
        type=Path,
        default=Path(wire.KEY_DIRECTORY),
        help="the mounted key Secret (default %(default)s)",
    )
    parser.add_argument(
        "--known-hosts-directory",
        type=Path,
        default=Path(wire.KNOWN_HOSTS_DIRECTORY),
        help="the mounted object of hostKey.knownHostsRef (default %(default)s)",
    )
    parser.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"), help="default %(default)s"
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs until SIGTERM or SIGINT. 2 where the configuration cannot be used, 1 where an address is taken."""
    text = os.environ.pop(wire.CONFIG_VARIABLE, None)
    if text is None:
        print(
            f"{wire.CONFIG_VARIABLE}: not set; the operator sets it to the forwarder's configuration", file=sys.stderr
        )
        return 2
    try:
        config = wire.ForwarderConfig.model_validate_json(text)
    except ValidationError as error:
        for problem in error.errors():
            where = ".".join(str(part) for part in problem["loc"])
            print(f"{wire.CONFIG_VARIABLE}: {where}: {problem['msg']}", file=sys.stderr)
        return 2
    logs.configure(arguments.log_level)
    around = app.Surroundings(
        pod_uid=os.environ.get(wire.POD_UID_VARIABLE, ""),
        listen=arguments.listen,
        admin_listen=arguments.admin_listen,
        key_directory=arguments.key_directory,
        known_hosts_directory=arguments.known_hosts_directory,
    )
    try:
        asyncio.run(app.run(config, around))
    except app.ListenError as error:
        print(f"--listen or --admin-listen: {error}; choose a free port, or end what listens there", file=sys.stderr)
        return 1
    return 0


def address(text: str) -> app.Address:
    """`[HOST]:PORT`, an IPv6 host in brackets. Raises argparse.ArgumentTypeError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"found {text!r}; write HOST:PORT, or :PORT for every address")
    return app.Address(host.removeprefix("[").removesuffix("]"), int(port))
