"""Servers that do what they should not: no client is left waiting or deceived, and the process goes on."""

import os
import signal
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from dbtunnel.api.engines import Engine
from dbtunnel.api.forwarder import ForwarderHop, HostKeyRule
from tests.support.bastion import Bastion
from tests.support.certificates import ServerCertificate
from tests.support.databases import PostgresServer
from tests.support.faults import FaultServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config, seconds
from tests.support.keys import KeyPair
from tests.support.odd_ssh import OddSshServer
from tests.support.processes import wait_until
from tests.support.relay import Relay

StartForwarder = Callable[..., Forwarder]


# --- the SSH server ---------------------------------------------------------------------------------------------------


def test_a_polite_end_of_the_ssh_connection_is_no_clean_end_for_clients(start_forwarder: StartForwarder) -> None:
    """A dump that is cut must not look complete, also where the server says goodbye before it closes."""

    def dump(peer: socket.socket) -> None:
        peer.sendall(b"x")
        peer.recv(1)

    with OddSshServer() as server, FaultServer(dump) as database:
        forwarder = start_forwarder(
            database.port, engine=Engine.MYSQL, database_host="127.0.0.1", bastion=server.hop, probe_mode="Disabled"
        )
        forwarder.wait_for("authentication", "Succeeded")
        with socket.create_connection(("127.0.0.1", forwarder.port), 10) as client:
            assert client.recv(1) == b"x"
            server.call(lambda: _say_goodbye(server.connections[0]))
            with pytest.raises(ConnectionResetError):
                client.recv(1)


def _say_goodbye(connection: Any) -> None:
    disconnect, by_application = 1, 11
    connection.send_packet(disconnect, struct.pack(">III", by_application, 0, 0))


def _confirms_with_too_much(connection: asyncssh.SSHServerConnection) -> None:
    odd: Any = connection

    def confirm(send_chan: int, recv_chan: int, window: int, packet_size: int, *extra: bytes) -> None:
        message = struct.pack(">IIII", send_chan, recv_chan, window, packet_size)
        odd.send_packet(91, message, b"and something else")  # SSH_MSG_CHANNEL_OPEN_CONFIRMATION

    odd.send_channel_open_confirmation = confirm


def test_what_a_server_adds_to_a_confirmation_is_ignored(
    start_forwarder: StartForwarder, postgres: PostgresServer
) -> None:
    """RFC 4254, section 5.1, lets data of the channel's type follow."""
    with OddSshServer(_confirms_with_too_much) as server:
        forwarder = start_forwarder(postgres.port, database_host="127.0.0.1", bastion=server.hop)
        forwarder.wait_for("database", "Succeeded")
        with socket.create_connection(("127.0.0.1", forwarder.port), 10) as client:
            client.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
            assert client.recv(1) in (b"N", b"S")


def _confirms_too_briefly(connection: asyncssh.SSHServerConnection) -> None:
    odd: Any = connection
    odd.send_channel_open_confirmation = lambda *_: odd.send_packet(91, b"\0\0\0\0")


def test_a_malformed_answer_to_an_opening_is_the_end_of_the_connection(
    start_forwarder: StartForwarder, postgres: PostgresServer
) -> None:
    with OddSshServer(_confirms_too_briefly) as server:
        parking = seconds(parking_max=2)
        forwarder = start_forwarder(
            postgres.port, database_host="127.0.0.1", bastion=server.hop, probe_mode="Disabled", seconds=parking
        )
        forwarder.wait_for("authentication", "Succeeded")
        with socket.create_connection(("127.0.0.1", forwarder.port), 10) as client:
            client.sendall(b"\0\0\0\x08\x04\xd2\x16\x2f")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert '"exception"' not in forwarder.log.read_text()


_HOSTILE = {
    "no packet": b"\0" * 64,
    "no lists": b"\0\0\0\x1c\x0a\x14" + b"c" * 16 + b"p" * 10,
    "huge list": b"\0\0\0\x2c\x04\x14" + b"c" * 16 + b"\xff" * 23 + b"pppp",
    "large packet": b"\xff" * 64,
    "no text": b"\0\0\0\x2c\x04\x14" + b"c" * 16 + b"\0\0\0\x04\xff\xfe\xfd\xfc" + b"\0" * 15 + b"pppp",
}


@pytest.mark.parametrize("said", _HOSTILE.values(), ids=list(_HOSTILE))
def test_a_handshake_that_is_none(start_forwarder: StartForwarder, said: bytes) -> None:
    def treat(peer: socket.socket) -> None:
        peer.sendall(b"SSH-2.0-odd\r\n" + said)
        peer.shutdown(socket.SHUT_WR)

    with FaultServer(treat) as server:
        pin = HostKeyRule(fingerprints=("SHA256:ohD8VZEXGWo6Ez8GSEJQ9WpafgLFsOfLOtGGQCQo6Og",))
        hop = ForwarderHop(host=server.host, port=server.port, user="u", host_key=pin)
        forwarder = start_forwarder(1, bastion=hop, seconds=seconds(connect_timeout=2))
        fact = forwarder.wait(lambda status: status.transport.status == "False", "a failure").transport
        assert fact.reason in ("ConnectionLost", "NoCommonAlgorithm")
        assert fact.seen.isprintable()
        assert forwarder.get("/livez") == "ok\n"
        assert "Traceback" not in forwarder.log.read_text()


# --- the database -----------------------------------------------------------------------------------------------------


def _strange(certificate: ServerCertificate) -> bytes:
    """The certificate with an end that no calendar has; TLS proves the key and not the text."""
    document = ssl.PEM_cert_to_DER_cert(certificate.certificate.read_text())
    end = certificate.not_after.strftime("%y%m%d%H%M%SZ").encode()
    assert end in document
    return document.replace(end, b"999999999999Z")


def test_a_certificate_that_cannot_be_read_says_nothing_of_the_database(
    start_forwarder: StartForwarder, tmp_path: Path, certificate: ServerCertificate
) -> None:
    (tmp_path / "strange.crt").write_text(ssl.DER_cert_to_PEM_cert(_strange(certificate)))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "strange.crt", certificate.key)

    def treat(peer: socket.socket) -> None:
        assert peer.recv(8, socket.MSG_WAITALL) == bytes.fromhex("0000000804d2162f")
        peer.sendall(b"S")
        with context.wrap_socket(peer, server_side=True) as tls:
            tls.recv(1)

    with FaultServer(treat) as database:
        forwarder = start_forwarder(database.port, seconds=seconds(probe_interval=1))
        forwarder.wait_for("database", "Succeeded")
        assert forwarder.status().database_fact.tls_offered
        assert forwarder.status().database_fact.certificate_not_after is None
        wait_until(lambda: database.accepted >= 2, "another probe")
        assert forwarder.process.is_running()


# --- what is mounted --------------------------------------------------------------------------------------------------


def test_a_key_that_is_a_pipe_holds_nothing_up(
    tmp_path: Path, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair
) -> None:
    forwarder = Forwarder(tmp_path / "fwd", forwarder_config(bastion, postgres.port), {})
    os.mkfifo(tmp_path / "fwd" / "key" / KEY)
    forwarder.start()
    try:
        assert "not a regular file" in forwarder.wait_for("key", "PrivateKeyInvalid").seen
        (tmp_path / "fwd" / "key" / KEY).unlink()
        forwarder.write_secret({KEY: client_key.private})
        forwarder.wait_for("database", "Succeeded")
    finally:
        forwarder.stop()


# --- the resolver -----------------------------------------------------------------------------------------------------


RESOLVER = "127.9.9.9"


def test_a_resolver_that_never_answers_holds_up_neither_clients_nor_the_end(
    tmp_path: Path, bastion: Bastion, client_key: KeyPair
) -> None:
    """glibc waits for minutes in a thread that nobody can end."""
    (tmp_path / "resolv.conf").write_text(f"nameserver {RESOLVER}\noptions timeout:30 attempts:3\n")
    (tmp_path / "nsswitch.conf").write_text("hosts: files dns\n")
    script = "".join(f"mount --bind {tmp_path}/{name} /etc/{name} && " for name in ("resolv.conf", "nsswitch.conf"))
    hop = replace(forwarder_config(bastion, 1).bastion, host="bastion.example")
    config = forwarder_config(bastion, 1, bastion=hop, seconds=seconds(connect_timeout=1, drain_max=0))
    forwarder = Forwarder(tmp_path / "fwd", config, {KEY: client_key.private})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as resolver:
        resolver.bind((RESOLVER, 53))
        resolver.settimeout(10)
        forwarder.start("unshare", "--mount", "sh", "-c", f'{script} exec "$@"', "sh")
        assert b"bastion" in resolver.recv(512)
        forwarder.wait_for("transport", "ConnectTimeout")
        assert forwarder.get("/livez") == "ok\n"
        forwarder.process.signal(signal.SIGTERM)
        assert forwarder.process.wait(5) == 0


# --- what stands before a bastion -------------------------------------------------------------------------------------


def test_a_bastion_that_returns_behind_something_that_takes_connections_is_back_soon(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    """A load balancer, or a published port of a container: while the bastion restarts each connection is closed."""
    with Relay(bastion.host, bastion.port) as relay:
        hop = replace(forwarder_config(bastion, 1).bastion, host=relay.host, port=relay.port)
        forwarder = start_forwarder(postgres.port, bastion=hop)
        forwarder.wait_for("database", "Succeeded")
        bastion.stop()
        forwarder.wait_for("transport", "BastionRefusing")
        bastion.start()
        forwarder.wait_for("database", "Succeeded", 10)
