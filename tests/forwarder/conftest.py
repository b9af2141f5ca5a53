"""Real servers of the forwarder tests: those that tests leave as they are live for the whole run."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.bastion import Bastion
from tests.support.certificates import ServerCertificate, server_certificate
from tests.support.databases import MariaDBServer, PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config
from tests.support.keys import KeyPair, key_pair
from tests.support.laptop import Laptop

StartBastion = Callable[..., Bastion]

NAMES = ("orders.internal", "mysql.internal")
"""What the bastion resolves, and nobody else."""


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ServerCertificate:
    return server_certificate(tmp_path_factory.mktemp("tls"), NAMES)


@pytest.fixture(scope="session")
def client_key() -> KeyPair:
    return key_pair()


@pytest.fixture
def bastion(tmp_path: Path, client_key: KeyPair) -> Iterator[Bastion]:
    """A bastion that accepts the client's key, for one test to change as it likes."""
    bastion = Bastion(tmp_path / "bastion", hosts=dict.fromkeys(NAMES, "127.0.0.1"))
    bastion.authorize(client_key.public)
    yield bastion.start()
    bastion.stop()


@pytest.fixture
def further_bastions(tmp_path: Path) -> Iterator[StartBastion]:
    """Starts SSH servers beside the bastion, each with names of its own; they end with the test."""
    running: list[Bastion] = []

    def start(hosts: Mapping[str, str] | None = None, *lines: str) -> Bastion:
        server = Bastion(tmp_path / f"server-{len(running)}", hosts=hosts)
        server.authorize(*lines)
        running.append(server)
        return server.start()

    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    server = PostgresServer(tmp_path_factory.mktemp("pg"))
    yield server.start()
    server.stop()


class _OpenPostgres(PostgresServer):
    """Asks for no password: thousands of sessions cost what they must and no more."""

    authentication = "trust"


@pytest.fixture(scope="session")
def open_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    server = _OpenPostgres(tmp_path_factory.mktemp("pgopen"), settings=["max_connections=600"])
    yield server.start()
    server.stop()


@pytest.fixture(scope="session")
def postgres_tls(tmp_path_factory: pytest.TempPathFactory, certificate: ServerCertificate) -> Iterator[PostgresServer]:
    """TLS required, as Redshift and AlloyDB are run."""
    server = PostgresServer(tmp_path_factory.mktemp("pgtls"), tls=certificate, tls_required=True)
    yield server.start()
    server.stop()


@pytest.fixture(scope="session")
def mariadb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MariaDBServer]:
    server = MariaDBServer(tmp_path_factory.mktemp("my"), settings=["max-connections=600"])
    yield server.start()
    server.stop()


@pytest.fixture(scope="session")
def mariadb_tls(tmp_path_factory: pytest.TempPathFactory, certificate: ServerCertificate) -> Iterator[MariaDBServer]:
    server = MariaDBServer(tmp_path_factory.mktemp("mytls"), tls=certificate, tls_required=True)
    yield server.start()
    server.stop()


StartForwarder = Callable[..., Forwarder]


@pytest.fixture
def start_forwarder(tmp_path: Path, bastion: Bastion, client_key: KeyPair) -> Iterator[StartForwarder]:
    """Starts a forwarder to a database's port, its configuration changed as given; it ends with the test.

    `hop_files`: what is mounted for jump hosts and fallbacks, by the hop's number and `key` or `known-hosts`.
    """
    running: list[Forwarder] = []

    def start(database_port: int, files: Mapping[str, str] | None = None, /, **changes: Any) -> Forwarder:
        hop_files: Mapping[tuple[int, str], Mapping[str, str]] = changes.pop("hop_files", {})
        config = forwarder_config(bastion, database_port, **changes)
        secret = {KEY: client_key.private} if files is None else files
        forwarder = Forwarder(tmp_path / f"forwarder-{len(running)}", config, secret or None)
        for place, content in hop_files.items():
            forwarder.write_hop(*place, content)
        running.append(forwarder)
        return forwarder.start()

    yield start
    for forwarder in running:
        forwarder.stop()


@pytest.fixture
def laptop(tmp_path: Path, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair) -> Iterator[Laptop]:
    """A machine without a cluster, with a manifest that works."""
    laptop = Laptop(tmp_path, bastion, postgres.port, client_key)
    yield laptop
    if laptop.process:
        laptop.process.stop()
