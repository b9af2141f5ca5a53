"""What a tunnel's status tells beside its conditions, and when the tunnel is looked at again."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.documents import DocumentError, read
from dbtunnel.api.forwarder import (
    DatabaseFact,
    ForwarderStatus,
    HopFact,
    HostKeyFact,
    LayerFact,
    LayerStatus,
    PublicKeyFact,
)
from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import DatabaseTunnelStatus, Endpoint, Hop
from dbtunnel.domain.observed import Observation, Problem, Report
from dbtunnel.domain.status import Decision, decide, needs_generated_key
from tests.support.values import (
    INSTALLATION,
    NOW,
    PUBLIC_KEY,
    current_pod,
    failing,
    manifest,
    observed,
    tunnel,
    working,
)

ORDERS = tunnel()
HOP = HopFact(
    active=True,
    host_keys=(HostKeyFact(algorithm="ssh-ed25519", fingerprint="SHA256:abc"),),
    server_version="SSH-2.0-OpenSSH_9.2",
    cipher="aes128-gcm@openssh.com",
)
OLD = "SHA256:" + "o" * 43
LOST = failing(ORDERS, ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST)


def decided(seen: Observation, of: DatabaseTunnel = ORDERS, seconds: float = 0, **installation: Any) -> Decision:
    return decide(of, seen, replace(INSTALLATION, **installation), NOW + timedelta(seconds=seconds))


def after(status: DatabaseTunnelStatus, changes: Mapping[str, Any] | None = None) -> DatabaseTunnel:
    """The tunnel once a status was written."""
    return tunnel(changes, status.document())


def bastion(status: DatabaseTunnelStatus) -> Hop:
    (hop,) = status.hops or ()
    return hop


# --- endpoint, replicas, addresses ------------------------------------------------------------------------------------


def test_what_applications_connect_to() -> None:
    of = tunnel({"service": {"name": "orders-db", "port": 15432}, "database.tls.serverName": "orders.example"})
    assert decided(Observation(cluster_ip="10.1.0.1"), of).status.endpoint == Endpoint(
        host="orders-db.shop.svc", port=15432, cluster_ip="10.1.0.1", tls_server_name="orders.example"
    )


def test_the_endpoint_is_told_before_the_service_has_an_address() -> None:
    assert decided(Observation()).status.endpoint == Endpoint(
        host="orders.shop.svc", port=5432, tls_server_name="orders.internal"
    )


def test_replicas_that_are_wanted_and_that_are_connected() -> None:
    of = tunnel({"replicas": 3})
    status = decided(observed(of, working(of), LOST, working(of)), of).status
    assert (status.replicas, status.ready_replicas) == (3, 2)
    assert (bastion(status).active, bastion(status).replicas) == (True, 2)


def test_a_forwarder_counts_as_connected_whatever_the_database_does() -> None:
    refused = failing(ORDERS, ConditionType.DATABASE_REACHABLE, Reason.DATABASE_REFUSED)
    assert decided(observed(ORDERS, refused)).status.ready_replicas == 1


def test_a_suspended_tunnel_wants_no_replica() -> None:
    status = decided(Observation(), tunnel({"suspend": True, "replicas": 3})).status
    assert (status.replicas, status.ready_replicas, bastion(status).active) == (0, 0, False)


def test_egress_addresses_are_those_of_the_installer() -> None:
    addresses = ("203.0.113.1", "2001:db8::/64")
    status = decided(observed(ORDERS, working(ORDERS)), egress_addresses=addresses).status
    assert status.egress_addresses == addresses
    assert (bastion(status).authorized_keys_line or "").startswith('from="203.0.113.1,2001:db8::/64",restrict,')
    assert decided(Observation()).status.egress_addresses is None


def test_the_generation_that_was_read() -> None:
    assert decided(Observation()).status.observed_generation == 3


# --- the bastion ------------------------------------------------------------------------------------------------------


def test_what_a_forwarder_learned_of_the_bastion() -> None:
    assert bastion(decided(observed(ORDERS, working(ORDERS, hops=(HOP,)))).status) == Hop(
        role="Bastion",
        host="203.0.113.7",
        port=22,
        active=True,
        replicas=1,
        host_key_fingerprints=("ssh-ed25519 SHA256:abc",),
        server_version="SSH-2.0-OpenSSH_9.2",
        cipher="aes128-gcm@openssh.com",
        authorized_keys_line=(
            'restrict,port-forwarding,permitopen="orders.internal:5432",permitlisten="localhost:1",'
            f'command="/bin/false" {PUBLIC_KEY.key} shop/orders'
        ),
    )


def test_what_was_known_of_the_bastion_stays_while_no_forwarder_knows_it() -> None:
    known = decided(observed(ORDERS, working(ORDERS, hops=(HOP,)))).status
    hop = bastion(decided(Observation(), after(known)).status)
    assert hop == bastion(known).model_copy(update={"active": False, "replicas": 0})


def test_another_bastion_is_not_told_with_what_was_known_of_the_one_before() -> None:
    known = decided(observed(ORDERS, working(ORDERS, hops=(HOP,)))).status
    for change in ({"tunnel.host": "203.0.113.8"}, {"tunnel.port": 2222}):
        hop = bastion(decided(Observation(), after(known, change)).status)
        assert (hop.server_version, hop.host_key_fingerprints, hop.authorized_keys_line) == (None, None, None)


def test_a_forwarder_that_knows_the_bastion_is_asked_before_one_that_does_not() -> None:
    of = tunnel({"replicas": 2})
    assert bastion(decided(observed(of, LOST, working(of, hops=(HOP,))), of).status).cipher == HOP.cipher


def test_a_line_for_another_target_or_key_is_not_told_any_more() -> None:
    known = decided(observed(ORDERS, working(ORDERS, hops=(HOP,)))).status
    assert bastion(known).authorized_keys_line
    other = manifest({"metadata.generation": 4, "spec.database.host": "other.internal"}, known.document())
    assert bastion(decided(Observation(), DatabaseTunnel.parse(other)).status).authorized_keys_line is None
    gone = failing(ORDERS, ConditionType.KEY_READY, Reason.SECRET_NOT_FOUND, public_key=None)
    assert bastion(decided(observed(ORDERS, gone), after(known)).status).authorized_keys_line is None
    starting = working(ORDERS, key=LayerFact(), public_key=None)
    same = bastion(decided(observed(ORDERS, starting), after(known)).status)
    assert same.authorized_keys_line == bastion(known).authorized_keys_line, "its key is not read yet"


@pytest.mark.parametrize("is_detour", [False, True], ids=["failed", "by a fallback"])
def test_the_host_keys_to_pin_are_those_of_the_forwarder_that_does_not_trust_them(is_detour: bool) -> None:
    """Another one's connection stands, made when the server had its old key."""
    of = tunnel({"replicas": 2, "tunnel.fallbacks": [{"host": "spare"}], "tunnel.hostKey.fingerprints": [OLD]})
    new = (HostKeyFact(algorithm="ssh-ed25519", fingerprint="SHA256:" + "n" * 43),)
    mismatch = LayerFact(status=LayerStatus.FALSE, reason=Reason.HOST_KEY_MISMATCH, seen=new[0].fingerprint)
    stands = working(of, hops=(replace(HOP, host_keys=(HostKeyFact(algorithm="x", fingerprint=OLD),)), HopFact()))
    hops = HopFact(host_keys=new, failure=mismatch), HopFact(active=is_detour)
    distrusts = working(of, hops=hops) if is_detour else working(of, hops=hops, transport=mismatch)
    status = decided(observed(of, stands, distrusts), of).status
    message = next(one.message for one in status.conditions or () if one.type == "TransportReady")
    assert message.endswith(f'{{"fingerprints": ["{new[0].fingerprint}"]}}}}}}}}')
    hop = next(hop for hop in status.hops or ())
    assert (hop.host_key_fingerprints, hop.cipher) == ((f"ssh-ed25519 {new[0].fingerprint}",), HOP.cipher)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_the_public_key_and_whether_the_bastion_accepted_it() -> None:
    accepted = replace(PUBLIC_KEY, accepted=True)
    (key,) = decided(observed(ORDERS, working(ORDERS, public_key=accepted))).status.public_keys or ()
    assert key.document() == {
        "key": f"{PUBLIC_KEY.key} shop/orders",
        "fingerprint": PUBLIC_KEY.fingerprint,
        "use": "Current",
        "accepted": True,
    }


def test_each_key_is_shown_once() -> None:
    of = tunnel({"replicas": 3})
    other = PublicKeyFact(key="ssh-rsa BBBB", fingerprint="SHA256:other")
    keys = decided(observed(of, working(of), working(of), working(of, public_key=other)), of).status.public_keys
    assert [key.fingerprint for key in keys or ()] == [PUBLIC_KEY.fingerprint, "SHA256:other"]


def test_more_keys_than_the_schema_takes_are_not_shown() -> None:
    of = tunnel({"replicas": 16, "tunnel.fallbacks": [{"host": "a", "keySecretRef": {"name": "b"}}]})
    facts = [PublicKeyFact(key=f"ssh-rsa {number}", fingerprint=f"SHA256:{number}") for number in range(17)]
    seen = [working(of, public_key=fact, hops=(HopFact(), HopFact(public_key=facts[16]))) for fact in facts[:16]]
    status = decided(observed(of, *seen), of).status
    assert len(status.public_keys or ()) == 16
    assert DatabaseTunnelStatus.model_validate(status.document()) == status


def test_the_key_stays_known_while_no_forwarder_answers_and_not_when_one_says_it_is_gone() -> None:
    known = decided(observed(ORDERS, working(ORDERS))).status
    assert decided(Observation(), after(known)).status.public_keys == known.public_keys
    gone = failing(ORDERS, ConditionType.KEY_READY, Reason.SECRET_NOT_FOUND, public_key=None)
    assert decided(observed(ORDERS, gone), after(known)).status.public_keys is None


@pytest.mark.parametrize(
    ("given", "deployment", "reason", "needed"),
    [
        ({}, False, None, True),
        ({}, True, None, False),
        ({}, True, Reason.SECRET_NOT_FOUND, True),
        ({}, True, Reason.SECRET_KEY_MISSING, False),
        ({}, True, Reason.PRIVATE_KEY_INVALID, False),
        ({"tunnel.keySecretRef.name": "bastion-key"}, False, None, False),
        ({"tunnel.keySecretRef.name": "bastion-key"}, True, Reason.SECRET_NOT_FOUND, False),
    ],
)
def test_when_a_key_is_generated(given: dict[str, Any], deployment: bool, reason: Reason | None, needed: bool) -> None:
    of = tunnel(given)
    if reason:
        failed = failing(of, ConditionType.KEY_READY, reason, public_key=None)
        of = after(decided(observed(of, failed), of).status, given)
    assert needs_generated_key(of, deployment_exists=deployment) is needed


# --- the database -----------------------------------------------------------------------------------------------------


def test_what_was_seen_of_the_database() -> None:
    fact = DatabaseFact(protocol="MySQL", server_version="8.0\x1b", tls_offered=False, certificate_not_after="2027")
    database = decided(observed(ORDERS, working(ORDERS, database_fact=fact))).status.database
    assert database is not None
    assert database.document() == {
        "protocol": "MySQL",
        "serverVersion": r"8.0\x1b",
        "tlsOffered": False,
        "certificateNotAfter": "2027",
    }


def test_what_was_seen_of_the_database_stays_while_no_forwarder_answers() -> None:
    fact = DatabaseFact(protocol="PostgreSQL", tls_offered=True)
    known = decided(observed(ORDERS, working(ORDERS, database_fact=fact))).status
    assert decided(Observation(), after(known)).status.database == known.database
    assert decided(observed(ORDERS, working(ORDERS)), after(known)).status.database is None


def test_what_was_seen_of_a_database_that_answers_is_told_whole_and_holds_nothing_back() -> None:
    seen = "PostgreSQL answers: TLS offered. " + "It does not bear the name. " * 35
    true = LayerFact(status=LayerStatus.TRUE, reason=Reason.SUCCEEDED, seen=seen)
    status = decided(observed(ORDERS, working(ORDERS, database=true))).status
    shown = {one.type: (one.status, one.message) for one in status.conditions or ()}
    assert shown["DatabaseReachable"] == ("True", seen)
    assert shown["Ready"] == ("True", "The tunnel works.")


# --- what a forwarder says is not trusted -----------------------------------------------------------------------------

FORGED: dict[str, tuple[Mapping[str, Any], str]] = {
    "a key of two lines": ({"publicKey": {"key": "ssh-rsa A\nssh-rsa B", "fingerprint": "x"}}, "publicKey.key"),
    "a key with a comment": ({"publicKey": {"key": "ssh-rsa A evil", "fingerprint": "x"}}, "publicKey.key"),
    "a fingerprint with an escape": (
        {"publicKey": {"key": "ssh-rsa A", "fingerprint": "\x1b[2J"}},
        "publicKey.fingerprint",
    ),
    "a host key with an escape": (
        {"hops": [{"hostKeys": [{"algorithm": "ssh-rsa\n", "fingerprint": "x"}]}]},
        "hops[0].hostKeys[0].algorithm",
    ),
    "a host key that reads like a sentence": (
        {"hops": [{}, {"hostKeys": [{"algorithm": "rsa", "fingerprint": "is fine"}]}]},
        "hops[1].hostKeys[0].fingerprint",
    ),
    "a cipher with an escape": ({"hops": [{"cipher": "aes\x1b"}]}, "hops[0].cipher"),
    "a reason of two words": ({"transport": {"status": "False", "reason": "All good"}}, "transport.reason"),
    "a reason with a line end": ({"transport": {"status": "False", "reason": "Lost\n"}}, "transport.reason"),
    "a date with an escape": (
        {"databaseFact": {"protocol": "MySQL", "certificateNotAfter": "2027\x1b"}},
        "databaseFact.certificateNotAfter",
    ),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_a_document_that_would_forge_something_is_none(forgery: str) -> None:
    facts, field = FORGED[forgery]
    with pytest.raises(DocumentError) as refusal:
        read(ForwarderStatus, json.dumps({"sequence": 1, "configHash": "a", **facts}))
    assert str(refusal.value).startswith(f"{field}: found ")
    assert str(refusal.value).isprintable()


def test_a_documents_free_text_is_bounded_to_what_the_schema_takes() -> None:
    loud = "\U0001f600" * 200
    fact = DatabaseFact(protocol="MySQL", server_version=loud)
    status = decided(observed(ORDERS, working(ORDERS, hops=(HopFact(server_version=loud),), database_fact=fact))).status
    assert DatabaseTunnelStatus.model_validate(status.document()) == status
    assert (bastion(status).server_version or "").isprintable()
    assert (bastion(status).server_version or "").isascii()


# --- when to look again -----------------------------------------------------------------------------------------------


def requeue(seen: Observation, seconds: float = 0) -> float | None:
    """When a tunnel is looked at again, some seconds after this was seen first."""
    return decided(seen, after(decided(seen).status), seconds).requeue_seconds


def problem(reason: Reason) -> Observation:
    return Observation(problem=Problem(reason, "what"))


def test_a_tunnel_that_works_or_starts_is_looked_at_when_something_changes() -> None:
    assert requeue(observed(ORDERS, working(ORDERS))) is None
    assert requeue(Observation()) is None


@pytest.mark.parametrize(
    ("reason", "seconds", "again"),
    [
        (Reason.CONNECTION_LOST, 0, 59.75),  # the time of a condition has no fraction of a second
        (Reason.CONNECTION_LOST, 59.5, 0.5),
        (Reason.CONNECTION_LOST, 60, None),
        (Reason.KEY_REJECTED, 100, 199.75),
        (Reason.NO_COMMON_ALGORITHM, 0, None),
    ],
)
def test_a_failure_is_looked_at_when_its_grace_ends(reason: Reason, seconds: float, again: float | None) -> None:
    assert requeue(observed(ORDERS, failing(ORDERS, ConditionType.TRANSPORT_READY, reason)), seconds) == again


@pytest.mark.parametrize(("reason", "again"), [(Reason.NAME_CONFLICT, 5), (Reason.REJECTED, 30)])
def test_what_the_api_server_refused_is_tried_again(reason: Reason, again: float) -> None:
    assert requeue(problem(reason)) == again
    assert requeue(problem(reason), 10_000) == again


def test_quota_is_looked_at_when_its_grace_ends() -> None:
    assert requeue(problem(Reason.QUOTA_EXCEEDED)) == 59.75


MOUNTED = [
    (ConditionType.KEY_READY, Reason.SECRET_NOT_FOUND),
    (ConditionType.KEY_READY, Reason.SECRET_KEY_MISSING),
    (ConditionType.KEY_READY, Reason.PRIVATE_KEY_INVALID),
    (ConditionType.KEY_READY, Reason.PUBLIC_KEY_GIVEN),
    (ConditionType.KEY_READY, Reason.PASSPHRASE_REQUIRED),
    (ConditionType.KEY_READY, Reason.PASSPHRASE_WRONG),
    (ConditionType.TRANSPORT_READY, Reason.KNOWN_HOSTS_INVALID),
]


@pytest.mark.parametrize(("layer", "reason"), MOUNTED)
def test_while_a_mounted_object_is_awaited_the_kubelet_is_told_to_look(layer: ConditionType, reason: Reason) -> None:
    seen = observed(ORDERS, failing(ORDERS, layer, reason))
    decision = decided(seen)
    assert (decision.refresh_mounts, decision.requeue_seconds) == (True, 5)
    assert not decided(seen, after(decision.status), 301).refresh_mounts, "not for ever"


@pytest.mark.parametrize("reason", [Reason.KEY_REJECTED, Reason.HOST_KEY_MISMATCH, Reason.CONNECTION_LOST])
def test_for_other_failures_mounts_are_left_alone(reason: Reason) -> None:
    assert not decided(observed(ORDERS, failing(ORDERS, ConditionType.TRANSPORT_READY, reason))).refresh_mounts


def test_a_silent_forwarder_is_looked_at_when_its_time_is_up() -> None:
    pod = current_pod(ORDERS)
    report = Report(working(ORDERS), failing_since=NOW - timedelta(seconds=8))
    seen = Observation(pods=(pod,), reports={pod.uid: report})
    assert decided(seen).requeue_seconds == 12
    assert decided(seen, unreachable_after_seconds=10).requeue_seconds == 2
    assert decided(seen, unreachable_after_seconds=8).requeue_seconds == pytest.approx(59.75), "then its grace"
