"""A key is replaced as docs/keys.md says, by its own commands, under traffic."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.support.bastion import Bastion
from tests.support.clients import Endpoint, query
from tests.support.cluster import Cluster, ClusterError
from tests.support.databases import DATABASE, USER
from tests.support.keys import key_pair
from tests.support.pages import follow
from tests.support.private_network import PrivateNetwork
from tests.support.processes import wait_until
from tests.support.traffic import Traffic
from tests.support.tunnels import Manifest, apply, condition, example, patch, wait_for_ready, wait_for_reason


@pytest.fixture(scope="module")
def bastion(bastion_of_file: Bastion) -> Bastion:
    """The tests share one."""
    return bastion_of_file


def start(cluster: Cluster, namespace: str, bastion: Bastion) -> Manifest:
    """The tunnel `orders`, with two replicas."""
    manifest = example(namespace, "orders")
    pins = {"fingerprints": list(bastion.fingerprints.values())}
    manifest["spec"]["tunnel"] |= {"host": bastion.host, "port": bastion.port, "hostKey": pins}
    apply(cluster, {**manifest, "spec": {**manifest["spec"], "replicas": 2}})
    return wait_for_ready(cluster, namespace, "orders")


def look_at_once(cluster: Cluster, namespace: str) -> None:
    """As the page says, in place of the minute that the kubelet takes."""
    annotation = "dbtunnel.dev/mount-refresh"
    pods = cluster.get("pods", "-n", namespace, "-l", "dbtunnel.dev/tunnel=orders")["items"]
    for pod in pods:
        number = int(pod["metadata"].get("annotations", {}).get(annotation, "0"), 10) + 1
        cluster.kubectl(
            "annotate", "pod", pod["metadata"]["name"], "-n", namespace, f"{annotation}={number}", "--overwrite"
        )


def keys(cluster: Cluster, namespace: str) -> list[tuple[str, bool, bool | None]]:
    """Use, whether it can be read, and whether it is accepted."""
    status = cluster.get("databasetunnel", "orders", "-n", namespace)["status"]
    return [(one["use"], bool(one["key"]), one.get("accepted")) for one in status["publicKeys"]]


def wait_for_keys(cluster: Cluster, namespace: str, *wanted: tuple[str, bool, bool | None]) -> Manifest:
    wait_until(
        lambda: keys(cluster, namespace) == list(wanted),
        f"keys {wanted}",
        60,
        interval_seconds=0.5,
        describe=lambda: cluster.get("databasetunnel", "orders", "-n", namespace)["status"],
    )
    return cluster.get("databasetunnel", "orders", "-n", namespace)


def reasons(cluster: Cluster, namespace: str) -> list[str]:
    """Of the Events in the namespace."""
    return [one["reason"] for one in cluster.get("events.events.k8s.io", "-n", namespace)["items"]]


def set_next(cluster: Cluster, namespace: str, text: str | None) -> None:
    patch(cluster, namespace, "secret/orders-ssh", {"stringData": {"ssh-privatekey-next": text}})
    look_at_once(cluster, namespace)


def test_a_key_is_replaced_under_traffic(
    installed: Cluster, shop: str, bastion: Bastion, private_network: PrivateNetwork, tmp_path: Path
) -> None:
    tunnel = start(installed, shop, bastion)
    since = condition(installed, shop, "Ready")["lastTransitionTime"]

    with Traffic(installed, shop, Endpoint.of(tunnel)) as traffic:
        set_next(installed, shop, "no key at all")
        wait_for_keys(installed, shop, ("Current", True, True), ("Next", False, False))
        message = condition(installed, shop, "KeyReady")["message"]
        assert "ssh-privatekey-next, is no private key to use: its 13 bytes have no BEGIN line" in message

        follow("keys", installed, shop, tmp_path / "keys", "-f next")
        look_at_once(installed, shop)
        found = wait_for_keys(installed, shop, ("Current", True, True), ("Next", True, False))
        lines = found["status"]["hops"][0]["authorizedKeysLine"].splitlines()
        assert len(lines) == 2
        assert '"use":"Next"' in follow("keys", installed, shop, tmp_path / "keys", ".status.publicKeys")
        assert lines[1] in condition(installed, shop, "Authenticated")["message"]
        wait_until(lambda: reasons(installed, shop).count("NextKeyFailed") >= 2, "an Event for each")

        bastion.authorize(*private_network.authorized, lines[1])
        patch(installed, shop, "secret/orders-ssh", {"stringData": {"touched": "now"}})
        look_at_once(installed, shop)
        wait_for_keys(installed, shop, ("Current", True, True), ("Next", True, True))
        wait_until(lambda: "NextKeyAccepted" in reasons(installed, shop), "an Event")

        bastion.authorize(lines[1])
        follow("keys", installed, shop, tmp_path / "keys", '"remove"')
        look_at_once(installed, shop)
        found = wait_for_keys(installed, shop, ("Current", True, True))

    assert found["status"]["hops"][0]["authorizedKeysLine"] == lines[1]
    assert traffic.outcome.errors == []
    assert traffic.outcome.served > 10
    ready = condition(installed, shop, "Ready")
    assert (ready["status"], ready["lastTransitionTime"]) == ("True", since), "it was ready all the time"


def test_a_certificate_beside_the_key_logs_in(installed: Cluster, shop: str, bastion: Bastion, tmp_path: Path) -> None:
    """The bastion knows no key; what it signed for is in the Secret, under the key's name with -cert.pub."""
    authority, key = key_pair(), key_pair()
    bastion.trust_authority(authority)
    for name, text in {"authority": authority.private, "orders": key.private, "orders.pub": key.public}.items():
        (tmp_path / name).touch(0o600)
        (tmp_path / name).write_text(text)
    follow("keys", installed, shop, tmp_path, "-s authority", **{"generic orders-ssh": "generic certified"})
    way = {"host": bastion.host, "port": bastion.port, "keySecretRef": {"name": "certified"}}
    pins = {"hostKey": {"fingerprints": list(bastion.fingerprints.values())}}
    manifest = example(shop, "orders")
    manifest["metadata"]["name"] = "certified"
    manifest["spec"]["tunnel"] |= {**way, **pins}
    apply(installed, manifest)
    found = wait_for_ready(installed, shop, "certified")
    (told,) = found["status"]["publicKeys"]
    assert (told["fingerprint"], told["accepted"]) == (key.fingerprint, True)
    assert "ID orders@shop" in bastion.log_text()


def test_a_leaked_key_s_sessions_end(installed: Cluster, shop: str, bastion: Bastion, tmp_path: Path) -> None:
    """The only key: whoever lists it means it."""
    tunnel = start(installed, shop, bastion)
    (key,) = tunnel["status"]["publicKeys"]
    names = {"namespaces/shop": f"namespaces/{shop}"}
    (used,) = json.loads(follow("keys", installed, shop, tmp_path / "keys", "proxy/status", **names))["sessions"]
    assert used["fingerprint"] == key["fingerprint"]
    ends: list[Any] = []

    def sleep_long() -> None:
        endpoint = Endpoint.of(tunnel)
        target = f"host={endpoint.host} port={endpoint.port} user={USER} dbname={DATABASE}"
        try:
            ends.append(query(installed, shop, ["psql", target, "-c", "select pg_sleep(100)"], 110))
        except ClusterError as error:
            ends.append(error)

    thread = threading.Thread(target=sleep_long)
    thread.start()
    follow("keys", installed, shop, tmp_path / "keys", "-revoked", **{"SHA256:...": key["fingerprint"]})
    follow("kubectl", installed, shop, tmp_path / "keys", "Stalled")
    found = wait_for_reason(installed, shop, "orders", "PrivateKeyInvalid")
    assert "it is listed under ssh-privatekey-revoked" in found["status"]["conditions"][1]["message"]
    thread.join()
    assert isinstance(ends[0], ClusterError)
    patch(installed, shop, "secret/orders-ssh", {"data": {"ssh-privatekey-revoked": None}})
    wait_for_ready(installed, shop, "orders")
