"""The databases of the tests are real ones, with the rules that the other tests rely on."""

import socket
import time
from pathlib import Path

import psycopg
import pymysql
import pytest

from tests.support.certificates import ServerCertificate, server_certificate
from tests.support.databases import ROWS, MariaDBServer, PostgresServer
from tests.support.processes import wait_until
from tests.support.relay import Relay

TOO_MANY_CONNECTIONS, HOST_BLOCKED = 1040, 1129
"""MySQL's error numbers."""


def test_each_has_the_shop_in_it(
    postgres: PostgresServer, postgres_tls: PostgresServer, mariadb: MariaDBServer, mariadb_tls: MariaDBServer
) -> None:
    query = "select * from orders order by id"
    for server in (postgres, postgres_tls):
        with server.connect() as session:
            assert tuple(session.execute(query).fetchall()) == ROWS
    for maria in (mariadb, mariadb_tls):
        direct = maria.connect()
        with direct, direct.cursor() as cursor:
            cursor.execute(query)
            assert cursor.fetchall() == ROWS


def test_a_wrong_password_is_refused(postgres: PostgresServer, mariadb: MariaDBServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(host=postgres.host, port=postgres.port, user="app", password="wrong", dbname="shop")
    with pytest.raises(pymysql.err.OperationalError, match="Access denied"):
        pymysql.connect(host=mariadb.host, port=mariadb.port, user="app", password="wrong")


def test_without_tls_none_is_offered(postgres: PostgresServer, mariadb: MariaDBServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="does not support SSL"):
        postgres.connect(sslmode="require")
    with pytest.raises(pymysql.err.OperationalError, match="SSL"):
        mariadb.connect(ssl={"check_hostname": False}, ssl_verify_cert=False)


def test_tls_is_required_where_it_should_be(postgres_tls: PostgresServer, mariadb_tls: MariaDBServer) -> None:
    with pytest.raises(psycopg.OperationalError, match="no encryption"):
        postgres_tls.connect(sslmode="disable")
    with pytest.raises(pymysql.err.OperationalError):
        mariadb_tls.connect(ssl_disabled=True)


def test_the_certificate_bears_the_private_name(postgres_tls: PostgresServer, certificate: ServerCertificate) -> None:
    verified = {"sslmode": "verify-full", "sslrootcert": str(certificate.authority), "hostaddr": "127.0.0.1"}
    with postgres_tls.connect(host="orders.internal", **verified) as session:
        assert session.info.status == psycopg.pq.ConnStatus.OK
    with pytest.raises(psycopg.OperationalError, match="does not match host name"):
        postgres_tls.connect(host="elsewhere.internal", **verified)


def test_a_certificate_can_have_expired(tmp_path: Path) -> None:
    expired = server_certificate(tmp_path / "tls", ["orders.internal"], days=-1)
    server = PostgresServer(tmp_path / "pg", tls=expired).start()
    verified = {"sslmode": "verify-full", "sslrootcert": str(expired.authority), "hostaddr": "127.0.0.1"}
    with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
        server.connect(host="orders.internal", **verified)
    with server.connect(sslmode="require") as session:  # all else is well
        assert session.info.status == psycopg.pq.ConnStatus.OK
    server.stop()


def test_postgresql_logs_every_connection(postgres: PostgresServer) -> None:
    before = postgres.log_text().count("connection received")
    with socket.create_connection((postgres.host, postgres.port), 5) as half_a_packet:
        half_a_packet.sendall(b"\0\0\0")
    wait_until(lambda: postgres.log_text().count("connection received") > before, "the connection's line")
    wait_until(lambda: "incomplete startup packet" in postgres.log_text(), "the complaint that quiet probes avoid")


def test_a_restart_cuts_sessions_at_once(tmp_path: Path) -> None:
    postgres, mariadb = PostgresServer(tmp_path / "pg").start(), MariaDBServer(tmp_path / "my").start()
    one, other = postgres.connect(), mariadb.connect()
    assert (postgres.sessions(), mariadb.sessions()) == (1, 1)
    begun = time.monotonic()
    postgres.restart()
    mariadb.restart()
    assert time.monotonic() - begun < 15
    with pytest.raises(psycopg.OperationalError):
        one.execute("select 1")
    with pytest.raises(pymysql.err.OperationalError):
        other.ping(reconnect=False)
    assert (postgres.sessions(), mariadb.sessions()) == (0, 0)
    postgres.stop()
    mariadb.stop()


def test_mariadb_blocks_a_host_whose_connections_are_dropped(tmp_path: Path) -> None:
    server = MariaDBServer(tmp_path / "my", settings=["max-connect-errors=2"]).start()
    with Relay(server.host, server.port, source="127.0.0.5") as relay:
        for _ in range(2):
            with socket.create_connection((relay.host, relay.port), 5) as dropped:
                assert dropped.recv(5)[4] == 10  # the greeting's protocol version
        wait_until(lambda: _refusal(relay.port) == HOST_BLOCKED, "the host is blocked")
        direct = server.connect()  # from 127.0.0.1, which is never blocked
        with direct, direct.cursor() as cursor:
            cursor.execute("flush hosts")
        assert _refusal(relay.port) is None
    server.stop()


def test_mariadb_has_a_limit_of_connections(tmp_path: Path) -> None:
    server = MariaDBServer(tmp_path / "my", settings=["max-connections=10"]).start()
    sessions = [server.connect() for _ in range(10)]
    assert _refusal(server.port) == TOO_MANY_CONNECTIONS
    for session in sessions:
        session.close()
    wait_until(lambda: _refusal(server.port) is None, "a free connection")
    server.stop()


def _refusal(port: int) -> int | None:
    """The error number of a login; None where it succeeds."""
    try:
        pymysql.connect(host="127.0.0.1", port=port, user="app", password="correct horse", connect_timeout=5).close()
    except pymysql.err.OperationalError as error:
        return int(error.args[0])
    return None
