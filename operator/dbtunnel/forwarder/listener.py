"""The one listening socket of the process: SSH connections come and go behind it, clients wait for them."""

import asyncio
import itertools
import logging
import os
import resource
import socket
import sys
from functools import partial

from dbtunnel.api.engines import ENGINES, WireProtocol
from dbtunnel.api.forwarder import ForwarderConfig
from dbtunnel.domain.authorized_keys import forward_target
from dbtunnel.domain.hops import hop_name
from dbtunnel.forwarder.channel import Address
from dbtunnel.forwarder.client import BY_CLIENT, Client
from dbtunnel.forwarder.connection import Connector
from dbtunnel.forwarder.evidence import SNIFFED_BYTES, TLS_DENIED
from dbtunnel.forwarder.failures import channel_failure
from dbtunnel.forwarder.handshake import Handshake
from dbtunnel.forwarder.logs import Budget, Fold, event
from dbtunnel.forwarder.metrics import (
    BYTES,
    CHANNEL_SECONDS,
    CLIENTS_LEFT,
    CLIENTS_OPEN,
    CLIENTS_PARKED,
    CLIENTS_REFUSED,
    CLIENTS_TOTAL,
    Metrics,
)
from dbtunnel.forwarder.probes import Prober
from dbtunnel.forwarder.quiet import Quiet
from dbtunnel.forwarder.reserve import LAST_WORDS, VISIT_SECONDS, Visitor, reserve_of
from dbtunnel.forwarder.watch import READ, watcher

_LOG = logging.getLogger(__name__)

_BACKLOG = 1024

_ACCEPTED_AT_ONCE = 64

_REST_SECONDS = 1.0
"""How long to wait where the system has no room for one more client."""

_LEFT_SECONDS = 60
"""How often at most it is logged that clients leave before their login."""

_REFUSED_SECONDS = 60
"""How often at most it is logged that clients are refused, for each reason."""

_SPARE_DESCRIPTORS = 64
"""Kept for the SSH connections, the admin port and files: without them a flood of clients would end the probes."""

_LIMIT = "ConnectionLimit"

_OWN_REASONS = ("Parking", "Silent", "TooManyClients")
"""Why a client is refused of which nothing else tells: not a layer, nor the limit's own event."""

_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""Seconds, seconds, count: a client whose node died is noticed after two minutes, and its session ends. The kernel asks
so where nothing is on its way to the client; where something is, Quiet looks.
"""


class Listener:
    """Takes clients and joins each to a channel of its own."""

    def __init__(self, config: ForwarderConfig, connector: Connector, prober: Prober, metrics: Metrics) -> None:
        self._config, self._connector, self._prober, self._metrics = config, connector, prober, metrics
        self._target = config.database_host, config.database_port
        self._protocol = ENGINES[config.engine].protocol
        self._speaks_first = self._protocol is WireProtocol.MYSQL
        self._loop, self._watcher = asyncio.get_running_loop(), watcher()
        self._bound: socket.socket | None = None
        self._clients: set[Client] = set()
        self._numbers = itertools.count(1)
        """Of the clients, by which the log tells them apart."""
        self._parked: dict[Client, asyncio.TimerHandle] = {}
        self._most_clients = _descriptors() - _SPARE_DESCRIPTORS
        self._left_budget = Budget(1, _LEFT_SECONDS)
        self._visitors: dict[Client, Visitor] = {}
        """Those beyond `connectionLimits.max`, in the order of their arrival."""
        self._quiet = Quiet(self._clients, self._protocol, config.seconds.idle, metrics, self._refuse)
        self._full_is_told = Budget(1, 60)
        self._refusals = {reason: Fold(_REFUSED_SECONDS) for reason in _OWN_REASONS}
        self.empty = asyncio.Event()
        self.empty.set()
        connector.on_up = self._serve_parked

    def start(self, bound: socket.socket) -> None:
        """Takes clients from a listening socket."""
        bound.setblocking(False)
        self._bound = bound
        self._watcher.watch(bound.fileno(), READ, self._knocked, self._rest)

    @property
    def clients(self) -> int:
        """How many there are, those that wait counted too."""
        return len(self._clients)

    @property
    def is_open(self) -> bool:
        """Whether a client that comes is taken."""
        return self._bound is not None

    def refuse_new(self) -> None:
        """Takes no further clients. Those that the system has taken already are not cut off with the socket."""
        self._accept(_BACKLOG)
        if self._bound:
            self._watcher.forget(self._bound.fileno())
            self._bound.close()
            self._bound = None

    def cut(self) -> None:
        """Ends all clients' connections."""
        for client in list(self._clients):
            client.refuse("forwarder ended")

    async def run(self) -> None:
        """Ends idle sessions, and clients that say nothing, until cancelled."""
        await self._quiet.run()

    async def end_quiet(self, left: float) -> None:
        """As Quiet.end."""
        await self._quiet.end(left)

    # --- clients come and go --------------------------------------------------------------------------------------

    def _knocked(self, events: int) -> None:  # noqa: ARG002
        self._accept(_ACCEPTED_AT_ONCE)

    def _accept(self, most: int) -> None:
        for _ in range(most):
            if self._bound is None:
                return
            try:
                connected, address = self._bound.accept()
            except BlockingIOError:
                return
            except (InterruptedError, ConnectionAbortedError):
                continue
            except OSError as error:  # no descriptors or no memory now
                event(_LOG, "no client can be taken", level=logging.ERROR, seen=os.strerror(error.errno or 0))
                self._rest()
                return
            connected.setblocking(False)
            self._take(connected, _address(*address[:2]))

    def _rest(self) -> None:
        if self._bound:
            self._watcher.change(self._bound.fileno(), 0)
            self._loop.call_later(_REST_SECONDS, self._go_on)

    def _go_on(self) -> None:
        if self._bound:
            self._watcher.change(self._bound.fileno(), READ)

    def _take(self, connected: socket.socket, address: tuple[str, int]) -> None:
        self._metrics.add(CLIENTS_TOTAL)
        client = Client(connected, address, self, next(self._numbers))
        self._trace("client taken", client)
        self._clients.add(client)
        if len(self._clients) > self._most_clients:
            self._refuse(client, "TooManyClients")
            return
        self.empty.clear()
        if self._config.max_clients is not None and not self._admits(client, self._config.max_clients):
            self._refuse_at_limit(client, is_told=_says(connected, LAST_WORDS[self._protocol]))
        elif self._speaks_first:
            client.talk.handshake = Handshake()
            self._watcher.at_end_of_pass(partial(self._greet, client, connected))

    def _greet(self, client: Client, connected: socket.socket) -> None:
        """Asks for a channel of which the server speaks first. Of who has left by now, as most health checks have, the
        server would count it.
        """
        if not client.is_gone and not _has_left(connected):
            client.ask()

    def _admits(self, client: Client, most: int) -> bool:
        """Whether there is room for it, if only as a visitor."""
        if len(self._clients) - len(self._visitors) <= most:
            return True
        if len(self._visitors) >= reserve_of(most):
            return False
        client.visitor = self._visitors[client] = Visitor(self._protocol)
        self._loop.call_later(VISIT_SECONDS[self._protocol], self._end_visit, client)
        return True

    def _end_visit(self, client: Client) -> None:
        if client in self._visitors:
            self._refuse_at_limit(client)

    def _refuse_at_limit(self, client: Client, *, is_told: bool = False) -> None:
        if self._full_is_told.allows(self._loop.time()):
            event(_LOG, "connection limit reached", level=logging.WARNING, limit=self._config.max_clients)
        self._refuse(client, _LIMIT, is_told=is_told)

    def intrudes(self, client: Client) -> None:
        """As Host."""
        self._refuse_at_limit(client)

    def gone(self, client: Client) -> None:
        """As Host."""
        self._clients.discard(client)
        self._quiet.forget(client)
        self._unpark(client)
        self._visitors.pop(client, None)
        if self._visitors and len(self._clients) - len(self._visitors) < (self._config.max_clients or 0):
            first = next(iter(self._visitors))
            del self._visitors[first]
            first.visitor = None
        if client.was_joined:
            self._metrics.add(CLIENTS_OPEN, -1)
            self._tell_end(client)
        else:
            self._trace("client gone", client, how=client.how)
        handshake = client.talk.handshake
        if client.was_joined and handshake and (handshake.is_greeted or client.how in BY_CLIENT):
            self._left_before_login(client)
        if not self._clients:
            self.empty.set()

    def came_late(self, client: Client) -> None:
        """As Host."""
        if client.talk.handshake:
            self._left_before_login(client)

    def _left_before_login(self, client: Client) -> None:
        """The server counts it, unless all others are cut off as well."""
        if client.was_refused:
            return
        self._metrics.add(CLIENTS_LEFT)
        self._prober.left(client.address[0])
        if self._left_budget.allows(self._loop.time()):
            # often a health check or a port scan, which does not suffer itself when the bastion's address is blocked
            total = int(self._metrics.get(CLIENTS_LEFT))
            where = client.address[0]
            event(
                _LOG, "client left before its login", level=logging.WARNING, id=client.number, client=where, total=total
            )

    def _tell_end(self, client: Client) -> None:
        event(
            _LOG,
            "session ended",
            id=client.number,
            client=forward_target(*client.address),
            sent=client.sent,
            received=client.received_bytes,
            seconds=round(self._loop.time() - client.joined_at, 3),
            hop=hop_name(self._config, client.link.end.hop) if client.link else "",
            how=client.how,
        )

    # --- and get their channels -----------------------------------------------------------------------------------

    def wants_channel(self, client: Client) -> None:
        """As Host."""
        if client.visitor and not Visitor(self._protocol).may_send(client.early):
            self._refuse_at_limit(client)
            return
        link = self._connector.least_used()
        if link is None:
            self._park(client)
        else:
            self._trace("channel asked for", client, hop=hop_name(self._config, link.end.hop))
            client.open_channel(link, self._target, self._config.seconds.connect_timeout)

    def has_no_channel(self, client: Client, error: Exception) -> None:
        """As Host."""
        link = client.link
        if link is None or link.lost.is_set() or link.is_closing():
            self.wants_channel(client)
            return
        if isinstance(error, TimeoutError) and self._connector.is_cut_off(link):
            self.wants_channel(client)
            return
        failure = channel_failure(error, self._config.seconds.connect_timeout)
        self._prober.failed(link, failure)
        self._refuse(client, failure.reason)

    def joined(self, client: Client) -> None:
        """As Host."""
        self._metrics.add(CLIENTS_OPEN)
        seconds = client.joined_at - client.opening_at
        self._metrics.observe(CHANNEL_SECONDS, seconds)
        self._trace("session begun", client, seconds=round(seconds, 3))

    def saw(self, client: Client, first: bytes) -> None:
        """As Host."""
        client.talk.begins(first)
        if client.unjudged is None or client.link is None:
            return
        heard = (client.unjudged + first)[:SNIFFED_BYTES]
        shows = self._prober.saw(client.link, heard)
        if shows and heard == TLS_DENIED and not self._speaks_first:
            heard, shows = b"", False  # the next words are the first of a session
        client.unjudged = None if shows else heard

    def moved(self, *, sent: int = 0, received: int = 0) -> None:
        """As Host."""
        if sent:
            self._metrics.add(BYTES, sent, "sent")
        if received:
            self._metrics.add(BYTES, received, "received")

    def _trace(self, what: str, client: Client, **fields: object) -> None:
        """An event of one client's way, which costs nothing unless it is asked for."""
        if _LOG.isEnabledFor(logging.DEBUG):
            event(_LOG, what, level=logging.DEBUG, id=client.number, client=forward_target(*client.address), **fields)

    # --- while there is no SSH connection -------------------------------------------------------------------------

    def _park(self, client: Client) -> None:
        deadline = (client.asked_at or 0) + self._config.seconds.parking_max
        if len(self._parked) >= self._config.parking_max_clients or deadline <= self._loop.time():
            self._refuse(client, "Parking")
            return
        self._parked[client] = self._loop.call_at(deadline, self._refuse, client, "Parking")
        self._metrics.add(CLIENTS_PARKED)
        self._trace("client parked", client)
        client.park(parked=True)

    def _unpark(self, client: Client) -> None:
        timer = self._parked.pop(client, None)
        if timer:
            timer.cancel()
            self._metrics.add(CLIENTS_PARKED, -1)

    def _serve_parked(self) -> None:
        for client in list(self._parked):
            self._unpark(client)
            client.park(parked=False)
            self.wants_channel(client)

    def _refuse(self, client: Client, reason: str, *, is_told: bool = False) -> None:
        self._metrics.add(CLIENTS_REFUSED, label=reason)
        self._trace("client refused", client, reason=reason)
        if reason in self._refusals and (count := self._refusals[reason].add(self._loop.time())):
            where = client.address[0]  # of the latest
            event(_LOG, "clients refused", level=logging.WARNING, reason=reason, count=count, client=where)
        client.refuse(reason, is_told=is_told)


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; an empty host means every address, IPv6 and IPv4."""
    if not host and socket.has_dualstack_ipv6():
        bound = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # what it accepts inherits these
    bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in _KEEPALIVE:
        bound.setsockopt(socket.IPPROTO_TCP, option, value)
    return bound


def _says(connected: socket.socket, words: bytes) -> bool:
    """Tells a client on a fresh connection; False where there is nothing to say, or nobody."""
    try:
        return bool(words) and connected.send(words) == len(words)
    except OSError:
        return False


def _has_left(connected: socket.socket) -> bool:
    """Whether a client that has said nothing has ended its connection."""
    try:
        return not connected.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _address(host: str, port: int) -> Address:
    """A client's. One of IPv4 is told as such, also where the socket takes both kinds."""
    return host.removeprefix("::ffff:"), port


def _descriptors() -> int:
    """How many files and sockets the process may have open; the limit is raised as far as it goes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most if most != resource.RLIM_INFINITY else sys.maxsize
