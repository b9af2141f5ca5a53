"""From a reason and what was seen to the sentence that a person reads: which hop, what was seen, what to do."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from dbtunnel.api.engines import ENGINES
from dbtunnel.api.forwarder import (
    ADMIN_PORT,
    NEXT_SUFFIX,
    ForwarderConfig,
    ForwarderKey,
    HopFact,
    HostKeyFact,
    NextKeyFact,
    PublicKeyFact,
)
from dbtunnel.api.reasons import REASONS, Reason, ReasonInfo
from dbtunnel.domain import hops
from dbtunnel.domain.authorized_keys import authorized_keys_line, forward_target

MESSAGE_LIMIT = 8000
"""Characters of a condition's message."""

SEEN_LIMIT = 600
"""Characters of what a remote server may contribute to a message."""

QUOTE_LIMIT = 200
"""Characters of one text of a remote server's."""

_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')

NEXT_KEY_FAILS = "The next key cannot be used yet, and the tunnel goes on with the current one. "
"""What the message of a condition that is True begins with where a key that is to replace the current one fails."""

_FALLBACK = "{hop}: {seen}"
"""For a reason that this version does not know: a newer forwarder reports to an older operator."""


@dataclass(frozen=True)
class Subject:
    """What messages speak of: the configuration, and what is known of both ends' keys."""

    config: ForwarderConfig
    egress_addresses: tuple[str, ...] = ()
    public_key: PublicKeyFact | None = None
    """The tunnel's key."""
    hops: tuple[HopFact, ...] = ()
    """By number."""
    next_key: NextKeyFact | None = None
    """The one that is to replace the tunnel's key."""

    def keys(self, number: int) -> tuple[PublicKeyFact | None, NextKeyFact | None]:
        """The key for a hop, and the one that is to replace it."""
        if self.config.hops[number].key:
            return self.hop(number).public_key, self.hop(number).next_key
        return self.public_key, self.next_key

    def hop(self, number: int) -> HopFact:
        """What is known of a hop."""
        return self.hops[number] if number < len(self.hops) else HopFact()


def explain(reason: str, seen: str, subject: Subject, number: int = 0, *, following: NextKeyFact | None = None) -> str:
    """The message of a condition with this reason, for the hop of this number. `following`: it speaks of that key."""
    config = subject.config
    number = number if number < len(config.hops) else 0
    known = REASONS.get(Reason(reason)) if reason in set(Reason) else None
    key, way = _named(hops.key_of(config, number), following), hops.way_to(config, number)
    public = following.public_key if following else subject.keys(number)[0]
    path = hops.spec_path(config, number)
    template = _template(known, is_behind=bool(way))
    text = template.format(
        tunnel=config.name,
        hop=hops.hop_name(config, number),
        path=path,
        before=hops.hop_name(config, way[-1]) if way else "",
        target=" ".join(forward_target(*target) for target in hops.targets_of(config, number)),
        seen=_within(template, printable(seen)) or "no details",
        also=f" {printable(seen)}" if seen else "",
        user=config.hops[number].user,
        host=config.hops[number].host,
        port=config.hops[number].port,
        namespace=config.namespace,
        admin_port=ADMIN_PORT,
        signatures=_signatures(public),
        database=forward_target(config.database_host, config.database_port),
        protocol=f"the protocol of {ENGINES[config.engine].protocol}",
        secret=key.secret,
        key=key.key,
        key_path=f"{path if config.hops[number].key else 'spec.tunnel'}.keySecretRef",
        passphrase_key=key.passphrase_key,
        egress=f" ({', '.join(subject.egress_addresses)})" if subject.egress_addresses else "",
        line=_line(public, subject, number) or "(shown in status.hops once the key is there)",
        pin=pin_patch(config, number, subject.hop(number).host_keys),
    )
    return text[:MESSAGE_LIMIT]


def explain_next(following: NextKeyFact, subject: Subject, number: int) -> str:
    """Why the next key for a hop cannot be used, and what to do."""
    fact = following.fact
    told = explain(fact.reason, fact.seen, subject, fact.hop or number, following=following)
    return (NEXT_KEY_FAILS + told)[:MESSAGE_LIMIT]


def _named(key: ForwarderKey, following: NextKeyFact | None) -> ForwarderKey:
    """The names within the Secret that a message gives."""
    if following is None or following.name != key.key + NEXT_SUFFIX:
        return key
    return replace(key, key=following.name, passphrase_key=key.passphrase_key + NEXT_SUFFIX)


def _template(known: ReasonInfo | None, *, is_behind: bool) -> str:
    if known is None:
        return _FALLBACK
    return known.behind if is_behind and known.behind else known.message


def _within(template: str, seen: str) -> str:
    """What was seen, as a part of a sentence that may bring its own full stop."""
    return seen.rstrip(". ") if "{seen}." in template else seen


def _signatures(key: PublicKeyFact | None) -> str:
    """What sshd's PubkeyAcceptedAlgorithms calls the algorithms with which a key signs."""
    kind = key.key.partition(" ")[0] if key else "the key's algorithm"
    return "rsa-sha2-512 or rsa-sha2-256" if kind == "ssh-rsa" else kind


def key_lines(subject: Subject, number: int = 0) -> str | None:
    """The `authorized_keys` lines for a hop, that of the current key first; None while no key is known."""
    current, following = subject.keys(number)
    keys = {key.key: key for key in (current, following.public_key if following else None) if key}
    return "\n".join(filter(None, (_line(key, subject, number) for key in keys.values()))) or None


def _line(key: PublicKeyFact | None, subject: Subject, number: int) -> str | None:
    config = subject.config
    if key is None:
        return None
    comment = f"{config.namespace}/{config.name}"
    # one behind a jump host sees that one's address, which is not known here
    sources = () if hops.way_to(config, number) else subject.egress_addresses
    return authorized_keys_line(key.key, comment, *hops.targets_of(config, number), sources=sources)


def pin_patch(config: ForwarderConfig, number: int, host_keys: Sequence[HostKeyFact]) -> str:
    """A patch on one line that pins the observed keys, in the place of a known_hosts that pins others: the schema takes
    one source. For the bastion a merge patch, which is YAML as well; it would replace a list as a whole, so for others
    a JSON patch, which replaces what it adds."""
    rule, pinned = config.hops[number].host_key, {"fingerprints": [key.fingerprint for key in host_keys]}
    if number == 0:
        sources = {"knownHosts": rule.known_hosts, "knownHostsRef": rule.known_hosts_file}
        others = {name: None for name, source in sources.items() if source is not None}
        return json.dumps({"spec": {"tunnel": {"hostKey": {**others, **pinned}}}})
    path = hops.spec_path(config, number).replace(".", "/").replace("[", "/").replace("]", "")
    value = {**pinned, "alias": rule.alias} if rule.alias else pinned
    return json.dumps([{"op": "add", "path": f"/{path}/hostKey", "value": value}])


def printable(text: str, limit: int = SEEN_LIMIT) -> str:
    """`text` as one bounded line that can forge nothing: control characters and non-ASCII are escaped."""
    if len(text) <= limit and text.isascii() and text.isprintable():
        return text  # as nearly all is, and each line of the log asks
    escaped = "".join(char if " " <= char <= "~" else char.encode("unicode_escape").decode() for char in text[:limit])
    return escaped[:limit]


def quoted(text: str, limit: int = QUOTE_LIMIT) -> str:
    """What a server says, in quotes that it cannot end, since those in it are escaped, too. `limit`: between them."""
    shown = ""
    for char in text[:limit]:
        escaped = f"\\{char}" if char in '"\\' else printable(char)
        if len(shown + escaped) > limit:
            break  # half an escape would take the closing quote along
        shown += escaped
    return f'"{shown}"'


def unquoted(message: str) -> str:
    """The message as long as it is, with nothing between its quotes that anybody else has said."""
    return _QUOTED.sub(lambda found: '"' * len(found[0]), message)
