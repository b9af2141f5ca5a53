"""What a tunnel's status tells beside its conditions."""

from collections.abc import Iterable, Sequence

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import ForwarderStatus, LayerStatus
from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import Condition, DatabaseStatus, DatabaseTunnelStatus, Endpoint, Hop, LastFailure, PublicKey
from dbtunnel.domain import names
from dbtunnel.domain.diagnosis import Subject, key_line, printable
from dbtunnel.domain.forwarding import replicas, server_name, service_port
from dbtunnel.domain.observed import Observation
from dbtunnel.domain.settings import Installation


def build_status(
    tunnel: DatabaseTunnel,
    seen: Observation,
    documents: Sequence[ForwarderStatus],
    subject: Subject,
    conditions: tuple[Condition, ...],
    installation: Installation,
) -> DatabaseTunnelStatus:
    """The whole status: the conditions as decided, and what forwarders report now, else what was known before."""
    connected = [document for document in documents if document.authentication.status is LayerStatus.TRUE]
    return DatabaseTunnelStatus(
        observed_generation=tunnel.metadata.generation,
        conditions=conditions,
        endpoint=_endpoint(tunnel, seen),
        hops=(_bastion(tunnel, documents, len(connected), subject),),
        public_keys=_public_keys(tunnel, documents),
        database=_database(tunnel, documents),
        egress_addresses=installation.egress_addresses or None,
        replicas=0 if tunnel.spec.suspend else replicas(tunnel, installation.defaults),
        ready_replicas=len(connected),
        last_failure=_last_failure(tunnel, conditions),
    )


def _endpoint(tunnel: DatabaseTunnel, seen: Observation) -> Endpoint:
    return Endpoint(
        host=names.endpoint_host(tunnel),
        port=service_port(tunnel),
        cluster_ip=seen.cluster_ip,
        tls_server_name=server_name(tunnel),
    )


def _bastion(tunnel: DatabaseTunnel, documents: Sequence[ForwarderStatus], connected: int, subject: Subject) -> Hop:
    """The SSH server: what forwarders report now, else what was known of it before."""
    bastion = tunnel.spec.tunnel
    facts = next(
        (document.hop for document in documents if document.hop.server_version or document.hop.host_keys),
        None,
    )
    known = next(
        (hop for hop in tunnel.status.hops or () if (hop.host, hop.port) == (bastion.host, bastion.port)),
        Hop(),
    )
    if facts:
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
            "role": "Bastion",
            "host": bastion.host,
            "port": bastion.port,
            "active": connected > 0,
            "replicas": connected,
            "authorized_keys_line": key_line(subject) or known.authorized_keys_line,
        }
    )


def _public_keys(tunnel: DatabaseTunnel, documents: Sequence[ForwarderStatus]) -> tuple[PublicKey, ...] | None:
    if not documents:
        return tunnel.status.public_keys
    facts = {document.public_key.fingerprint: document.public_key for document in documents if document.public_key}
    comment = names.key_comment(tunnel)
    keys = [
        PublicKey(key=f"{fact.key} {comment}", fingerprint=fact.fingerprint, use="Current", accepted=fact.accepted)
        for fact in facts.values()
    ]
    return tuple(keys[:4]) or None


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


def _last_failure(tunnel: DatabaseTunnel, conditions: Iterable[Condition]) -> LastFailure | None:
    ready = next(condition for condition in conditions if condition.type == ConditionType.READY)
    known = tunnel.status.last_failure
    is_new = known is None or known.time != ready.last_transition_time
    if ready.status == LayerStatus.FALSE and ready.reason not in (Reason.PROGRESSING, Reason.SUSPENDED) and is_new:
        return LastFailure(time=ready.last_transition_time, reason=ready.reason, message=ready.message)
    return known
