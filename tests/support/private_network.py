"""A private network beside a cluster: a bastion that pods reach by name, and databases that only it reaches."""

import contextlib
import random
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dbtunnel.api.engines import ENGINES, Engine
from dbtunnel.domain.authorized_keys import authorized_keys_line
from tests.support.bastion import HARDENED, Bastion
from tests.support.certificates import server_certificate
from tests.support.cluster import Cluster
from tests.support.databases import MariaDBServer, PostgresServer
from tests.support.keys import key_pair
from tests.support.processes import ProcessError
from tests.support.recorded import record
from tests.support.redshift import RedshiftServer
from tests.support.tunnels import Manifest, apply

BASTION = "bastion"
"""Name of the Service through which pods reach the bastion, on SSH's own port."""

HOST_KEYS, AUTHORITY = "bastion-host-keys", "database-ca"
"""ConfigMaps: the bastion's known_hosts lines, and the authority of the databases' certificates."""


@dataclass(frozen=True)
class PrivateDatabase:
    """A database behind the bastion; its tunnel in `examples/` has the same name."""

    name: str
    engine: Engine
    server: type[PostgresServer] | type[MariaDBServer]
    tls: bool
    """Whether it demands TLS; otherwise it offers none."""

    @property
    def host(self) -> str:
        """Its name, which the bastion alone resolves."""
        return f"{self.name}.internal"

    @property
    def port(self) -> int:
        """The engine's usual one."""
        return ENGINES[self.engine].default_port


DATABASES = (
    PrivateDatabase("orders", Engine.POSTGRESQL, PostgresServer, tls=False),
    # stood in for by PostgreSQL, with their ports and TLS rules
    PrivateDatabase("warehouse", Engine.REDSHIFT, RedshiftServer, tls=True),
    PrivateDatabase("analytics", Engine.ALLOYDB, PostgresServer, tls=True),
    PrivateDatabase("inventory", Engine.MYSQL, MariaDBServer, tls=True),
)
"""One of each engine."""


class PrivateNetwork:
    """The databases listen on loopback addresses of this machine, which no pod reaches."""

    def __init__(self, directory: Path, host: str, *, survives: bool = False) -> None:
        """`host`: the address of this machine that pods reach. `survives`: as `Process`."""
        self._directory = directory
        addresses = free_addresses([one.port for one in DATABASES])
        self.addresses = dict(zip((one.host for one in DATABASES), addresses, strict=True))
        """The databases' addresses by name."""
        self._certificate = server_certificate(directory / "tls", list(self.addresses))
        self.bastion = Bastion(
            directory / "bastion", host=host, hosts=self.addresses, config=HARDENED, survives=survives
        )
        self.servers: dict[str, PostgresServer | MariaDBServer] = {
            one.name: one.server(
                directory / one.name,
                host=self.addresses[one.host],
                port=one.port,
                tls=self._certificate if one.tls else None,
                tls_required=one.tls,
                survives=survives,
            )
            for one in DATABASES
        }
        self.authorized: list[str] = []
        """The lines of the tunnels' user."""

    def start(self) -> "PrivateNetwork":
        """Starts everything and records it for `stop_recorded`."""
        for server in (self.bastion, *self.servers.values()):
            server.start()
        pids = {f"{name}-{pid}": pid for name, one in self.servers.items() for pid in one.pids}
        record(self._directory, {"bastion": self.bastion.pid, **pids})
        return self

    def stop(self) -> None:
        """Ends everything."""
        for server in (*self.servers.values(), self.bastion):
            server.stop()

    def authorize(self, *lines: str) -> None:
        """Adds lines to the tunnels' user's authorized_keys, as an administrator does."""
        self.authorized += lines
        self.bastion.authorize(*self.authorized)

    @contextlib.contextmanager
    def another_bastion(self, directory: Path, *lines: str) -> Iterator[Bastion]:
        """Another way to the same databases, which lets in whom `lines` of authorized_keys name."""
        bastion = Bastion(directory, host=self.bastion.host, hosts=self.addresses)
        if lines:
            bastion.authorize(*lines)
        bastion.start()
        try:
            yield bastion
        finally:
            bastion.stop()

    def publish(self, cluster: Cluster, namespace: str) -> None:
        """What a namespace needs for the tunnels of `examples/`: the way to the bastion, its keys, authorized keys."""
        known_hosts = "".join(f"{BASTION} {pair.public}\n" for pair in self.bastion.host_keys.values())
        authority = self._certificate.authority.read_text()
        apply(
            cluster,
            *service_of_machine(namespace, BASTION, 22, self.bastion.host, self.bastion.port),
            config_map(namespace, HOST_KEYS, {"known_hosts": known_hosts}),
            config_map(namespace, AUTHORITY, {"ca.crt": authority}),
            *(self._key(namespace, one) for one in DATABASES),
        )

    def _key(self, namespace: str, database: PrivateDatabase) -> Manifest:
        """The Secret with a new key that the bastion accepts for this database alone."""
        pair = key_pair()
        comment = f"{namespace}/{database.name}"
        self.authorize(authorized_keys_line(pair.public, comment, (database.host, database.port)))
        return secret(namespace, f"{database.name}-ssh", {"ssh-privatekey": pair.private})


def service_of_machine(namespace: str, name: str, port: int, host: str, target_port: int) -> Sequence[Manifest]:
    """A Service that leads to a port of this machine."""
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    ports = [{"port": port, "targetPort": target_port}]
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {**metadata, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"port": target_port}],
        "endpoints": [{"addresses": [host]}],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": ports}}, endpoints


def config_map(namespace: str, name: str, data: Mapping[str, str]) -> Manifest:
    """A ConfigMap."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": dict(data)}


def secret(namespace: str, name: str, data: Mapping[str, str]) -> Manifest:
    """A Secret."""
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": dict(data)}


def free_addresses(ports: Sequence[int]) -> list[str]:
    """A loopback address for each port, at which nothing listens."""
    for _ in range(50):
        start = random.randrange(64 * 2**16, 128 * 2**16)
        addresses = [str(f"127.{n >> 16}.{n >> 8 & 255}.{n & 255}") for n in range(start, start + len(ports))]
        if all(map(_is_free, addresses, ports)):
            return addresses
    raise ProcessError(
        f"the databases need the ports {', '.join(map(str, sorted(set(ports))))} on loopback addresses, and a server "
        "of this machine has one of them on every address (ss -ltn shows which): stop it, or bind it to 127.0.0.1"
    )


def _is_free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
