"""docs/migration.md by its own manifests and commands, with an application at work: from a pod with autossh, and from a
sidecar with ssh, to a tunnel and back.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dbtunnel.domain.names import TUNNEL_LABEL
from tests.support.bastion import USER as SSH_USER
from tests.support.bastion import Bastion
from tests.support.binaries import binary
from tests.support.clients import Endpoint
from tests.support.cluster import Cluster
from tests.support.databases import DATABASE, PASSWORD, USER
from tests.support.keys import key_pair
from tests.support.pages import follow
from tests.support.private_network import secret
from tests.support.processes import ROOT, Process, wait_until
from tests.support.traffic import Held, Traffic
from tests.support.tunnels import Manifest, apply, find

PAGE = "migration"

LOGIN = {"PGUSER": USER, "PGPASSWORD": PASSWORD, "PGDATABASE": DATABASE}

_YAML = re.compile(r"^ *```yaml\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


class Page:
    """What the page has, for this cluster."""

    def __init__(self, namespace: str, image: str, bastion: Bastion, directory: Path) -> None:
        self._namespace, self._image, self._bastion = namespace, image, bastion
        self.directory = directory
        text = (ROOT / "docs" / f"{PAGE}.md").read_text()
        documents = [one for block in _YAML.findall(text) for one in yaml.safe_load_all(block)]
        *manifests, self.waits = documents
        self.ssh, self.service, self.tunnel, self.web, self.patch = map(self._here, manifests)

    def write(self, name: str, manifest: Manifest) -> Path:
        """As a file of the reader's."""
        path = self.directory / name
        path.write_text(yaml.safe_dump(manifest))
        return path

    def _here(self, manifest: Manifest) -> Manifest:
        """In the test's namespace, by its image, through its bastion."""
        way = {"host": self._bastion.host, "port": self._bastion.port}
        if "metadata" in manifest:
            manifest["metadata"]["namespace"] = self._namespace
        if manifest.get("kind") == "DatabaseTunnel":
            manifest["spec"]["tunnel"] |= way
        if manifest.get("kind") == "Deployment":
            self._run_here(manifest["spec"]["template"]["spec"])
        for container in manifest["spec"].get("template", {}).get("spec", {}).get("containers", ()):
            for variable in container.get("env", ()):
                variable["value"] = variable["value"].replace(".shop.", f".{self._namespace}.")
        return manifest

    def _run_here(self, pod: dict[str, Any]) -> None:
        pod["securityContext"] = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
        pod["terminationGracePeriodSeconds"] = 1
        for container in pod["containers"]:
            drop = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
            container |= {"image": self._image, "imagePullPolicy": "IfNotPresent", "securityContext": drop}
            if "command" in container:
                *options, target = container["command"]
                assert target == f"{SSH_USER}@bastion.example.com"
                container["command"] = [*options, f"-p{self._bastion.port}", f"{SSH_USER}@{self._bastion.host}"]


@pytest.fixture
def page(installed: Cluster, shop: str, client_image: str, bastion: Bastion, tmp_path: Path) -> Iterator[Page]:
    """With the key that ssh used until now, which may do everything on the bastion."""
    pair = key_pair()
    bastion.authorize(*bastion.authorized(), pair.public)
    files = {"id_ed25519": pair.private, "known_hosts": bastion.known_hosts()}
    apply(installed, secret(shop, "orders-bastion", files))
    yield Page(shop, client_image, bastion, tmp_path)
    installed.kubectl("delete", "databasetunnel", "orders", "-n", shop, "--ignore-not-found")


def variables(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]


def test_a_pod_with_autossh_is_replaced_and_put_back(installed: Cluster, shop: str, page: Page) -> None:
    page.write("orders-tunnel.yaml", page.tunnel)
    for manifest, name in ((page.ssh, "orders-ssh.yaml"), (page.service, "orders-db.yaml")):
        installed.kubectl("apply", "-f", str(page.write(name, manifest)))

    def step(word: str) -> str:
        return follow(PAGE, installed, shop, page.directory, word)

    def selected() -> dict[str, str]:
        found: Manifest = find(installed, shop, "service/orders-db") or {}
        labels: dict[str, str] = found["spec"]["selector"]
        return labels

    def is_taken() -> bool:
        """Whether new sessions take the tunnel: nodes learn of it late, and the old pod may just be between two."""
        pods = ["-l", f"{TUNNEL_LABEL}=orders", "--tail=-1"]
        return '"event": "session ended"' in installed.kubectl("logs", *pods, "-n", shop)

    endpoint = Endpoint(f"orders-db.{shop}.svc", 5432, "", "")
    with Traffic(installed, shop, endpoint) as traffic:
        with Held(installed, shop, endpoint) as held:
            step("condition=DatabaseReachable")
            assert selected() == {"app": "orders-ssh"}, "nothing was touched"
            step("kubectl label")
            assert "app" not in selected()
            wait_until(is_taken, "sessions through the tunnel", 30)
            wait_until(lambda: step("awk").strip() == "1", "all others to have left the old pod", 30)
        assert held.printed > 20, "the session went on all the while"
        wait_until(lambda: step("awk").strip() == "0", "nobody to be on the old pod", 30)
        step("--replicas=0")
        step("kubectl replace")
        assert selected() == {"app": "orders-ssh"}
        wait_until(lambda: step("awk").strip() != "0", "sessions through the old pod", 30, interval_seconds=0.02)
        installed.kubectl("delete", "databasetunnel", "orders", "-n", shop, "--wait")
    outcome = traffic.outcome
    print(f"\n{outcome.served} sessions served, {len(outcome.errors)} not: {outcome.errors[:3]}")
    assert outcome.served > 40
    assert outcome.errors == []


def test_a_sidecar_with_ssh_is_taken_away_and_put_back(installed: Cluster, shop: str, page: Page) -> None:
    del page.tunnel["spec"]["service"]
    page.write("orders-tunnel.yaml", page.tunnel)
    page.write("web-patch.yaml", page.patch)
    container = page.web["spec"]["template"]["spec"]["containers"][0]
    container["env"] += variables(LOGIN)
    query = {"exec": {"command": ["psql", "-c", "select count(*) from orders"]}, "timeoutSeconds": 10}
    container["readinessProbe"] = {**query, "periodSeconds": 1}

    def step(word: str) -> None:
        """Those of the page that roll wait until the new pods have been served."""
        follow(PAGE, installed, shop, page.directory, word)

    def hosts() -> tuple[list[str], str]:
        pod = installed.get("deployment", "web", "-n", shop)["spec"]["template"]["spec"]
        (host,) = (one["value"] for one in pod["containers"][0]["env"] if one["name"] == "PGHOST")
        return [one["name"] for one in pod["containers"]], host

    installed.kubectl("apply", "-f", str(page.write("web.yaml", page.web)))
    installed.kubectl("rollout", "status", "deployment/web", "-n", shop, "--timeout=60s", timeout_seconds=70)
    step("condition=Ready databasetunnel/orders -n shop --timeout=5m")
    step("kubectl patch deployment")
    assert hosts() == (["web"], f"orders.{shop}.svc")
    step("rollout undo")
    assert hosts() == (["web", "ssh"], "localhost")


# --- how a pod with a sidecar ends ------------------------------------------------------------------------------------

_WORKS_ON = """
import signal, time, psycopg
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(time.monotonic()))
while True:
    try:
        session = psycopg.connect("connect_timeout=20")
        break
    except psycopg.OperationalError:
        time.sleep(0.1)
print("connected", flush=True)
try:
    while not told or time.monotonic() - told[0] < 2:
        session.execute("select 1")
        time.sleep(0.1)
    print("finished")
except psycopg.OperationalError:
    print("cut")
"""
"""An application that works for two seconds more once it is told to end."""


def pods_with_sidecars(page: Page) -> Iterator[Manifest]:
    """A pod of the page's Deployment: as it is, and in both ways in which ssh ends later."""
    metadata, template = page.web["metadata"], page.web["spec"]["template"]["spec"]
    web, ssh = template["containers"]
    del template["terminationGracePeriodSeconds"]
    web |= {"command": ["python", "-c", _WORKS_ON], "env": [*web["env"], *variables(LOGIN)]}
    ways = {
        "bare": {"containers": [web, ssh]},
        "waits": {"containers": [web, ssh | page.waits]},
        "native": {"containers": [web], "initContainers": [ssh | {"restartPolicy": "Always"}]},
    }
    for name, containers in ways.items():
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata | {"name": name}, "spec": template | containers}


def test_sessions_of_a_pod_with_a_sidecar_are_cut_at_its_end_unless_ssh_ends_later(
    installed: Cluster, shop: str, page: Page
) -> None:
    pods = list(pods_with_sidecars(page))
    apply(installed, *pods)
    names = [pod["metadata"]["name"] for pod in pods]
    of_pods = [f"pod/{name}" for name in names]
    installed.kubectl("wait", "--for=condition=Ready", *of_pods, "-n", shop, "--timeout=60s", timeout_seconds=70)
    said = {}
    for name in names:
        command = [binary("kubectl"), "logs", "-f", name, "-c", "web", "-n", shop]
        said[name] = Process(command, page.directory / name, env=installed.environment()).start()
    for one in said.values():
        wait_until(lambda one=one: "connected" in one.log_end(), "its session")  # type: ignore[misc]

    installed.kubectl("delete", *of_pods, "-n", shop, "--wait=false")

    for one in said.values():
        one.wait(30)
    ends = {name: one.log_end().split()[-1] for name, one in said.items()}
    assert ends == {"bare": "cut", "waits": "finished", "native": "finished"}
