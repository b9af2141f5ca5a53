"""Real clients that are not served, and what they say: the words by which docs/troubleshooting.md is looked up."""

import socket
import ssl
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

from dbtunnel.api.engines import Engine
from tests.support.bastion import Bastion
from tests.support.certificates import ServerCertificate
from tests.support.client_words import check_words
from tests.support.databases import DATABASE, PASSWORD, USER, MariaDBServer, PostgresServer
from tests.support.forwarder import Forwarder, seconds
from tests.support.processes import free_port

StartForwarder = Callable[..., Forwarder]


def psql(port: int, **options: object) -> str:
    """What psql says, which must fail. `options`: libpq's."""
    target = {"host": "127.0.0.1", "port": port, "user": USER, "dbname": DATABASE, "password": f"'{PASSWORD}'"}
    words = " ".join(f"{name}={value}" for name, value in {**target, **options}.items())
    return failing("psql", words, "-c", "select 1")


def mysql(port: int) -> str:
    """What MariaDB's client says, which must fail."""
    return failing("mysql", "--no-defaults", "--host=127.0.0.1", f"--port={port}", f"--user={USER}", "-e", "select 1")


def failing(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={"LANG": "C"})
    assert done.returncode != 0, done.stdout
    return done.stderr


def pymysql_at(port: int, **options: Any) -> "pymysql.Connection[Any]":
    target: dict[str, Any] = {"host": "127.0.0.1", "port": port, "password": PASSWORD, "connect_timeout": 10}
    return pymysql.connect(user=USER, database=DATABASE, **{**target, **options})


def pymysql_says(port: int, **options: Any) -> str:
    with pytest.raises(pymysql.err.Error) as raised:
        pymysql_at(port, **options)
    return str(raised.value)


def test_nobody_listens() -> None:
    port = free_port()
    check_words('connection to server at "...", port ... failed: Connection refused', psql(port))
    check_words("Can't connect to server on '...' (...)", mysql(port))
    check_words("Can't connect to MySQL server on '...' ([Errno 111] Connection refused)", pymysql_says(port))


def test_nobody_answers() -> None:
    def psycopg_says(port: int) -> str:
        with pytest.raises(psycopg.OperationalError) as raised:
            psycopg.connect(host="127.0.0.1", port=port, user=USER, connect_timeout=2)
        return str(raised.value)

    with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor() as at_once:
        port = silent.getsockname()[1]
        libpq = at_once.submit(psql, port, connect_timeout=2)
        python, mysql_python = at_once.submit(psycopg_says, port), at_once.submit(pymysql_says, port, read_timeout=2)
        check_words('connection to server at "...", port ... failed: timeout expired', libpq.result())
        check_words("connection timeout expired", python.result())
        check_words("Lost connection to MySQL server during query (timed out)", mysql_python.result())


def test_the_ssh_connection_is_lost_and_none_is_there(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start_forwarder(postgres.port, seconds=seconds(parking_max=1))
    forwarder.wait_for("database", "Succeeded")
    session = postgres.connect(port=forwarder.port)
    bastion.stop()
    with pytest.raises(psycopg.OperationalError) as raised:
        session.execute("select 1")
    check_words("server closed the connection unexpectedly", raised.value)
    check_words("server closed the connection unexpectedly", psql(forwarder.port))


def test_the_same_with_mysql(start_forwarder: StartForwarder, bastion: Bastion, mariadb: MariaDBServer) -> None:
    forwarder = start_forwarder(mariadb.port, engine=Engine.MYSQL, seconds=seconds(parking_max=1), max_clients=1)
    forwarder.wait_for("authentication", "Succeeded")
    sessions = [pymysql_at(forwarder.port) for _ in range(3)]  # the limit, and those who may come in to cancel
    check_words("Too many connections", pymysql_says(forwarder.port))
    bastion.stop()
    with pytest.raises(pymysql.err.Error) as raised:
        sessions[0].ping(reconnect=False)
    check_words("MySQL server has gone away (ConnectionResetError(104, 'Connection reset by peer'))", raised.value)
    check_words("Lost connection to server at '...', system error: 104", mysql(forwarder.port))


def test_the_database_does_not_let_in(
    postgres: PostgresServer, postgres_tls: PostgresServer, mariadb: MariaDBServer
) -> None:
    plain = psql(postgres_tls.port, sslmode="disable")
    check_words('no pg_hba.conf entry for host "...", user "...", database "..."', plain)
    assert "no encryption" in plain
    check_words('password authentication failed for user "..."', psql(postgres.port, password="wrong"))
    check_words("Access denied for user '...'@'...'", pymysql_says(mariadb.port, password="wrong"))


def test_the_certificate_is_refused(
    tmp_path: Path,
    postgres: PostgresServer,
    postgres_tls: PostgresServer,
    mariadb_tls: MariaDBServer,
    certificate: ServerCertificate,
) -> None:
    verify: dict[str, object] = {"sslmode": "verify-full", "sslrootcert": certificate.authority}
    other_name = psql(postgres_tls.port, host="orders.shop.svc", hostaddr="127.0.0.1", **verify)
    check_words('server certificate for ... does not match host name "..."', other_name)
    no_file = psql(postgres_tls.port, **{**verify, "sslrootcert": tmp_path / "none"})
    check_words('root certificate file "..." does not exist', no_file)
    check_words("server does not support SSL, but SSL was required", psql(postgres.port, sslmode="require"))

    knows = ssl.create_default_context(cafile=str(certificate.authority))
    other_name = pymysql_says(mariadb_tls.port, host="localhost", ssl=knows)
    check_words("certificate verify failed: Hostname mismatch, certificate is not valid for '...'", other_name)
    unknown = pymysql_says(mariadb_tls.port, ssl=ssl.create_default_context())
    check_words("certificate verify failed: unable to get local issuer certificate", unknown)
