"""`kubectl dbtunnel rotate-key`: the tunnel's key is replaced with overlap, as docs/keys.md has it by hand."""

import argparse
import base64
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Any

from dbtunnel.api.forwarder import (
    CERTIFICATE_SUFFIX,
    NEXT_SUFFIX,
    REVOKED_SUFFIX,
    ForwarderConfig,
    ForwarderKey,
    HopFact,
    PublicKeyFact,
)
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.spec import KeyType
from dbtunnel.api.status import PublicKey
from dbtunnel.cli import UnusableInputError
from dbtunnel.cli.plugin.cluster import Cluster, ClusterError
from dbtunnel.cli.plugin.handout_text import known_hop
from dbtunnel.cli.plugin.options import add_common, cluster_of, style_of
from dbtunnel.cli.terminal import Color, Style
from dbtunnel.controller.keys import PUBLIC_KEY, generate_key
from dbtunnel.domain.authorized_keys import forward_target
from dbtunnel.domain.diagnosis import Subject, key_lines
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.hops import ends_of, hop_name, jumps_of, key_of
from dbtunnel.domain.names import key_comment
from dbtunnel.domain.settings import Defaults

EXAMPLE = """\
  kubectl dbtunnel rotate-key orders -n shop
      makes a key, and prints lines for authorized_keys
  kubectl dbtunnel status orders -n shop
      shows whether it is accepted
  kubectl dbtunnel rotate-key orders -n shop --finish"""

_CURRENT, _NEXT = "Current", "Next"
_REJECTED = 422

Operation = dict[str, Any]
"""Of a JSON patch."""


class NotYetError(Exception):
    """The key cannot be replaced now; the text says why. Exit code 1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which step."""
    add_common(parser)
    parser.add_argument(
        "--hop", metavar="HOST:PORT", help="of a jump host or fallback with a keySecretRef of its own: its key"
    )
    parser.add_argument("--type", type=KeyType, choices=tuple(KeyType), help="default: spec.tunnel.generatedKeyType")
    parser.add_argument(
        "--finish", action="store_true", help="put the accepted next key in the place of the current one"
    )
    parser.add_argument(
        "--now", action="store_true", help="with --finish: revoke the old key too, which ends its sessions at once"
    )


def run(arguments: argparse.Namespace) -> int:
    """1 where the step cannot be taken yet."""
    if arguments.now and not arguments.finish:
        raise UnusableInputError("--now goes with --finish")
    cluster = cluster_of(arguments)
    chosen = chosen_key(cluster.tunnel(arguments.name), arguments.hop)
    try:
        told = _finish(cluster, chosen, arguments) if arguments.finish else _begin(cluster, chosen, arguments)
    except NotYetError as error:
        print(error, file=sys.stderr)
        return 1
    _look_at_once(cluster, arguments.name)
    print("\n".join(told))
    return 0


@dataclass(frozen=True)
class Chosen:
    """A key of a tunnel's, and the SSH servers that are logged in to with it, by number."""

    tunnel: DatabaseTunnel
    config: ForwarderConfig
    number: int
    """Of one of these servers: the bastion, or the one that was named."""

    @property
    def key(self) -> ForwarderKey:
        """Where it is."""
        return key_of(self.config, self.number)

    @property
    def servers(self) -> list[int]:
        """All of them, in the order of the way."""
        order = (*jumps_of(self.config), *ends_of(self.config))
        return [one for one in order if key_of(self.config, one) == self.key]

    def known(self, use: str) -> PublicKey | None:
        """What the status tells of it; other SSH servers may have keys of their own."""
        lines = known_hop(self.tunnel, self.config, self.number).authorized_keys_line or ""
        keys = self.tunnel.status.public_keys or ()
        return next((key for key in keys if key.use == use and (not key.key or key.key in lines)), None)


def chosen_key(tunnel: DatabaseTunnel, hop: str | None) -> Chosen:
    """The tunnel's key, or that of an SSH server `HOST:PORT`. Raises UnusableInputError."""
    config = forwarder_config(tunnel, Defaults())
    if hop is None:
        return Chosen(tunnel, config, 0)
    own = {forward_target(one.host, one.port): number for number, one in enumerate(config.hops) if one.key}
    if hop not in own:
        raise UnusableInputError(
            f"--hop {hop}: write HOST:PORT of a jump host or fallback with a keySecretRef of its own; there is"
            f" {', '.join(own) or 'none'}"
        )
    return Chosen(tunnel, config, own[hop])


# --- the first step ------------------------------------------------------------------------------------------------


def _begin(cluster: Cluster, chosen: Chosen, arguments: argparse.Namespace) -> list[str]:
    tunnel, key = chosen.tunnel, chosen.key
    if chosen.known(_NEXT):
        raise NotYetError("There is a next key already: --finish puts it in its place once it is accepted.")
    kind = arguments.type or tunnel.spec.tunnel.generated_key_type
    pair = generate_key(kind, key_comment(tunnel))
    private = next(text for name, text in pair.items() if name != PUBLIC_KEY)
    try:
        cluster.patch("secrets", key.secret, next_key_operations(key, private))
    except ClusterError as error:
        raise _explained(error, f"has {key.key}{NEXT_SUFFIX} already, or no key at all") from None
    public = " ".join(pair[PUBLIC_KEY].split()[:2])
    option = f" --hop {arguments.hop}" if arguments.hop else ""
    return list(begun_text(chosen, public, option, style_of(arguments)))


def next_key_operations(key: ForwarderKey, private: str) -> list[Operation]:
    """Adds a key under the name with `-next`, where there is none."""
    path = f"/data/{key.key}{NEXT_SUFFIX}"
    # a test for null holds where there is nothing
    is_free: Operation = {"op": "test", "path": path, "value": None}
    add: Operation = {"op": "add", "path": path, "value": _encoded(private)}
    return [is_free, add, *_without(path + CERTIFICATE_SUFFIX)]


def _without(path: str) -> list[Operation]:
    """There is nothing of that name afterwards, whether there was or not: a certificate serves no other key."""
    return [{"op": "add", "path": path, "value": ""}, {"op": "remove", "path": path}]


def begun_text(chosen: Chosen, public: str, option: str, style: Style) -> Iterator[str]:
    """The lines that administrators add, and what comes next. `public`: type and base64; `option`: what has chosen the
    key.
    """
    tunnel, key = chosen.tunnel, chosen.key
    command = f"{tunnel.metadata.name} -n {tunnel.metadata.namespace}"
    told = PublicKeyFact(key=public, fingerprint="")
    own = (HopFact(public_key=told),) * len(chosen.config.hops)
    subject = Subject(chosen.config, tunnel.status.egress_addresses or (), told, own)
    yield style.text(f"A new key is in Secret {key.secret}, under {key.key}{NEXT_SUFFIX}.")
    yield "Add a line to authorized_keys, beside the one that is there, of"
    for number in chosen.servers:
        yield ""
        yield style.text(f"{_server(chosen, number)}:")
        yield style.text(key_lines(subject, number) or "", Color.BOLD)
    yield ""
    yield "New sessions use the key once it is accepted; sessions that are there stay. See, then finish:"
    yield style.text(f"  kubectl dbtunnel status {command}")
    yield style.text(f"  kubectl dbtunnel rotate-key {command}{option} --finish")


# --- the last step -------------------------------------------------------------------------------------------------


def _finish(cluster: Cluster, chosen: Chosen, arguments: argparse.Namespace) -> list[str]:
    key = chosen.key
    old, new = accepted_keys(chosen)
    revoking = _revoking(cluster.secret(key.secret), key, old.fingerprint) if arguments.now else []
    is_generated = chosen.key == chosen.config.key and chosen.tunnel.spec.tunnel.key_secret_ref is None
    public = f"{new.key}\n" if is_generated else None
    # whether the next key has a passphrase and a certificate of its own is not known without reading the Secret
    for passphrase, certificate in product((True, False), repeat=2):
        moves = finish_operations(key, public, passphrase=passphrase, certificate=certificate)
        try:
            cluster.patch("secrets", key.secret, [*moves, *revoking])
        except ClusterError as error:
            refusal = error
            if error.status != _REJECTED:
                raise _explained(error, "") from None
        else:
            return list(finished_text(chosen, old, new, style_of(arguments), revoked=arguments.now))
    raise _explained(refusal, f"has no {key.key}{NEXT_SUFFIX}, or was changed meanwhile")


def accepted_keys(chosen: Chosen) -> tuple[PublicKey, PublicKey]:
    """The current key and the next one. Raises NotYetError unless every SSH server has accepted the next one."""
    old, new = chosen.known(_CURRENT), chosen.known(_NEXT)
    if new is None:
        raise NotYetError(
            "The status tells of no next key. It has a new one within a minute or two; without --finish one is made."
        )
    if not new.accepted or old is None:
        raise NotYetError(
            "The next key is not accepted yet: `kubectl dbtunnel status` says why, and `kubectl dbtunnel handout` has"
            " the line to add. It is tried again within 60 to 90 seconds, later with more replicas."
        )
    return old, new


def finish_operations(
    key: ForwarderKey, public: str | None, *, passphrase: bool = False, certificate: bool = False
) -> list[Operation]:
    """Moves the next key, and what is its own, into the place of the current one. `public`: its public half, where the
    Secret has one.
    """
    ends = [(key.key, ""), *([(key.passphrase_key, "")] if passphrase else [])]
    ends += [(key.key, CERTIFICATE_SUFFIX)] if certificate else []
    moves = [
        {"op": "move", "from": f"/data/{name}{NEXT_SUFFIX}{end}", "path": f"/data/{name}{end}"} for name, end in ends
    ]
    moves += [] if certificate else _without(f"/data/{key.key}{CERTIFICATE_SUFFIX}")
    return [*moves, *([{"op": "add", "path": f"/data/{PUBLIC_KEY}", "value": _encoded(public)}] if public else [])]


def _revoking(data: dict[str, str], key: ForwarderKey, fingerprint: str) -> list[Operation]:
    """Adds a fingerprint to those that are revoked."""
    name = f"{key.key}{REVOKED_SUFFIX}"
    listed = base64.b64decode(data.get(name, "")).decode(errors="replace").rstrip("\n")
    text = "\n".join(filter(None, (listed, fingerprint))) + "\n"
    known = {"op": "test", "path": f"/data/{name}", "value": data.get(name)}
    return [known, {"op": "add", "path": f"/data/{name}", "value": _encoded(text)}]


def finished_text(chosen: Chosen, old: PublicKey, new: PublicKey, style: Style, *, revoked: bool) -> Iterator[str]:
    """What was done, and what is left to administrators."""
    yield style.text(f"{new.fingerprint} is the current key of Secret {chosen.key.secret} now.")
    if revoked:
        yield style.text(f"{old.fingerprint} is revoked here: its sessions end as soon as the pods see the Secret.")
    else:
        yield "Sessions over the old key stay until they end; --now would have ended them."
    yield "The old key still logs in: have its line removed from authorized_keys of"
    yield from (style.text(f"  {_server(chosen, number)}") for number in chosen.servers)
    yield style.text(f"  (it ends in: {' '.join(old.key.split()[1:])[-60:]})")


# --- both ----------------------------------------------------------------------------------------------------------


def _server(chosen: Chosen, number: int) -> str:
    return f"{hop_name(chosen.config, number)}, user {chosen.config.hops[number].user}"


def _explained(error: ClusterError, why: str) -> Exception:
    if error.status == _REJECTED:
        return NotYetError(f"Nothing was changed: the Secret {why}.")
    return error


def _look_at_once(cluster: Cluster, name: str) -> None:
    """Spares the minute or two that the kubelet takes to see a changed Secret, where the rights allow it."""
    mark = datetime.now(UTC).isoformat()
    try:
        for pod in cluster.pods(name):
            cluster.refresh(pod["metadata"]["name"], mark)
    except ClusterError:
        print("The pods see the change within a minute or two.", file=sys.stderr)


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
