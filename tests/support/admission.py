"""The chart's admission policies, for the service account of the tests' operator, and what they say."""

import json
import re

from tests.support.chart import render
from tests.support.cluster import Cluster, ClusterError
from tests.support.operator import FORWARDER_IMAGE
from tests.support.tunnels import Manifest

SSH_SERVERS: list[Manifest] = [
    {"hosts": ["Bastion.example.com", "*.ssh.example.com", "203.0.113.0/24", "198.51.100.7"], "ports": [22]},
    {"hosts": ["2001:db8::/32"], "namespaces": ["default"]},
    {"hosts": ["other.example.com"], "namespaces": ["elsewhere"]},
]
DATABASES: list[Manifest] = [
    {"hosts": ["*.internal", "10.0.0.0/8"]},
    {"hosts": ["localhost"], "ports": [5432], "namespaces": ["default"]},
]
SELINUX: Manifest = {"type": "container_t", "level": "s0:c1,c2"}

REFUSAL = re.compile(
    r'"([^"]+)" is forbidden: ValidatingAdmissionPolicy \'\S+\' with binding \'\S+\' denied request: (.*)'
)


def policies(ssh_servers: list[Manifest], databases: list[Manifest]) -> list[Manifest]:
    """What the chart has for the service account of these tests' operator."""
    repository, _, tag = FORWARDER_IMAGE.rpartition(":")
    tunnels = {"enabled": True, "sshServers": ssh_servers, "databases": databases}
    values = {
        "admissionPolicies": {"tunnels": tunnels, "operator": {"enabled": True}},
        "serviceAccount": {"create": False, "name": "operator"},
        "settings": {"forwarderPodSecurity": {"seLinuxOptions": SELINUX}},
        "forwarder": {"image": {"repository": repository, "tag": tag}},
    }
    options = ("--namespace", "default", "--show-only", "templates/admission.yaml")
    return render(values, *options, release="bound")


def refusals(cluster: Cluster, objects: list[Manifest], *options: str) -> dict[str, str]:
    """What is said of each of the objects that would not be created, by its name."""
    items = {"apiVersion": "v1", "kind": "List", "items": objects}
    try:
        cluster.kubectl("create", "--dry-run=server", *options, "-f", "-", input=json.dumps(items))
    except ClusterError as error:
        lines = [line for line in str(error).splitlines() if "Error from server" in line]
        found = [REFUSAL.search(line) for line in lines]
        assert all(found), lines
        return {one[1]: one[2] for one in found if one}
    return {}
