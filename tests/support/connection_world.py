"""A forwarder in virtual time, with all that can happen to its connections, its clients and its process.

The real Connector, Listener and drain; what is faked are the SSH servers (`fake_ssh.py`). What must hold is in
`connection_rules.py`.
"""

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, ClassVar, cast
from unittest import mock

from dbtunnel.api.engines import Engine, WireProtocol
from dbtunnel.api.forwarder import ForwarderConfig, ForwarderHop, ForwarderKey
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.hops import ends_of, jumps_of
from dbtunnel.forwarder import app, route
from dbtunnel.forwarder.client import Client
from dbtunnel.forwarder.connection import Connector, Sources
from dbtunnel.forwarder.keyring import Keyring
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.listener import Listener, listening_socket
from dbtunnel.forwarder.metrics import CLIENTS_PARKED, Metrics
from dbtunnel.forwarder.probes import Prober
from dbtunnel.forwarder.reserve import VISIT_SECONDS, reserve_of
from dbtunnel.forwarder.state import State
from tests.support.fake_ssh import CANCEL, Attempt, Connection, Server, let_stream
from tests.support.forwarder import seconds
from tests.support.keys import Secret, key_pair
from tests.support.virtual_time import now

PARKING_SECONDS, PARKED_AT_MOST = 30, 3
VISIT = VISIT_SECONDS[WireProtocol.POSTGRESQL]

OWN_ADDRESS = f"127.{64 | os.getpid() >> 16}.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"
"""Of this process alone: at 127.0.0.1 another may listen on the port that a forwarder has just closed."""

KEYS = [key_pair() for _ in range(3)]
CURRENT, NEXT, REVOKED = "ssh-privatekey", "ssh-privatekey-next", "ssh-privatekey-revoked"

FAILURES = (Reason.CONNECTION_REFUSED, Reason.BASTION_REFUSING, Reason.CONNECT_TIMEOUT)
"""What a server may do to everybody."""

LOGIN = b"\0\0\0\x11\0\3\0\0user\0app\0\0"
QUERY = b"Q\0\0\0\x0dselect 1\0"
AT_REST, IN_TRANSACTION = b"Z\0\0\0\x05I", b"Z\0\0\0\x05T"
"""What PostgreSQL's clients and its server say (its manual, "Message Formats")."""


@dataclass(frozen=True)
class Shape:
    """What differs from forwarder to forwarder."""

    connections: int | None = None
    jump_hosts: int = 0
    max_clients: int | None = None
    idle: int | None = None
    """Seconds."""
    drain: tuple[int, int] = (3, 30)
    """`minSeconds`, `maxSeconds`."""

    def config(self) -> ForwarderConfig:
        """With one fallback."""
        server = ForwarderHop(host="server", port=22, user="dbtunnel")
        return ForwarderConfig(
            namespace="shop",
            name="orders",
            engine=Engine.POSTGRESQL,
            database_host="orders.internal",
            database_port=5432,
            database_server_name="orders.internal",
            bastion=server,
            fallbacks=(server,),
            jump_hosts=(server,) * self.jump_hosts or None,
            key=ForwarderKey(secret="orders-ssh", key=CURRENT, passphrase_key="passphrase"),
            connections=self.connections,
            parking_max_clients=PARKED_AT_MOST,
            max_clients=self.max_clients,
            seconds=replace(
                seconds(drain_min=self.drain[0], drain_max=self.drain[1], parking_max=PARKING_SECONDS),
                connect_timeout=10,
                idle=self.idle,
            ),
        )


class WatchedSecret(Secret):
    """Knows what the forwarder has seen of it."""

    def __init__(self, files: dict[str, str]) -> None:
        super().__init__(files)
        self.seen: list[dict[str, str]] = []
        """What stood there when it was looked at, each time that it had been written anew."""

    def stamp(self) -> object:
        if not self.seen or self.files is not self.seen[-1]:
            self.seen.append(self.files)
        return len(self.seen)


@dataclass(frozen=True)
class Loss:
    """A connection that took clients was lost."""

    at: float
    hop: int
    was_last: bool


class WatchedConnector(Connector):
    """Knows which connections were lost."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.losses: list[Loss] = []

    def _lose(self, link: Link) -> None:
        is_loss = self.takes_channels(link)
        super()._lose(link)
        if is_loss:
            self.losses.append(Loss(now(), link.end.hop, self.link is None))


@dataclass
class Crowd:
    """Who was there, the client left out that looks around."""

    parked: float
    served: int
    """Those within the limit."""
    visitors: int


class KnownClient(Client):
    """A client and its other end, and what became of it. Its connection is one that needs no network, so that what one
    end does the other knows at once.
    """

    latest: ClassVar["KnownClient"]

    def __init__(self, connected: socket.socket, address: tuple[str, int], host: Any, number: int) -> None:
        super().__init__(connected, address, host, number)
        KnownClient.latest = self
        self.came_at = self.moved_at = now()
        self.left_at: float | None = None
        self.refused_at: float | None = None
        self.around = self._look_around()
        """When it came, and when it was refused."""
        self.cancels = False
        self.works = True
        """Whether its database is at work for it, or has a transaction open."""
        self.had_to_wait_longer = False
        """Whether it got a connection with more users and streams than another had."""

    def _look_around(self) -> Crowd:
        listener = cast(Listener, self._host)
        others = [client for client in listener._clients if client is not self]
        visitors = sum(client.visitor is not None for client in others)
        return Crowd(listener._metrics.get(CLIENTS_PARKED), len(others) - visitors, visitors)

    def refuse(self, how: str = "refused", *, is_told: bool = False) -> None:
        if not self.is_gone:
            self.refused_at, self.around = now(), self._look_around()
        super().refuse(how, is_told=is_told)

    def open_channel(self, link: Any, *arguments: Any) -> None:
        connector = cast(Listener, self._host)._connector
        usable = [one for one in connector._all() if connector.takes_channels(one) and not one.is_closing()]
        self.had_to_wait_longer = link.burden() > min(one.burden() for one in usable)
        super().open_channel(link, *arguments)

    @property
    def waits(self) -> bool:
        return not self.is_gone and not self.was_joined


class World:
    """All of it, and what can happen: each event takes a number that chooses among what there is."""

    def __init__(self, shape: Shape) -> None:
        self.config = config = shape.config()
        self.ends, self.jumps = list(ends_of(config)), list(jumps_of(config))
        self.connections = config.connections or 1
        self.reserve = reserve_of(config.max_clients) if config.max_clients else 0
        self.servers = [Server(number) for number in range(len(config.hops))]
        self.attempts: list[Attempt] = []
        self.made: dict[Connection, int] = {}
        """Those to bastion and fallback, each with the number of the files that it was made with."""
        self.clients: dict[KnownClient, tuple[socket.socket, socket.socket]] = {}
        """With both ends of their connections."""
        self.secret, self.changed_at = WatchedSecret({CURRENT: KEYS[0].private}), 0.0
        self.untried_since: float | None = None
        self.was_revoked: set[str] = set()
        self.metrics, self.state = Metrics(), State(config, "pod-1")
        self.is_needless: Callable[[World, Attempt], bool] = lambda *_: False
        self.needless: list[Attempt] = []
        self.best: dict[int, int] = {}
        """The end of the current connection, since so many outages."""
        with mock.patch.object(route, "Login", side_effect=self._login):
            sources = [Sources(self.secret)] * len(config.hops)
            self.connector = WatchedConnector(config, sources, self.state, self.metrics)
        self.listener = Listener(
            config, self.connector, cast(Prober, SimpleNamespace(saw=lambda *_: None)), self.metrics
        )
        self.bound = listening_socket(OWN_ADDRESS, 0)
        self.address = self.bound.getsockname()
        self.drained_from: float | None = None
        self.draining: asyncio.Task[None] | None = None
        self.end_now = asyncio.Event()
        self.to_end_since: float | None = None
        """Since when there is no reason for the drain to go on."""

    def _login(self, _config: object, number: int, ring: Keyring, _state: object) -> Server:
        server = self.servers[number]
        server.keyring, server.on_attempt, server.files = ring, self._note, lambda: len(self.secret.seen)
        return server

    def _note(self, attempt: Attempt) -> None:
        order = [*self.jumps, *self.ends].index
        for before in self.attempts[-3:]:
            if order(attempt.hop) > order(before.hop) and attempt.began == before.ended:
                # all servers are tried, and then news is taken up
                attempt.files, attempt.round_began = before.files, before.round_began
        self.attempts.append(attempt)
        if self.is_needless(self, attempt):
            self.needless.append(attempt)

    # --- clients --------------------------------------------------------------------------------------------------

    def client_comes(self, _: int = 0, *, cancels: bool = False) -> None:
        if self.bound.fileno() < 0:
            return
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
        theirs.send(CANCEL if cancels else LOGIN)
        both = ours.dup(), theirs
        self.listener._take(ours, ("127.0.0.1", len(self.clients)))
        KnownClient.latest.cancels = cancels
        self.clients[KnownClient.latest] = both

    def cancels_come(self, number: int) -> None:
        """One or several."""
        for _ in range(1 + number % (self.reserve + 2)):
            self.client_comes(cancels=True)

    def client_leaves(self, number: int) -> None:
        """Half of them with a reset: so ends a connection of this kind where something was not read."""
        if present := [client for client in self.present() if client.left_at is None]:
            client = present[number // 2 % len(present)]
            client.left_at = now()
            ours, theirs = self.clients[client]
            if number % 2:
                ours.send(b"unread")
            theirs.close()

    def client_asks(self, number: int) -> None:
        if client := self._served(number):
            self.clients[client][1].send(QUERY)
            client.works, client.moved_at = True, now()

    def database_answers(self, number: int) -> None:
        """Every third time a transaction is open then."""
        client = self._served(number // 3)
        if client and client.link and client._channel:
            client.works, client.moved_at = not number % 3, now()
            words = IN_TRANSACTION if client.works else AT_REST
            cast(Connection, client.link.connection).says(words, client._channel)
            if not client.is_gone:
                assert self.clients[client][1].recv(1024) == words

    def _served(self, number: int) -> KnownClient | None:
        """One whose session goes on."""
        served = [one for one in self.present() if one.was_joined and one.left_at is None and not one.cancels]
        return served[number % len(served)] if served else None

    def present(self) -> list[KnownClient]:
        return [client for client in self.clients if not client.is_gone]

    # --- servers --------------------------------------------------------------------------------------------------

    def connection_ends(self, number: int) -> None:
        """One that takes clients, one that was replaced, or one to a jump host."""
        carriers = [attempt.made for attempt in self.attempts if attempt.made and attempt.hop in self.jumps]
        if standing := [one for one in (*self.made, *carriers) if one.stands]:
            standing[number % len(standing)].end()

    def stream_goes(self, number: int) -> None:
        """Over one of the connections, for a moment."""
        if standing := [one for one in self.made if one.stands]:
            let_stream(standing[number % len(standing)].link)

    def server_changes(self, number: int) -> None:
        """One, both or all; every other time they let in."""
        first, *others = self.ends
        groups = (self.ends, [first], others, self.jumps or [first])
        for hop in groups[number // 2 % len(groups)]:
            self.servers[hop].fails = None if number % 2 else FAILURES[number // 8 % len(FAILURES)]

    def outage(self, number: int) -> None:
        """All connections end, and no server lets in."""
        for server in self.servers:
            server.fails = FAILURES[number % len(FAILURES)]
        for one in self.made:
            one.end()

    def key_is_known_or_not(self, number: int) -> None:
        self.servers[number // 3 % len(self.servers)].rejected ^= {KEYS[number % 3].fingerprint}

    # --- files ----------------------------------------------------------------------------------------------------

    def key_changes(self, number: int) -> None:
        self._write({CURRENT: KEYS[number % 3].private})

    def next_key_comes(self, number: int) -> None:
        self._write({**self.secret.files, NEXT: KEYS[number % 3].private})

    def key_is_revoked(self, number: int) -> None:
        self.was_revoked.add(KEYS[number % 3].fingerprint)
        self._write({**self.secret.files, REVOKED: KEYS[number % 3].fingerprint})

    def _write(self, files: dict[str, str]) -> None:
        if files != self.secret.files:
            self.secret.files, self.changed_at, self.untried_since = files, now(), now()

    # --- the process ----------------------------------------------------------------------------------------------

    def may_be_told_to_end(self, number: int) -> None:
        """Seldom, since no client comes after that."""
        if not number % 4:
            self.is_told_to_end()

    def is_told_to_end(self) -> None:
        """SIGTERM, as far as the listener has to do with it; the second one ends the drain."""
        if self.draining is None:
            self.drained_from = now()
            self.draining = asyncio.ensure_future(self._drain())
        else:
            self.end_now.set()

    async def _drain(self) -> None:
        await app._drain(self.config, self.listener, cast(Any, SimpleNamespace(now=self.end_now)))
        self.listener.cut()

    def all_is_well(self) -> None:
        self._write({name: text for name, text in self.secret.files.items() if name != REVOKED})
        for server in self.servers:
            server.fails, server.rejected = None, set()

    # --- what there is --------------------------------------------------------------------------------------------

    def current(self) -> Connection | None:
        for attempt in self.attempts:
            if attempt.made and attempt.hop in self.ends:
                self.made.setdefault(attempt.made, attempt.files)
        return next((one for one in self.made if one.link is self.connector.link), None)

    def taking(self) -> list[Connection]:
        """Those that take new channels."""
        return [one for one in self.made if self.connector.takes_channels(one.link)]

    def is_well(self) -> bool:
        """Whether there are as many connections as there are to be, each the best that there can be."""
        taking = self.taking()
        return len(taking) == self.connections and all(one.hop == 0 and self.is_as_wanted(one) for one in taking)

    def is_revoked(self, fingerprint: str) -> bool:
        return fingerprint == self.secret.files.get(REVOKED)

    def wanted(self) -> str | None:
        """The fingerprint of the key that is to be used, by what stands in the Secret."""
        texts = [self.secret.files[name] for name in (NEXT, CURRENT) if name in self.secret.files]
        found = [pair.fingerprint for text in texts for pair in KEYS if pair.private == text]
        return next((one for one in found if not self.is_revoked(one)), None)

    def is_as_wanted(self, connection: Connection) -> bool:
        """Whether every server on its way was logged in to with that key."""
        return set(connection.link.fingerprints().values()) == {self.wanted()}
