"""What can fail, each to its condition and reason, and back to Ready once it is mended as the message says."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dbtunnel.api.reasons import Reason
from tests.support.bastion import HARDENED, NO_FORWARDING, Bastion
from tests.support.cluster import Cluster
from tests.support.databases import PostgresServer
from tests.support.faults import HTTP_ANSWER, says
from tests.support.keys import KeyPair, key_pair
from tests.support.pages import follow
from tests.support.private_network import PrivateNetwork, config_map, secret
from tests.support.processes import free_port, wait_until
from tests.support.produced import produces
from tests.support.told_in_cluster import check_told, events
from tests.support.tunnels import Manifest, apply, example, patch, wait_for_ready, wait_for_reason

PATIENCE = 130
"""Seconds for what forwarders try again slowly: logins and host keys, where a retry makes it worse."""


def tunnel(namespace: str, name: str, way: Mapping[str, Any] | None = None, **spec: Any) -> Manifest:
    """The tunnel `orders` of the examples under another name; `way` changes `spec.tunnel`."""
    manifest = example(namespace, "orders")
    manifest["metadata"]["name"] = name
    manifest["spec"] = {**manifest["spec"], **spec}
    manifest["spec"]["tunnel"] = {**manifest["spec"]["tunnel"], **(way or {})}
    return manifest


def through(bastion: Bastion, **way: Any) -> dict[str, Any]:
    """The way through a bastion whose keys are pinned."""
    pins = {"fingerprints": list(bastion.fingerprints.values())}
    return {"host": bastion.host, "port": bastion.port, "hostKey": pins, **way}


def mended(cluster: Cluster, found: Manifest, timeout_seconds: float = 60) -> None:
    """Ready again, as `kubectl wait` sees it too, and said so once."""
    metadata = found["metadata"]
    ready = ("wait", "--for=condition=Ready", f"databasetunnel/{metadata['name']}", "-n", metadata["namespace"])
    cluster.kubectl(*ready, f"--timeout={timeout_seconds:g}s", timeout_seconds=timeout_seconds + 10)
    wait_for_ready(cluster, metadata["namespace"], metadata["name"], timeout_seconds)
    wait_until(lambda: "Ready" in events(cluster, found), "an Event Ready", 10)


# --- the pods -------------------------------------------------------------------------------------------------


@produces(Reason.CRASH_LOOPING)
def test_a_memory_limit_that_is_too_low(installed: Cluster, shop: str) -> None:
    resources = {"limits": {"memory": "12Mi"}, "requests": {"memory": "12Mi"}}
    apply(installed, tunnel(shop, "hungry", podTemplate={"resources": resources}))

    found = wait_for_reason(installed, shop, "hungry", "CrashLooping", PATIENCE)

    words = [f"kubectl logs -l dbtunnel.dev/tunnel=hungry --previous -n {shop}", "spec.podTemplate.resources"]
    check_told(installed, found, Reason.CRASH_LOOPING, words)
    patch(installed, shop, "databasetunnel/hungry", {"spec": {"podTemplate": None}})
    mended(installed, found)


# --- SSH's authentication layer ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def strict_bastion(
    private_network: PrivateNetwork, shop: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Bastion]:
    """One that knows no key at first."""
    with private_network.another_bastion(tmp_path_factory.mktemp("strict-bastion")) as bastion:
        yield bastion


@produces(Reason.KEY_REJECTED)
def test_the_key_is_not_authorized(installed: Cluster, shop: str, strict_bastion: Bastion, tmp_path: Path) -> None:
    apply(installed, tunnel(shop, "stranger", through(strict_bastion)))

    names = {"databasetunnel/orders": "databasetunnel/stranger"}
    follow("kubectl", installed, shop, tmp_path, "KeyRejected", **names)
    found = wait_for_reason(installed, shop, "stranger", "KeyRejected")

    line = found["status"]["hops"][0]["authorizedKeysLine"]
    check_told(installed, found, Reason.KEY_REJECTED, ["user dbtunnel", line])
    # it is tried again after a minute: the last test of this file sees it accepted
    strict_bastion.authorize(line)


# --- the key ----------------------------------------------------------------------------------------------------


@produces(Reason.SECRET_NOT_FOUND)
def test_the_secret_is_missing(installed: Cluster, shop: str, private_network: PrivateNetwork) -> None:
    pair = authorized_key(private_network)
    apply(installed, tunnel(shop, "no-secret", {"keySecretRef": {"name": "later-ssh"}}))

    found = wait_for_reason(installed, shop, "no-secret", "SecretNotFound")

    check_told(installed, found, Reason.SECRET_NOT_FOUND, ["kubectl create secret", "later-ssh"])
    apply(installed, secret(shop, "later-ssh", {"ssh-privatekey": pair.private}))
    mended(installed, found)


@produces(Reason.SECRET_KEY_MISSING)
def test_the_secret_has_another_key(installed: Cluster, shop: str, private_network: PrivateNetwork) -> None:
    pair = authorized_key(private_network)
    apply(installed, secret(shop, "named-ssh", {"id_ed25519": pair.private}))
    apply(installed, tunnel(shop, "no-key", {"keySecretRef": {"name": "named-ssh"}}))

    found = wait_for_reason(installed, shop, "no-key", "SecretKeyMissing")

    words = ["no key ssh-privatekey", "id_ed25519", "spec.tunnel.keySecretRef.key"]
    check_told(installed, found, Reason.SECRET_KEY_MISSING, words)
    change = {"spec": {"tunnel": {"keySecretRef": {"name": "named-ssh", "key": "id_ed25519"}}}}
    patch(installed, shop, "databasetunnel/no-key", change)
    mended(installed, found)


@pytest.mark.parametrize(
    ("reason", "files", "words"),
    [
        pytest.param(
            "PrivateKeyInvalid",
            {"ssh-privatekey": "garbage"},
            ["is no private key to use", "BEGIN"],
            marks=produces(Reason.PRIVATE_KEY_INVALID),
        ),
        pytest.param(
            "PublicKeyGiven",
            {"ssh-privatekey": key_pair().public},
            ["the file without .pub"],
            marks=produces(Reason.PUBLIC_KEY_GIVEN),
        ),
        pytest.param(
            "PassphraseRequired",
            {"ssh-privatekey": key_pair(passphrase="secret words").private},
            ["is encrypted", "passphrase"],
            marks=produces(Reason.PASSPHRASE_REQUIRED),
        ),
        pytest.param(
            "PassphraseWrong",
            {"ssh-privatekey": key_pair(passphrase="secret words").private, "passphrase": "guess"},
            ["does not decrypt"],
            marks=produces(Reason.PASSPHRASE_WRONG),
        ),
    ],
    ids=lambda given: given if isinstance(given, str) else "",
)
def test_the_key_cannot_be_used(
    installed: Cluster,
    shop: str,
    private_network: PrivateNetwork,
    reason: str,
    files: Mapping[str, str],
    words: Sequence[str],
) -> None:
    name = reason.lower()
    apply(installed, secret(shop, f"{name}-ssh", files))
    apply(installed, tunnel(shop, name, {"keySecretRef": {"name": f"{name}-ssh"}}))

    found = wait_for_reason(installed, shop, name, reason)

    message = check_told(installed, found, Reason(reason), words)
    assert "secret words" not in json.dumps(found)
    assert "guess" not in message
    pair = authorized_key(private_network)
    apply(installed, secret(shop, f"{name}-ssh", {"ssh-privatekey": pair.private}))
    mended(installed, found)


def authorized_key(private_network: PrivateNetwork) -> KeyPair:
    """A new key that the bastion accepts."""
    pair = key_pair()
    private_network.authorize(pair.public)
    return pair


# --- SSH's transport layer --------------------------------------------------------------------------------------


@produces(Reason.HOST_KEY_UNKNOWN)
def test_the_host_key_is_unknown_and_the_message_pins_it(installed: Cluster, shop: str) -> None:
    apply(installed, tunnel(shop, "unpinned", {"hostKey": {}}))

    found = wait_for_reason(installed, shop, "unpinned", "HostKeyUnknown")

    message = check_told(installed, found, Reason.HOST_KEY_UNKNOWN, ["ssh-keygen -lf"])
    pin = message[message.index('{"spec"') :]
    patch(installed, shop, "databasetunnel/unpinned", json.loads(pin))
    mended(installed, found)


@produces(Reason.HOST_KEY_MISMATCH)
def test_the_host_key_has_changed(installed: Cluster, shop: str, bastion: Bastion) -> None:
    apply(installed, tunnel(shop, "changed", through(bastion)))
    wait_for_ready(installed, shop, "changed")

    bastion.replace_host_keys()
    bastion.kill_sessions()
    found = wait_for_reason(installed, shop, "changed", "HostKeyMismatch", PATIENCE)

    new = bastion.fingerprints["ed25519"]
    check_told(installed, found, Reason.HOST_KEY_MISMATCH, [new])
    pins = {"fingerprints": list(bastion.fingerprints.values())}
    patch(installed, shop, "databasetunnel/changed", {"spec": {"tunnel": {"hostKey": pins}}})
    mended(installed, found)


@produces(Reason.KNOWN_HOSTS_INVALID)
def test_known_hosts_has_a_line_that_cannot_be_read(installed: Cluster, shop: str, bastion: Bastion) -> None:
    apply(installed, config_map(shop, "hosts", {"known_hosts": "what is this\n"}))
    reference = {"hostKey": {"knownHostsRef": {"name": "hosts"}}}
    apply(installed, tunnel(shop, "unreadable", {**through(bastion), **reference}))

    found = wait_for_reason(installed, shop, "unreadable", "KnownHostsInvalid")

    check_told(installed, found, Reason.KNOWN_HOSTS_INVALID, ["line 1", "ssh-keyscan"])
    apply(installed, config_map(shop, "hosts", {"known_hosts": bastion.known_hosts()}))
    mended(installed, found, PATIENCE)


@produces(Reason.HOST_UNRESOLVABLE)
def test_the_bastions_name_does_not_resolve(installed: Cluster, shop: str) -> None:
    apply(installed, tunnel(shop, "nameless", {"host": "nowhere.invalid"}))

    found = wait_for_reason(installed, shop, "nameless", "HostUnresolvable")

    words = ["bastion nowhere.invalid:22", "does not resolve", "spec.tunnel.host"]
    check_told(installed, found, Reason.HOST_UNRESOLVABLE, words)
    patch(installed, shop, "databasetunnel/nameless", {"spec": {"tunnel": {"host": "bastion"}}})
    mended(installed, found)


@produces(Reason.CONNECTION_REFUSED)
def test_nothing_listens_at_the_bastions_port(installed: Cluster, shop: str, bastion: Bastion) -> None:
    port = free_port(bastion.host)
    apply(installed, tunnel(shop, "deaf", through(bastion, port=port)))

    found = wait_for_reason(installed, shop, "deaf", "ConnectionRefused")

    words = [f"bastion {bastion.host}:{port}", "connection refused", "spec.tunnel.port"]
    check_told(installed, found, Reason.CONNECTION_REFUSED, words)
    patch(installed, shop, "databasetunnel/deaf", {"spec": {"tunnel": {"port": bastion.port}}})
    mended(installed, found)


@produces(Reason.NOT_AN_SSH_SERVER)
def test_the_bastions_port_is_not_ssh(installed: Cluster, shop: str, bastion: Bastion) -> None:
    with says(HTTP_ANSWER, after_bytes=1, host=bastion.host) as web:
        apply(installed, tunnel(shop, "web", through(bastion, port=web.port)))
        found = wait_for_reason(installed, shop, "web", "NotAnSshServer")
        words = ["not an SSH server", "HTTP/1.1 400", "spec.tunnel.port"]
        check_told(installed, found, Reason.NOT_AN_SSH_SERVER, words)
    patch(installed, shop, "databasetunnel/web", {"spec": {"tunnel": {"port": bastion.port}}})
    mended(installed, found)


# --- SSH's connection layer, and the database -------------------------------------------------------------------


@produces(Reason.FORWARDING_PROHIBITED)
def test_the_bastion_prohibits_forwarding(installed: Cluster, shop: str, bastion: Bastion) -> None:
    bastion.set_config(*NO_FORWARDING)
    apply(installed, tunnel(shop, "forbidden", through(bastion)))

    found = wait_for_reason(installed, shop, "forbidden", "ForwardingProhibited")

    words = ["AllowTcpForwarding local", "PermitOpen any or orders.internal:5432", "permitopen="]
    check_told(installed, found, Reason.FORWARDING_PROHIBITED, words)
    bastion.set_config(*HARDENED)
    bastion.kill_sessions()
    mended(installed, found, PATIENCE)


@produces(Reason.FORWARDING_PROHIBITED)
def test_the_keys_line_permits_another_database(installed: Cluster, shop: str, bastion: Bastion) -> None:
    pair = key_pair()
    bastion.authorize(f'restrict,port-forwarding,permitopen="other.internal:5432" {pair.public}')
    apply(installed, secret(shop, "narrow-ssh", {"ssh-privatekey": pair.private}))
    apply(installed, tunnel(shop, "narrow", through(bastion, keySecretRef={"name": "narrow-ssh"})))

    found = wait_for_reason(installed, shop, "narrow", "ForwardingProhibited")

    line = found["status"]["hops"][0]["authorizedKeysLine"]
    check_told(installed, found, Reason.FORWARDING_PROHIBITED, [line])
    bastion.authorize(line)
    bastion.kill_sessions()
    mended(installed, found, PATIENCE)


@produces(Reason.DATABASE_REFUSED)
def test_the_database_refuses(installed: Cluster, shop: str, bastion: Bastion, tmp_path: Path) -> None:
    """Nothing listens there yet."""
    port = free_port()
    pair = key_pair()
    bastion.authorize(pair.public)
    apply(installed, secret(shop, "any-ssh", {"ssh-privatekey": pair.private}))
    way = through(bastion, keySecretRef={"name": "any-ssh"})
    apply(installed, tunnel(shop, "absent", way, database={"host": "localhost", "port": port}))

    found = wait_for_reason(installed, shop, "absent", "DatabaseRefused")

    words = [f"localhost:{port}", "refused", "Start the database"]
    check_told(installed, found, Reason.DATABASE_REFUSED, words)
    server = PostgresServer(tmp_path / "database", port=port).start()
    mended(installed, found, PATIENCE)
    server.stop()


@produces(Reason.UNEXPECTED_PROTOCOL)
def test_the_database_speaks_another_protocol(
    installed: Cluster, shop: str, bastion: Bastion, private_network: PrivateNetwork
) -> None:
    pair = key_pair()
    bastion.authorize(pair.public)
    apply(installed, secret(shop, "wrong-ssh", {"ssh-privatekey": pair.private}))
    way = through(bastion, keySecretRef={"name": "wrong-ssh"})
    apply(installed, tunnel(shop, "wrong", way, database={"host": "inventory.internal", "port": 3306}))

    found = wait_for_reason(installed, shop, "wrong", "UnexpectedProtocol")

    words = ["inventory.internal:3306", "the protocol of PostgreSQL", "spec.engine"]
    check_told(installed, found, Reason.UNEXPECTED_PROTOCOL, words)
    database = {"host": "orders.internal", "port": 5432}
    patch(installed, shop, "databasetunnel/wrong", {"spec": {"database": database}})
    mended(installed, found)


def test_the_key_is_accepted_once_it_is_authorized(installed: Cluster, shop: str, strict_bastion: Bastion) -> None:
    mended(installed, installed.get("databasetunnel", "stranger", "-n", shop), PATIENCE)
