"""Clients that reset at every stage of their life leave nothing behind: no channel, descriptor, task or session."""

import asyncio
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dbtunnel.api.engines import Engine
from dbtunnel.forwarder.evidence import SSL_REQUEST
from tests.support.bastion import Bastion, children, descendants
from tests.support.databases import MariaDBServer, PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config, hop_to
from tests.support.keys import KeyPair
from tests.support.postgres_words import query, startup
from tests.support.processes import wait_until
from tests.support.relay import Relay
from tests.support.usage import descriptors, told_by, usage

DELAY_SECONDS = 0.025
"""In each direction, so that a channel opens after 50 ms at the soonest."""

AT_ONCE = 100

FIRST = 20
"""Clients at each stage before memory is looked at, since some is taken once."""


class Peer:
    """A client's socket; each wait is bounded."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._connection, data)

    async def receive(self, count: int) -> int:
        """How many bytes came before the end, at least `count` if it did not come."""
        received = 0
        async with asyncio.timeout(30):
            while received < count and (data := await self._loop.sock_recv(self._connection, 65536)):
                received += len(data)
        return received

    def end_sending(self) -> None:
        self._connection.shutdown(socket.SHUT_WR)


async def _before_the_channel_opens(peer: Peer) -> None:
    """Right after it has connected, some with their first bytes on the way."""
    if random.random() < 0.5:
        await peer.send(SSL_REQUEST)


async def _while_the_channel_opens(peer: Peer) -> None:
    await peer.send(SSL_REQUEST)
    await asyncio.sleep(random.uniform(0, 4 * DELAY_SECONDS))


async def _after_the_channel_has_opened(peer: Peer) -> None:
    await peer.send(SSL_REQUEST)
    assert await peer.receive(1) == 1


async def _in_the_middle_of_a_stream(peer: Peer) -> None:
    await peer.send(startup() + query("select repeat('x', 1000) from generate_series(1, 100000)"))
    assert await peer.receive(65536) >= 65536


async def _half_closed(peer: Peer) -> None:
    await peer.send(SSL_REQUEST)
    assert await peer.receive(1) == 1
    peer.end_sending()
    await asyncio.sleep(random.uniform(0, 4 * DELAY_SECONDS))


async def _half_closed_by_the_database(peer: Peer) -> None:
    """It does not know the version, says so and ends."""
    await peer.send(startup(version=0x10000))
    assert await peer.receive(2**20) > 0


Stages = Mapping[Callable[[Peer], Awaitable[None]], int]

STAGES: Stages = {
    _before_the_channel_opens: 3000,
    _while_the_channel_opens: 3000,
    _after_the_channel_has_opened: 1500,
    _in_the_middle_of_a_stream: 500,
    _half_closed: 1000,
    _half_closed_by_the_database: 1000,
}
"""How many clients of PostgreSQL reset there."""

ANSWERED = list(STAGES)[2:]
"""Those at which the database has answered."""


# --- clients of MySQL, whose channels are opened before they say anything ---------------------------------------------

LOGIN = b"\x28\0\0\1" + struct.pack("<IIB23x", 0x8200, 2**24, 33) + b"nobody\0\0"
"""HandshakeResponse41 (MySQL's manual) of a user that there is not, without a password."""


async def _as_it_is_taken(peer: Peer) -> None:
    """Before it is looked at, or right after it."""


async def _as_its_channel_opens(peer: Peer) -> None:
    await asyncio.sleep(random.uniform(0, 4 * DELAY_SECONDS))


async def _greeted(peer: Peer) -> None:
    assert await peer.receive(1) > 70, "a greeting"


async def _within_its_login(peer: Peer) -> None:
    await _greeted(peer)
    await peer.send(LOGIN[: random.randrange(1, len(LOGIN))])


async def _half_closed_and_greeted(peer: Peer) -> None:
    await _greeted(peer)
    peer.end_sending()
    await asyncio.sleep(random.uniform(0, 4 * DELAY_SECONDS))


async def _half_closed_by_mariadb(peer: Peer) -> None:
    """It does not let the user in, says so and ends."""
    await _greeted(peer)
    await peer.send(LOGIN)
    assert await peer.receive(2**20) > 0, "its answer"


MYSQL_STAGES: Stages = {
    _as_it_is_taken: 200,
    _as_its_channel_opens: 300,
    _greeted: 150,
    _within_its_login: 150,
    _half_closed_and_greeted: 100,
    _half_closed_by_mariadb: 100,
}
"""How many clients of MySQL reset there."""

ONCE_BLOCKS = 500
"""Of memory, which clients cost once."""

GREETED = list(MYSQL_STAGES)[2:]


# --- all of them ------------------------------------------------------------------------------------------------------


async def _reset_all(port: int, counts: Stages) -> list[BaseException]:
    """Runs all clients, the stages mixed; what went wrong before their resets."""
    stages = [stage for stage, count in counts.items() for _ in range(count)]
    random.shuffle(stages)
    waiting = iter(stages)
    errors: list[BaseException] = []

    async def one_after_the_other() -> None:
        for stage in waiting:
            try:
                await _live(port, stage)
            except (OSError, TimeoutError, AssertionError) as error:
                errors.append(error)

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    return errors


async def _live(port: int, stage: Callable[[Peer], Awaitable[None]]) -> None:
    with socket.socket() as connection:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        await stage(Peer(connection))


@contextmanager
def _far(
    directory: Path, bastion: Bastion, key: KeyPair, database: PostgresServer | MariaDBServer, engine: Engine
) -> Iterator[Forwarder]:
    """A forwarder that is connected, over a slow link."""
    with Relay(bastion.host, bastion.port, delay_seconds=DELAY_SECONDS) as relay:
        hop = hop_to(bastion, host=relay.host, port=relay.port)
        config = forwarder_config(bastion, database.port, bastion=hop, engine=engine, probe_mode="Disabled")
        forwarder = Forwarder(directory, config, {KEY: key.private})
        forwarder.start(environment=told_by(forwarder.directory))
        try:
            forwarder.wait_for("authentication", "Succeeded")
            yield forwarder
        finally:
            forwarder.stop()


def _reset_and_look(forwarder: Forwarder, bastion: Bastion, counts: Stages, is_left: Callable[[], bool]) -> None:
    """`is_left`: whether the database has sessions."""
    total, at_bastion = sum(counts.values()), _descriptors_of(bastion)
    assert asyncio.run(_reset_all(forwarder.port, dict.fromkeys(counts, FIRST))) == [], "what is made once"
    wait_until(lambda: forwarder.metric("dbtunnel_forwarder_clients") == 0, "the first to be gone")
    before = usage(forwarder)
    began = time.monotonic()
    assert [str(error) for error in asyncio.run(_reset_all(forwarder.port, counts))] == []
    took = time.monotonic() - began
    wait_until(lambda: forwarder.metric("dbtunnel_forwarder_clients") == 0, "all channels to be closed")
    wait_until(lambda: not is_left(), "the database's sessions to end")
    wait_until(lambda: _descriptors_of(bastion) == at_bastion, "the bastion's connections to be closed")
    wait_until(lambda: usage(forwarder).descriptors <= before.descriptors, "its descriptors to be closed")
    wait_until(lambda: usage(forwarder).tasks <= before.tasks, "its tasks to end")
    assert usage(forwarder).blocks < before.blocks + max(total / 10, ONCE_BLOCKS)
    print(f"{total} clients in {took:.1f} s; before {before}, after {usage(forwarder)}")
    assert forwarder.metric("dbtunnel_forwarder_clients_total") == total + FIRST * len(counts)
    assert forwarder.metric("dbtunnel_forwarder_ssh_connects_total") == 1
    assert '"exception"' not in forwarder.log.read_text()


def test_ten_thousand_clients_that_reset_leave_nothing_behind(
    tmp_path: Path, bastion: Bastion, client_key: KeyPair, open_postgres: PostgresServer
) -> None:
    def made() -> int:
        return open_postgres.log_text().count("connection received")

    with _far(tmp_path / "fwd", bastion, client_key, open_postgres, Engine.POSTGRESQL) as forwarder:
        before = made()
        _reset_and_look(forwarder, bastion, STAGES, lambda: open_postgres.sessions() > 0)
        assert sum(STAGES.values()) == 10_000
        assert sum(STAGES[stage] for stage in ANSWERED) <= made() - before <= sum(STAGES.values())


def test_a_thousand_clients_of_mysql_that_reset_leave_nothing_behind(
    tmp_path: Path, bastion: Bastion, client_key: KeyPair, mariadb: MariaDBServer
) -> None:
    def told(name: str) -> int:
        """A count of the server's, with the one who asks."""
        with mariadb.connect() as session, session.cursor() as cursor:
            cursor.execute("show global status like %s", (name,))
            return int(cursor.fetchall()[0][1])

    with _far(tmp_path / "fwd", bastion, client_key, mariadb, Engine.MYSQL) as forwarder:
        before = told("Connections")
        _reset_and_look(forwarder, bastion, MYSQL_STAGES, lambda: told("Threads_connected") > 1)
        assert sum(MYSQL_STAGES[stage] for stage in GREETED) <= told("Connections") - before
        assert forwarder.metric("dbtunnel_forwarder_clients_left_before_login_total") > 0


def _descriptors_of(bastion: Bastion) -> int:
    """Of the processes that serve SSH connections: one for each channel, beside their own."""
    return descriptors(*(pid for listener in children(bastion.pid) for pid in descendants(listener)))
