"""What `kubectl dbtunnel trust` and `rotate-key` decide and write, and what is said of a missing right."""

import base64
import json
from types import SimpleNamespace
from typing import Any

import pytest

from dbtunnel.api.forwarder import HopFact, LayerFact, LayerStatus, NextKeyFact, PublicKeyFact
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.cli import UnusableInputError
from dbtunnel.cli.advice import pin_lines
from dbtunnel.cli.plugin import rotate_key, trust
from dbtunnel.cli.plugin.cluster import ClusterError, denied_text, open_cluster
from dbtunnel.cli.plugin.handout_text import known_hop
from dbtunnel.cli.plugin.main import main
from dbtunnel.cli.terminal import COLUMNS, Style
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.settings import Defaults
from dbtunnel.domain.status import decide
from tests.support.values import INSTALLATION, NOW, manifest, observed, working

PLAIN = Style(color=False, unicode=False)
PINNED, SHOWN, OTHER = ("SHA256:" + letter * 43 for letter in "pso")

SERVERS = {
    "spec.tunnel": {
        "host": "bastion",
        "hostKey": {"alias": "the-bastion"},
        "fallbacks": [{"host": "second", "port": 2222}, {"host": "third", "hostKey": {"fingerprints": [PINNED]}}],
        "jumpHosts": [{"host": "jump"}],
    }
}


def hop(role: str, host: str, port: int, *shown: str) -> dict[str, Any]:
    keys = [f"ssh-ed25519 {one}" for one in shown]
    return {"role": role, "host": host, "port": port, "hostKeyFingerprints": keys}


HOPS = (
    hop("Bastion", "bastion", 22, SHOWN, OTHER),
    hop("Fallback", "second", 2222, OTHER),
    hop("Fallback", "third", 22, SHOWN),
    hop("JumpHost", "jump", 22),
)


def parsed(changes: dict[str, Any] | None = None, **status: Any) -> DatabaseTunnel:
    return DatabaseTunnel.parse(manifest(changes, status))


def offers(tunnel: DatabaseTunnel, numbers: list[int]) -> list[trust.Offer]:
    config = forwarder_config(tunnel, Defaults())
    return [(number, known_hop(tunnel, config, number)) for number in numbers]


# --- trust --------------------------------------------------------------------------------------------------------


def test_what_is_not_pinned_is_offered() -> None:
    tunnel = parsed(SERVERS, hops=HOPS)
    config = forwarder_config(tunnel, Defaults())
    assert trust.unpinned(config) == [3, 0, 1], "in the order of the way"
    assert trust.changed(tunnel, config) == [3, 0, 1, 2]


@pytest.mark.parametrize(
    ("host_key", "shown", "is_offered"),
    [
        ({"fingerprints": [PINNED]}, (PINNED, OTHER), False),
        ({"fingerprints": [PINNED]}, (), False),
        ({"fingerprints": [PINNED]}, (OTHER,), True),
        ({"knownHosts": "bastion ssh-ed25519 AAAA"}, (OTHER,), False),
        ({"knownHostsRef": {"name": "hosts"}}, (OTHER,), False),
    ],
)
def test_replace_offers_what_no_longer_fits(host_key: Any, shown: tuple[str, ...], *, is_offered: bool) -> None:
    place = hop("Bastion", "bastion", 22, *shown)
    tunnel = parsed({"spec.tunnel": {"host": "bastion", "hostKey": host_key}}, hops=[place])
    config = forwarder_config(tunnel, Defaults())
    assert trust.unpinned(config) == []
    assert trust.changed(tunnel, config) == ([0] if is_offered else [])


def announcing(generation: int = 3, **changes: Any) -> DatabaseTunnel:
    """The third server is verified by the pinned key, and has proved to hold others."""
    place = {**hop("Fallback", "third", 22, PINNED, SHOWN, OTHER), "active": True, **changes}
    return parsed(SERVERS, hops=(*HOPS[:2], place, HOPS[3]), observedGeneration=generation)


def test_what_a_verified_server_has_announced_is_offered_beside_what_is_pinned() -> None:
    tunnel = announcing()
    config = forwarder_config(tunnel, Defaults())
    found = trust.announced(tunnel, config)
    assert [number for number, _ in found] == [2]
    *_, pin = trust.pin_operations(tunnel, config, found)
    assert pin["path"] == "/spec/tunnel/fallbacks/1/hostKey"
    assert pin["value"] == {"fingerprints": [PINNED, SHOWN, OTHER]}
    assert [line.strip() for line in pin_lines([found[0][1]])][-3:] == [f"- {one}" for one in (PINNED, SHOWN, OTHER)]
    text = "\n".join(trust.trust_text(config, found, PLAIN))
    assert text.startswith("fallback third:22 holds these host keys too, which are not pinned:\n")
    assert [PINNED in text, SHOWN in text, OTHER in text] == [False, True, True]
    assert max(map(len, text.splitlines())) <= COLUMNS


@pytest.mark.parametrize(
    "tunnel",
    [
        announcing(2),
        announcing(active=False),
        announcing(hostKeyFingerprints=[f"ssh-ed25519 {SHOWN}"]),
        announcing(hostKeyFingerprints=[f"ssh-ed25519 {PINNED}"]),
        announcing(hostKeyFingerprints=[]),
    ],
    ids=["of another spec", "not in use", "not verified", "none", "nothing known"],
)
def test_what_is_not_proved_is_not_called_announced(tunnel: DatabaseTunnel) -> None:
    assert trust.announced(tunnel, forwarder_config(tunnel, Defaults())) == []


def test_pins_are_written_if_the_spec_is_the_one_that_was_read() -> None:
    tunnel = parsed(SERVERS, hops=HOPS)
    assert trust.pin_operations(tunnel, forwarder_config(tunnel, Defaults()), offers(tunnel, [0, 1])) == [
        {"op": "test", "path": "/metadata/generation", "value": 3},
        {
            "op": "add",
            "path": "/spec/tunnel/hostKey",
            "value": {"fingerprints": [SHOWN, OTHER], "alias": "the-bastion"},
        },
        {"op": "add", "path": "/spec/tunnel/fallbacks/0/hostKey", "value": {"fingerprints": [OTHER]}},
    ]


def test_what_is_to_be_compared() -> None:
    tunnel = parsed(SERVERS, hops=HOPS)
    text = "\n".join(trust.trust_text(forwarder_config(tunnel, Defaults()), offers(tunnel, [0, 2]), PLAIN))
    assert text.startswith(
        "bastion bastion:22 shows these host keys, and none is pinned:\n"
        "  TYPE         FINGERPRINT\n"
        f"  ssh-ed25519  {SHOWN}\n"
        f"  ssh-ed25519  {OTHER}\n"
        "\n"
        "fallback third:22 no longer shows the host key that is pinned:\n"
        f"  {PINNED}\n"
    )
    assert "somebody else answers there" in " ".join(text.split())
    assert "ssh-keygen -lf $key; done" in text
    assert max(map(len, text.splitlines())) <= COLUMNS


def test_the_yaml_that_pins() -> None:
    tunnel = parsed(SERVERS, hops=HOPS)
    assert pin_lines([one for _, one in offers(tunnel, [0, 1])]) == [
        "spec:",
        "  tunnel:",
        "    hostKey:",
        "      fingerprints:",
        f"      - {SHOWN}",
        f"      - {OTHER}",
        "    fallbacks:",
        "    - host: second",
        "      port: 2222",
        "      hostKey:",
        "        fingerprints:",
        f"        - {OTHER}",
    ]


@pytest.mark.parametrize(
    ("typed", "agrees"), [("yes", True), (" YES ", True), ("y", False), ("", False), (None, False)]
)
def test_only_yes_agrees(monkeypatch: pytest.MonkeyPatch, typed: str | None, *, agrees: bool) -> None:
    def answer(_: str) -> str:
        if typed is None:
            raise EOFError
        return typed

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", answer)
    assert trust._agrees() is agrees


def test_who_says_yes_at_once_is_not_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tunnel = parsed(SERVERS, hops=HOPS)
    patched: list[Any] = []
    cluster = SimpleNamespace(tunnel=lambda _: tunnel, patch=lambda *what: patched.append(what))
    monkeypatch.setattr(trust, "cluster_of", lambda _: cluster)
    assert main(["trust", "orders", "--yes"]) == 1, "the jump host has shown none"
    ((_, name, operations),) = patched
    assert (name, len(operations)) == ("orders", 3)
    assert "Pinned." in capsys.readouterr().out


def test_a_fingerprint_is_text_and_nothing_else() -> None:
    tunnel = parsed(SERVERS, hops=[hop("Bastion", "bastion", 22, "x\x1b[2J\ny: z")])
    config, seen = forwarder_config(tunnel, Defaults()), offers(tunnel, [0])
    assert "\x1b" not in "".join(trust.trust_text(config, seen, PLAIN))
    assert "\x1b" not in "".join(pin_lines([seen[0][1]]))


# --- rotate-key ---------------------------------------------------------------------------------------------------

LINE = "restrict ssh-ed25519 AAAA shop/orders"
CURRENT = {"key": "ssh-ed25519 AAAA shop/orders", "fingerprint": "SHA256:a", "use": "Current", "accepted": True}
NEXT = {"key": "ssh-ed25519 BBBB shop/orders", "fingerprint": "SHA256:b", "use": "Next", "accepted": True}


def replacing(*keys: dict[str, Any]) -> DatabaseTunnel:
    lines = "\n".join(f"restrict {key['key']}" for key in keys if key["key"] and "CCCC" not in key["key"])
    place = {"role": "Bastion", "host": "203.0.113.7", "port": 22, "authorizedKeysLine": lines}
    return parsed(hops=[place], publicKeys=list(keys))


OWN_KEYS = {
    "spec.tunnel.jumpHosts": [{"host": "jump", "keySecretRef": {"name": "own"}}],
    "spec.tunnel.fallbacks": [{"host": "second", "keySecretRef": {"name": "own"}}, {"host": "third"}],
}
"""Two SSH servers share a key that is not the tunnel's."""


def key_names(tunnel: DatabaseTunnel) -> Any:
    return forwarder_config(tunnel, Defaults()).key


def test_the_next_key_replaces_none_that_is_there() -> None:
    operations = rotate_key.next_key_operations(key_names(parsed()), "private")
    assert operations == [
        {"op": "test", "path": "/data/ssh-privatekey-next", "value": None},
        {"op": "add", "path": "/data/ssh-privatekey-next", "value": base64.b64encode(b"private").decode()},
        {"op": "add", "path": "/data/ssh-privatekey-next-cert.pub", "value": ""},
        {"op": "remove", "path": "/data/ssh-privatekey-next-cert.pub"},
    ]


def test_the_lines_to_add_are_those_of_the_new_key() -> None:
    chosen = rotate_key.chosen_key(parsed(OWN_KEYS), None)
    told = "\n".join(rotate_key.begun_text(chosen, "ssh-ed25519 BBBB", "", PLAIN))
    assert "under ssh-privatekey-next." in told
    assert (
        "\nbastion 203.0.113.7:22, user dbtunnel:\n"
        'restrict,port-forwarding,permitopen="orders.internal:5432",permitlisten="localhost:1",command="/bin/false"'
        " ssh-ed25519 BBBB shop/orders\n"
    ) in told
    assert "\nfallback third:22, user dbtunnel:\n" in told
    assert "jump" not in told, "it has a key of its own"
    assert "second" not in told
    assert told.endswith("rotate-key orders -n shop --finish")


def test_the_key_of_other_servers_is_replaced_where_it_is_named() -> None:
    chosen = rotate_key.chosen_key(parsed(OWN_KEYS), "second:22")
    told = "\n".join(rotate_key.begun_text(chosen, "ssh-ed25519 BBBB", " --hop second:22", PLAIN))
    assert "A new key is in Secret own, under ssh-privatekey-next." in told
    assert [line for line in told.splitlines() if ", user " in line] == [
        "jump host jump:22, user dbtunnel:",
        "fallback second:22, user dbtunnel:",
    ]
    assert told.count(" ssh-ed25519 BBBB shop/orders") == 2
    assert 'permitopen="203.0.113.7:22",permitopen="second:22",permitopen="third:22"' in told, "the jump host's"
    assert told.endswith("rotate-key orders -n shop --hop second:22 --finish")


def test_what_is_known_of_the_key_of_other_servers() -> None:
    """The tunnel's own next key is accepted, that of the named server is not."""
    theirs = {"key": "ssh-ed25519 DDDD shop/orders", "fingerprint": "SHA256:d", "use": "Current", "accepted": True}
    following = {"key": "ssh-ed25519 EEEE shop/orders", "fingerprint": "SHA256:e", "use": "Next", "accepted": False}
    place = {"role": "JumpHost", "host": "jump", "port": 22}
    lines = {"authorizedKeysLine": f"restrict {theirs['key']}\nrestrict {following['key']}"}
    tunnel = parsed(OWN_KEYS, hops=[place | lines], publicKeys=[CURRENT, theirs, NEXT, following])
    chosen = rotate_key.chosen_key(tunnel, "jump:22")
    with pytest.raises(rotate_key.NotYetError, match="is not accepted yet"):
        rotate_key.accepted_keys(chosen)
    tunnel = parsed(OWN_KEYS, hops=[place | lines], publicKeys=[CURRENT, theirs, NEXT, following | {"accepted": True}])
    old, new = rotate_key.accepted_keys(rotate_key.chosen_key(tunnel, "jump:22"))
    assert (old.fingerprint, new.fingerprint) == ("SHA256:d", "SHA256:e")
    told = "\n".join(rotate_key.finished_text(chosen, old, new, PLAIN, revoked=False))
    assert "Secret own now" in told
    assert "jump host jump:22, user dbtunnel" in told
    assert "bastion" not in told


def test_what_forwarders_report_is_enough_to_finish() -> None:
    """From their documents, by the operator's decision, to the key of the jump host."""
    of = DatabaseTunnel.parse(manifest(OWN_KEYS))
    current, following = (PublicKeyFact(key=f"ssh-ed25519 {text}", fingerprint=text, accepted=True) for text in "DE")
    fact = NextKeyFact(fact=LayerFact(status=LayerStatus.TRUE, reason="Succeeded"), name="next", public_key=following)
    own = HopFact(public_key=current, next_key=fact)
    report = working(of, hops=(HopFact(), own, HopFact(), own))
    status = decide(of, observed(of, report), INSTALLATION, NOW).status
    chosen = rotate_key.chosen_key(of.model_copy(update={"status": status}), "jump:22")
    old, new = rotate_key.accepted_keys(chosen)
    assert (old.fingerprint, new.fingerprint) == ("D", "E")


@pytest.mark.parametrize("hop", ["third:22", "203.0.113.7:22", "jump", "nobody:22"])
def test_a_server_without_a_key_of_its_own_is_no_choice(hop: str) -> None:
    with pytest.raises(UnusableInputError, match=f"--hop {hop}: write HOST:PORT .*there is second:22, jump:22"):
        rotate_key.chosen_key(parsed(OWN_KEYS), hop)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ((CURRENT,), "tells of no next key"),
        ((CURRENT, NEXT | {"accepted": False}), "is not accepted yet"),
        ((CURRENT, NEXT | {"accepted": None}), "is not accepted yet"),
        ((CURRENT, NEXT | {"key": "", "accepted": False}), "is not accepted yet"),
        ((CURRENT, NEXT | {"key": "ssh-ed25519 CCCC"}), "tells of no next key"),
    ],
    ids=["none", "rejected", "not tried", "unreadable", "another server's"],
)
def test_a_key_that_is_not_accepted_takes_no_place(keys: tuple[dict[str, Any], ...], words: str) -> None:
    with pytest.raises(rotate_key.NotYetError, match=words):
        rotate_key.accepted_keys(rotate_key.chosen_key(replacing(*keys), None))


def test_an_accepted_key_takes_the_place_of_the_current_one() -> None:
    old, new = rotate_key.accepted_keys(rotate_key.chosen_key(replacing(CURRENT, NEXT), None))
    assert (old.fingerprint, new.fingerprint) == ("SHA256:a", "SHA256:b")
    key = key_names(parsed())
    move = {"op": "move", "from": "/data/ssh-privatekey-next", "path": "/data/ssh-privatekey"}
    certificate = "/data/ssh-privatekey-cert.pub"
    old_is_gone = [{"op": "add", "path": certificate, "value": ""}, {"op": "remove", "path": certificate}]
    assert rotate_key.finish_operations(key, None) == [move, *old_is_gone]
    assert rotate_key.finish_operations(key, "public", passphrase=True, certificate=True) == [
        move,
        {"op": "move", "from": "/data/passphrase-next", "path": "/data/passphrase"},
        {"op": "move", "from": "/data/ssh-privatekey-next-cert.pub", "path": certificate},
        {"op": "add", "path": "/data/ssh-publickey", "value": "cHVibGlj"},
    ]


def test_what_was_revoked_before_stays_so() -> None:
    key = key_names(parsed())
    name = "ssh-privatekey-revoked"
    listed = base64.b64encode(b"SHA256:z\n").decode()
    for data, text in (({}, b"SHA256:a\n"), ({name: listed}, b"SHA256:z\nSHA256:a\n")):
        test, add = rotate_key._revoking(data, key, "SHA256:a")
        assert test == {"op": "test", "path": f"/data/{name}", "value": data.get(name)}
        assert base64.b64decode(add["value"]) == text


# --- rights -------------------------------------------------------------------------------------------------------


def test_a_missing_right_is_told_with_what_grants_it() -> None:
    words = 'databasetunnels.dbtunnel.dev "orders" is forbidden: User "ann@example.com" cannot get resource'
    assert denied_text("get", "databasetunnels", "orders", "shop", words) == (
        "ann@example.com may not get databasetunnels.dbtunnel.dev orders in namespace shop."
        " Who may grant rights there can do it so:\n"
        "  kubectl create role dbtunnel-get-databasetunnels -n shop --verb=get"
        " --resource=databasetunnels.dbtunnel.dev --resource-name=orders\n"
        "  kubectl create rolebinding dbtunnel-get-databasetunnels -n shop --role=dbtunnel-get-databasetunnels"
        " --user=ann@example.com"
    )


def test_a_missing_right_to_ask_pods() -> None:
    words = 'pods "orders-tunnel-1:8080" is forbidden: User "system:serviceaccount:ci:bot" cannot get resource "pods"'
    text = denied_text("get", "pods/proxy", "orders-tunnel-1:8080", "shop", words)
    assert text.startswith("system:serviceaccount:ci:bot may not get pods/proxy orders-tunnel-1 in namespace shop.")
    assert "--verb=get --resource=pods/proxy\n" in text, "of every pod: their names change"
    assert text.endswith("--serviceaccount=ci:bot")


def test_a_refusal_of_other_words() -> None:
    text = denied_text("list", "pods", "", "shop", "no")
    assert text.startswith("you may not list pods in namespace shop.")
    assert text.endswith("--user=USER")


def test_a_user_s_name_is_quoted_for_the_shell() -> None:
    words = 'x is forbidden: User "a; rm -rf ~\u202e" cannot get resource'
    assert denied_text("get", "pods", "p", "shop", words).endswith("--user='a; rm -rf ~\\u202e'")


@pytest.mark.parametrize("document", [None, {}, {"contexts": [], "current-context": "x", "clusters": [], "users": []}])
def test_a_kubeconfig_that_cannot_be_used(tmp_path: Any, document: Any) -> None:
    file = tmp_path / "config"
    if document is not None:
        file.write_text(json.dumps(document))
    with pytest.raises(ClusterError, match=r"^kubeconfig: .*--kubeconfig or KUBECONFIG"):
        open_cluster(str(file), None, None)
