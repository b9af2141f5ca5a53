"""What all cluster tests share: one cluster, and a namespace of its own for each test."""

import re
import uuid
from collections.abc import Iterator

import pytest
import yaml

from dbtunnel.api.crd import crd
from tests.support.cluster import Cluster, start_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running cluster, for the whole test run."""
    cluster = start_cluster("test")
    yield cluster
    cluster.stop()


@pytest.fixture(scope="session")
def crd_installed(cluster: Cluster) -> Cluster:
    """The cluster with the resource's definition and no operator."""
    cluster.kubectl("apply", "--server-side", "-f", "-", input=yaml.safe_dump(crd()))
    cluster.kubectl("wait", "--for=condition=Established", f"crd/{crd()['metadata']['name']}", "--timeout=20s")
    return cluster


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace that enforces Pod Security `restricted`, deleted afterwards without waiting."""
    words = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40]
    name = f"{words}-{uuid.uuid4().hex[:6]}"
    cluster.kubectl("create", "namespace", name)
    cluster.kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
