"""From a reason and what was seen to the sentence that a person reads: which hop, what was seen, what to do."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from dbtunnel.api.engines import ENGINES
from dbtunnel.api.forwarder import ForwarderConfig, HostKeyFact, PublicKeyFact
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.domain.authorized_keys import authorized_keys_line, forward_target

MESSAGE_LIMIT = 8000
"""Characters of a condition's message."""

SEEN_LIMIT = 600
"""Characters of what a remote server may contribute to a message."""

_FALLBACK = "{hop}: {seen}"
"""For a reason that this version does not know: a newer forwarder reports to an older operator."""


@dataclass(frozen=True)
class Subject:
    """What messages speak of: the configuration, and what is known of both ends' keys."""

    config: ForwarderConfig
    egress_addresses: tuple[str, ...] = ()
    public_key: PublicKeyFact | None = None
    host_keys: tuple[HostKeyFact, ...] = ()


def explain(reason: str, seen: str, subject: Subject) -> str:
    """The message of a condition with this reason."""
    config = subject.config
    known = REASONS.get(Reason(reason)) if reason in set(Reason) else None
    text = (known.message if known else _FALLBACK).format(
        tunnel=config.name,
        hop=hop_name(config),
        seen=printable(seen) or "no details",
        user=config.bastion.user,
        database=forward_target(config.database_host, config.database_port),
        protocol=f"the protocol of {ENGINES[config.engine].protocol}",
        secret=config.key.secret,
        key=config.key.key,
        passphrase_key=config.key.passphrase_key,
        egress=f" ({', '.join(subject.egress_addresses)})" if subject.egress_addresses else "",
        line=key_line(subject) or "(shown in status.hops once the key is there)",
        pin=pin_yaml(subject.host_keys),
    )
    return text[:MESSAGE_LIMIT]


def hop_name(config: ForwarderConfig) -> str:
    """How messages name the SSH server."""
    return f"bastion {forward_target(config.bastion.host, config.bastion.port)}"


def key_line(subject: Subject) -> str | None:
    """The `authorized_keys` line for the bastion; None while the key is not known."""
    if subject.public_key is None:
        return None
    config = subject.config
    comment = f"{config.namespace}/{config.name}"
    target = config.database_host, config.database_port
    return authorized_keys_line(subject.public_key.key, comment, *target, sources=subject.egress_addresses)


def pin_yaml(host_keys: Sequence[HostKeyFact]) -> str:
    """YAML on one line, a valid merge patch as well, that pins the observed keys."""
    fingerprints = [key.fingerprint for key in host_keys]
    return json.dumps({"spec": {"tunnel": {"hostKey": {"fingerprints": fingerprints}}}})


def printable(text: str, limit: int = SEEN_LIMIT) -> str:
    """`text` as one bounded line that can forge nothing: control characters and non-ASCII are escaped."""
    escaped = "".join(char if " " <= char <= "~" else char.encode("unicode_escape").decode() for char in text[:limit])
    return escaped[:limit]
