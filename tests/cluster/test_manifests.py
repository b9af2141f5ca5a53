"""What `make manifests` renders, on a real API server."""

import json

import pytest
import yaml

from tests.support.cluster import Cluster, ClusterError
from tests.support.images import OPERATOR
from tests.support.installation import provide_image
from tests.support.processes import wait_until
from tests.support.release import CHART, manifests
from tests.support.tunnels import apply, condition, make_namespace, remove_namespace, tunnel_manifest


def test_the_api_server_admits_all_of_it(crd_installed: Cluster) -> None:
    """Strictly; and over what helm has installed under the same names where that is asked for."""
    text = manifests()
    options = ("apply", "--server-side", "--dry-run=server", "--validate=strict", "-f", "-")
    with pytest.raises(ClusterError, match='with "helm"'):
        crd_installed.kubectl(*options, input=text)
    said = crd_installed.kubectl(*options, "--force-conflicts", input=text)

    assert said.count("serverside-applied (server dry run)") == len([one for one in yaml.safe_load_all(text) if one])


def test_it_installs_an_operator_and_removes_it(crd_installed: Cluster) -> None:
    """Under another name, for one namespace alone: others' operators run in the same cluster."""
    image = provide_image(crd_installed, OPERATOR)
    repository, _, tag = image.rpartition(":")
    served = make_namespace(crd_installed, "served")
    settings = {
        "image.repository": repository,
        "image.tag": tag,
        "crds.enabled": "false",
        "settings.namespaces[0]": served,
    }
    options = [word for name, value in settings.items() for word in ("--set-string", f"{name}={value}")]
    options[options.index("crds.enabled=false") - 1] = "--set"
    text = manifests(CHART, *options, release="plain", namespace="plain")

    crd_installed.kubectl("apply", "-f", "-", input=text)
    available = ("wait", "--for=condition=Available", "deployment", "--all", "-n", "plain", "--timeout=60s")
    crd_installed.kubectl(*available, timeout_seconds=70)
    apply(crd_installed, tunnel_manifest(served))
    wait_until(lambda: condition(crd_installed, served, "Ready"), "its work")

    crd_installed.kubectl("delete", "-f", "-", input=text, timeout_seconds=70)
    with pytest.raises(ClusterError, match="not found"):
        crd_installed.get("namespace", "plain")
    kinds = "clusterroles,clusterrolebindings,rolebindings"
    left = json.dumps(crd_installed.get(kinds, "-A", "-l", "app.kubernetes.io/instance=plain")["items"])
    assert left == "[]"
    remove_namespace(crd_installed, served)
