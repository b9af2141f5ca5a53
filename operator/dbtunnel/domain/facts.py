"""What a tunnel's status tells beside its conditions."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from dbtunnel.api.forwarder import ForwarderConfig, ForwarderStatus, HopFact, LayerStatus, NextKeyFact, PublicKeyFact
from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import (
    Binding,
    Condition,
    DatabaseStatus,
    DatabaseTunnelStatus,
    Endpoint,
    Hop,
    LastFailure,
    PublicKey,
)
from dbtunnel.domain import names
from dbtunnel.domain.diagnosis import Subject, key_lines, printable
from dbtunnel.domain.forwarding import replicas, server_name, service_port
from dbtunnel.domain.hops import role_of
from dbtunnel.domain.observed import Observation
from dbtunnel.domain.settings import Installation

_MOST_KEYS = 16
"""As many as the schema takes."""

_DISTRUST = frozenset({Reason.HOST_KEY_UNKNOWN, Reason.HOST_KEY_MISMATCH, Reason.HOST_KEY_REVOKED})
"""Reasons whose messages tell of host keys that a server showed."""


def build_status(
    tunnel: DatabaseTunnel,
    seen: Observation,
    documents: Sequence[ForwarderStatus],
    subject: Subject,
    conditions: tuple[Condition, ...],
    failure: LastFailure | None,
    installation: Installation,
) -> DatabaseTunnelStatus:
    """The whole status: the conditions as decided, and what forwarders report now, else what was known before."""
    connected = sum(document.authentication.status is LayerStatus.TRUE for document in documents)
    return DatabaseTunnelStatus(
        observed_generation=tunnel.metadata.generation,
        conditions=conditions,
        endpoint=_endpoint(tunnel, seen),
        hops=tuple(_hop(tunnel, documents, number, subject) for number in range(len(subject.config.hops))),
        public_keys=_public_keys(tunnel, documents),
        database=_database(tunnel, documents),
        egress_addresses=installation.egress_addresses or None,
        replicas=0 if tunnel.spec.suspend else replicas(tunnel, installation.defaults),
        ready_replicas=connected,
        last_failure=failure,
        binding=Binding(name=seen.binding) if seen.binding else None,
    )


def _endpoint(tunnel: DatabaseTunnel, seen: Observation) -> Endpoint:
    return Endpoint(
        host=names.endpoint_host(tunnel),
        port=service_port(tunnel),
        cluster_ip=seen.cluster_ip,
        tls_server_name=server_name(tunnel),
    )


def hop_fact(documents: Sequence[ForwarderStatus], number: int) -> HopFact:
    """What is known of a hop, from any forwarder that knows it; its host keys first from one that does not trust them:
    those are the ones to tell."""
    knowing = [document for document in documents if number < len(document.hops)]
    facts = [document.hops[number] for document in knowing]
    shown = next((fact for fact in facts if fact.server_version or fact.host_keys), HopFact())
    distrusted = sorted(knowing, key=lambda document: not _distrusts(document, number))
    host_keys = next((keys for document in distrusted if (keys := document.hops[number].host_keys)), ())
    public_key = next((fact.public_key for fact in facts if fact.public_key), None)
    following = next_key([fact.next_key for fact in facts])
    return replace(shown, host_keys=host_keys, public_key=public_key, next_key=following)


def _distrusts(document: ForwarderStatus, number: int) -> bool:
    failures = document.transport, *(hop.failure for hop in document.hops)
    return any(fact and fact.hop == number and fact.reason in _DISTRUST for fact in failures)


def next_key(facts: Iterable[NextKeyFact | None]) -> NextKeyFact | None:
    """What forwarders tell of a next key: of one with which it fails, if it does with any."""
    known = [fact for fact in facts if fact]
    return next((fact for fact in known if fact.fact.status is LayerStatus.FALSE), known[0] if known else None)


def announced_keys(config: ForwarderConfig, number: int, hop: Hop) -> tuple[str, ...]:
    """Host keys that an SSH server has proved to hold and that are not pinned, as the status of this spec has them.

    Only where fingerprints are pinned and clients go through the server: a list with a pinned one is of a connection
    that this key has verified. What known_hosts has is not known here.
    """
    pinned, shown = config.hops[number].host_key.fingerprints, hop.host_key_fingerprints or ()
    others = tuple(one for one in shown if one.rpartition(" ")[2] not in pinned)
    return others if hop.active and len(others) < len(shown) else ()


def users_of(documents: Sequence[ForwarderStatus], number: int) -> list[ForwarderStatus]:
    """The forwarders whose new connections go through a hop."""
    return [document for document in documents if number < len(document.hops) and document.hops[number].active]


def _hop(tunnel: DatabaseTunnel, documents: Sequence[ForwarderStatus], number: int, subject: Subject) -> Hop:
    """An SSH server: what forwarders report now, else what was known of it before."""
    server, role = subject.config.hops[number], role_of(subject.config, number)
    facts, users = subject.hop(number), users_of(documents, number)
    place = (role, server.host, server.port)
    known = next((hop for hop in tunnel.status.hops or () if (hop.role, hop.host, hop.port) == place), Hop())
    if facts.server_version or facts.host_keys:
        shown = tuple(f"{key.algorithm} {key.fingerprint}" for key in facts.host_keys)
        known = known.model_copy(
            update={
                "host_key_fingerprints": shown or known.host_key_fingerprints,
                "server_version": facts.server_version and printable(facts.server_version, 256),
                "cipher": facts.cipher,
                "mac": facts.mac,
            }
        )
    return known.model_copy(
        update={
            "role": role.value,
            "host": server.host,
            "port": server.port,
            "active": bool(users),
            "replicas": len(users),
            "authorized_keys_line": key_lines(subject, number) or _known_line(tunnel, documents, known),
        }
    )


def _known_line(tunnel: DatabaseTunnel, documents: Sequence[ForwarderStatus], known: Hop) -> str | None:
    """What was told before, unless the spec has changed, or a forwarder says that the key is there no more: it would
    permit what is not opened, or a key that is not used."""
    is_of_this_spec = tunnel.status.observed_generation == tunnel.metadata.generation
    has_no_key = any(document.key.status is LayerStatus.FALSE for document in documents)
    return known.authorized_keys_line if is_of_this_spec and not has_no_key else None


def _public_keys(tunnel: DatabaseTunnel, documents: Sequence[ForwarderStatus]) -> tuple[PublicKey, ...] | None:
    if not documents:
        return tunnel.status.public_keys
    comment = names.key_comment(tunnel)
    told = [list(_told(document, comment)) for document in documents]
    found: dict[str, PublicKey] = {}
    for key in sorted((key for keys in told for key in keys), key=lambda key: key.use):
        found.setdefault(key.fingerprint, key)  # one that is current for a replica already is not shown as the next
    agreed = [key.model_copy(update={"accepted": _accepted_by_all(key.fingerprint, told)}) for key in found.values()]
    return tuple(agreed[:_MOST_KEYS]) or None


def _told(document: ForwarderStatus, comment: str) -> Iterator[PublicKey]:
    """The keys of one forwarder. A next key that cannot be read has no text, and is not accepted."""
    shared = document.public_key, document.next_key
    for current, following in (shared, *((hop.public_key, hop.next_key) for hop in document.hops)):
        if current:
            yield _shown(current, "Current", comment)
        if following:
            public = following.public_key
            yield _shown(public, "Next", comment) if public else PublicKey(use="Next", accepted=False)


def _shown(fact: PublicKeyFact, use: str, comment: str) -> PublicKey:
    return PublicKey(key=f"{fact.key} {comment}", fingerprint=fact.fingerprint, use=use, accepted=fact.accepted)


def _accepted_by_all(fingerprint: str, told: Sequence[Sequence[PublicKey]]) -> bool | None:
    """Whether a key works for every replica: one that does not know it yet must not be left with a revoked one."""
    verdicts = [{key.accepted for key in keys if key.fingerprint == fingerprint} or {None} for keys in told]
    if any(False in one for one in verdicts):
        return False
    return True if all(one == {True} for one in verdicts) else None


def _database(tunnel: DatabaseTunnel, documents: Sequence[ForwarderStatus]) -> DatabaseStatus | None:
    fact = next((document.database_fact for document in documents if document.database_fact.protocol), None)
    if fact is None:
        return None if documents else tunnel.status.database
    return DatabaseStatus(
        protocol=printable(fact.protocol or "", 64),
        server_version=printable(fact.server_version, 128) if fact.server_version else None,
        tls_offered=fact.tls_offered,
        certificate_not_after=fact.certificate_not_after,
    )
