"""The real parts are what the other tests take them for."""

import asyncssh
import psycopg
import pymysql
import pytest

from dbtunnel.domain.authorized_keys import authorized_keys_line
from tests.support.bastion import USER, Bastion
from tests.support.databases import MariaDBServer, PostgresServer
from tests.support.keys import KeyPair


async def _connect(bastion: Bastion, key: KeyPair) -> asyncssh.SSHClientConnection:
    hosts = asyncssh.import_known_hosts(bastion.known_hosts())
    private = asyncssh.import_private_key(key.private)
    options = {"username": USER, "client_keys": [private], "known_hosts": hosts, "config": None, "agent_path": None}
    return await asyncssh.connect(bastion.host, bastion.port, **options)


async def _opens(connection: asyncssh.SSHClientConnection, host: str, port: int) -> bool:
    try:
        _, writer = await connection.open_connection(host, port)
    except asyncssh.ChannelOpenError:
        return False
    writer.close()
    return True


async def test_the_generated_line_permits_the_forwarding_and_nothing_else(
    bastion: Bastion, client_key: KeyPair, postgres: PostgresServer, mariadb: MariaDBServer
) -> None:
    bastion.set_config("AllowTcpForwarding yes")
    bastion.authorize(authorized_keys_line(client_key.public, "shop/orders", "orders.internal", postgres.port))
    async with await _connect(bastion, client_key) as connection:
        assert await _opens(connection, "orders.internal", postgres.port)
        assert not await _opens(connection, "orders.internal", mariadb.port)
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 1)
        done = await connection.run("echo reached", check=False)
        assert done.exit_status != 0
        assert not done.stdout


def test_databases_answer(
    postgres: PostgresServer, postgres_tls: PostgresServer, mariadb: MariaDBServer, mariadb_tls: MariaDBServer
) -> None:
    for server in (postgres, postgres_tls):
        with server.connect() as session:
            assert session.execute("select count(*) from orders").fetchone() == (3,)
    for maria in (mariadb, mariadb_tls):
        direct = maria.connect()
        with direct, direct.cursor() as cursor:
            cursor.execute("select count(*) from orders")
            assert cursor.fetchone() == (3,)


def test_tls_is_required_where_it_should_be(postgres_tls: PostgresServer, mariadb_tls: MariaDBServer) -> None:
    with pytest.raises(psycopg.OperationalError):
        postgres_tls.connect(sslmode="disable")
    with pytest.raises(pymysql.err.OperationalError):
        mariadb_tls.connect(ssl_disabled=True)
