"""The commands of docs/platform.md."""

from pathlib import Path

import pytest

from tests.support.cluster import Cluster, ClusterError
from tests.support.pages import follow
from tests.support.processes import wait_until
from tests.support.tunnels import apply, find, tunnel_manifest

PAGE = "platform"


def test_the_installation_is_looked_at(installed: Cluster, namespace: str, tmp_path: Path) -> None:
    printed = follow(PAGE, installed, namespace, tmp_path, "kubectl auth can-i")
    assert "successfully rolled out" in printed
    assert "no" in printed.splitlines(), "it cannot read Secrets"


def test_a_namespace_has_a_quota_of_tunnels(installed: Cluster, namespace: str, tmp_path: Path) -> None:
    follow(PAGE, installed, namespace, tmp_path, "kubectl label namespace")
    follow(PAGE, installed, namespace, tmp_path, "kubectl create quota", **{"=20": "=1"})

    def counts() -> bool:
        return "used" in (find(installed, namespace, "resourcequota/tunnels") or {}).get("status", {})

    wait_until(counts, "the quota, of a definition that its controller looks for each half a minute", 120)
    apply(installed, tunnel_manifest(namespace, "first", suspend=True))
    with pytest.raises(ClusterError, match="exceeded quota: tunnels"):
        apply(installed, tunnel_manifest(namespace, "second", suspend=True))
