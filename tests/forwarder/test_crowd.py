"""Two thousand clients at once against a limit of five hundred: each is served or told, and nothing is left of them."""

import resource
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.bastion import Bastion, children, descendants
from tests.support.databases import PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config
from tests.support.keys import KeyPair
from tests.support.postgres_words import query, startup
from tests.support.processes import wait_until
from tests.support.usage import descriptors, told_by, usage

CROWD, LIMIT = 2000, 500

REFUSED = 'dbtunnel_forwarder_clients_refused_total{reason="ConnectionLimit"}'
CLIENTS, PARKED = "dbtunnel_forwarder_clients", "dbtunnel_forwarder_clients_parked"

AT_ONCE_SECONDS = 4
"""Within which 1,500 are told on a machine that is busy; a second does on one that is not."""

ANSWER = b"\0\1\0\0\0\00242"
"""The row that a query of 42 leads to: one column of two bytes."""


class Crowd:
    """Clients that connect at once; each logs in and asks one query. Use `closing`."""

    def __init__(self, port: int, count: int = CROWD) -> None:
        self._selector = selectors.DefaultSelector()
        self._heard: dict[socket.socket, bytes] = {}
        self.served: list[socket.socket] = []
        self.refused = 0
        """How many were told by a reset."""
        self.lost: list[bytes] = []
        """What those heard whose connection ended in another way."""
        for _ in range(count):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(("127.0.0.1", port))
            self._selector.register(client, selectors.EVENT_WRITE)
            self._heard[client] = b""

    @property
    def waiting(self) -> int:
        """How many were neither served nor told."""
        return len(self._selector.get_map())

    def settle(self, waiting: int, timeout_seconds: float = 30) -> float:
        """Goes on until so many are left waiting; the seconds that this took."""
        began = time.monotonic()
        while self.waiting > waiting and time.monotonic() < began + timeout_seconds:
            for key, events in self._selector.select(1):
                client: Any = key.fileobj
                try:
                    self._go_on(client, events)
                except (ConnectionResetError, BrokenPipeError):
                    self.refused += 1
                    self._leave(client).close()
        return time.monotonic() - began

    def _go_on(self, client: socket.socket, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            client.sendall(startup() + query("select 41 + 1"))
            self._selector.modify(client, selectors.EVENT_READ)
            return
        data = client.recv(65536)
        self._heard[client] += data
        if ANSWER in self._heard[client]:
            self.served.append(self._leave(client))
        elif not data:
            self.lost.append(self._heard[client])
            self._leave(client).close()

    def _leave(self, client: socket.socket) -> socket.socket:
        self._selector.unregister(client)
        return client

    def ask_again(self) -> None:
        """Those who were served ask once more: none of them is lost."""
        for client in self.served:
            client.setblocking(True)
            client.settimeout(10)
            client.sendall(query("select 6 * 7"))
        for client in self.served:
            heard = b""
            while ANSWER not in heard:
                heard += client.recv(65536) or pytest.fail("it has ended")

    def close(self) -> None:
        """All leave."""
        for client in self.served:
            client.close()
        self._selector.close()


@pytest.fixture
def many_files() -> Iterator[None]:
    """As many open files as are needed, here and in what is started."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 8192), max(before[1], 8192)))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def forwarder(
    many_files: None, tmp_path: Path, bastion: Bastion, client_key: KeyPair, open_postgres: PostgresServer
) -> Iterator[Forwarder]:
    """One with the limit, that tells what it uses."""
    config = forwarder_config(bastion, open_postgres.port, max_clients=LIMIT, probe_mode="Disabled")
    forwarder = Forwarder(tmp_path / "forwarder", config, {KEY: client_key.private})
    forwarder.start(environment=told_by(forwarder.directory)).wait_for("authentication", "Succeeded")
    yield forwarder
    forwarder.stop()


def used(forwarder: Forwarder, bastion: Bastion) -> tuple[int, int, int]:
    """Descriptors at the bastion, one for each channel beside its own, and here; tasks."""
    of_bastion = descriptors(*(pid for listener in children(bastion.pid) for pid in descendants(listener)))
    here = usage(forwarder)
    return of_bastion, here.descriptors, here.tasks


def test_each_of_two_thousand_is_served_or_told_and_leaves_nothing_behind(
    forwarder: Forwarder, bastion: Bastion, open_postgres: PostgresServer
) -> None:
    """A login is no cancel, so that those who come in as visitors are told too. The second crowd, which comes while the
    bastion is away, finds room again where the first has left; those who are parked have a place.
    """
    before = used(forwarder, bastion)
    for is_away in (False, True):
        if is_away:
            bastion.stop()
            forwarder.wait_for("transport", "ConnectionRefused")
        with closing(Crowd(forwarder.port)) as crowd:
            if is_away:
                wait_for_return(crowd, forwarder, bastion)
            print(f"the last was served after {crowd.settle(waiting=0):.1f} s")
            assert (len(crowd.served), crowd.refused, crowd.waiting, crowd.lost) == (LIMIT, CROWD - LIMIT, 0, [])
            assert forwarder.metric(CLIENTS) == open_postgres.sessions() == LIMIT
            crowd.ask_again()
        wait_until(lambda: forwarder.metric(CLIENTS) == 0, "all to leave")
        wait_until(lambda: open_postgres.sessions() == 0, "the database's sessions to end")
        wait_until(
            lambda: all(now <= then for now, then in zip(used(forwarder, bastion), before, strict=True)),
            f"nothing to be left beside {before}",
        )
    assert forwarder.metric(REFUSED) == 2 * (CROWD - LIMIT)
    events = [one["event"] for one in forwarder.events()]
    assert events.count("connection limit reached") == 1, "said, and not for each"
    assert events.count("session ended") == 2 * LIMIT


def wait_for_return(crowd: Crowd, forwarder: Forwarder, bastion: Bastion) -> None:
    """As many as may be served wait for the bastion; the rest is told at once, and not after its patience."""
    took = crowd.settle(waiting=LIMIT)
    print(f"{crowd.refused} told in {took:.1f} s")
    assert (len(crowd.served), crowd.refused) == (0, CROWD - LIMIT)
    assert took < AT_ONCE_SECONDS
    assert forwarder.metric(PARKED) == LIMIT
    bastion.start()
    wait_until(lambda: forwarder.metric(PARKED) == 0, "all who wait to have their turn")
    assert forwarder.metric('dbtunnel_forwarder_clients_refused_total{reason="Parking"}') == 0
