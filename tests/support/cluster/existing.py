"""The cluster of the current kubeconfig: nothing is started, nothing is stopped."""

import os
from pathlib import Path

from tests.support.cluster.base import AuditLog, Cluster, ClusterError


class ExistingCluster(Cluster):
    """A cluster that somebody else runs. `HOST_ADDRESS` is this machine's address as its pods see it; images must be in
    a registry that it reaches, named by `IMAGE` and `CLIENT_IMAGE`."""

    @property
    def kubeconfig(self) -> Path:
        return Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")

    @property
    def host_address(self) -> str:
        address = os.environ.get("HOST_ADDRESS")
        if not address:
            raise ClusterError("CLUSTER=existing needs HOST_ADDRESS: the address of this machine that pods reach")
        return address

    def start(self, *, survives: bool = False) -> None:
        if not self.node_is_ready():
            raise ClusterError(f"no Ready node with {self.kubeconfig}; check it with: kubectl get nodes")

    def stop(self) -> None:
        """Leaves it as it is."""

    def is_running(self) -> bool:
        return self.node_is_ready()

    def load_image(self, archive: Path, reference: str) -> None:
        raise ClusterError(
            f"CLUSTER=existing cannot load {archive}: push it to a registry that the cluster reaches and name it "
            f"with IMAGE (and CLIENT_IMAGE) instead of {reference}"
        )

    def audit_log(self) -> AuditLog:
        raise ClusterError("CLUSTER=existing: the API server's audit log is out of reach")
