"""The one listening socket of the process: SSH connections come and go behind it, clients wait for them."""

import asyncio
import logging
import socket

import asyncssh

from dbtunnel.api.forwarder import ForwarderConfig
from dbtunnel.forwarder.channel import Client, Congestion, Session, open_channel
from dbtunnel.forwarder.connection import Connector, Link
from dbtunnel.forwarder.failures import Failure, channel_failure
from dbtunnel.forwarder.logs import event
from dbtunnel.forwarder.metrics import BYTES, CLIENTS_OPEN, CLIENTS_PARKED, CLIENTS_REFUSED, CLIENTS_TOTAL, Metrics
from dbtunnel.forwarder.probes import Prober

_LOG = logging.getLogger(__name__)

_BACKLOG = 1024

_OPENING_AT_ONCE = 128
"""Channels being opened at the same time: a flood of clients waits here, not on the bastion."""


class Listener:
    """Takes clients and joins each to a channel of its own."""

    def __init__(self, config: ForwarderConfig, connector: Connector, prober: Prober, metrics: Metrics) -> None:
        self._config, self._connector, self._prober, self._metrics = config, connector, prober, metrics
        self._server: asyncio.Server | None = None
        self._serving: dict[Client, asyncio.Task[None]] = {}
        self._congestion: dict[Link, Congestion] = {}
        self._opening = asyncio.Semaphore(_OPENING_AT_ONCE)
        self._parked = 0
        self.empty = asyncio.Event()
        self.empty.set()

    async def start(self, host: str, port: int) -> None:
        """Listens. Raises OSError where the address is taken."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Client(self._taken, self._gone), sock=listening_socket(host, port), backlog=_BACKLOG
        )

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
        self.empty.clear()
        task = asyncio.ensure_future(self._serve(client))
        self._serving[client] = task
        task.add_done_callback(_report_bug)

    def _gone(self, client: Client) -> None:
        task = self._serving.pop(client)
        task.cancel()  # it may still be parked; a channel that is being opened is closed when it comes
        if not self._serving:
            self.empty.set()

    async def _serve(self, client: Client) -> None:
        """Waits for an SSH connection and opens a channel; again where the connection went away meanwhile."""
        deadline = asyncio.get_running_loop().time() + self._config.seconds.parking_max
        while not client.is_gone:
            link = self._connector.link or await self._park(deadline)
            if link is None:
                self._refuse(client, "Parking")
                return
            try:
                if await self._join(client, link):
                    return
            except Failure as failure:
                self._prober.failed(link, failure)
                self._refuse(client, failure.reason)
                return

    async def _park(self, deadline: float) -> Link | None:
        """The SSH connection, once there is one; None where too many wait or the time is up."""
        if self._parked >= self._config.parking_max_clients:
            return None
        self._parked += 1
        self._metrics.add(CLIENTS_PARKED)
        try:
            async with asyncio.timeout_at(deadline):
                await self._connector.up.wait()
        except TimeoutError:
            return None
        finally:
            self._parked -= 1
            self._metrics.add(CLIENTS_PARKED, -1)
        return self._connector.link

    async def _join(self, client: Client, link: Link) -> bool:
        """Opens a channel for the client; False where the SSH connection went away. Raises Failure."""
        limit = self._config.seconds.connect_timeout
        target = (self._config.database_host, self._config.database_port)
        peer = client.transport.get_extra_info("peername") or ("", 0)
        link.uses += 1
        try:
            async with self._opening:
                session = await open_channel(
                    link.connection, lambda: self._session(client, link), target, peer[:2], limit
                )
        except (OSError, asyncssh.Error) as error:
            failure = channel_failure(error, limit)
            if failure is not None:
                raise failure from None
            await asyncio.sleep(0)  # lets the connection's end be noticed
            return False
        finally:
            self._used(link)
        if isinstance(session, Session):
            client.join(session)
        return True

    def _session(self, client: Client, link: Link) -> Session:
        congestion = self._congestion.setdefault(link, Congestion(link.greeting))
        link.uses += 1
        self._metrics.add(CLIENTS_OPEN)

        def ended() -> None:
            self._metrics.add(CLIENTS_OPEN, -1)
            self._used(link)

        return Session(client, congestion, self._count, lambda first: self._prober.saw(link, first), ended)

    def _used(self, link: Link) -> None:
        link.uses -= 1
        if link.uses == 0:
            self._congestion.pop(link, None)
        self._connector.release(link)

    def _count(self, *, sent: int = 0, received: int = 0) -> None:
        if sent:
            self._metrics.add(BYTES, sent, "sent")
        if received:
            self._metrics.add(BYTES, received, "received")

    def _refuse(self, client: Client, reason: str) -> None:
        self._metrics.add(CLIENTS_REFUSED, label=reason)
        event(_LOG, "client refused", reason=reason)
        client.refuse()


def listening_socket(host: str, port: int) -> socket.socket:
    """A bound socket; an empty host means every address, IPv6 and IPv4."""
    if not host and socket.has_dualstack_ipv6():
        return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=_BACKLOG)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=_BACKLOG)


def _report_bug(task: "asyncio.Task[None]") -> None:
    if not task.cancelled() and task.exception():
        _LOG.error("serving a client failed", exc_info=task.exception())
