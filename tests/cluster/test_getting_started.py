"""docs/getting-started.md from its first command to its last, as somebody does who reads it for the first time."""

import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.bastion import Bastion
from tests.support.cluster import Cluster
from tests.support.databases import PASSWORD
from tests.support.images import OPERATOR
from tests.support.installation import image_reference
from tests.support.keys import key_pair
from tests.support.pages import blocks, follow, tell
from tests.support.private_network import PrivateNetwork
from tests.support.processes import ProcessError, wait_until
from tests.support.tunnels import find, try_at_once

PAGE = "getting-started"


@pytest.fixture
def bastion(private_network: PrivateNetwork, tmp_path: Path) -> Iterator[Bastion]:
    """The page's, which knows the reader's own key."""
    key = key_pair()
    (tmp_path / "id_ed25519").touch(0o600)
    (tmp_path / "id_ed25519").write_text(key.private)
    with private_network.another_bastion(tmp_path / "bastion", key.public) as bastion:
        yield bastion


@pytest.fixture
def namespace(installed: Cluster) -> Iterator[str]:
    """The page makes it."""
    name = f"getting-started-{uuid.uuid4().hex[:6]}"
    yield name
    installed.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")


def write_manifest(directory: Path, namespace: str, bastion: Bastion) -> None:
    """The page's, as the reader changes it."""
    (shown,) = blocks(PAGE, "yaml")
    manifest: dict[str, Any] = yaml.safe_load(shown)
    manifest["metadata"]["namespace"] = namespace
    pins = {"fingerprints": [bastion.fingerprints["ed25519"]]}
    manifest["spec"]["tunnel"] |= {"host": bastion.host, "port": bastion.port, "hostKey": pins}
    (directory / "orders.yaml").write_text(yaml.safe_dump(manifest))


def let_edit(cluster: Cluster, namespace: str, path: Path) -> None:
    """Writes the kubeconfig of somebody who may do nothing but what the namespace's role `edit` allows."""
    cluster.kubeconfig_of("reader", namespace, path)
    who = f"--serviceaccount={namespace}:reader"
    cluster.kubectl("create", "rolebinding", "reader", "--clusterrole=edit", who, "-n", namespace)


def commands() -> list[str]:
    """Each that the reader types, in one piece."""
    text = "".join(blocks(PAGE, "sh"))
    return re.sub(r" *\\\n *", " ", text).splitlines()


def test_a_first_reader_gets_a_tunnel_of_their_own(
    installed: Cluster,
    namespace: str,
    client_image: str,
    bastion: Bastion,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    write_manifest(tmp_path, namespace, bastion)
    kubeconfig = tmp_path / "kubeconfig"

    def administer(word: str, **changes: str) -> str:
        return follow(PAGE, installed, namespace, tmp_path, word, **changes)

    def do(word: str, **changes: str) -> str:
        return administer(word, kubeconfig=str(kubeconfig), **changes)

    began = time.monotonic()
    assert "READY through bastion" in administer("dbtunnel check -f", **{"~/.ssh/id_ed25519": f"{tmp_path}/id_ed25519"})
    assert "databasetunnels" in administer("kubectl api-resources")
    repository, _, tag = image_reference(OPERATOR).rpartition(":")
    administer("helm upgrade", **{"registry.example.com/dbtunnel": repository, "0.1.0": tag})
    administer("kubectl create namespace")
    let_edit(installed, namespace, kubeconfig)
    installed.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    with pytest.raises(ProcessError, match=r"(?i)forbidden"):
        do("kubectl create namespace")
    do("kubectl apply")
    (line,) = re.findall("^restrict.*$", do("kubectl dbtunnel handout"), re.MULTILINE)
    bastion.authorize(line)
    try_at_once(installed, namespace, "orders")
    do("--for=condition=Ready")
    image = {"postgres:17": client_image, "orders.shop.svc": f"orders.{namespace}.svc"}
    # nodes learn of a Service seconds after it is there
    wait_until(lambda: "(1 row)" in do("kubectl run psql", **image), "the database's answer", 60)
    taken = time.monotonic() - began
    assert "READY" in do("kubectl dbtunnel status").splitlines()
    assert '"event": "session ended"' in do("deployment/orders-tunnel --tail")
    do("kubectl delete secret")
    assert find(installed, namespace, "databasetunnel/orders") is None
    tell(
        f"getting-started: {len(commands())} commands; the machine's time for those to the first answer: {taken:.0f} s,"
        " without those of pip, and without the 60 to 90 s after which a rejected key is tried again"
    )
