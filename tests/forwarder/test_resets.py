"""Clients that reset at every stage of their life leave nothing behind: no channel, descriptor, task or session."""

import asyncio
import random
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

from dbtunnel.forwarder.evidence import SSL_REQUEST
from tests.support.bastion import Bastion, children, descendants
from tests.support.databases import PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config
from tests.support.keys import KeyPair
from tests.support.postgres_words import query, startup
from tests.support.processes import wait_until
from tests.support.relay import Relay
from tests.support.usage import descriptors, told_by, usage

DELAY_SECONDS = 0.025
"""In each direction, so that a channel opens after 50 ms at the soonest."""

AT_ONCE = 100


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


STAGES: dict[Callable[[Peer], Awaitable[None]], int] = {
    _before_the_channel_opens: 3000,
    _while_the_channel_opens: 3000,
    _after_the_channel_has_opened: 1500,
    _in_the_middle_of_a_stream: 500,
    _half_closed: 1000,
    _half_closed_by_the_database: 1000,
}
"""How many clients reset there."""

ANSWERED = list(STAGES)[2:]
"""Those at which the database has answered."""


async def _reset_all(port: int) -> list[BaseException]:
    """Runs all clients, the stages mixed; what went wrong before their resets."""
    stages = [stage for stage, count in STAGES.items() for _ in range(count)]
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


def test_ten_thousand_clients_that_reset_leave_nothing_behind(
    tmp_path: Path, bastion: Bastion, client_key: KeyPair, open_postgres: PostgresServer
) -> None:
    with Relay(bastion.host, bastion.port, delay_seconds=DELAY_SECONDS) as relay:
        hop = replace(forwarder_config(bastion, 1).bastion, host=relay.host, port=relay.port)
        config = forwarder_config(bastion, open_postgres.port, bastion=hop, probe_mode="Disabled")
        forwarder = Forwarder(tmp_path / "fwd", config, {KEY: client_key.private})
        forwarder.start(environment=told_by(forwarder.directory))
        try:
            forwarder.wait_for("authentication", "Succeeded")
            before, at_bastion = usage(forwarder), _descriptors_of(bastion)
            sessions = open_postgres.log_text().count("connection received")
            began = time.monotonic()
            assert asyncio.run(_reset_all(forwarder.port)) == []
            took = time.monotonic() - began
            wait_until(lambda: forwarder.metric("dbtunnel_forwarder_clients") == 0, "all channels to be closed")
            wait_until(lambda: open_postgres.sessions() == 0, "the database's sessions to end")
            wait_until(lambda: _descriptors_of(bastion) == at_bastion, "the bastion's connections to be closed")
            wait_until(lambda: usage(forwarder).descriptors <= before.descriptors, "its descriptors to be closed")
            wait_until(lambda: usage(forwarder).tasks <= before.tasks, "its tasks to end")
            assert usage(forwarder).blocks < before.blocks + sum(STAGES.values()) / 10
            print(f"{sum(STAGES.values())} clients in {took:.1f} s; before {before}, after {usage(forwarder)}")
            sessions = open_postgres.log_text().count("connection received") - sessions
            assert sum(STAGES[stage] for stage in ANSWERED) <= sessions <= sum(STAGES.values())
            assert forwarder.metric("dbtunnel_forwarder_clients_total") == sum(STAGES.values()) == 10_000
            assert forwarder.metric("dbtunnel_forwarder_ssh_connects_total") == 1
            assert '"exception"' not in forwarder.log.read_text()
        finally:
            forwarder.stop()


def _descriptors_of(bastion: Bastion) -> int:
    """Of the processes that serve SSH connections: one for each channel, beside their own."""
    return descriptors(*(pid for listener in children(bastion.pid) for pid in descendants(listener)))
