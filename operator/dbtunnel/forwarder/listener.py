"""The one listening socket of the process: SSH connections come and go behind it, clients wait for them."""

import asyncio
import functools
import logging
import resource
import socket
import sys

from dbtunnel.api.forwarder import ForwarderConfig
from dbtunnel.forwarder.channel import OPEN_ERRORS, Client, Session, open_channel
from dbtunnel.forwarder.connection import Connector
from dbtunnel.forwarder.failures import Failure, channel_failure
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.logs import event
from dbtunnel.forwarder.metrics import BYTES, CLIENTS_OPEN, CLIENTS_PARKED, CLIENTS_REFUSED, CLIENTS_TOTAL, Metrics
from dbtunnel.forwarder.probes import Prober

_LOG = logging.getLogger(__name__)

_BACKLOG = 1024

_SPARE_DESCRIPTORS = 64
"""Kept for the SSH connections, the admin port and files: without them a flood of clients would end the probes."""

_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))
"""Seconds, seconds, count: a client whose node died is noticed after two minutes, and its session ends."""


class Listener:
    """Takes clients and joins each to a channel of its own."""

    def __init__(self, config: ForwarderConfig, connector: Connector, prober: Prober, metrics: Metrics) -> None:
        self._config, self._connector, self._prober, self._metrics = config, connector, prober, metrics
        self._server: asyncio.Server | None = None
        self._serving: dict[Client, asyncio.Task[None]] = {}
        self._parked = 0
        self._most_clients = _descriptors() - _SPARE_DESCRIPTORS
        self.empty = asyncio.Event()
        self.empty.set()

    async def start(self, bound: socket.socket) -> None:
        """Takes clients from a listening socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Client(self._taken, self._gone), sock=bound, backlog=_BACKLOG)

    @property
    def clients(self) -> int:
        """How many there are, those that wait counted too."""
        return len(self._serving)

    def refuse_new(self) -> None:
        """Takes no further clients."""
        if self._server:
            self._server.close()

    def cut(self) -> None:
        """Ends all clients' connections."""
        for client in list(self._serving):
            client.refuse()

    def _taken(self, client: Client) -> None:
        self._metrics.add(CLIENTS_TOTAL)
        if len(self._serving) >= self._most_clients:
            self._refuse(client, "TooManyClients")
            return
        self.empty.clear()
        task = asyncio.ensure_future(self._serve(client))
        self._serving[client] = task
        task.add_done_callback(functools.partial(_end_of_serving, client))

    def _gone(self, client: Client) -> None:
        task = self._serving.pop(client, None)
        if task is None:
            return
        task.cancel()  # it may still be parked; a channel that is being opened is closed when it comes
        if not self._serving:
            self.empty.set()

    async def _serve(self, client: Client) -> None:
        """Waits for an SSH connection and opens a channel; again where the connection went away meanwhile."""
        deadline = asyncio.get_running_loop().time() + self._config.seconds.parking_max
        joined = False
        while not (joined or client.is_gone):
            link = self._connector.link or await self._park(client, deadline)
            if link is None:
                self._refuse(client, "Parking")
                return
            try:
                joined = await self._join(client, link)
            except Failure as failure:
                self._prober.failed(link, failure)
                self._refuse(client, failure.reason)
                return

    async def _park(self, client: Client, deadline: float) -> Link | None:
        """The SSH connection, once there is one; None where too many wait or the time is up."""
        if self._parked >= self._config.parking_max_clients:
            return None
        self._parked += 1
        self._metrics.add(CLIENTS_PARKED)
        client.park(parked=True)
        try:
            async with asyncio.timeout_at(deadline):
                while self._connector.link is None:
                    await self._connector.up.wait()
        except TimeoutError:
            return None
        finally:
            client.park(parked=False)
            self._parked -= 1
            self._metrics.add(CLIENTS_PARKED, -1)
        return self._connector.link

    async def _join(self, client: Client, link: Link) -> bool:
        """Opens a channel for the client; False where the SSH connection went away. Raises Failure."""
        limit = self._config.seconds.connect_timeout
        target = (self._config.database_host, self._config.database_port)
        peer = client.transport.get_extra_info("peername") or ("", 0)
        link.enter()
        try:
            await open_channel(link, lambda: self._session(client, link), target, peer[:2], limit)
        except OPEN_ERRORS as error:
            if link.lost.is_set():
                return False
            raise channel_failure(error, limit) from None
        finally:
            link.leave()
        return True

    def _session(self, client: Client, link: Link) -> Session:
        link.enter()
        self._metrics.add(CLIENTS_OPEN)

        def ended() -> None:
            self._metrics.add(CLIENTS_OPEN, -1)
            link.leave()

        return Session(client, link, self._count, lambda first: self._prober.saw(link, first), ended)

    def _count(self, *, sent: int = 0, received: int = 0) -> None:
        if sent:
            self._metrics.add(BYTES, sent, "sent")
        if received:
            self._metrics.add(BYTES, received, "received")

    def _refuse(self, client: Client, reason: str) -> None:
        self._metrics.add(CLIENTS_REFUSED, label=reason)
        event(_LOG, "client refused", level=logging.DEBUG, reason=reason)  # a flood of them is counted, not logged
        client.refuse()


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; an empty host means every address, IPv6 and IPv4."""
    if not host and socket.has_dualstack_ipv6():
        bound = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
    else:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        bound = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)  # what it accepts inherits these
    for option, value in _KEEPALIVE:
        bound.setsockopt(socket.IPPROTO_TCP, option, value)
    return bound


def _descriptors() -> int:
    """How many files and sockets the process may have open; the limit is raised as far as it goes."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return most if most != resource.RLIM_INFINITY else sys.maxsize


def _end_of_serving(client: Client, task: "asyncio.Task[None]") -> None:
    """A bug is told, and its client does not wait for ever."""
    if not task.cancelled() and task.exception():
        _LOG.error("serving a client failed", exc_info=task.exception())
        client.refuse()
