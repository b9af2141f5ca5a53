"""kind without Docker: what it is configured with, and what the real kind makes of that up to the node's start."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.binaries import binary
from tests.support.cluster import ClusterError
from tests.support.cluster.kind import AUDIT_LOG, KindCluster, kind_config
from tests.support.processes import ROOT, Process, wait_until
from tests.support.sources import KUBERNETES

DIRECTORY = Path("/cache/clusters/dev")

DOCKER = """\
#!/bin/sh
cd "$(dirname "$0")"
echo "$*" >> asked
case "$*" in
  -v) echo "Docker version 29.0.0" ;;
  info*) echo '{"CgroupDriver": "systemd", "CgroupVersion": "2"}' ;;
  "ps -a"*) [ ! -f node ] || cat node ;;
  "network inspect kind") cat network ;;
  "run --name"*) echo "$3" > node ;;
  rm*) rm node ;;
  logs*) echo "Reached target Multi-User System." ;;
  inspect*Labels*) echo control-plane ;;
  inspect*IPAddress*) echo 172.18.0.2, ;;
  exec*"cat /kind/version") echo v1.37.0 ;;
  exec*"cp /dev/stdin /kind/kubeadm.conf") cat > kubeadm.conf ;;
  exec*" tail "*) tail "$4" audit.log ;;
  exec*kubeadm*) echo "no node here"; exit 1 ;;
esac
"""
"""Answers kind as Docker does until Kubernetes is to start, which fails."""


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a `docker` that is first on the path, where it writes down what it was given."""
    program = tmp_path / "docker"
    program.write_text(DOCKER)
    program.chmod(0o755)
    monkeypatch.setenv("KUBE_BIN_DIR", str(binary("kind").parent))
    monkeypatch.setenv("DBTUNNEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return tmp_path


# --- the configuration ------------------------------------------------------------------------------------------


def _api_server_patch() -> dict[str, Any]:
    (node,) = kind_config(DIRECTORY)["nodes"]
    (text,) = node["kubeadmConfigPatches"]
    patch: dict[str, Any] = yaml.safe_load(text)
    assert patch["kind"] == "ClusterConfiguration"
    return patch


def test_kinds_api_server_enforces_permissions_of_owner_references() -> None:
    plugins = _api_server_patch()["apiServer"]["extraArgs"]["enable-admission-plugins"].split(",")

    assert {"NodeRestriction", "OwnerReferencesPermissionEnforcement"} <= set(plugins)


def test_kinds_patch_fits_every_version_of_kubeadm() -> None:
    """kind applies a patch without a version to each, and turns a mapping of arguments into what that version has."""
    patch = _api_server_patch()

    assert "apiVersion" not in patch
    assert all(isinstance(value, str) for value in patch["apiServer"]["extraArgs"].values())


def test_kinds_api_server_finds_its_audit_policy_and_writes_its_log() -> None:
    """The policy goes from this machine into the node, and from the node into the API server's pod."""
    (node,) = kind_config(DIRECTORY)["nodes"]
    server = _api_server_patch()["apiServer"]
    (mount,) = node["extraMounts"]
    volumes = {volume["mountPath"]: volume for volume in server["extraVolumes"]}
    policy, log = (Path(server["extraArgs"][f"audit-{name}"]) for name in ("policy-file", "log-path"))

    assert mount["hostPath"] == str(DIRECTORY)
    assert mount["containerPath"] == volumes[str(policy.parent)]["hostPath"]
    assert volumes[str(log.parent)]["pathType"] == "DirectoryOrCreate"
    assert not volumes[str(log.parent)].get("readOnly")


# --- the real kind ----------------------------------------------------------------------------------------------


@pytest.fixture
def started(docker: Path) -> Iterator[KindCluster]:
    """A cluster that kind has made up to the start of Kubernetes in its node."""
    cluster = KindCluster("dev")
    with pytest.raises(ClusterError, match="no node here"):
        cluster.start()
    yield cluster
    cluster.stop()


def test_kind_takes_the_configuration_and_mounts_the_audit_policy(started: KindCluster, docker: Path) -> None:
    (node,) = (line for line in (docker / "asked").read_text().splitlines() if line.startswith("run --name"))
    (policy,) = re.findall(r" --volume=(\S+):/etc/kubernetes/audit:ro ", node)

    assert yaml.safe_load((Path(policy) / "policy.yaml").read_text())["kind"] == "Policy"


def test_kind_merges_the_patch_into_the_configuration_of_kubeadm(started: KindCluster, docker: Path) -> None:
    documents = list(yaml.safe_load_all((docker / "kubeadm.conf").read_text()))
    (server,) = (one["apiServer"] for one in documents if one["kind"] == "ClusterConfiguration")
    patch = _api_server_patch()["apiServer"]
    arguments = {one["name"]: one["value"] for one in server["extraArgs"]}

    assert patch["extraArgs"].items() <= arguments.items()
    assert "runtime-config" in arguments, "kind's own stay"
    assert server["extraVolumes"] == patch["extraVolumes"]


def test_kubectl_is_at_most_one_version_away_from_kinds_node(started: KindCluster, docker: Path) -> None:
    """As far as Kubernetes supports it."""
    (minor,) = set(re.findall(r"kindest/node:v1\.(\d+)\.", (docker / "asked").read_text()))

    assert abs(int(minor) - int(KUBERNETES.split(".")[1])) <= 1


def test_kind_leaves_no_node_of_a_failed_start(started: KindCluster, docker: Path) -> None:
    assert not (docker / "node").exists()
    assert not started.is_running()


def test_the_audit_log_is_read_on_from_where_it_was(docker: Path) -> None:
    cluster, log = KindCluster("dev"), docker / "audit.log"
    log.write_text('{"objectRef": {}, "verb": "create", "user": "Jürgen"}\n{"objectRef": {}, "verb": "del')
    assert [one["verb"] for one in cluster.audit_events()] == ["create"]

    with log.open("a") as file:
        file.write('ete"}\n')

    assert [one["verb"] for one in cluster.audit_events()] == ["create", "delete"]
    assert (docker / "asked").read_text().splitlines()[1].endswith(f"+{len(log.read_bytes()) - 5} {AUDIT_LOG}")


def test_pods_reach_this_machine_at_the_gateway_of_version_4(docker: Path) -> None:
    configs = [{"Subnet": "fc00::/64", "Gateway": "fc00::1"}, {"Subnet": "172.18.0.0/16", "Gateway": "172.18.0.1"}]
    (docker / "network").write_text(json.dumps([{"IPAM": {"Config": configs}}]))

    assert KindCluster("dev").host_address == "172.18.0.1"


# --- the end ----------------------------------------------------------------------------------------------------


def test_a_kind_cluster_goes_with_a_killed_test_run(tmp_path: Path) -> None:
    said = tmp_path / "said"
    kind = tmp_path / "kind"
    kind.write_text(f'#!/bin/sh\n[ "$1" = get ] || echo "$@" >> {said}\n')
    kind.chmod(0o755)
    program = (
        "import time\n"
        "from tests.support.cluster.kind import KindCluster\n"
        "KindCluster('gone')._guard()\n"
        "print('guarded', flush=True)\n"
        "time.sleep(60)"
    )
    environment = {**os.environ, "KUBE_BIN_DIR": str(tmp_path), "DBTUNNEL_CACHE": str(tmp_path / "cache")}
    run = Process([sys.executable, "-c", program], tmp_path / "log", env=environment, cwd=ROOT).start()
    run.wait_until(lambda: "guarded" in run.log_end(), "the guard")
    assert not said.exists()

    run.kill()

    wait_until(lambda: said.exists() and said.read_text(), "the deletion")
    assert said.read_text() == "delete cluster --name dbtunnel-gone\n"


def test_a_stopped_cluster_leaves_nothing_that_would_delete_the_next_one(docker: Path) -> None:
    cluster = KindCluster("dev")
    cluster._guard()
    guard = cluster._guard_process

    cluster.stop()

    assert guard
    assert guard.wait(10) == -signal.SIGKILL
