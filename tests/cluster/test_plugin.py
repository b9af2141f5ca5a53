"""`kubectl dbtunnel`, as kubectl runs it, with a user's own rights."""

import base64
import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from dbtunnel.api.forwarder import ForwarderKey
from dbtunnel.cli.plugin.rotate_key import finish_operations, next_key_operations
from dbtunnel.cli.terminal import COLUMNS
from tests.support.bastion import Bastion
from tests.support.binaries import binary
from tests.support.clients import Endpoint
from tests.support.cluster import Cluster, ClusterError
from tests.support.laptop import at_a_terminal
from tests.support.pages import at_a_cluster, follow
from tests.support.private_network import secret
from tests.support.processes import wait_until
from tests.support.traffic import Traffic
from tests.support.tunnels import Manifest, apply, example, patch, tunnel_manifest, wait_for_ready, wait_for_reason


class User:
    """A person with a kubeconfig and kubectl."""

    def __init__(self, cluster: Cluster, namespace: str, kubeconfig: Path) -> None:
        self._cluster, self.namespace, self._kubeconfig = cluster, namespace, kubeconfig

    def runs(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """`kubectl dbtunnel`; both streams are in its output."""
        return self._kubectl(*words, "-n", self.namespace, stderr=subprocess.STDOUT)

    def is_offered(self, *words: str) -> list[str]:
        """What kubectl's completion offers in place of the last word."""
        return self._kubectl(*words, before="__complete", stderr=subprocess.DEVNULL).stdout.split()

    def types(self, typed: str, until: str, *words: str, columns: int = COLUMNS) -> str:
        """What is shown at a terminal, up to `until`, where this is typed at the question."""
        command = [binary("kubectl"), "dbtunnel", *words, "-n", self.namespace]
        return at_a_terminal([*map(str, command)], typed, until, "Type yes: ", self._environment(), columns)

    def _environment(self) -> dict[str, str]:
        return {**at_a_cluster(self._cluster), "KUBECONFIG": str(self._kubeconfig)}

    def _kubectl(self, *words: str, stderr: int, before: str = "") -> "subprocess.CompletedProcess[str]":
        command = [str(binary("kubectl")), *filter(None, [before]), "dbtunnel", *words]
        return subprocess.run(command, env=self._environment(), stdout=subprocess.PIPE, stderr=stderr,
                              stdin=subprocess.DEVNULL, text=True, timeout=60, check=False)  # fmt: skip

    def __call__(self, *words: str, code: int = 0) -> str:
        """What it prints; its exit code must be this."""
        done = self.runs(*words)
        assert done.returncode == code, done.stdout
        return done.stdout


@pytest.fixture
def admin(installed: Cluster, shop: str) -> User:
    return User(installed, shop, installed.kubeconfig)


@pytest.fixture
def stranger(installed: Cluster, shop: str, tmp_path: Path) -> User:
    """Somebody who may do nothing yet."""
    return User(installed, shop, installed.kubeconfig_of("stranger", shop, tmp_path / "kubeconfig"))


@pytest.fixture(scope="module")
def bastion(bastion_of_file: Bastion) -> Bastion:
    """The tests share one."""
    return bastion_of_file


@pytest.fixture(scope="module")
def orders(installed: Cluster, shop: str, bastion: Bastion) -> Manifest:
    """A tunnel that works."""
    manifest = example(shop, "orders")
    pins = {"fingerprints": list(bastion.fingerprints.values())}
    manifest["spec"]["tunnel"] |= {"host": bastion.host, "port": bastion.port, "hostKey": pins}
    apply(installed, manifest)
    return wait_for_ready(installed, shop, "orders")


def test_a_tunnel_that_works(admin: User, orders: Manifest) -> None:
    pods = admin("status", "orders", "-o", "wide")
    for text in (admin("status", "orders"), admin("check", "orders"), pods):
        lines = text.splitlines()
        assert "READY" in lines
        assert any(line.startswith("orders-tunnel-") and "  yes  " in line for line in lines)
        assert "orders.internal:5432" in lines[0]
    at_terminals = [admin.types("", "The tunnel works.", "status", "orders", columns=width) for width in (80, 200)]
    assert ["NODE" in shown for shown in at_terminals] == [False, True]
    handout = admin("handout", "orders")
    assert orders["status"]["hops"][0]["authorizedKeysLine"] in handout.splitlines()
    assert "\nMatch User dbtunnel\n" in handout
    assert "\n```\nMatch User dbtunnel\n" in admin("handout", "orders", "-o", "markdown")
    assert admin("public-key", "orders").splitlines() == [orders["status"]["publicKeys"][0]["key"]]
    assert "every ssh server's host key is pinned already" in admin("trust", "orders").lower()
    assert "there is no DatabaseTunnel none" in admin("status", "none", code=2)
    assert admin.is_offered("status", "-n", admin.namespace, "or") == ["orders", ":4"]


def test_a_host_key_is_trusted(admin: User, installed: Cluster, bastion: Bastion) -> None:
    """And the generated key is handed out, so that the tunnel works in the end."""
    tunnel = {"host": bastion.host, "port": bastion.port, "hostKey": {"alias": "bastion"}}
    apply(installed, tunnel_manifest(admin.namespace, "unpinned", tunnel=tunnel))
    wait_for_reason(installed, admin.namespace, "unpinned", "HostKeyUnknown")
    assert "NOT READY: HostKeyUnknown" in admin("check", "unpinned", code=1)

    text = admin("trust", "unpinned", code=2)
    assert "nobody is there to agree" in text
    assert [one for one in bastion.fingerprints.values() if one not in text] == []
    shown = yaml.safe_load(admin("trust", "unpinned", "--print"))["spec"]["tunnel"]["hostKey"]["fingerprints"]
    assert sorted(shown) == sorted(bastion.fingerprints.values())

    (line,) = [one for one in admin("handout", "unpinned").splitlines() if one.startswith("restrict,")]
    bastion.authorize(*bastion.authorized(), line)
    admin.types("no", "Nothing was changed.", "trust", "unpinned")
    unchanged = installed.get("databasetunnel", "unpinned", "-n", admin.namespace)["spec"]["tunnel"]["hostKey"]
    assert unchanged == {"alias": "bastion"}
    admin.types("yes", "Pinned.", "trust", "unpinned")
    spec = wait_for_ready(installed, admin.namespace, "unpinned")["spec"]
    assert spec["tunnel"]["hostKey"]["alias"] == "bastion"
    assert sorted(spec["tunnel"]["hostKey"]["fingerprints"]) == sorted(bastion.fingerprints.values())


class Rotations:
    """One after the other, of one tunnel's key."""

    def __init__(self, admin: User, cluster: Cluster, bastion: Bastion) -> None:
        self._admin, self._cluster, self._bastion = admin, cluster, bastion

    def accept(self, begun: str) -> None:
        """Returns once the next key, of which the first step has told, is accepted."""
        (line,) = [one for one in begun.splitlines() if one.startswith("restrict,")]
        self._bastion.authorize(*self._bastion.authorized(), line)
        touch = {"stringData": {"touched": line}}
        patch(self._cluster, self._admin.namespace, "secret/orders-ssh", touch)  # it is tried at once
        accepted = r" yes +SHA256:"
        wait_until(lambda: len(re.findall(accepted, self._admin("status", "orders"))) == 2, "acceptance", 90)

    def wait_until_done(self, begun: str) -> None:
        """Until the tunnel has the next key alone."""
        (line,) = [one for one in begun.splitlines() if one.startswith("restrict,")]
        alone = [" ".join(line.split()[-3:])]
        keys = ("public-key", "orders")
        wait_until(lambda: self._admin(*keys).splitlines() == alone, "one key", 60, interval_seconds=0.5)

    def secret(self) -> dict[str, str]:
        """What is in the key's Secret."""
        data = self._cluster.get("secret", "orders-ssh", "-n", self._admin.namespace)["data"]
        return {name: base64.b64decode(value).decode() for name, value in data.items()}


def test_a_key_is_replaced_under_traffic(
    admin: User, installed: Cluster, orders: Manifest, bastion: Bastion, tmp_path: Path
) -> None:
    rotations = Rotations(admin, installed, bastion)
    with Traffic(installed, admin.namespace, Endpoint.of(orders)) as traffic:
        assert "tells of no next key" in admin("rotate-key", "orders", "--finish", code=1)
        begun = follow("plugin", installed, admin.namespace, tmp_path, "rotate-key orders -n shop\n")
        rotations.accept(begun)
        assert "already" in admin("rotate-key", "orders", code=1), "it does not replace the one that is there"
        follow("plugin", installed, admin.namespace, tmp_path, "--finish")
        rotations.wait_until_done(begun)
        assert {"ssh-privatekey-next", "ssh-privatekey-revoked"}.isdisjoint(rotations.secret())

        (old,) = installed.get("databasetunnel", "orders", "-n", admin.namespace)["status"]["publicKeys"]
        begun = admin("rotate-key", "orders")
        rotations.accept(begun)
        admin("rotate-key", "orders", "--finish", "--now")
        rotations.wait_until_done(begun)
        assert "READY" in admin("check", "orders").splitlines()
    assert traffic.outcome.served > 10
    assert "ssh-privatekey-next" not in rotations.secret()
    assert rotations.secret()["ssh-privatekey-revoked"] == f"{old['fingerprint']}\n"
    assert traffic.outcome.errors == [], "a session of 50 ms was hardly there when the old key's ended"


def test_a_next_key_that_is_there_is_never_replaced(installed: Cluster, shop: str) -> None:
    """The API server itself sees to that, whatever the status tells."""
    key = ForwarderKey(secret="spare", key="id", passphrase_key="passphrase")
    apply(installed, secret(shop, "spare", {"id": "one"}))
    add = ("patch", "secret", "spare", "-n", shop, "--type=json", "-p")
    installed.kubectl(*add, json.dumps(next_key_operations(key, "two")))
    with pytest.raises(ClusterError, match=r"rejected our request|test failed|testing"):
        installed.kubectl(*add, json.dumps(next_key_operations(key, "three")))
    found = installed.get("secret", "spare", "-n", shop)["data"]
    assert {name: base64.b64decode(text) for name, text in found.items()} == {"id": b"one", "id-next": b"two"}


@pytest.mark.parametrize("is_certified", [True, False], ids=["with a certificate", "without"])
def test_the_certificate_of_the_old_key_goes_with_it(installed: Cluster, shop: str, *, is_certified: bool) -> None:
    """One that a next key left behind goes, too: the API server is told so without their being read."""
    key = ForwarderKey(secret="certified", key="id", passphrase_key="passphrase")
    apply(installed, secret(shop, "certified", {"id": "one", "id-cert.pub": "of one", "id-next-cert.pub": "of none"}))
    change = ("patch", "secret", "certified", "-n", shop, "--type=json", "-p")
    installed.kubectl(*change, json.dumps(next_key_operations(key, "two")))
    if is_certified:
        patch(installed, shop, "secret/certified", {"stringData": {"id-next-cert.pub": "of two"}})
    else:
        with pytest.raises(ClusterError):
            installed.kubectl(*change, json.dumps(finish_operations(key, None, certificate=True)))
    installed.kubectl(*change, json.dumps(finish_operations(key, None, certificate=is_certified)))
    found = installed.get("secret", "certified", "-n", shop)["data"]
    expected = {"id": b"two", **({"id-cert.pub": b"of two"} if is_certified else {})}
    assert {name: base64.b64decode(text) for name, text in found.items()} == expected


def test_whoever_lacks_a_right_is_told_which(stranger: User, installed: Cluster, orders: Manifest) -> None:
    """And what is told grants it: somebody with all rights runs it, until nothing is missing."""
    missing = []
    for _ in range(4):
        text = stranger.runs("status", "orders").stdout
        commands = [line.strip() for line in text.splitlines() if line.startswith("  kubectl create ")]
        if not commands:
            break
        missing.append(text.partition(" in namespace ")[0].partition(" may not ")[2])
        for command in commands:
            installed.kubectl(*shlex.split(command)[1:])
        wait_until(lambda text=text: stranger.runs("status", "orders").stdout != text, "the right")  # type: ignore[misc]
    pod = installed.get("pods", "-n", stranger.namespace, "-l", "dbtunnel.dev/tunnel=orders")["items"][0]
    assert missing == [
        "get databasetunnels.dbtunnel.dev orders",
        "list pods",
        f"get pods/proxy {pod['metadata']['name']}",
    ]
    assert "READY" in stranger("check", "orders").splitlines()
    assert "may not patch secrets orders-ssh" in stranger("rotate-key", "orders", code=2)
