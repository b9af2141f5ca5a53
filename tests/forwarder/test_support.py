"""The bastion of the tests is what the other tests take it for: a real sshd that does what they ask of it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import asyncssh
import pymysql
import pytest

from dbtunnel.domain.authorized_keys import authorized_keys_line
from tests.support import bastion as bastions
from tests.support.bastion import USER, Bastion, descendants
from tests.support.databases import DATABASE, PASSWORD, ROWS, MariaDBServer, PostgresServer
from tests.support.databases import USER as DATABASE_USER
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import Process, free_port, listens, wait_until
from tests.support.recorded import record, stop_recorded

REPOSITORY = Path(__file__).parents[2]


async def connect(
    bastion: Bastion, *keys: KeyPair, known_hosts: str | None = None, **options: object
) -> asyncssh.SSHClientConnection:
    """Logs in with asyncssh, as the forwarder does."""
    hosts = asyncssh.import_known_hosts(known_hosts or bastion.known_hosts())
    private = [asyncssh.import_private_key(key.private) for key in keys]
    alone = {"config": None, "agent_path": None, "password_auth": False, "kbdint_auth": False, "login_timeout": 5}
    return await asyncssh.connect(
        bastion.host, bastion.port, username=USER, client_keys=private, known_hosts=hosts, **{**alone, **options}
    )


async def refusal(connection: asyncssh.SSHClientConnection, host: str, port: int) -> int | None:
    """Opens a channel; the reason code (RFC 4254, 5.1) where it is refused."""
    try:
        _, writer = await connection.open_connection(host, port)
    except asyncssh.ChannelOpenError as error:
        return error.code
    writer.close()
    return None


async def ended(connection: asyncssh.SSHClientConnection) -> None:
    """Returns when the connection has ended."""
    await asyncio.wait_for(connection.wait_closed(), 5)


def ssh(bastion: Bastion, key: KeyPair, directory: Path, *arguments: str) -> Process:
    """The real ssh, with nothing of this user's configuration."""
    (directory / "known_hosts").write_text(bastion.known_hosts())
    identity = directory / "id"
    identity.touch(0o600)
    identity.write_text(key.private)
    strict = ["IdentitiesOnly=yes", "StrictHostKeyChecking=yes", "BatchMode=yes", "ExitOnForwardFailure=yes"]
    settings = [*strict, f"UserKnownHostsFile={directory}/known_hosts", "GlobalKnownHostsFile=/dev/null"]
    options = [word for setting in settings for word in ("-o", setting)]
    target = ["-p", str(bastion.port), "-i", str(identity), f"{USER}@{bastion.host}"]
    return Process(["ssh", "-F", "none", *options, *arguments, *target], directory / "ssh.log").start()


# --- what the bastion permits -----------------------------------------------------------------------------------------


async def test_the_generated_line_permits_the_forwarding_and_nothing_else(
    bastion: Bastion, client_key: KeyPair, postgres: PostgresServer, mariadb: MariaDBServer, tmp_path: Path
) -> None:
    # an administrator who took nothing of our advice but this
    bastion.set_config("AllowStreamLocalForwarding no")
    bastion.authorize(authorized_keys_line(client_key.public, "shop/orders", ("orders.internal", postgres.port)))
    async with await connect(bastion, client_key) as connection:
        assert await refusal(connection, "orders.internal", postgres.port) is None
        for host, port in (("orders.internal", mariadb.port), ("127.0.0.1", postgres.port), ("localhost", 22)):
            assert await refusal(connection, host, port) == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", 1)
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.forward_remote_path(str(tmp_path / "socket"), str(tmp_path / "other"))
        done = await connection.run("echo reached", check=False)
        assert done.exit_status != 0
        assert not done.stdout


async def test_a_source_address_in_the_generated_line_is_respected(bastion: Bastion, client_key: KeyPair) -> None:
    line = authorized_keys_line(client_key.public, "shop/orders", ("orders.internal", 5432), sources=["198.51.100.9"])
    bastion.authorize(line)
    with pytest.raises(asyncssh.PermissionDenied):
        await connect(bastion, client_key)
    bastion.authorize(line.replace("198.51.100.9", "198.51.100.9,127.0.0.1"))
    async with await connect(bastion, client_key):
        pass


async def test_private_names_resolve_on_the_bastion_alone(bastion: Bastion, client_key: KeyPair) -> None:
    closed = free_port()
    async with await connect(bastion, client_key) as connection:
        assert await refusal(connection, "orders.internal", closed) == asyncssh.OPEN_CONNECT_FAILED
        assert await refusal(connection, "orders.internal", bastion.port) is None


def test_the_machines_own_files_are_not_touched(bastion: Bastion) -> None:
    assert "orders.internal" in (bastion.directory / "hosts").read_text()
    assert "orders.internal" not in Path("/etc/hosts").read_text()
    assert f"{USER}:" not in Path("/etc/passwd").read_text()
    assert not any(Path("/mnt").glob("sshd*"))


def test_databases_answer_through_ssh(
    bastion: Bastion, client_key: KeyPair, postgres_tls: PostgresServer, mariadb: MariaDBServer, tmp_path: Path
) -> None:
    ports = free_port(), free_port()
    servers = (("orders.internal", postgres_tls.port), ("mysql.internal", mariadb.port))
    forwards = [f"-L127.0.0.1:{here}:{host}:{port}" for here, (host, port) in zip(ports, servers, strict=True)]
    client = ssh(bastion, client_key, tmp_path, "-N", *forwards)
    client.wait_until(lambda: all(listens("127.0.0.1", port) for port in ports), "ssh listened")
    with postgres_tls.connect(port=ports[0], sslmode="require") as session:
        assert tuple(session.execute("select * from orders order by id").fetchall()) == ROWS
    direct = pymysql.connect(host="127.0.0.1", port=ports[1], user=DATABASE_USER, password=PASSWORD, database=DATABASE)
    with direct, direct.cursor() as cursor:
        cursor.execute("select * from orders order by id")
        assert cursor.fetchall() == ROWS
    client.stop()


# --- what an administrator does ---------------------------------------------------------------------------------------


async def test_a_key_that_is_not_authorized_any_more_is_refused(bastion: Bastion, client_key: KeyPair) -> None:
    async with await connect(bastion, client_key) as connection:
        bastion.unauthorize()
        with pytest.raises(asyncssh.PermissionDenied):
            await connect(bastion, client_key)
        assert await refusal(connection, "orders.internal", bastion.port) is None


async def test_a_restart_ends_connections_and_keeps_address_and_host_keys(
    bastion: Bastion, client_key: KeyPair
) -> None:
    connection = await connect(bastion, client_key)
    bastion.restart()
    await ended(connection)
    async with await connect(bastion, client_key):
        wait_until(lambda: bastion.connections() == 1, "one connection")


async def test_killed_sessions_do_not_end_the_listener(bastion: Bastion, client_key: KeyPair) -> None:
    connections = [await connect(bastion, client_key) for _ in range(3)]
    assert bastion.connections() == 3
    bastion.kill_sessions()
    for connection in connections:
        await ended(connection)
    async with await connect(bastion, client_key):
        pass


async def test_a_paused_bastion_answers_nothing_and_goes_on_later(bastion: Bastion, client_key: KeyPair) -> None:
    async with await connect(bastion, client_key) as connection:
        bastion.pause()
        opening = asyncio.create_task(refusal(connection, "orders.internal", bastion.port))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(connect(bastion, client_key), 0.5)
        assert not opening.done()
        bastion.resume()
        assert await asyncio.wait_for(opening, 5) is None


async def test_a_paused_bastion_can_be_stopped(bastion: Bastion, client_key: KeyPair) -> None:
    connection = await connect(bastion, client_key)
    bastion.pause()
    bastion.stop()
    assert not listens(bastion.host, bastion.port)
    await ended(connection)


async def test_replaced_host_keys_break_the_old_pin(bastion: Bastion, client_key: KeyPair) -> None:
    before = bastion.known_hosts()
    bastion.replace_host_keys(["ed25519"])
    with pytest.raises(asyncssh.HostKeyNotVerifiable):
        await connect(bastion, client_key, known_hosts=before, server_host_key_algs=["ssh-ed25519"])
    async with await connect(bastion, client_key) as connection:
        key = connection.get_server_host_key()
        assert key is not None
        assert {"ed25519": key.get_fingerprint()} == bastion.fingerprints


@pytest.mark.parametrize(("principals", "valid"), [("127.0.0.1", True), ("elsewhere.internal", False)])
async def test_a_host_certificate_is_presented(
    bastion: Bastion, client_key: KeyPair, principals: str, valid: bool
) -> None:
    authority = key_pair()
    bastion.certify_host_key("ed25519", authority, principals)
    trusted = f"@cert-authority {bastion.known_hosts_name()} {authority.public}\n"
    algorithms = ["ssh-ed25519-cert-v01@openssh.com"]
    login = connect(bastion, client_key, known_hosts=trusted, server_host_key_algs=algorithms)
    if valid:
        (await login).close()
    else:
        with pytest.raises(asyncssh.HostKeyNotVerifiable):
            await login


# --- how logins fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [bastions.SECOND_FACTOR, bastions.NO_PUBLIC_KEYS])
async def test_the_key_alone_does_not_log_in(bastion: Bastion, client_key: KeyPair, config: Sequence[str]) -> None:
    bastion.set_config(*config)
    with pytest.raises(asyncssh.PermissionDenied):
        await connect(bastion, client_key)
    assert ("Partial publickey" in bastion.log_text()) == (config is bastions.SECOND_FACTOR)


async def test_one_wrong_key_is_one_too_many(bastion: Bastion, client_key: KeyPair) -> None:
    bastion.set_config(*bastions.ONE_TRY)
    async with await connect(bastion, client_key):
        pass
    with pytest.raises(asyncssh.DisconnectError, match="Too many authentication failures"):
        await connect(bastion, key_pair(), client_key)


@pytest.mark.parametrize("config", [bastions.NO_FORWARDING, bastions.OTHER_TARGET])
async def test_forwarding_can_be_prohibited(bastion: Bastion, client_key: KeyPair, config: Sequence[str]) -> None:
    bastion.set_config(*config)
    async with await connect(bastion, client_key) as connection:
        code = await refusal(connection, "orders.internal", bastion.port)
        assert code == asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED


async def test_an_old_bastion_offers_sha1_alone(bastion: Bastion, client_key: KeyPair) -> None:
    bastion.set_config(*bastions.SHA1_ONLY)
    # the end of the connection may overtake the message in asyncssh
    with pytest.raises((asyncssh.KeyExchangeFailed, asyncssh.ConnectionLost)):
        await connect(bastion, client_key, kex_algs=["curve25519-sha256"])
    rsa = key_pair("ssh-rsa")
    bastion.authorize(rsa.public)
    async with await connect(bastion, rsa, signature_algs=["ssh-rsa"]) as connection:
        assert connection.get_extra_info("send_mac") == "hmac-sha1"


def test_too_many_startups_are_told_before_the_version(bastion: Bastion) -> None:
    bastion.set_config(*bastions.ONE_STARTUP)
    with socket.create_connection((bastion.host, bastion.port), 5) as first:
        assert first.recv(4) == b"SSH-"
        with socket.create_connection((bastion.host, bastion.port), 5) as second:
            assert second.recv(100) == b"Exceeded MaxStartups\r\n"


# --- how it ends ------------------------------------------------------------------------------------------------------

_STARTS_ALL = """
import sys
from pathlib import Path
from tests.support.bastion import Bastion
from tests.support.databases import MariaDBServer, PostgresServer
from tests.support.recorded import record
directory, survives = Path(sys.argv[1]), sys.argv[2] == "survives"
kinds = {"bastion": Bastion, "postgres": PostgresServer, "mariadb": MariaDBServer}
servers = {}
for name, kind in kinds.items():
    servers[name] = kind(directory / name, survives=survives).start()
    record(directory, {name: server.pid for name, server in servers.items()})
print(*(server.port for server in servers.values()), flush=True)
if survives:
    sys.exit()
sys.stdin.read()
"""


def _start_all(directory: Path, how: str) -> "tuple[subprocess.Popen[str], list[int]]":
    command = [sys.executable, "-c", _STARTS_ALL, str(directory), how]
    starter = subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert starter.stdout is not None
    return starter, [int(port) for port in starter.stdout.readline().split()]


def _any_listens(ports: Sequence[int]) -> bool:
    return any(listens("127.0.0.1", port) for port in ports)


def test_nothing_outlives_a_killed_run_not_even_a_paused_session(tmp_path: Path) -> None:
    starter, ports = _start_all(tmp_path, "dies")
    with socket.create_connection(("127.0.0.1", ports[0]), 5) as session:
        assert session.recv(4) == b"SSH-"
        started = {pid: name for pid in descendants(starter.pid) if (name := _name(pid))}
        assert {"sshd", "postgres", "mariadbd"} <= set(started.values())
        for pid in (pid for pid, name in started.items() if name == "sshd"):
            os.kill(pid, signal.SIGSTOP)
        starter.kill()
        starter.wait(10)
        wait_until(lambda: not any(_name(pid) == name for pid, name in started.items()), "the servers' end")
    assert not _any_listens(ports)


def test_servers_that_survive_are_stopped_by_their_record(tmp_path: Path) -> None:
    starter, ports = _start_all(tmp_path / "servers", "survives")
    try:
        assert starter.wait(10) == 0
        assert all(listens("127.0.0.1", port) for port in ports)
    finally:
        stop_recorded(tmp_path / "servers")
    assert not _any_listens(ports)
    assert not (tmp_path / "servers").exists()


def test_a_reused_process_id_is_left_alone(tmp_path: Path) -> None:
    other = Process(["sleep", "60"], tmp_path / "other.log").start()
    (tmp_path / "record").mkdir()
    record(tmp_path / "record", {"bastion": other.pid})
    path = tmp_path / "record" / "processes.json"
    path.write_text(path.read_text().replace('"started": "', '"started": "9'))
    stop_recorded(tmp_path / "record")
    assert other.is_running()
    other.stop()


def _name(pid: int) -> str:
    """The name of a process that has not ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    name, rest = words.split("(", 1)[1].rsplit(")", 1)
    return "" if rest.split()[0] == "Z" else name
