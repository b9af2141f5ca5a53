"""Clients of MySQL that leave before their login are told of: the server blocks the bastion's address for them."""

import contextlib
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pymysql
import pytest

from dbtunnel.api.engines import Engine
from dbtunnel.domain.database import leavers
from tests.support.bastion import Bastion
from tests.support.certificates import ServerCertificate
from tests.support.databases import DATABASE, PASSWORD, USER, MariaDBServer
from tests.support.faults import FaultServer
from tests.support.forwarder import Forwarder, hop_to
from tests.support.processes import wait_until
from tests.support.relay import Relay

StartForwarder = Callable[..., Forwarder]

LEFT = "dbtunnel_forwarder_clients_left_before_login_total"
CLIENTS, TAKEN = "dbtunnel_forwarder_clients", "dbtunnel_forwarder_clients_total"

SSL_REQUEST = b"\x20\0\0\x01\x0d\xa8\x3e\0" + bytes(28)
"""A client's of MySQL."""

BLOCKED = b"\x44\0\0\0\xff\x69\x04Host '10.0.0.1' is blocked because of many connection errors; unbloc"
"""MySQL's error 1129 in place of a greeting."""


def mysql(start_forwarder: StartForwarder, port: int, probe_mode: str = "Disabled") -> Forwarder:
    forwarder = start_forwarder(port, engine=Engine.MYSQL, probe_mode=probe_mode)
    forwarder.wait_for("authentication", "Succeeded")
    return forwarder


def greeted(forwarder: Forwarder) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", forwarder.port), 10)
    assert client.recv(1)
    return client


def told(forwarder: Forwarder) -> list[dict[str, object]]:
    return [event for event in forwarder.events() if event["event"] == "client left before its login"]


def test_those_who_leave_after_the_greeting_are_counted_and_told_of_once_a_minute(
    start_forwarder: StartForwarder, mariadb: MariaDBServer
) -> None:
    forwarder = mysql(start_forwarder, mariadb.port)
    for number in range(1, 6):
        greeted(forwarder).close()
        wait_until(lambda number=number: forwarder.metric(LEFT) == number, "it to be counted")  # type: ignore[misc]
    (event,) = told(forwarder)
    assert (event["client"], event["total"], event["level"]) == ("127.0.0.1", 1, "warning")


def log_in(forwarder: Forwarder, password: str = PASSWORD) -> None:
    pymysql.connect(host="127.0.0.1", port=forwarder.port, user=USER, password=password, database=DATABASE).close()


# --- before the server blocks the bastion -----------------------------------------------------------------------------


@dataclass
class Way:
    """From a forwarder to a server that blocks an address after three. 127.0.0.1 it never blocks, hence another."""

    forwarder: Forwarder
    ssh: Relay
    database: Relay

    def client(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.forwarder.port), 10)

    def taken(self) -> socket.socket:
        """A client that the forwarder has taken."""
        before = self.forwarder.metric(TAKEN)
        client = self.client()
        wait_until(lambda: self.forwarder.metric(TAKEN) > before, "it to be taken")
        return client


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, certificate: ServerCertificate) -> Iterator[MariaDBServer]:
    server = MariaDBServer(tmp_path_factory.mktemp("my"), tls=certificate, settings=["max-connect-errors=3"])
    yield server.start()
    server.stop()


@pytest.fixture
def way(start_forwarder: StartForwarder, bastion: Bastion, strict: MariaDBServer) -> Iterator[Way]:
    with strict.connect() as session, session.cursor() as cursor:
        cursor.execute("flush hosts")
    database = Relay(strict.host, strict.port, source="127.0.0.5")
    with database, Relay(bastion.host, bastion.port) as ssh:
        hop = hop_to(bastion, host=ssh.host, port=ssh.port)
        forwarder = start_forwarder(database.port, engine=Engine.MYSQL, bastion=hop, keepalive_count_max=20)
        forwarder.wait_for("authentication", "Succeeded")
        yield Way(forwarder, ssh, database)


def once_greeted(way: Way) -> None:
    greeted(way.forwarder).close()


def before_the_greeting(way: Way) -> None:
    wait_until(lambda: way.forwarder.metric(CLIENTS) == 0, "others to be gone")
    way.database.stall()
    client = way.client()
    wait_until(lambda: way.forwarder.metric(CLIENTS) == 1, "its channel to be open")
    client.close()
    way.database.flow()


def before_there_is_a_channel(way: Way) -> None:
    way.ssh.stall()
    way.taken().close()
    way.ssh.flow()


def with_something_else(way: Way) -> None:
    with greeted(way.forwarder) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while client.recv(4096):
            pass


def within_the_handshake_of_tls(way: Way) -> None:
    """Since it does not trust the server."""
    client = greeted(way.forwarder)
    client.recv(4096)
    client.sendall(SSL_REQUEST)
    with pytest.raises(ssl.SSLCertVerificationError):
        ssl.create_default_context().wrap_socket(client, server_hostname="orders.internal")
    client.close()


@pytest.mark.parametrize(
    "leave",
    [
        once_greeted,
        before_the_greeting,
        before_there_is_a_channel,
        with_something_else,
        within_the_handshake_of_tls,
    ],
)
def test_that_they_leave_is_told_before_the_server_blocks_the_bastion(way: Way, leave: Callable[[Way], None]) -> None:
    """In the message of DatabaseReachable."""
    forwarder = way.forwarder
    log_in(forwarder)
    leave(way)
    fact = forwarder.wait(lambda status: bool(leavers(status.database.seen)), "it to be told").database
    assert (fact.status, fact.reason) == ("True", "Succeeded")
    assert "as 127.0.0.1 did" in fact.seen
    assert told(forwarder)
    log_in(forwarder)  # nobody is blocked yet
    for number in (2, 3, 4):
        leave(way)
        wait_until(lambda number=number: forwarder.metric(LEFT) == number, "it to be counted")  # type: ignore[misc]
    with pytest.raises(pymysql.OperationalError, match="1129"):
        log_in(forwarder)
    forwarder.wait_for("database", "HostBlocked")


def test_who_has_left_when_its_turn_comes_costs_the_server_nothing(way: Way) -> None:
    """As health checks have, while the forwarder does something else."""
    before = way.database.accepted
    way.forwarder.process.signal(signal.SIGSTOP)
    for _ in range(5):
        way.client().close()
    way.forwarder.process.signal(signal.SIGCONT)
    wait_until(lambda: way.forwarder.metric(TAKEN) == 5, "all to be taken")
    log_in(way.forwarder)
    assert way.database.accepted == before + 1
    assert way.forwarder.metric(LEFT) == 0


# --- who is counted ---------------------------------------------------------------------------------------------------


def test_those_who_log_in_or_try_to_are_not(start_forwarder: StartForwarder, mariadb: MariaDBServer) -> None:
    forwarder = mysql(start_forwarder, mariadb.port)
    for password in (PASSWORD, "wrong"):
        with contextlib.suppress(pymysql.OperationalError):
            log_in(forwarder, password)
    wait_until(lambda: forwarder.metric(CLIENTS) == 0, "the clients to be gone")
    assert forwarder.metric("dbtunnel_forwarder_clients_total") == 2
    assert forwarder.metric(LEFT) == 0


def test_those_whom_the_server_refuses_are_not(start_forwarder: StartForwarder) -> None:
    with FaultServer(lambda peer: peer.sendall(BLOCKED)) as server:
        forwarder = mysql(start_forwarder, server.port)
        greeted(forwarder).close()
        wait_until(lambda: forwarder.metric(CLIENTS) == 0, "the client to be gone")
        assert forwarder.metric(LEFT) == 0


def test_those_whose_connection_is_cut_are_not(
    start_forwarder: StartForwarder, bastion: Bastion, mariadb: MariaDBServer
) -> None:
    forwarder = mysql(start_forwarder, mariadb.port)
    with greeted(forwarder) as client:
        bastion.kill_sessions()
        client.recv(4096)
        with pytest.raises(ConnectionResetError):
            client.recv(4096)
    wait_until(lambda: forwarder.metric(CLIENTS) == 0, "the client to be gone")
    assert forwarder.metric(LEFT) == 0
    assert told(forwarder) == []


def test_a_server_that_gives_up_waiting_counts_as_well(start_forwarder: StartForwarder) -> None:
    """It is an interrupted handshake, whoever interrupts it."""
    greeting = b"\x4a\0\0\0\x0a8.0.40\0" + bytes(66)

    def treat(peer: socket.socket) -> None:
        peer.sendall(greeting)
        peer.shutdown(socket.SHUT_RDWR)

    with FaultServer(treat) as server:
        forwarder = mysql(start_forwarder, server.port)
        with greeted(forwarder) as client:
            while client.recv(4096):
                pass
        wait_until(lambda: forwarder.metric(LEFT) == 1, "it to be counted")
