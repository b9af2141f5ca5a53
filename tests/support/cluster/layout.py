"""Names, addresses and paths of one local cluster."""

import ipaddress
import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import run


class NoFreeNetworkError(RuntimeError):
    """Every network that a local cluster could take is in use on this machine."""


@dataclass(frozen=True)
class Layout:
    """What one local cluster takes on this machine: its directory, a link, a control group and a network."""

    directory: str
    link: str
    """Name of this machine's end of the veth pair."""
    cgroup: str
    network: str
    """Holds all of the cluster's addresses."""
    host: str
    """This machine's address, as pods see it."""
    node: str
    """The node's address: API server, kubelet, DNS."""
    pods: str
    services: str
    first_service: str

    @classmethod
    def of(cls, directory: Path, number: int) -> "Layout":
        """The layout of the cluster in that directory, within the network 10.NUMBER.0.0/16."""
        prefix = f"10.{number}"
        return cls(
            directory=str(directory),
            link=link_name(directory),
            cgroup=cgroup_name(directory),
            network=f"{prefix}.0.0/16",
            host=f"{prefix}.255.1",
            node=f"{prefix}.255.2",
            pods=f"{prefix}.0.0/20",
            services=f"{prefix}.128.0/20",
            first_service=f"{prefix}.128.1",
        )


def link_name(directory: Path) -> str:
    """By its directory alone, so that what a dead cluster left is found. At most 15 characters, as Linux asks."""
    return f"dbt{_digest(directory):08x}"


def cgroup_name(directory: Path) -> str:
    """By its directory alone, so that what a dead cluster left is found."""
    return f"dbtunnel-{_digest(directory):08x}"


def free_network(directory: Path, routes: Iterable[str]) -> int:
    """N of a network 10.N.0.0/16 that overlaps no route of this machine; the same N again where it is free."""
    used = [ipaddress.IPv4Network(route, strict=False) for route in routes]
    for step in range(64):
        number = 64 + (_digest(directory) + step) % 64
        network = ipaddress.IPv4Network(f"10.{number}.0.0/16")
        if not any(network.overlaps(other) for other in used):
            return number
    raise NoFreeNetworkError(
        "the local cluster needs one free network of 10.64.0.0/16 to 10.127.0.0/16, and routes of this machine "
        "(ip route) overlap them all; remove those of a VPN, or use CLUSTER=kind or CLUSTER=existing"
    )


def routes() -> list[str]:
    """The destinations that this machine's routing table names, but for the default."""
    entries = json.loads(run(["ip", "-4", "-json", "route", "show"]))
    return [entry["dst"] for entry in entries if entry["dst"] != "default"]


def _digest(directory: Path) -> int:
    return zlib.crc32(str(directory).encode())
