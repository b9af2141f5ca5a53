"""The kustomize example by kubectl's own kustomize: a new key is a new Secret, to which the tunnel rolls over."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dbtunnel.domain.authorized_keys import authorized_keys_line
from tests.support.clients import Endpoint
from tests.support.cluster import Cluster
from tests.support.keys import key_pair
from tests.support.private_network import BASTION, PrivateNetwork
from tests.support.processes import ROOT
from tests.support.traffic import Traffic
from tests.support.tunnels import Manifest, wait_for_ready

Roll = Callable[[], tuple[Manifest, str]]


@pytest.fixture
def roll(installed: Cluster, shop: str, private_network: PrivateNetwork, tmp_path: Path) -> Roll:
    """Applies the example with a new key, which the bastion accepts. Returns the tunnel and the key's fingerprint."""
    folder = tmp_path / "kustomize"
    shutil.copytree(ROOT / "examples/kustomize", folder)
    keys = private_network.bastion.host_keys.values()
    (folder / "known_hosts").write_text("".join(f"{BASTION} {pair.public}\n" for pair in keys))
    kustomization = folder / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text().replace("namespace: demo", f"namespace: {shop}"))

    def apply() -> tuple[Manifest, str]:
        pair = key_pair()
        private_network.authorize(authorized_keys_line(pair.public, "kustomize", ("orders.internal", 5432)))
        (folder / "id_ed25519").write_text(pair.private)
        installed.kubectl("apply", "-k", folder)
        return wait_for_ready(installed, shop, "orders"), pair.fingerprint

    return apply


def secret_of(cluster: Cluster, namespace: str) -> str:
    """The Secret that the pods mount."""
    (volume, *_) = cluster.get("deployment", "orders-tunnel", "-n", namespace)["spec"]["template"]["spec"]["volumes"]
    return str(volume["secret"]["secretName"])


def test_the_tunnel_follows_the_names_that_kustomize_generates(
    installed: Cluster, shop: str, roll: Roll, tmp_path: Path
) -> None:
    first, fingerprint = roll()
    secret = first["spec"]["tunnel"]["keySecretRef"]["name"]
    assert secret.startswith("orders-ssh-")
    assert first["spec"]["tunnel"]["hostKey"]["knownHostsRef"]["name"].startswith("bastion-host-keys-")
    assert secret_of(installed, shop) == secret
    assert [one["fingerprint"] for one in first["status"]["publicKeys"]] == [fingerprint]
    for way in ((), ("--server-side", "--force-conflicts", "--field-manager=kustomize-controller")):
        assert installed.kubectl("diff", *way, "-k", tmp_path / "kustomize") == "", "nothing drifts"

    with Traffic(installed, shop, Endpoint.of(first)) as traffic:
        second, fingerprint = roll()

    assert second["spec"]["tunnel"]["keySecretRef"]["name"] not in (secret, "orders-ssh")
    assert secret_of(installed, shop) == second["spec"]["tunnel"]["keySecretRef"]["name"]
    assert [one["fingerprint"] for one in second["status"]["publicKeys"]] == [fingerprint]
    assert traffic.outcome.errors == []
    assert traffic.outcome.served > 0
