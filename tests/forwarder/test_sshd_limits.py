"""A bastion that has had enough: the forwarder says what it was told, asks seldom, and is back by itself."""

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import asyncssh
import psycopg

from dbtunnel.api.engines import Engine
from dbtunnel.api.reasons import Reason
from tests.support import faults
from tests.support.bastion import HARDENED, ONE_STARTUP, Bastion
from tests.support.databases import PostgresServer
from tests.support.faults import FaultServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config, hop_to
from tests.support.keys import KeyPair
from tests.support.odd_ssh import OddSshServer
from tests.support.processes import wait_until
from tests.support.produced import produces
from tests.support.relay import Relay
from tests.support.told import check_told

StartForwarder = Callable[..., Forwarder]

REFUSALS = 'dbtunnel_forwarder_ssh_failures_total{reason="BastionRefusing"}'

PROBES_WITHOUT_ROOM = 'dbtunnel_forwarder_probes_total{result="TooManyConnections"}'

USUAL_SECONDS = 3
"""In which there would be at least four attempts at the usual pace."""

LEAST_SECONDS = 15
"""After which the next attempt comes at the soonest."""


def check_it_asks_once(forwarder: Forwarder) -> None:
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > USUAL_SECONDS or forwarder.metric(REFUSALS) > 1, "time to pass")
    assert forwarder.metric(REFUSALS) == 1


@produces(Reason.BASTION_REFUSING)
def test_max_startups(start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer) -> None:
    """Clients that come meanwhile are served once the bastion has room again, and nobody does anything for that."""
    bastion.set_config(*ONE_STARTUP)
    with socket.create_connection((bastion.host, bastion.port), 5) as other:
        assert other.recv(4) == b"SSH-"
        forwarder = start_forwarder(postgres.port)
        fact = forwarder.wait_for("transport", "BastionRefusing")
        assert fact.seen == 'it says "Exceeded MaxStartups"'
        check_told(forwarder, Reason.BASTION_REFUSING, 'away: it says "Exceeded MaxStartups". Raise MaxStartups in its')
        check_it_asks_once(forwarder)
    forwarder.wait_for("database", "Succeeded", 45)
    assert forwarder.metric(REFUSALS) == 1


def test_another_key_is_tried_at_once_where_the_address_was_penalised(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair
) -> None:
    """sshd's words come from a server that has no others, and whose penalty ends when the test wants it. Another key is
    tried at once.
    """
    with faults.says(faults.NOT_ALLOWED_NOW) as fault:
        hop = replace(forwarder_config(bastion, 1).bastion, host=fault.host, port=fault.port)
        forwarder = start_forwarder(postgres.port, bastion=hop)
        fact = forwarder.wait_for("transport", "BastionRefusing")
        assert fact.seen == 'it says "Not allowed at this time"'
        check_it_asks_once(forwarder)
        assert fault.accepted == 1
    with Relay(bastion.host, bastion.port, port=fault.port):
        forwarder.write_secret({KEY: client_key.private, "touched": ""})
        forwarder.wait_for("database", "Succeeded", LEAST_SECONDS - USUAL_SECONDS)


def test_max_sessions_limits_no_tunnel(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    """sshd does not count forwardings as sessions."""
    bastion.set_config("MaxSessions 1", *HARDENED)
    forwarder = start_forwarder(postgres.port)
    with ExitStack() as stack:
        sessions = [stack.enter_context(postgres.connect(port=forwarder.port, connect_timeout=15)) for _ in range(20)]
        assert all(session.execute("select 1").fetchone() == (1,) for session in sessions)


@produces(Reason.TOO_MANY_CONNECTIONS)
def test_an_sshd_that_has_no_descriptor_left(
    start_forwarder: StartForwarder, tmp_path: Path, client_key: KeyPair, postgres: PostgresServer
) -> None:
    """Each client takes one, of 1024 where systemd starts it; it is told of the server, not of the database."""
    few = ("prlimit", "--nofile=20:20")
    bastion = Bastion(tmp_path / "few", hosts={"orders.internal": "127.0.0.1"}, prefix=few)
    bastion.authorize(client_key.public)
    with ExitStack() as stack:
        stack.callback(bastion.stop)
        forwarder = start_forwarder(postgres.port, bastion=hop_to(bastion.start()))
        with suppress(psycopg.OperationalError):
            for _ in range(20):
                stack.enter_context(postgres.connect(port=forwarder.port, connect_timeout=15))
        fact = forwarder.wait_for("database", "TooManyConnections")
        assert fact.seen == 'the SSH server opens no more channels: "Too many open files"'
        forwarder.get("/status?fresh=1")
        assert forwarder.metric(PROBES_WITHOUT_ROOM) >= 1
        remedy = "where the SSH server opens no more channels, set LimitNOFILE=65536 in its systemd unit"
        check_told(forwarder, Reason.TOO_MANY_CONNECTIONS, fact.seen, remedy)


@produces(Reason.BASTION_REFUSING)
def test_a_jump_host_that_has_no_descriptor_left(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    """sshd's words come from another server, since an sshd that can still take a login has room for one channel."""
    with OddSshServer() as jump_host:
        jump_host.refusal = asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, "Too many open files")
        forwarder = start_forwarder(postgres.port, jump_hosts=(jump_host.hop,))
        fact = forwarder.wait_for("transport", "BastionRefusing")
        assert fact.seen == 'the SSH server opens no more channels: "Too many open files"'
        name = f"jump host {jump_host.hop.host}:{jump_host.hop.port}: "
        remedy = "where it has too many open files, set LimitNOFILE=65536 in its systemd unit"
        assert check_told(forwarder, Reason.BASTION_REFUSING, fact.seen, remedy).startswith(name)


def test_a_server_that_counts_channels(start_forwarder: StartForwarder) -> None:
    """Those over its limit are refused, the others go on, and whoever comes after one of them has left is served."""

    with OddSshServer() as server, FaultServer(lambda peer: peer.sendall(b"hello")) as database, ExitStack() as stack:
        server.most_channels = 3
        forwarder = start_forwarder(database.port, engine=Engine.MYSQL, database_host="127.0.0.1", bastion=server.hop)

        def served() -> bool:
            try:
                client = stack.enter_context(socket.create_connection(("127.0.0.1", forwarder.port), 10))
                return client.recv(5, socket.MSG_WAITALL) == b"hello"
            except ConnectionResetError:
                return False

        first = stack.enter_context(socket.create_connection(("127.0.0.1", forwarder.port), 10))
        assert first.recv(5, socket.MSG_WAITALL) == b"hello"
        assert [served() for _ in range(4)] == [True, True, False, False]
        assert "too many sessions" in forwarder.wait_for("database", "TooManyConnections").seen
        refused = 'dbtunnel_forwarder_clients_refused_total{reason="TooManyConnections"}'
        assert forwarder.metric(refused) == 2
        first.close()
        wait_until(lambda: forwarder.metric("dbtunnel_forwarder_clients") == 2, "one to have left")
        wait_until(served, "the server to count it no more")
        assert forwarder.metric("dbtunnel_forwarder_ssh_connects_total") == 1
