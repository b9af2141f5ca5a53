"""Tunnels through jump hosts and fallbacks, from the resource to the database, mended by what the status says."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.bastion import Bastion
from tests.support.clients import Endpoint
from tests.support.cluster import Cluster
from tests.support.keys import key_pair
from tests.support.pages import follow
from tests.support.private_network import PrivateNetwork, config_map, secret
from tests.support.processes import wait_until
from tests.support.traffic import Traffic
from tests.support.tunnels import Manifest, apply, example, find, try_at_once, wait_for_ready, wait_for_reason

INNER = "bastion.inner"
"""What the jump host resolves, and nobody else."""

StartServer = Callable[[Mapping[str, str]], Bastion]


@pytest.fixture
def start_server(installed: Cluster, shop: str, tmp_path: Path) -> Iterator[StartServer]:
    """Starts SSH servers that pods reach and that know no key; they end with the test."""
    running: list[Bastion] = []

    def start(hosts: Mapping[str, str]) -> Bastion:
        server = Bastion(tmp_path / f"server-{len(running)}", host=installed.host_address, hosts=hosts)
        running.append(server)
        return server.start()

    yield start
    for server in running:
        server.stop()


def tunnel(namespace: str, name: str, **way: Any) -> Manifest:
    """The tunnel `orders` of the examples under another name, on another way."""
    manifest = example(namespace, "orders")
    manifest["metadata"]["name"] = name
    manifest["spec"]["tunnel"] = {"connectTimeoutSeconds": 5, **way}
    return manifest


def place(server: Bastion, **changes: Any) -> dict[str, Any]:
    """The way into a server, its keys pinned."""
    pins = {"fingerprints": list(server.fingerprints.values())}
    return {"host": server.host, "port": server.port, "hostKey": pins, **changes}


def hops(found: Manifest) -> dict[tuple[str, int], Manifest]:
    """The hops of a status, by role and port."""
    return {(one["role"], one["port"]): one for one in found["status"]["hops"]}


def message_of(found: Manifest, kind: str = "Ready") -> str:
    return next(str(one["message"]) for one in found["status"]["conditions"] if one["type"] == kind)


def test_a_chain_of_jump_hosts_is_mended_hop_by_hop_as_the_status_says(
    installed: Cluster, shop: str, private_network: PrivateNetwork, start_server: StartServer, tmp_path: Path
) -> None:
    bastion = start_server(private_network.addresses)
    inner = start_server({INNER: installed.host_address})
    outer = start_server({"jump.inner": installed.host_address})
    own = key_pair()
    apply(installed, config_map(shop, "outer-host-keys", {"known_hosts": outer.known_hosts()}))
    jump_hosts = [
        place(outer, hostKey={"knownHostsRef": {"name": "outer-host-keys"}}, keySecretRef={"name": "outer-ssh"}),
        place(inner, host="jump.inner"),
    ]
    way = place(bastion, host=INNER, jumpHosts=jump_hosts, keySecretRef={"name": "orders-ssh"})
    apply(installed, tunnel(shop, "chain", **way))

    found = wait_for_reason(installed, shop, "chain", "SecretNotFound")
    assert "Secret outer-ssh is not there" in message_of(found)
    apply(installed, secret(shop, "outer-ssh", {"ssh-privatekey": own.private}))
    outer_name = f"jump host {outer.host}:{outer.port}"
    found = wait_for_reason(installed, shop, "chain", "KeyRejected")
    assert message_of(found).startswith(f"{outer_name}: user dbtunnel: the server does not accept the key.")

    lines = {role_port: hop["authorizedKeysLine"] for role_port, hop in hops(found).items()}
    said = follow("hops", installed, shop, tmp_path, "jsonpath", **{"databasetunnel orders": "databasetunnel chain"})
    assert said.splitlines() == [
        f"{one['role']} {one['host']}: {one['authorizedKeysLine']}" for one in found["status"]["hops"]
    ]
    assert f'permitopen="jump.inner:{inner.port}"' in lines["JumpHost", outer.port]
    assert own.public in lines["JumpHost", outer.port]
    assert f'permitopen="{INNER}:{bastion.port}"' in lines["JumpHost", inner.port]
    assert 'permitopen="orders.internal:5432"' in lines["Bastion", bastion.port]
    outer.authorize(lines["JumpHost", outer.port].replace(f"jump.inner:{inner.port}", "elsewhere:22"))
    inner.authorize(lines["JumpHost", inner.port])
    bastion.authorize(lines["Bastion", bastion.port])
    try_at_once(installed, shop, "chain")
    found = wait_for_reason(installed, shop, "chain", "ForwardingProhibited")
    assert message_of(found, "TransportReady").startswith(
        f"{outer_name}: forwarding to jump.inner:{inner.port} is prohibited"
    )
    outer.authorize(lines["JumpHost", outer.port])
    try_at_once(installed, shop, "chain")
    found = wait_for_ready(installed, shop, "chain")

    assert {(one["role"], one["active"], one["replicas"]) for one in found["status"]["hops"]} == {
        ("Bastion", True, 1),
        ("JumpHost", True, 1),
    }
    assert all(one["serverVersion"] and one["hostKeyFingerprints"] for one in found["status"]["hops"])
    with Traffic(installed, shop, Endpoint.of(found)) as traffic:
        pass
    assert traffic.outcome.errors == []

    inner.stop()
    found = wait_for_reason(installed, shop, "chain", "ConnectionRefused")
    words = f"jump host jump.inner:{inner.port}: it refuses the connection of {outer_name}"
    wait_until(lambda: words in _message(installed, shop, "chain"), words, 30)
    inner.start()
    wait_for_ready(installed, shop, "chain")


def test_a_fallback_serves_while_the_bastion_is_away_and_gives_back(
    installed: Cluster, shop: str, private_network: PrivateNetwork, start_server: StartServer
) -> None:
    bastion, fallback = start_server(private_network.addresses), start_server(private_network.addresses)
    for server in (bastion, fallback):
        server.authorize(*private_network.authorized)
    way = place(bastion, keySecretRef={"name": "orders-ssh"}, fallbacks=[place(fallback)])
    apply(installed, tunnel(shop, "pair", **way))
    found = wait_for_ready(installed, shop, "pair")
    assert hops(found)["Bastion", bastion.port]["active"]

    def in_use() -> tuple[bool, bool]:
        known = hops(find(installed, shop, "databasetunnel/pair") or {})
        return known["Bastion", bastion.port]["active"], known["Fallback", fallback.port]["active"]

    with Traffic(installed, shop, Endpoint.of(found)) as traffic:
        bastion.stop()
        wait_until(lambda: in_use() == (False, True), "the fallback to be in use", 30)
        wait_for_ready(installed, shop, "pair")
        told = message_of(find(installed, shop, "databasetunnel/pair") or {})
        assert f"New connections go through fallback {fallback.host}:{fallback.port}" in told
        assert f"bastion {bastion.host}:{bastion.port}: connection refused" in told
        bastion.start()
        wait_until(lambda: in_use() == (True, False), "the bastion to be in use again", 90)

    outcome = traffic.outcome
    assert outcome.served > 10
    # the session that was open when the bastion went
    assert len(outcome.errors) <= 1, outcome.errors
    assert _message(installed, shop, "pair") == "The tunnel works."
    wait_until(lambda: {"FallbackInUse", "BastionInUse"} <= set(_events(installed, found)), "both Events", 10)


def _message(cluster: Cluster, namespace: str, name: str) -> str:
    return message_of(find(cluster, namespace, f"databasetunnel/{name}") or {})


def _events(cluster: Cluster, found: Manifest) -> list[str]:
    metadata = found["metadata"]
    listed = cluster.get("events.events.k8s.io", "-n", metadata["namespace"])["items"]
    return [one["reason"] for one in listed if one["regarding"]["uid"] == metadata["uid"]]
