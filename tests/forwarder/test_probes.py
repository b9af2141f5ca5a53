"""The database's condition: quiet probes for PostgreSQL, the eyes of real clients for all, never a probe of MySQL."""

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

from dbtunnel.api.documents import read
from dbtunnel.api.engines import Engine
from dbtunnel.api.forwarder import ForwarderStatus, ProbeMode
from dbtunnel.api.reasons import Reason
from tests.support.certificates import ServerCertificate, server_certificate
from tests.support.client_words import check_words
from tests.support.databases import DATABASE, PASSWORD, USER, MariaDBServer, PostgresServer
from tests.support.forwarder import Forwarder, seconds
from tests.support.laptop import Laptop
from tests.support.processes import wait_until
from tests.support.produced import checks, note_exit, produces
from tests.support.relay import Relay
from tests.support.told import check_holds_nothing_back, check_told, decided

StartForwarder = Callable[..., Forwarder]

PROBES = 'dbtunnel_forwarder_probes_total{result="Succeeded"}'
EXPIRY = 'dbtunnel_forwarder_database_certificate_expiry_timestamp_seconds{server_name="orders.internal"}'


def postgres_through(forwarder: Forwarder, **options: Any) -> "psycopg.Connection[tuple[Any, ...]]":
    target = {"host": "127.0.0.1", "port": forwarder.port, "connect_timeout": 10}
    return psycopg.connect(user=USER, password=PASSWORD, dbname=DATABASE, **{**target, **options})


def mysql_through(forwarder: Forwarder) -> "pymysql.Connection[Any]":
    return pymysql.connect(host="127.0.0.1", port=forwarder.port, user=USER, password=PASSWORD, connect_timeout=10)


# --- active -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("engine", "tls"), [(Engine.POSTGRESQL, False), (Engine.REDSHIFT, True), (Engine.ALLOYDB, True)]
)
def test_probes_leave_the_log_of_the_database_clean(
    start_forwarder: StartForwarder, postgres: PostgresServer, postgres_tls: PostgresServer, engine: Engine, tls: bool
) -> None:
    server = postgres_tls if tls else postgres
    before = len(server.log_text())
    forwarder = start_forwarder(server.port, engine=engine, seconds=seconds(probe_interval=1))
    wait_until(lambda: forwarder.metric(PROBES) >= 2, "two probes")
    forwarder.stop()
    wait_until(lambda: server.sessions() == 0, "the probes' connections to end")
    lines = [line for line in server.log_text()[before:].splitlines() if "connection received" not in line]
    # the only others are those of the session that counted the sessions
    assert [line for line in lines if "connection auth" not in line] == []


def test_who_asks_for_a_fresh_look_gets_one(start_forwarder: StartForwarder, postgres: PostgresServer) -> None:
    with Relay(postgres.host, postgres.port) as relay:
        forwarder = start_forwarder(relay.port)
        forwarder.wait_for("database", "Succeeded")
    assert forwarder.status().database.reason == "Succeeded", "the next probe is a minute away"
    fresh = read(ForwarderStatus, forwarder.get("/status?fresh=1"))
    assert (fresh.database.status, fresh.database.reason) == ("False", "DatabaseRefused")


def test_the_certificate_is_shown_though_it_has_expired(start_forwarder: StartForwarder, tmp_path: Path) -> None:
    expired = server_certificate(tmp_path / "tls", ["orders.internal"], days=-1)
    server = PostgresServer(tmp_path / "pg", tls=expired).start()
    forwarder = start_forwarder(server.port)
    forwarder.wait_for("database", "Succeeded")
    fact = forwarder.status().database_fact
    assert fact.protocol == "PostgreSQL"
    assert fact.tls_offered
    end = expired.not_after.isoformat().replace("+00:00", "Z")
    assert fact.certificate_not_after == end
    assert forwarder.status().database.seen == (
        'PostgreSQL answers: TLS offered. Its certificate is for "orders.internal", issued by "test authority", and'
        f" expired at {end}. Clients that verify it refuse it. Have it renewed."
    )
    assert forwarder.metric(EXPIRY) == expired.not_after.timestamp()
    server.stop()


def test_a_client_that_verifies_the_name_is_refused_as_the_message_said(
    start_forwarder: StartForwarder, postgres_tls: PostgresServer, certificate: ServerCertificate
) -> None:
    verifying = {"sslmode": "verify-full", "sslrootcert": str(certificate.authority), "hostaddr": "127.0.0.1"}
    forwarder = start_forwarder(postgres_tls.port, database_server_name="10.0.0.5")
    told = forwarder.wait_for("database", "Succeeded").seen
    assert told.startswith(
        'PostgreSQL answers: TLS offered. Its certificate is for "orders.internal", "mysql.internal"'
    )
    assert ' It does not bear the name "10.0.0.5", so clients that verify names refuse it. Set spec.' in told
    with pytest.raises(psycopg.OperationalError, match="does not match host name"):
        postgres_through(forwarder, host="10.0.0.5", **verifying)
    with postgres_through(forwarder, host="mysql.internal", **verifying) as session:
        assert session.execute("select 1").fetchone() == (1,)


def test_a_database_without_tls(start_forwarder: StartForwarder, postgres: PostgresServer) -> None:
    forwarder = start_forwarder(postgres.port)
    assert forwarder.wait_for("database", "Succeeded").seen == "PostgreSQL answers: no TLS offered."
    assert forwarder.status().database_fact.certificate_not_after is None
    assert EXPIRY not in forwarder.get("/metrics")


def test_a_failure_is_looked_at_again_before_the_interval_is_over(
    start_forwarder: StartForwarder, tmp_path: Path
) -> None:
    server = PostgresServer(tmp_path / "pg").start()
    forwarder = start_forwarder(server.port, seconds=seconds(probe_interval=600))
    forwarder.wait_for("database", "Succeeded")
    server.stop()
    with pytest.raises(psycopg.OperationalError):
        postgres_through(forwarder)
    forwarder.wait_for("database", "DatabaseRefused")
    server.start()
    forwarder.wait_for("database", "Succeeded")
    server.stop()


# --- passive ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sslmode", ["disable", "prefer", "require"])
def test_a_real_client_shows_that_postgresql_answers(
    start_forwarder: StartForwarder, postgres_tls: PostgresServer, postgres: PostgresServer, sslmode: str
) -> None:
    server = postgres if sslmode == "disable" else postgres_tls
    forwarder = start_forwarder(server.port, probe_mode=ProbeMode.PASSIVE)
    fact = forwarder.wait_for("database", "NotProbed")
    assert fact.status == "Unknown"
    assert "the first that does will show" in fact.seen
    postgres_through(forwarder, sslmode=sslmode).close()
    forwarder.wait_for("database", "Succeeded")
    assert forwarder.status().database_fact.protocol == "PostgreSQL"
    assert forwarder.status().database_fact.tls_offered is (None if sslmode == "disable" else True)
    assert forwarder.metric(PROBES) == 0


@produces(Reason.NOT_PROBED)
def test_nothing_is_concluded_where_probes_are_disabled(start_forwarder: StartForwarder, tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "pg")
    forwarder = start_forwarder(server.port, probe_mode=ProbeMode.DISABLED)
    nothing = forwarder.wait_for("database", "NotProbed")
    assert nothing.seen == "spec.probe.mode is Disabled"
    check_holds_nothing_back(forwarder, Reason.NOT_PROBED, "Not probed: spec.probe.mode is Disabled.")
    with pytest.raises(psycopg.OperationalError):
        postgres_through(forwarder)
    assert forwarder.status().database == nothing
    server.start()
    with postgres_through(forwarder) as session:
        assert session.execute("select 1").fetchone() == (1,)
    assert forwarder.status().database == nothing
    server.stop()


def test_mysql_is_never_probed(start_forwarder: StartForwarder, mariadb: MariaDBServer) -> None:
    with Relay(mariadb.host, mariadb.port) as relay:
        forwarder = start_forwarder(relay.port, engine=Engine.MYSQL, seconds=seconds(probe_interval=1))
        forwarder.wait_for("database", "NotProbed")
        session = mysql_through(forwarder)
        forwarder.wait_for("database", "Succeeded")
        session.close()
        session = mysql_through(forwarder)
        session.close()
        assert read(ForwarderStatus, forwarder.get("/status?fresh=1")).database.reason == "Succeeded"
        assert relay.accepted == 2


@pytest.mark.parametrize("tls", [False, True])
def test_what_mysql_says_of_itself(
    start_forwarder: StartForwarder, mariadb: MariaDBServer, mariadb_tls: MariaDBServer, tls: bool
) -> None:
    server = mariadb_tls if tls else mariadb
    forwarder = start_forwarder(server.port, engine=Engine.MYSQL)
    forwarder.wait_for("database", "NotProbed")
    with pytest.raises(pymysql.err.OperationalError, match="Access denied"):  # a login that fails shows as much
        pymysql.connect(host="127.0.0.1", port=forwarder.port, user="nobody", password="", connect_timeout=10)
    session = server.connect()
    with session, session.cursor() as cursor:
        cursor.execute("select version()")
        ((version,),) = cursor.fetchall()
    assert forwarder.wait_for("database", "Succeeded").seen == (
        f'MySQL answers: version "{version}", {"TLS offered" if tls else "no TLS offered"}, login by'
        ' "mysql_native_password".'
    )
    fact = forwarder.status().database_fact
    assert (fact.server_version, fact.tls_offered, fact.auth_plugin) == (version, tls, "mysql_native_password")


class _ChoosyMariaDB(MariaDBServer):
    clients = "127.0.0.1"


def test_a_database_that_takes_nobody_from_the_bastion(start_forwarder: StartForwarder, tmp_path: Path) -> None:
    server = _ChoosyMariaDB(tmp_path / "my", settings=["skip-name-resolve"]).start()
    with Relay(server.host, server.port, source="127.0.0.5") as relay:
        forwarder = start_forwarder(relay.port, engine=Engine.MYSQL)
        forwarder.wait_for("authentication", "Succeeded")
        with pytest.raises(pymysql.err.OperationalError, match="1130") as raised:
            mysql_through(forwarder)
        check_words("Host '...' is not allowed to connect to this MariaDB server", raised.value)
        fact = forwarder.wait_for("database", "DatabaseRefused")
        assert fact.seen.startswith("error 1130: \"Host '127.0.0.5' is not allowed to connect")
    server.stop()


def test_a_postgresql_that_takes_nobody_from_the_bastion(
    start_forwarder: StartForwarder, postgres_tls: PostgresServer
) -> None:
    """Not without TLS, in this case. It answers each probe all the while."""
    forwarder = start_forwarder(postgres_tls.port)
    forwarder.wait_for("database", "Succeeded")
    with pytest.raises(psycopg.OperationalError) as raised:
        postgres_through(forwarder, sslmode="disable")
    check_words('no pg_hba.conf entry for host "...", user "...", database "..."', raised.value)
    fact = forwarder.wait_for("database", "DatabaseRefused")
    assert fact.seen.startswith('it says "no pg_hba.conf entry for host \\"127.0.0.1\\", user \\"app\\"')
    probes = forwarder.metric(PROBES)
    wait_until(lambda: forwarder.metric(PROBES) > probes, "a probe that succeeds")
    (ready,) = [one for one in decided(forwarder).conditions or () if one.type == "Ready"]
    assert ready.status == "False"
    assert f"{fact.seen}. Start the database" in ready.message
    assert "not let in, add it to pg_hba.conf" in ready.message


@produces(Reason.DATABASE_REFUSED)
def test_a_postgresql_that_is_shutting_down(start_forwarder: StartForwarder, tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "pg").start()
    forwarder = start_forwarder(server.port, probe_mode=ProbeMode.PASSIVE)
    forwarder.wait_for("database", "NotProbed")
    with server.connect():  # for whose end it waits
        os.kill(server.pid, signal.SIGTERM)
        wait_until(lambda: "received smart shutdown request" in server.log_text(), "the shutdown to begin")
        with pytest.raises(psycopg.OperationalError, match="the database system is shutting down"):
            postgres_through(forwarder)
        fact = forwarder.wait_for("database", "DatabaseRefused")
        assert fact.seen == 'it says "the database system is shutting down"'
        check_told(forwarder, Reason.DATABASE_REFUSED, fact.seen, "wait where it says that it starts")
    server.stop()


def test_another_server_than_mysql(start_forwarder: StartForwarder, bastion: Any) -> None:
    """sshd speaks first, too."""
    forwarder = start_forwarder(bastion.port, engine=Engine.MYSQL)
    forwarder.wait_for("database", "NotProbed")
    with socket.create_connection(("127.0.0.1", forwarder.port)) as client:
        assert client.recv(4, socket.MSG_WAITALL) == b"SSH-"
    fact = forwarder.wait_for("database", "UnexpectedProtocol")
    assert fact.seen.startswith('it says "SSH-2.0-OpenSSH')


@produces(Reason.HOST_BLOCKED)
@checks(Reason.HOST_BLOCKED)
def test_a_blocked_host_and_its_release(start_forwarder: StartForwarder, tmp_path: Path, laptop: Laptop) -> None:
    server = MariaDBServer(tmp_path / "my", settings=["max-connect-errors=2"]).start()
    with Relay(server.host, server.port, source="127.0.0.5") as relay:
        forwarder = start_forwarder(relay.port, engine=Engine.MYSQL)
        mysql_through(forwarder).close()
        forwarder.wait_for("database", "Succeeded")
        with socket.create_connection(("127.0.0.1", forwarder.port), 5) as dropped:
            assert dropped.recv(5)[4] == 10
        laptop.manifest["spec"] |= {"engine": "MySQL", "database": {"host": "orders.internal", "port": relay.port}}
        laptop.checked(0, "--probe")  # which counts as another

        def is_blocked() -> bool:
            try:
                mysql_through(forwarder).close()
            except pymysql.err.OperationalError as error:
                check_words("Host '...' is blocked because of many connection errors", error)
                return bool(error.args[0] == 1129)
            return False

        wait_until(is_blocked, "the block")
        fact = forwarder.wait_for("database", "HostBlocked")
        assert fact.seen.startswith("error 1129: \"Host '127.0.0.5' is blocked")
        check_told(forwarder, Reason.HOST_BLOCKED, "Run FLUSH HOSTS", "max_connect_errors")
        assert laptop.checked(1, "--probe")["reason"] == "HostBlocked"
        note_exit(Reason.HOST_BLOCKED, 1)
        direct = server.connect()
        with direct, direct.cursor() as cursor:
            cursor.execute("flush hosts")
        mysql_through(forwarder).close()
        forwarder.wait_for("database", "Succeeded")
    server.stop()


@produces(Reason.TOO_MANY_CONNECTIONS)
def test_a_database_without_a_free_connection(start_forwarder: StartForwarder, tmp_path: Path) -> None:
    server = MariaDBServer(tmp_path / "my", settings=["max-connections=10"]).start()
    forwarder = start_forwarder(server.port, engine=Engine.MYSQL)
    forwarder.wait_for("authentication", "Succeeded")
    sessions = [server.connect() for _ in range(10)]
    with socket.create_connection((server.host, server.port)) as administrator:  # one more is kept for such
        assert administrator.recv(5)[4] == 10
        with pytest.raises(pymysql.err.OperationalError):
            mysql_through(forwarder)
        fact = forwarder.wait_for("database", "TooManyConnections")
        assert fact.seen == 'error 1040: "Too many connections"'
        check_told(forwarder, Reason.TOO_MANY_CONNECTIONS, "max_connections")
    for session in sessions:
        session.close()
    wait_until(lambda: server.sessions() == 0, "the sessions to end")
    mysql_through(forwarder).close()
    forwarder.wait_for("database", "Succeeded")
    server.stop()


@pytest.mark.parametrize("sslmode", ["disable", "prefer"])
def test_a_postgresql_without_a_free_connection(start_forwarder: StartForwarder, tmp_path: Path, sslmode: str) -> None:
    """It answers each probe all the while."""
    settings = ["max_connections=4", "superuser_reserved_connections=0"]
    server = PostgresServer(tmp_path / "pg", settings=settings).start()
    forwarder = start_forwarder(server.port, seconds=seconds(probe_interval=600))
    forwarder.wait_for("database", "Succeeded")
    sessions = [server.connect() for _ in range(4)]
    with pytest.raises(psycopg.OperationalError) as raised:
        postgres_through(forwarder, sslmode=sslmode)
    check_words("sorry, too many clients already", raised.value)
    fact = forwarder.wait_for("database", "TooManyConnections")
    assert fact.seen == 'it says "sorry, too many clients already"'
    probes = forwarder.metric(PROBES)
    assert read(ForwarderStatus, forwarder.get("/status?fresh=1")).database == fact
    assert forwarder.metric(PROBES) > probes, "one that succeeds"
    for session in sessions:
        session.close()
    wait_until(lambda: server.sessions() == 0, "the sessions to end")
    postgres_through(forwarder, sslmode=sslmode).close()
    forwarder.wait_for("database", "Succeeded")
    server.stop()


def test_what_is_known_outlives_a_reconnect(
    start_forwarder: StartForwarder, bastion: Any, postgres_tls: PostgresServer, certificate: ServerCertificate
) -> None:
    """The facts stay, and the condition comes back by itself."""
    forwarder = start_forwarder(postgres_tls.port, seconds=seconds(probe_interval=600))
    forwarder.wait_for("database", "Succeeded")
    sequence = forwarder.status().sequence
    bastion.kill_sessions()
    forwarder.wait(
        lambda status: status.sequence > sequence and status.database.reason == "Succeeded", "the next connection"
    )
    assert forwarder.status().database_fact.tls_offered
