"""`kubectl dbtunnel trust`: a person compares the host keys that SSH servers show, and pins them in the spec.

Also those that a server which is verified has announced, before it changes to one of them.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from dbtunnel.api.forwarder import ForwarderConfig
from dbtunnel.api.resource import PLURAL, DatabaseTunnel
from dbtunnel.api.status import Hop
from dbtunnel.cli import UnusableInputError
from dbtunnel.cli.advice import pin_lines
from dbtunnel.cli.plugin.cluster import ClusterError
from dbtunnel.cli.plugin.handout_text import known_hop
from dbtunnel.cli.plugin.options import add_common, cluster_of, style_of
from dbtunnel.cli.tables import Row, table
from dbtunnel.cli.terminal import Color, Style
from dbtunnel.domain.facts import announced_keys
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.hops import ends_of, hop_name, jumps_of, spec_path
from dbtunnel.domain.settings import Defaults

EXAMPLE = """\
  kubectl dbtunnel trust orders -n shop
  kubectl dbtunnel trust orders -n shop --print
      for a manifest that is kept in Git"""

_SUSPECT = "It shows these. Unless its administrator has replaced the old ones, somebody else answers there."
_ANNOUNCED = "It has proved this over a connection that a pinned key verifies. Pinned as well, they let it change keys."
_COMPARE = (
    "Compare them with what its administrator tells, or what the server prints by:",
    "  for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -lf $key; done",
)
_CONFLICT = 422

Offer = tuple[int, Hop]
"""Number of an SSH server, and what it showed: the host keys to pin."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether to ask, and whether to write."""
    add_common(parser)
    parser.add_argument("--yes", action="store_true", help="pin them without asking: you have compared them")
    parser.add_argument("--print", action="store_true", help="print the YAML that pins them, and write nothing")
    parser.add_argument("--replace", action="store_true", help="also where other host keys are pinned by fingerprint")


def run(arguments: argparse.Namespace) -> int:
    """0 where everything is pinned afterwards, 1 where it is not."""
    cluster = cluster_of(arguments)
    tunnel = cluster.tunnel(arguments.name)
    config = forwarder_config(tunnel, Defaults())
    wanted = changed(tunnel, config) if arguments.replace else unpinned(config)
    offers = [(number, known_hop(tunnel, config, number)) for number in wanted] + announced(tunnel, config)
    shown = [offer for offer in offers if offer[1].host_key_fingerprints]
    if arguments.print:
        print("\n".join(pin_lines([hop for _, hop in shown])) if shown else "", end="\n" if shown else "")
        return _told_missing(config, offers)
    for line in trust_text(config, shown, style_of(arguments)):
        print(line)
    missing = _told_missing(config, offers)
    if not offers:
        print("Every SSH server's host key is pinned already.")
    if not shown:
        return missing
    if not (arguments.yes or _agrees()):
        print("Nothing was changed.")
        return 1
    try:
        cluster.patch(PLURAL, arguments.name, pin_operations(tunnel, config, shown))
    except ClusterError as error:
        if error.status != _CONFLICT:
            raise
        raise ClusterError(f"the spec has changed meanwhile, or does not take them: {error}. Try again") from None
    print("Pinned. Where the manifest is kept in Git, add there what --print prints, or it is taken away again.")
    return missing


def unpinned(config: ForwarderConfig) -> list[int]:
    """Numbers of the SSH servers for which nothing is pinned, in the order of the way."""
    return [number for number in (*jumps_of(config), *ends_of(config)) if not _is_pinned(config, number)]


def changed(tunnel: DatabaseTunnel, config: ForwarderConfig) -> list[int]:
    """The same, and those that show no host key whose fingerprint is pinned."""
    numbers = (*jumps_of(config), *ends_of(config))
    return [number for number in numbers if not _is_pinned(config, number) or _shows_others(tunnel, config, number)]


def announced(tunnel: DatabaseTunnel, config: ForwarderConfig) -> list[Offer]:
    """SSH servers that have proved to hold host keys beside those that are pinned, with all of these to be pinned."""
    if tunnel.status.observed_generation != tunnel.metadata.generation:
        return []  # what it tells may be of servers that another spec trusted
    offers = []
    for number in (*jumps_of(config), *ends_of(config)):
        hop = known_hop(tunnel, config, number)
        if keys := announced_keys(config, number, hop):
            to_pin = (*config.hops[number].host_key.fingerprints, *keys)
            offers.append((number, hop.model_copy(update={"host_key_fingerprints": to_pin})))
    return offers


def _is_pinned(config: ForwarderConfig, number: int) -> bool:
    rule = config.hops[number].host_key
    return bool(rule.fingerprints or rule.known_hosts is not None or rule.known_hosts_file is not None)


def _shows_others(tunnel: DatabaseTunnel, config: ForwarderConfig, number: int) -> bool:
    """Of known_hosts texts nothing is said: they are edited where they stand."""
    pinned = set(config.hops[number].host_key.fingerprints)
    shown = {_fingerprint(one) for one in known_hop(tunnel, config, number).host_key_fingerprints or ()}
    return bool(pinned and shown and not pinned & shown)


def _fingerprint(shown: str) -> str:
    return shown.rpartition(" ")[2]


def pin_operations(tunnel: DatabaseTunnel, config: ForwarderConfig, offers: Sequence[Offer]) -> list[dict[str, Any]]:
    """A JSON patch that pins them, if the spec is still the one that was read."""
    operations: list[dict[str, Any]] = [
        {"op": "test", "path": "/metadata/generation", "value": tunnel.metadata.generation}
    ]
    for number, hop in offers:
        path = spec_path(config, number).replace(".", "/").replace("[", "/").replace("]", "")
        pinned: dict[str, Any] = {"fingerprints": [_fingerprint(one) for one in hop.host_key_fingerprints or ()]}
        alias = config.hops[number].host_key.alias
        value = {**pinned, "alias": alias} if alias else pinned
        operations.append({"op": "add", "path": f"/{path}/hostKey", "value": value})
    return operations


def trust_text(config: ForwarderConfig, offers: Sequence[Offer], style: Style) -> Iterator[str]:
    """The host keys to compare, by SSH server."""
    for number, hop in offers:
        pinned = config.hops[number].host_key.fingerprints
        shown = announced_keys(config, number, hop) or hop.host_key_fingerprints or ()
        if pinned and len(shown) < len(hop.host_key_fingerprints or ()):
            yield style.text(f"{hop_name(config, number)} holds these host keys too, which are not pinned:", Color.BOLD)
            yield from style.wrapped(_ANNOUNCED)
        elif pinned:
            yield style.text(f"{hop_name(config, number)} no longer shows the host key that is pinned:", Color.RED)
            yield from (style.text(f"  {one}") for one in pinned)
            yield from style.wrapped(_SUSPECT)
        else:
            yield style.text(f"{hop_name(config, number)} shows these host keys, and none is pinned:", Color.BOLD)
        rows: list[Row] = [("  TYPE", "FINGERPRINT")]
        rows += [(f"  {' '.join(one.split()[:-1])}", _fingerprint(one)) for one in shown]
        yield from table(rows, style)
        yield ""
    if offers:
        yield from _COMPARE


def _told_missing(config: ForwarderConfig, offers: Sequence[Offer]) -> int:
    missing = [hop_name(config, number) for number, hop in offers if not hop.host_key_fingerprints]
    for name in missing:
        print(f"{name} has shown no host key yet: `kubectl dbtunnel status` says why.", file=sys.stderr)
    return 1 if missing else 0


def _agrees() -> bool:
    if not sys.stdin.isatty():
        raise UnusableInputError("nobody is there to agree: say --yes once you have compared them, or --print")
    try:
        return input("Pin them? Type yes: ").strip().lower() == "yes"
    except EOFError:
        return False
