"""The way that works: clients reach the database, and connections outlive what can be outlived."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pymysql
import pytest

from dbtunnel.api.engines import Engine
from tests.support.bastion import Bastion
from tests.support.certificates import ServerCertificate
from tests.support.databases import DATABASE, PASSWORD, USER, MariaDBServer, PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import wait_until


@pytest.fixture
def forwarder(tmp_path: Path, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair) -> Iterator[Forwarder]:
    forwarder = Forwarder(tmp_path / "fwd", forwarder_config(bastion, postgres.port), {KEY: client_key.private})
    yield forwarder.start()
    forwarder.stop()


def connect(port: int, **options: Any) -> "psycopg.Connection[tuple[Any, ...]]":
    usual = {"host": "127.0.0.1", "port": port, "connect_timeout": 15}
    return psycopg.connect(user=USER, password=PASSWORD, dbname=DATABASE, **{**usual, **options})


def orders(port: int, **options: Any) -> int:
    with connect(port, **options) as session:
        row = session.execute("select count(*) from orders").fetchone()
    assert row is not None
    return int(row[0])


def test_postgresql(forwarder: Forwarder) -> None:
    assert orders(forwarder.port) == 3
    status = forwarder.wait(lambda status: status.database.status == "True", "the probe")
    assert status.public_key is not None
    assert status.public_key.accepted
    assert status.hops[0].cipher == "aes128-gcm@openssh.com"
    assert status.database_fact.tls_offered is False


def test_a_client_has_the_database_keep_the_rest_of_the_way_alive(forwarder: Forwarder) -> None:
    """As docs/engines.md tells it to."""
    with connect(forwarder.port, options="-c tcp_keepalives_idle=60 -c tcp_keepalives_interval=15") as session:
        assert session.execute("show tcp_keepalives_idle").fetchone() == ("60",)
        assert session.execute("show tcp_keepalives_interval").fetchone() == ("15",)


def test_postgresql_with_tls_verified_by_name(
    tmp_path: Path,
    bastion: Bastion,
    postgres_tls: PostgresServer,
    certificate: ServerCertificate,
    client_key: KeyPair,
) -> None:
    config = forwarder_config(bastion, postgres_tls.port, engine=Engine.REDSHIFT)
    forwarder = Forwarder(tmp_path / "fwd", config, {KEY: client_key.private}).start()
    names = {"host": "orders.internal", "hostaddr": "127.0.0.1"}
    assert orders(forwarder.port, sslmode="verify-full", sslrootcert=str(certificate.authority), **names) == 3
    fact = forwarder.wait(lambda status: status.database.status == "True", "the probe").database_fact
    assert fact.tls_offered
    assert fact.certificate_not_after == certificate.not_after.isoformat().replace("+00:00", "Z")
    forwarder.stop()


@pytest.mark.parametrize("tls", [False, True])
def test_mysql(
    tmp_path: Path, bastion: Bastion, mariadb: MariaDBServer, mariadb_tls: MariaDBServer, client_key: KeyPair, tls: bool
) -> None:
    server = mariadb_tls if tls else mariadb
    forwarder = Forwarder(
        tmp_path / "fwd", forwarder_config(bastion, server.port, engine=Engine.MYSQL), {KEY: client_key.private}
    ).start()
    forwarder.wait_for("database", "NotProbed")
    options: dict[str, Any] = {"ssl": {"check_hostname": False}} if tls else {}
    session = pymysql.connect(
        host="127.0.0.1", port=forwarder.port, user=USER, password=PASSWORD, database=DATABASE, **options
    )
    with session, session.cursor() as cursor:
        cursor.execute("select count(*) from orders")
        assert cursor.fetchone() == (3,)
    fact = forwarder.wait(lambda status: status.database.status == "True", "what the client saw").database_fact
    assert "MariaDB" in (fact.server_version or "")
    assert fact.tls_offered is tls
    forwarder.stop()


def test_clients_wait_while_the_bastion_restarts(forwarder: Forwarder, bastion: Bastion) -> None:
    assert orders(forwarder.port) == 3
    bastion.stop()
    forwarder.wait(lambda status: status.transport.status == "False", "the loss")
    counts: list[int] = []
    waiting = [threading.Thread(target=lambda: counts.append(orders(forwarder.port))) for _ in range(5)]
    for thread in waiting:
        thread.start()
    wait_until(lambda: forwarder.metric("dbtunnel_forwarder_clients_parked") == 5, "five parked clients")
    assert forwarder.get("/readyz").startswith("reconnecting")
    bastion.start()
    for thread in waiting:
        thread.join(15)
    assert counts == [3] * 5


def test_a_hanging_bastion_is_noticed(forwarder: Forwarder, bastion: Bastion) -> None:
    session = connect(forwarder.port)
    bastion.pause()
    forwarder.wait(lambda status: status.transport.status == "False", "the keepalive to give up")
    with pytest.raises(psycopg.OperationalError):
        session.execute("select 1")
    bastion.resume()
    forwarder.wait(lambda status: status.database.status == "True", "the connection to be made again")
    assert orders(forwarder.port) == 3


def test_a_new_key_cuts_no_session(forwarder: Forwarder, bastion: Bastion, client_key: KeyPair) -> None:
    new = key_pair()
    with connect(forwarder.port) as session:
        bastion.authorize(client_key.public, new.public)
        forwarder.write_secret({KEY: new.private})
        forwarder.wait(
            lambda status: bool(
                status.public_key and status.public_key.accepted and status.public_key.fingerprint == new.fingerprint
            ),
            "the new key",
        )
        assert session.execute("select 1").fetchone() == (1,)
        bastion.authorize(new.public)
        assert orders(forwarder.port) == 3
        assert session.execute("select 1").fetchone() == (1,)
