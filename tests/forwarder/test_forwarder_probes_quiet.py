"""A probe that has begun comes to its proper end, whatever happens to its connection: the database's log tells."""

import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tests.support.bastion import Bastion
from tests.support.certificates import ServerCertificate
from tests.support.databases import DATABASE, PASSWORD, USER, PostgresServer
from tests.support.faults import FaultServer
from tests.support.forwarder import KEY, Forwarder, seconds
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import free_port, wait_until
from tests.support.relay import Relay

StartForwarder = Callable[..., Forwarder]

DELAY_SECONDS = 0.3
"""On each way between bastion and database: a probe with TLS takes six of them."""


@pytest.fixture
def distant(postgres_tls: PostgresServer) -> Iterator[Relay]:
    """The way to the database, long enough that something can happen while a probe is under way."""
    with Relay(postgres_tls.host, postgres_tls.port, delay_seconds=DELAY_SECONDS) as relay:
        yield relay


class Log:
    """What the database says from now on, but for connections as such."""

    def __init__(self, server: PostgresServer) -> None:
        self._server, self._begin = server, len(server.log_text())

    def complaints(self) -> list[str]:
        """Once all connections have ended."""
        wait_until(lambda: not _is_connected(self._server.port), "the probe's connection to end")
        lines = self._server.log_text()[self._begin :].splitlines()
        return [line for line in lines if "connection received" not in line and "connection auth" not in line]


def _is_connected(port: int) -> bool:
    """Whether a server on a port of this machine has a connection that it has not closed."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening, waiting = "0A", "06"
    return any(row[1].endswith(f":{port:04X}") and row[3] not in (listening, waiting) for row in rows)


def test_the_end_of_the_process_waits_for_a_probe(
    start_forwarder: StartForwarder, certificate: ServerCertificate
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.certificate, certificate.key)
    begun, go = threading.Event(), threading.Event()
    ends: list[bytes | Exception] = []

    def treat(peer: socket.socket) -> None:
        peer.recv(8, socket.MSG_WAITALL)
        peer.sendall(b"S")
        peer.recv(1, socket.MSG_PEEK)
        begun.set()
        go.wait(10)
        try:
            with context.wrap_socket(peer, server_side=True, suppress_ragged_eofs=False) as tls:
                ends.append(tls.recv(1))
        except OSError as error:
            ends.append(error)

    with FaultServer(treat) as database:
        forwarder = start_forwarder(database.port, seconds=seconds(drain_min=0, drain_max=1))
        assert begun.wait(10)
        forwarder.process.signal(signal.SIGTERM)
        forwarder.wait(lambda status: status.draining, "the drain")
        go.set()
        assert forwarder.process.wait(5) == 0
        wait_until(lambda: ends, "the probe's end")
        assert ends == [b""]  # a proper end of TLS: close_notify


def test_a_connection_that_is_replaced_waits_for_its_probe(
    start_forwarder: StartForwarder, bastion: Bastion, postgres_tls: PostgresServer, distant: Relay, client_key: KeyPair
) -> None:
    log, new = Log(postgres_tls), key_pair()
    bastion.authorize(client_key.public, new.public)
    forwarder = start_forwarder(distant.port)
    wait_until(lambda: distant.connections == 1, "a probe")
    forwarder.write_secret({KEY: new.private})
    wait_until(lambda: distant.accepted == 2, "the probe of the next connection")
    forwarder.wait_for("database", "Succeeded")
    wait_until(lambda: bastion.connections() == 1, "the first connection to end")
    assert log.complaints() == []
    forwarder.stop()


@pytest.mark.parametrize("version", ["TLSv1.1", "TLSv1.2"])
def test_an_old_server_s_tls_is_good_enough_to_see_it(
    start_forwarder: StartForwarder, tmp_path: Path, certificate: ServerCertificate, version: str
) -> None:
    settings = ["ssl_min_protocol_version=TLSv1", f"ssl_max_protocol_version={version}", "ssl_ciphers=ALL:@SECLEVEL=0"]
    server = PostgresServer(tmp_path / "pg", tls=certificate, settings=settings).start()
    log = Log(server)
    forwarder = start_forwarder(server.port, seconds=seconds(probe_interval=1))
    forwarder.wait_for("database", "Succeeded")
    assert forwarder.status().database_fact.certificate_not_after is not None
    forwarder.stop()
    assert log.complaints() == []
    server.stop()


def test_the_server_is_asked_for_by_the_name_on_its_certificate(start_forwarder: StartForwarder) -> None:
    """As real clients do (SNI): what stands before several databases chooses by it."""
    hello: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer:
            peer.recv(8)
            peer.sendall(b"S")
            hello.append(peer.recv(4096))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        start_forwarder(listener.getsockname()[1], database_server_name="db.example.com.")
        serve(listener)
    assert b"\x00\x0edb.example.com" in hello[0]


# --- what is rejected stays so ----------------------------------------------------------------------------------------


def test_what_clients_find_over_an_earlier_connection_does_not_hide_a_rejected_key(
    start_forwarder: StartForwarder, bastion: Bastion, client_key: KeyPair
) -> None:
    forwarder = start_forwarder(free_port(), engine="MySQL")
    forwarder.wait_for("database", "NotProbed")
    bastion.unauthorize()
    forwarder.write_secret({KEY: key_pair().private})
    forwarder.wait_for("authentication", "KeyRejected")
    with socket.create_connection(("127.0.0.1", forwarder.port)) as client, pytest.raises(ConnectionResetError):
        client.recv(1)
    assert forwarder.metric('dbtunnel_forwarder_clients_refused_total{reason="DatabaseRefused"}') == 1
    assert forwarder.status().authentication.reason == "KeyRejected"
    assert forwarder.status().database.status == "Unknown"
    bastion.authorize(client_key.public)
    forwarder.write_secret({KEY: client_key.private})
    forwarder.wait_for("authentication", "Succeeded")


def test_clients_are_served_over_the_earlier_connection_meanwhile(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start_forwarder(postgres.port)
    forwarder.wait_for("database", "Succeeded")
    bastion.unauthorize()
    forwarder.write_secret({KEY: key_pair().private})
    forwarder.wait_for("authentication", "KeyRejected")
    with psycopg.connect(
        host="127.0.0.1", port=forwarder.port, user=USER, password=PASSWORD, dbname=DATABASE
    ) as session:
        assert session.execute("select 1").fetchone() == (1,)
    assert forwarder.status().authentication.reason == "KeyRejected"
    assert forwarder.get("/readyz") == "ok\n"
