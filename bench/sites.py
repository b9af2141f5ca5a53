"""Where is measured: a real bastion with a server behind it, on loopback or at the end of a long link."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.link import FAR, link
from bench.programs import program
from tests.support.bastion import HARDENED, Bastion
from tests.support.cable import Cable
from tests.support.databases import DATABASE, USER, PostgresServer, postgres_program
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import Process, free_port, run

TARGET = "orders.internal"
"""What only the bastion resolves."""

_LOOPBACK = "127.0.0.1"
_BASTION_PORT, _PEER_PORT = 2222, 9000  # of a namespace where nothing else is
_QUIET = ("LogLevel INFO", *HARDENED)


@dataclass(frozen=True)
class Site:
    """A bastion and one server behind it."""

    directory: Path
    bastion: Bastion
    key: KeyPair
    host: str
    port: int
    """Address of the server, for those who need no bastion; on its own machine it also is at 127.0.0.1."""
    server_pid: int
    """The server's first process."""
    near: tuple[str, ...] = ()
    """The command that runs another on the clients' side."""
    cable: Cable | None = None
    """What leads to bastion and server, where it can be cut."""

    @property
    def key_file(self) -> Path:
        """The private key that the bastion accepts."""
        return self.directory / "key"

    @property
    def known_hosts_file(self) -> Path:
        """The bastion's host keys."""
        return self.directory / "known_hosts"


class _Database(PostgresServer):
    """PostgreSQL that spends no time on passwords."""

    authentication = "trust"


@contextmanager
def peer_site(directory: Path) -> Iterator[Site]:
    """The server of `peer.c`, on loopback."""
    port = free_port()
    peer = Process([program("peer"), _LOOPBACK, str(port)], directory / "peer.log").start()
    try:
        with _site(directory, _bastion(directory), peer.pid, _LOOPBACK, port) as site:
            yield site
    finally:
        peer.kill()


@contextmanager
def database_site(directory: Path) -> Iterator[Site]:
    """PostgreSQL with pgbench's tables, on loopback."""
    database = _Database(directory / "database", settings=("log_connections=off",)).start()
    try:
        run(pgbench(database.host, database.port, "-i", "-q"))
        with _site(directory, _bastion(directory), database.pid, database.host, database.port) as site:
            yield site
    finally:
        database.stop()


@contextmanager
def distant_site(directory: Path, round_trip_seconds: float) -> Iterator[Site]:
    """The server of `peer.c` and the bastion, at the far end of a link that takes its time. Needs root."""
    with link(directory, round_trip_seconds) as (near, far):
        peer = Process([*far, program("peer"), "0.0.0.0", str(_PEER_PORT)], directory / "peer.log").start()
        bastion = _bastion(directory, host=FAR, port=_BASTION_PORT, prefix=far)
        try:
            with _site(directory, bastion, peer.pid, FAR, _PEER_PORT, near) as site:
                yield site
        finally:
            peer.kill()


@contextmanager
def cable_site(directory: Path) -> Iterator[Site]:
    """The server of `peer.c` and the bastion, in a network namespace to which packets can be dropped. Needs root."""
    with Cable(directory) as cable:
        far = tuple(cable.prefix)
        peer = Process([*far, program("peer"), "0.0.0.0", str(_PEER_PORT)], directory / "peer.log").start()
        bastion = _bastion(directory, host=cable.host, port=_BASTION_PORT, prefix=far)
        try:
            with _site(directory, bastion, peer.pid, cable.host, _PEER_PORT) as site:
                yield replace(site, cable=cable)
        finally:
            peer.kill()


Open = Callable[[Path], AbstractContextManager[Site]]

SITES: Mapping[str, Open] = {
    "peer": peer_site,
    "cable": cable_site,
    "database": database_site,
    "20ms": partial(distant_site, round_trip_seconds=0.020),
    "100ms": partial(distant_site, round_trip_seconds=0.100),
}
"""How each site is opened, in a directory of its own."""


def pgbench(host: str, port: int, *options: str) -> list[str]:
    """The command line of pgbench for the database at an address."""
    return [postgres_program("pgbench"), "-h", host, "-p", str(port), "-U", USER, "-n", *options, DATABASE]


def _bastion(
    directory: Path, *, host: str = _LOOPBACK, port: int | None = None, prefix: tuple[str, ...] = ()
) -> Bastion:
    hosts = {TARGET: _LOOPBACK}
    return Bastion(directory / "bastion", host=host, port=port, hosts=hosts, config=_QUIET, prefix=prefix)


@contextmanager
def _site(
    directory: Path, bastion: Bastion, server_pid: int, host: str, port: int, near: tuple[str, ...] = ()
) -> Iterator[Site]:
    site = Site(directory, bastion, key_pair(), host, port, server_pid, near)
    bastion.authorize(site.key.public)
    site.key_file.touch(0o600)
    site.key_file.write_text(site.key.private)
    site.known_hosts_file.write_text(bastion.known_hosts())
    bastion.start()
    try:
        yield site
    finally:
        bastion.stop()
