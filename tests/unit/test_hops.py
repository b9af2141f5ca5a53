"""Jump hosts and fallbacks as values: the configuration, what is mounted, messages, the status, Events."""

import json
from typing import Any

import pytest

from dbtunnel.api import forwarder as wire
from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.documents import read
from dbtunnel.api.forwarder import (
    Algorithms,
    ForwarderHop,
    ForwarderKey,
    HopFact,
    HostKeyFact,
    HostKeyRule,
    LayerFact,
    LayerStatus,
    PublicKeyFact,
)
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import DatabaseTunnelStatus, Hop
from dbtunnel.cli.manifests import parse_tunnel
from dbtunnel.domain.children import build_deployment
from dbtunnel.domain.diagnosis import Subject, explain, key_lines
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.hops import ends_of, jumps_of, spec_path, targets_of, way_to
from dbtunnel.domain.news import detour
from dbtunnel.domain.settings import Defaults
from dbtunnel.domain.status import decide
from tests.support.hop_rows import FINGERPRINT, GOOD_HOPS, WHOLE
from tests.support.values import INSTALLATION, NOW, PUBLIC_KEY, changed, manifest, observed, tunnel, working

WAY = {
    "tunnel.jumpHosts": [{**WHOLE, "hostKey": {"knownHostsRef": {"name": "hosts"}}}, {"host": "2001:db8::2"}],
    "tunnel.fallbacks": [
        {"host": "203.0.113.8"},
        {"host": "203.0.113.9", "keySecretRef": {"name": "other"}, "hostKey": {"knownHosts": "x"}},
    ],
    "tunnel.user": "svc",
}
"""Two jump hosts, then the bastion or one of two fallbacks."""

CHAIN = tunnel(WAY)
BASTION, FALLBACK, OTHER_FALLBACK, FIRST_JUMP, LAST_JUMP = range(5)
"""Their numbers."""

CONFIG = forwarder_config(CHAIN, Defaults())
OWN_KEY = PublicKeyFact(key="ssh-rsa OWN", fingerprint="SHA256:own")
SUBJECT = Subject(
    CONFIG, ("203.0.113.1",), PUBLIC_KEY, (HopFact(), HopFact(), HopFact(public_key=OWN_KEY), HopFact(), HopFact())
)


# --- the configuration ------------------------------------------------------------------------------------------------


def test_user_and_key_default_to_the_tunnels_and_host_keys_do_not() -> None:
    pinned = forwarder_config(tunnel({**WAY, "tunnel.hostKey": {"fingerprints": [FINGERPRINT]}}), Defaults())
    assert pinned.fallbacks == (
        ForwarderHop(host="203.0.113.8", port=22, user="svc"),
        ForwarderHop(
            host="203.0.113.9",
            port=22,
            user="svc",
            host_key=HostKeyRule(known_hosts="x"),
            key=ForwarderKey(secret="other", key="ssh-privatekey", passphrase_key="passphrase"),
        ),
    )
    assert pinned.jump_hosts == (
        ForwarderHop(
            host="jump.example.com",
            port=2222,
            user="ops",
            host_key=HostKeyRule(known_hosts_file="known_hosts"),
            algorithms=Algorithms.LEGACY,
            key=ForwarderKey(secret="jump-ssh", key="id", passphrase_key="words"),
        ),
        ForwarderHop(host="2001:db8::2", port=22, user="svc"),
    )
    assert [hop.host for hop in pinned.hops] == [
        "203.0.113.7",
        "203.0.113.8",
        "203.0.113.9",
        "jump.example.com",
        "2001:db8::2",
    ]


def test_empty_lists_change_nothing() -> None:
    empty = tunnel({"tunnel.jumpHosts": [], "tunnel.fallbacks": []})
    assert forwarder_config(empty, Defaults()).to_json() == forwarder_config(tunnel(), Defaults()).to_json()


@pytest.mark.parametrize("row", GOOD_HOPS)
def test_a_configuration_that_was_read_is_the_one_that_was_written(row: str) -> None:
    config = forwarder_config(tunnel(GOOD_HOPS[row]), Defaults())
    assert read(wire.ForwarderConfig, config.to_json()) == config


def test_there_are_never_more_hops_than_a_status_may_have() -> None:
    most = forwarder_config(tunnel(GOOD_HOPS["as many as may be"]), Defaults())
    assert len(most.hops) == wire.MOST_HOPS


def test_where_each_leads() -> None:
    assert list(ends_of(CONFIG)) == [BASTION, FALLBACK, OTHER_FALLBACK]
    assert list(jumps_of(CONFIG)) == [FIRST_JUMP, LAST_JUMP]
    database = (("orders.internal", 5432),)
    assert [targets_of(CONFIG, number) for number in ends_of(CONFIG)] == [database] * 3
    assert targets_of(CONFIG, FIRST_JUMP) == (("2001:db8::2", 22),)
    assert targets_of(CONFIG, LAST_JUMP) == (("203.0.113.7", 22), ("203.0.113.8", 22), ("203.0.113.9", 22))
    assert [list(way_to(CONFIG, number)) for number in range(5)] == [[3, 4], [3, 4], [3, 4], [], [3]]


def test_where_each_stands_in_the_spec() -> None:
    assert [spec_path(CONFIG, number) for number in range(5)] == [
        "spec.tunnel",
        "spec.tunnel.fallbacks[0]",
        "spec.tunnel.fallbacks[1]",
        "spec.tunnel.jumpHosts[0]",
        "spec.tunnel.jumpHosts[1]",
    ]


# --- what is mounted --------------------------------------------------------------------------------------------------


def test_secrets_and_known_hosts_of_each_are_mounted_whether_they_are_there_or_not() -> None:
    pod = build_deployment(CHAIN, INSTALLATION)["spec"]["template"]["spec"]
    mode = {"optional": True, "defaultMode": 0o444}
    assert pod["volumes"] == [
        {"name": "key", "secret": {"secretName": "orders-ssh", **mode}},
        {"name": "hop-2-key", "secret": {"secretName": "other", **mode}},
        {"name": "hop-3-key", "secret": {"secretName": "jump-ssh", **mode}},
        {"name": "hop-3-known-hosts", "configMap": {"name": "hosts", **mode}},
    ]
    assert pod["containers"][0]["volumeMounts"] == [
        {"name": "key", "mountPath": wire.KEY_DIRECTORY, "readOnly": True},
        {"name": "hop-2-key", "mountPath": "/etc/dbtunnel/hops/2/key", "readOnly": True},
        {"name": "hop-3-key", "mountPath": "/etc/dbtunnel/hops/3/key", "readOnly": True},
        {"name": "hop-3-known-hosts", "mountPath": "/etc/dbtunnel/hops/3/known-hosts", "readOnly": True},
    ]


def test_the_longest_known_hosts_of_all_fit_into_one_environment_variable() -> None:
    servers = [
        {"host": ("a" * 62 + ".") * 4, "port": port, "hostKey": {"knownHosts": "jump ssh-rsa AAA\n" * 481}}
        for port in range(1, 5)
    ]
    most = tunnel(
        {
            "tunnel.hostKey": {"knownHosts": "bastion ssh-rsa A\n" * 1820},
            "tunnel.jumpHosts": servers,
            "tunnel.fallbacks": servers,
        }
    )
    config = build_deployment(most, INSTALLATION)["spec"]["template"]["spec"]["containers"][0]["env"][0]
    assert len(config["value"].encode()) < 128 * 1024 - len("DBTUNNEL_CONFIG=") - 1, "exec(2) takes no more"


# --- messages ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("reason", [*REASONS, "Quantum"])
def test_every_message_is_whole_for_every_hop(reason: str, number: int) -> None:
    message = explain(reason, "what was seen", SUBJECT, number)
    assert "None" not in message
    assert "  " not in message
    assert message == message.strip()
    assert not message.endswith(": ")
    known = REASONS.get(Reason(reason)) if reason in set(Reason) else None
    if known is None or known.type in (ConditionType.TRANSPORT_READY, ConditionType.AUTHENTICATED):
        name = ("bastion", "fallback", "fallback", "jump host", "jump host")[number]
        assert message.startswith(f"{name} ")


def test_a_hop_that_is_not_there_is_told_of_as_the_bastion() -> None:
    """A forwarder's document names any number, and whoever can make pods can pose as a forwarder."""
    assert explain(Reason.CONNECTION_LOST, "", SUBJECT, 8).startswith("bastion 203.0.113.7:22: ")


def test_what_to_change_is_named_where_it_stands() -> None:
    refused = explain(Reason.CONNECTION_REFUSED, "Connection refused", SUBJECT, LAST_JUMP)
    assert refused == (
        "jump host [2001:db8::2]:22: it refuses the connection of jump host jump.example.com:2222: Connection refused."
        " Start the SSH server, or correct spec.tunnel.jumpHosts[1].port."
    )
    first = explain(Reason.HOST_UNRESOLVABLE, "no such name", SUBJECT, FIRST_JUMP)
    assert "does not resolve in the cluster" in first
    assert "spec.tunnel.jumpHosts[0].host" in first
    assert "spec.tunnel.fallbacks[1].algorithms to Legacy" in explain(Reason.NO_COMMON_ALGORITHM, "", SUBJECT, 2)


def test_a_jump_host_that_prohibits_is_told_what_to_permit() -> None:
    message = explain(Reason.FORWARDING_PROHIBITED, "open failed", SUBJECT, LAST_JUMP)
    targets = "203.0.113.7:22 203.0.113.8:22 203.0.113.9:22"
    assert message.startswith(f"jump host [2001:db8::2]:22: forwarding to {targets} is prohibited: open failed.")
    assert f"PermitOpen any or {targets};" in message
    assert 'permitopen="203.0.113.7:22",permitopen="203.0.113.8:22",permitopen="203.0.113.9:22"' in message


def test_a_missing_secret_is_that_of_the_hop() -> None:
    assert "Secret jump-ssh has no key id;" in explain(Reason.SECRET_KEY_MISSING, "a", SUBJECT, FIRST_JUMP)
    assert "spec.tunnel.jumpHosts[0].keySecretRef.key" in explain(Reason.SECRET_KEY_MISSING, "a", SUBJECT, FIRST_JUMP)
    shared = explain(Reason.SECRET_KEY_MISSING, "a", SUBJECT, LAST_JUMP)
    assert "Secret orders-ssh" in shared
    assert "spec.tunnel.keySecretRef.key" in shared


def test_egress_addresses_are_those_of_the_first_hop_alone() -> None:
    """Those behind it see the jump host's address."""
    assert (key_lines(SUBJECT, LAST_JUMP) or "").startswith("restrict,")
    assert (key_lines(SUBJECT, BASTION) or "").startswith("restrict,")
    direct = forwarder_config(tunnel({**WAY, "tunnel.jumpHosts": []}), Defaults())
    assert (key_lines(Subject(direct, ("203.0.113.1",), PUBLIC_KEY), FALLBACK) or "").startswith('from="203.0.113.1",')
    assert "203.0.113.1" in explain(Reason.CONNECT_TIMEOUT, "", SUBJECT, FIRST_JUMP)
    assert "203.0.113.1" not in explain(Reason.CONNECT_TIMEOUT, "", SUBJECT, LAST_JUMP).replace("203.0.113.1:", "")


@pytest.mark.parametrize("number", range(1, 5))
def test_a_host_key_is_pinned_by_the_patch_of_the_message(number: int) -> None:
    hops = [HopFact()] * 5
    hops[number] = HopFact(host_keys=(HostKeyFact(algorithm="ssh-ed25519", fingerprint=FINGERPRINT),))
    message = explain(Reason.HOST_KEY_UNKNOWN, "", Subject(CONFIG, (), None, tuple(hops)), number)
    (operation,) = json.loads(message[message.index("[{") :])
    _, *path = operation["path"].split("/")
    patched = changed(manifest({f"spec.{where}": value for where, value in WAY.items()}), {})
    place: Any = patched
    for step in path[:-1]:
        place = place[int(step) if step.isdecimal() else step]
    assert operation["op"] == "add"
    place[path[-1]] = operation["value"]
    config = forwarder_config(parse_tunnel(patched | {"status": {}}, "patched", "shop"), Defaults())
    assert config.hops[number].host_key.fingerprints == (FINGERPRINT,)


# --- the status -------------------------------------------------------------------------------------------------------

REFUSED = LayerFact(status=LayerStatus.FALSE, reason=Reason.CONNECTION_REFUSED, seen="Connection refused", hop=BASTION)


def status_of(*hops: tuple[HopFact, ...], of: DatabaseTunnel = CHAIN, **installation: Any) -> DatabaseTunnelStatus:
    """The status while as many forwarders report these facts."""
    documents = [working(of, hops=facts, public_key=PUBLIC_KEY) for facts in hops]
    return decide(of, observed(of, *documents), INSTALLATION, NOW).status


def using(number: int, **facts: Any) -> tuple[HopFact, ...]:
    """A forwarder's facts while it goes through this end; `facts`: of the bastion."""
    used = {number, FIRST_JUMP, LAST_JUMP}
    return tuple(HopFact(active=place in used, **(facts if place == BASTION else {})) for place in range(5))


def test_every_server_is_in_the_status_with_its_role_and_its_line() -> None:
    hops = list(using(BASTION))
    hops[OTHER_FALLBACK] = HopFact(public_key=OWN_KEY)
    hops[FIRST_JUMP] = HopFact(active=True, server_version="SSH-2.0-OpenSSH_9.2", cipher="aes", public_key=OWN_KEY)
    status = status_of(tuple(hops))
    found = [(hop.role, hop.host, hop.port, hop.active, hop.replicas) for hop in status.hops or ()]
    assert found == [
        ("Bastion", "203.0.113.7", 22, True, 1),
        ("Fallback", "203.0.113.8", 22, False, 0),
        ("Fallback", "203.0.113.9", 22, False, 0),
        ("JumpHost", "jump.example.com", 2222, True, 1),
        ("JumpHost", "2001:db8::2", 22, True, 1),
    ]
    lines = [hop.authorized_keys_line or "" for hop in status.hops or ()]
    database = 'permitopen="orders.internal:5432"'
    assert [database in line for line in lines] == [True, True, True, False, False]
    assert 'permitopen="[2001:db8::2]:22",permitlisten' in lines[FIRST_JUMP]
    owners = [OWN_KEY.key in line for line in lines]
    assert owners == [False, False, True, True, False]
    assert (status.hops or ())[FIRST_JUMP].server_version == "SSH-2.0-OpenSSH_9.2"
    assert [key.fingerprint for key in status.public_keys or ()] == [PUBLIC_KEY.fingerprint, OWN_KEY.fingerprint]
    assert DatabaseTunnelStatus.model_validate(status.document()) == status


def test_a_key_of_its_own_that_is_not_known_yet_has_no_line() -> None:
    lines = [hop.authorized_keys_line for hop in status_of(using(BASTION)).hops or ()]
    assert [line is None for line in lines] == [False, False, True, True, False]


def test_what_was_known_of_a_server_is_told_of_no_other_role() -> None:
    known = DatabaseTunnelStatus(hops=(Hop(role="Fallback", host="203.0.113.7", port=22, server_version="SSH-2.0-x"),))
    of = tunnel(WAY, known.document())
    assert (decide(of, observed(of), INSTALLATION, NOW).status.hops or ())[BASTION].server_version is None


def ready(status: DatabaseTunnelStatus, kind: str = "Ready") -> tuple[str, str]:
    return next((one.status, one.message) for one in status.conditions or () if one.type == kind)


def test_on_a_fallback_the_tunnel_is_ready_and_says_why_it_is_there() -> None:
    status = status_of(using(FALLBACK, failure=REFUSED))
    told = (
        "New connections go through fallback 203.0.113.8:22, not through the bastion. bastion 203.0.113.7:22: it"
        " refuses the connection of jump host [2001:db8::2]:22: Connection refused. Start the SSH server, or correct"
        " spec.tunnel.port."
    )
    assert ready(status, "TransportReady") == ("True", told)
    assert ready(status) == ("True", f"The tunnel works. {told}")
    assert [hop.active for hop in status.hops or ()] == [False, True, False, True, True]


def test_on_the_bastion_nothing_more_is_said() -> None:
    assert ready(status_of(using(BASTION))) == ("True", "The tunnel works.")


def test_of_several_forwarders_those_on_a_fallback_are_counted() -> None:
    of = tunnel({**WAY, "replicas": 2})
    status = status_of(using(BASTION), using(FALLBACK, failure=REFUSED), of=of)
    assert "fallback 203.0.113.8:22 (1 of 2 pods)" in ready(status, "TransportReady")[1]
    assert [(hop.active, hop.replicas) for hop in status.hops or ()][:2] == [(True, 1), (True, 1)]


def test_the_failure_of_a_hop_is_told_of_that_hop() -> None:
    fact = LayerFact(status=LayerStatus.FALSE, reason=Reason.KEY_REJECTED, hop=LAST_JUMP)
    documents = [working(CHAIN, hops=(), authentication=fact, database=LayerFact())]
    status = decide(CHAIN, observed(CHAIN, *documents), INSTALLATION, NOW).status
    message = ready(status, "Authenticated")[1]
    assert message.startswith("jump host [2001:db8::2]:22: user svc: the server does not accept the key.")
    assert 'permitopen="203.0.113.7:22"' in message


# --- Events -----------------------------------------------------------------------------------------------------------

FIRST, SECOND = status_of(using(BASTION)), status_of(using(FALLBACK, failure=REFUSED))
THIRD, NONE = status_of(using(OTHER_FALLBACK, failure=REFUSED)), status_of(())


@pytest.mark.parametrize(
    ("before", "after", "news"),
    [
        (FIRST, SECOND, ("Warning", "FallbackInUse")),
        (NONE, SECOND, ("Warning", "FallbackInUse")),
        (SECOND, SECOND, None),
        (SECOND, THIRD, ("Warning", "FallbackInUse")),
        (SECOND, FIRST, ("Normal", "BastionInUse")),
        (SECOND, NONE, None),
        (NONE, FIRST, None),
        (FIRST, FIRST, None),
    ],
)
def test_an_event_tells_of_a_fallback_that_is_taken_and_left(
    before: DatabaseTunnelStatus, after: DatabaseTunnelStatus, news: tuple[str, str] | None
) -> None:
    told = detour(before.document(), after)
    assert (told[:2] if told else None) == news


def test_the_event_says_why() -> None:
    told = detour(FIRST.document(), SECOND)
    assert told is not None
    assert "bastion 203.0.113.7:22: it refuses the connection" in told[2]
    back = detour(SECOND.document(), FIRST)
    assert back is not None
    assert back[2] == "New connections go through the bastion again: 203.0.113.7:22."


def test_a_status_of_another_version_is_no_news() -> None:
    assert detour({"hops": [{}, {"role": "Fallback"}, {"active": True}]}, FIRST) is None
