"""The chart's admission policies, for the service account of the tests' operator, and what they say."""

import json
import re
from collections.abc import Mapping
from typing import Any

from tests.support.chart import render
from tests.support.cluster import Cluster, ClusterError
from tests.support.operator import FORWARDER_IMAGE
from tests.support.tunnels import Manifest, tunnel_manifest

SSH_SERVERS: list[Manifest] = [
    {"hosts": ["Bastion.example.com", "*.ssh.example.com", "203.0.113.0/24", "198.51.100.7"], "ports": [22]},
    {"hosts": ["2001:db8::/32", "fd00::/8"], "namespaces": ["default"]},
    {"hosts": ["other.example.com"], "namespaces": ["elsewhere"]},
]
METADATA_SERVICES = (
    "169.254.169.254",
    "fd00:ec2::254",
    "fd00:0ec2:0::23",
    "fd20:ce::254",
    "fd00:42::42",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
)
DATABASES: list[Manifest] = [
    {"hosts": ["*.internal", "10.0.0.0/8"]},
    {"hosts": ["localhost"], "ports": [5432], "namespaces": ["default"]},
]
SELINUX: Manifest = {"type": "container_t", "level": "s0:c1,c2"}


def leading_to(host: str = "bastion.example.com", database: Mapping[str, Any] | None = None, **spec: Any) -> Manifest:
    """A tunnel through that bastion."""
    way = {"host": host, **spec.pop("tunnel", {})}
    manifest = tunnel_manifest("default", tunnel=way, **spec)
    manifest["spec"]["database"] = {"host": "orders.internal", **(database or {})}
    return manifest


def alias(address: str) -> Manifest:
    return {"hostAliases": [{"ip": address, "hostnames": ["bastion.example.com"]}]}


ALLOWED = (
    leading_to(),
    leading_to("BASTION.Example.com."),
    leading_to("a.ssh.example.com"),
    leading_to("203.0.113.200"),
    leading_to("198.51.100.7"),
    leading_to("2001:db8:0:0::5", tunnel={"port": 2222}),
    leading_to("fd00:ec3::254"),
    leading_to(tunnel={"jumpHosts": [{"host": "203.0.113.1"}], "fallbacks": [{"host": "203.0.113.2"}]}),
    leading_to(podTemplate=alias("203.0.113.9")),
    leading_to(database={"host": "10.20.30.40", "port": 6432}),
    leading_to(database={"host": "localhost"}),
    leading_to(database={"host": "0xdb.internal"}),
)

NOT_AMONG = "is not among the SSH servers that namespace default may use: Bastion.example.com, *.ssh.example.com, "
METADATA = "or a cloud's metadata service, or stands for one. Write"
OWN = f"is a loopback or link-local address {METADATA} the SSH server's own name or address."
NO_OWN_ADDRESS = f"is a link-local or unspecified address {METADATA} the database's own name or address."
NO_DATABASE = "is not among the databases that namespace default may use: *.internal, 10.0.0.0/8; localhost port 5432. "

REFUSED = (
    (leading_to("evil.example.com"), f"spec.tunnel.host: evil.example.com port 22 {NOT_AMONG}"),
    (leading_to("ssh.example.com"), NOT_AMONG),
    (leading_to("evilssh.example.com"), NOT_AMONG),
    (leading_to("bastion.example.com.evil.net"), NOT_AMONG),
    (leading_to("203.0.114.1"), NOT_AMONG),
    (leading_to("2001:db9::1"), NOT_AMONG),
    (leading_to(tunnel={"port": 2222}), f"bastion.example.com port 2222 {NOT_AMONG}"),
    (leading_to("other.example.com"), NOT_AMONG),
    (
        leading_to(tunnel={"jumpHosts": [{"host": "203.0.113.1"}, {"host": "10.0.0.1"}]}),
        "tunnel.jumpHosts[1].host: 10.",
    ),
    (leading_to(tunnel={"fallbacks": [{"host": "203.0.113.1", "port": 24}]}), "spec.tunnel.fallbacks[0].host: 203.0."),
    *(
        (leading_to(host), f"spec.tunnel.host: {host} {OWN}")
        for host in (
            *("127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "::", "fe80::1", "febf::1", *METADATA_SERVICES),
            *("localhost", "LocalHost.", "a.localhost", "ip6-loopback", "0x7f000001", "0x7f.1", "a.1"),
        )
    ),
    (leading_to(tunnel={"jumpHosts": [{"host": "127.0.0.1"}]}), f"spec.tunnel.jumpHosts[0].host: 127.0.0.1 {OWN}"),
    (leading_to(tunnel={"fallbacks": [{"host": "localhost"}]}), f"spec.tunnel.fallbacks[0].host: localhost {OWN}"),
    *(
        (leading_to(podTemplate=alias(address)), f"spec.podTemplate.hostAliases: {address} is a loopback")
        for address in ("127.0.0.1", "fe80::1", *METADATA_SERVICES)
    ),
    (leading_to(podTemplate=alias("10.0.0.1")), "spec.podTemplate.hostAliases: 10.0.0.1 is not the address of an SSH"),
    (
        leading_to(database={"host": "orders.example.com"}),
        f"spec.database.host: orders.example.com port 5432 {NO_DATABASE}",
    ),
    (leading_to(database={"host": "11.0.0.1"}), NO_DATABASE),
    (leading_to(database={"host": "localhost", "port": 5433}), f"localhost port 5433 {NO_DATABASE}"),
    (leading_to(database={"host": "localhost"}, engine="MySQL"), f"localhost port 3306 {NO_DATABASE}"),
    *(
        (leading_to(database={"host": host}), f"spec.database.host: {host} {NO_OWN_ADDRESS}")
        for host in (
            *("fe80::1", "0.0.0.0", "::", *METADATA_SERVICES),
            *("0xa9fea9fe", "0xA9FEA9FE.", "169.254.0xa9fe", "0xa9.0xfe.43518", "0x0"),
        )
    ),
)

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
