"""`dbtunnel forward`: the process of a tunnel's pod; with a manifest and a key, the same on any machine."""

import argparse
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from dbtunnel.api import forwarder as wire
from dbtunnel.api.documents import DocumentError, read
from dbtunnel.cli import UnusableInputError
from dbtunnel.cli.options import add_local_arguments
from dbtunnel.forwarder import app, logs
from dbtunnel.forwarder.connection import Sources
from dbtunnel.forwarder.hardening import harden
from dbtunnel.forwarder.keys import MountedKeys, read_file

_LOOPBACK = "127.0.0.1"

EXAMPLE = """\
  dbtunnel forward -f tunnel.yaml -i ~/.ssh/id_ed25519
  dbtunnel forward -f tunnel.yaml -i ~/.ssh/id_ed25519 --listen 127.0.0.1:15432"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Where it listens and finds its files; what it does is in its configuration."""
    parser.add_argument("--listen", type=address, metavar="[HOST]:PORT", help="for clients (default: see below)")
    parser.add_argument(
        "--admin-listen", type=address, metavar="[HOST]:PORT", help="of /livez, /readyz, /status and /metrics"
    )
    parser.add_argument(
        "--log-level", default="info", choices=("debug", "info", "warning", "error"), help="default %(default)s"
    )
    parser.add_argument(
        "--packets",
        default="own",
        choices=("own", "asyncssh"),
        help="whose code carries clients' data over SSH; asyncssh's is slower (default %(default)s)",
    )
    parser.add_argument("--log-format", choices=sorted(logs.FORMATS), help="default: json in a pod, else text")
    _add_pod_arguments(
        parser.add_argument_group(
            "in a pod",
            f"The configuration is in {wire.CONFIG_VARIABLE}. It listens on :{wire.DATABASE_PORT} and"
            f" :{wire.ADMIN_PORT}.",
        )
    )
    add_local_arguments(
        parser.add_argument_group(
            "on any machine, without a cluster",
            "It listens on 127.0.0.1, on the port that the tunnel's Service has, and on\n"
            f"127.0.0.1:{wire.ADMIN_PORT}. A second Ctrl-C ends it at once.",
        )
    )


def _add_pod_arguments(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--key-directory",
        type=Path,
        default=Path(wire.KEY_DIRECTORY),
        help="the mounted key Secret (default %(default)s)",
    )
    group.add_argument(
        "--known-hosts-directory",
        type=Path,
        default=Path(wire.KNOWN_HOSTS_DIRECTORY),
        help="the mounted object of hostKey.knownHostsRef (default %(default)s)",
    )
    group.add_argument(
        "--hops-directory",
        type=Path,
        default=Path(wire.HOPS_DIRECTORY),
        help="those of jump hosts and fallbacks (default %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Runs until SIGTERM or SIGINT. 2 where the input cannot be used, 1 where an address is taken."""
    try:
        config, around = _prepared(arguments)
    except UnusableInputError as error:
        print(error, file=sys.stderr)
        return 2
    config = replace(config, own_packets=arguments.packets == "own")
    logs.configure(arguments.log_level, arguments.log_format or ("json" if arguments.filename is None else "text"))
    harden()
    try:
        app.run(config, around)
    except app.ListenError as error:
        print(f"{error}; choose another with --listen or --admin-listen, or end what listens there", file=sys.stderr)
        return 1
    return 0


def _prepared(arguments: argparse.Namespace) -> tuple[wire.ForwarderConfig, app.Surroundings]:
    if arguments.filename is not None:
        return _local(arguments)
    for name in ("identity", "passphrase_file", "known_hosts", "hop_identity", "hop_known_hosts"):
        if getattr(arguments, name) is not None:
            raise UnusableInputError(f"--{name.replace('_', '-')} needs -f MANIFEST")
    config = _config_from_environment()
    return config, app.Surroundings(
        pod_uid=os.environ.get(wire.POD_UID_VARIABLE, ""),
        listen=arguments.listen or app.Address("", wire.DATABASE_PORT),
        admin_listen=arguments.admin_listen or app.Address("", wire.ADMIN_PORT),
        sources=list(_mounted(config, arguments)),
    )


def _local(arguments: argparse.Namespace) -> tuple[wire.ForwarderConfig, app.Surroundings]:
    # a pod needs none of what this imports: it starts faster and stays smaller without
    from dbtunnel.cli.local import local_tunnel  # noqa: PLC0415
    from dbtunnel.domain.forwarding import service_port  # noqa: PLC0415

    tunnel, config, sources = local_tunnel(arguments)
    return config, app.Surroundings(
        pod_uid="",
        listen=arguments.listen or app.Address(_LOOPBACK, service_port(tunnel)),
        admin_listen=arguments.admin_listen or app.Address(_LOOPBACK, wire.ADMIN_PORT),
        sources=sources,
    )


def _mounted(config: wire.ForwarderConfig, arguments: argparse.Namespace) -> Iterator[Sources]:
    for number, hop in enumerate(config.hops):
        further = arguments.hops_directory / str(number)
        keys = further / "key" if hop.key else arguments.key_directory
        hosts = further / "known-hosts" if number else arguments.known_hosts_directory
        source, name = MountedKeys(keys, hop.key or config.key), hop.host_key.known_hosts_file
        yield Sources(source, partial(read_file, hosts, name)) if name else Sources(source)


def _config_from_environment() -> wire.ForwarderConfig:
    text = os.environ.pop(wire.CONFIG_VARIABLE, None)
    if text is None:
        raise UnusableInputError(
            f"{wire.CONFIG_VARIABLE}: not set; the operator sets it to the forwarder's configuration."
            " Without a cluster give a manifest and a key: -f tunnel.yaml -i KEY"
        )
    try:
        return read(wire.ForwarderConfig, text)
    except DocumentError as error:
        raise UnusableInputError(f"{wire.CONFIG_VARIABLE}: {error}") from None


def address(text: str) -> app.Address:
    """`[HOST]:PORT`, an IPv6 host in brackets. Raises argparse.ArgumentTypeError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"found {text!r}; write HOST:PORT, or :PORT for every address")
    return app.Address(host.removeprefix("[").removesuffix("]"), int(port))
