"""Kubernetes in Docker, by kind."""

import ipaddress
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.support.binaries import binary
from tests.support.cluster.base import AUDIT_POLICY, AuditLog, Cluster, ClusterError
from tests.support.processes import ProcessError, run, wait_until

_AUDIT_DIRECTORY = "/var/log/kubernetes/audit"
AUDIT_LOG = f"{_AUDIT_DIRECTORY}/audit.log"
_POLICY_DIRECTORY = "/etc/kubernetes/audit"


def kind_config(policy_directory: Path) -> dict[str, Any]:
    """A node with an audit log by the policy in that directory, and the admission plug-in that OpenShift has on."""
    arguments = {
        "audit-log-path": AUDIT_LOG,
        "audit-policy-file": f"{_POLICY_DIRECTORY}/policy.yaml",
        "enable-admission-plugins": "NodeRestriction,OwnerReferencesPermissionEnforcement",
    }
    volumes = [
        {"name": "audit-policy", "hostPath": _POLICY_DIRECTORY, "mountPath": _POLICY_DIRECTORY, "readOnly": True},
        {
            "name": "audit-log",
            "hostPath": _AUDIT_DIRECTORY,
            "mountPath": _AUDIT_DIRECTORY,
            "pathType": "DirectoryOrCreate",
        },
    ]
    # without an apiVersion kind merges it into the kubeadm configuration of every version
    patch = {
        "kind": "ClusterConfiguration",
        "apiServer": {"extraArgs": arguments, "extraVolumes": volumes},
    }
    mount = {"hostPath": str(policy_directory), "containerPath": _POLICY_DIRECTORY, "readOnly": True}
    node = {"role": "control-plane", "kubeadmConfigPatches": [yaml.safe_dump(patch)], "extraMounts": [mount]}
    return {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": [node]}


class KindCluster(Cluster):
    """A kind cluster named `dbtunnel-NAME`. One that a killed test run left is deleted with it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._guard_process: subprocess.Popen[bytes] | None = None
        self._audit, self._audit_size = AuditLog(), 0

    @property
    def _kind_name(self) -> str:
        return f"dbtunnel-{self.name}"

    @property
    def host_address(self) -> str:
        networks: Any = json.loads(run(["docker", "network", "inspect", "kind"]))
        gateways = [config["Gateway"] for config in networks[0]["IPAM"]["Config"] if config.get("Gateway")]
        return next(str(address) for address in gateways if ipaddress.ip_address(address).version == 4)

    def prepare(self) -> None:
        super().prepare()
        binary("kind")

    def start(self, *, survives: bool = False) -> None:
        if survives and self.is_running():
            return
        self.stop()
        if not survives:
            self._guard()
        policy, config = self.directory / "audit-policy" / "policy.yaml", self.directory / "kind.yaml"
        policy.parent.mkdir(parents=True, exist_ok=True)
        policy.write_text(AUDIT_POLICY)
        config.write_text(yaml.safe_dump(kind_config(policy.parent)))
        command: list[str | Path] = [binary("kind"), "create", "cluster", "--name", self._kind_name, "--config", config]
        try:
            run([*command, "--kubeconfig", self.kubeconfig, "--wait", "120s"], timeout_seconds=400)
        except ProcessError as error:
            raise ClusterError(str(error)) from error
        wait_until(self.node_is_ready, "a Ready node", 60, interval_seconds=1)

    def _guard(self) -> None:
        """A process that deletes the cluster once this one has ended, also by a kill: its standard input ends then."""
        script = 'cat > /dev/null; exec "$0" delete cluster --name "$1"'
        command = ["sh", "-c", script, str(binary("kind")), self._kind_name]
        self._guard_process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def stop(self) -> None:
        if self._guard_process:
            # it would delete a later cluster of the same name: its input ends with this object
            self._guard_process.kill()
            self._guard_process.wait(10)
            self._guard_process = None
        command: list[str | Path] = [binary("kind"), "delete", "cluster", "--name", self._kind_name]
        subprocess.run([*command, "--kubeconfig", self.kubeconfig], capture_output=True, check=False, timeout=120)

    def is_running(self) -> bool:
        clusters = run([binary("kind"), "get", "clusters"]).split()
        return self._kind_name in clusters and self.kubeconfig.exists()

    def load_image(self, archive: Path, reference: str) -> None:
        command: list[str | Path] = [binary("kind"), "load", "image-archive", archive, "--name", self._kind_name]
        run(command, timeout_seconds=300)

    def audit_log(self) -> AuditLog:
        # through the node, since the file there is root's alone
        node = f"{self._kind_name}-control-plane"
        command = ["docker", "exec", node, "tail", f"--bytes=+{self._audit_size + 1}", AUDIT_LOG]
        done = subprocess.run(command, capture_output=True, check=False, timeout=60)
        if done.returncode:
            raise ClusterError(f"the audit log of {node}: {done.stderr.decode(errors='replace')}")
        self._audit_size += len(done.stdout)
        self._audit.feed(done.stdout)
        return self._audit
