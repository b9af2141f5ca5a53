"""Whether the database answers: quiet probes for PostgreSQL, the eyes of real clients for all.

A probe leaves no broken packet behind: half a packet, or an end in the middle of a handshake, is an error in the
database's log, and counts against `max_connect_errors` on MySQL, which is therefore never probed. So a probe that has
begun is not cut either: a connection that is retired waits for it, and so does the end of the process.
"""

import asyncio
import contextlib
import random
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import asyncssh

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.engines import ENGINES, QuietProbe, WireProtocol
from dbtunnel.api.forwarder import DatabaseFact, ForwarderConfig, LayerStatus, ProbeMode
from dbtunnel.api.reasons import Reason
from dbtunnel.forwarder.channel import Channel, Opening
from dbtunnel.forwarder.connection import Connector, wait_for
from dbtunnel.forwarder.evidence import SSL_REQUEST, judge
from dbtunnel.forwarder.failures import Failure, channel_failure
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.metrics import PROBES, Metrics
from dbtunnel.forwarder.packets import SLOTS
from dbtunnel.forwarder.state import NOT_REACHED, State

_FIRST_RETRY_SECONDS = 2.0

_ORIGIN = ("127.0.0.1", 0)
"""What the bastion's log shows as the client of a probe."""


class Prober:
    """Keeps the condition of the database."""

    def __init__(self, config: ForwarderConfig, connector: Connector, state: State, metrics: Metrics) -> None:
        self._config, self._connector, self._state, self._metrics = config, connector, state, metrics
        self._protocol = ENGINES[config.engine].protocol
        self._probe_with = probe_of(config)
        self._is_disabled = config.probe_mode is ProbeMode.DISABLED
        self._under_way = 0
        self.idle = asyncio.Event()
        """Set while no probe is under way."""
        self.idle.set()

    async def run(self) -> None:
        """Probes each new connection, and again at intervals, until cancelled."""
        while True:
            await self._connector.up.wait()
            link = self._connector.link
            if link is not None:
                await self._watch(link)

    async def _watch(self, link: Link) -> None:
        """Probes over one connection, sooner while the database does not answer."""
        if not self._probe_with:
            self._wait_for_clients()
        retry = _FIRST_RETRY_SECONDS
        while self._connector.link is link:
            works = not self._probe_with or await self._probe(link, self._probe_with)
            retry = _FIRST_RETRY_SECONDS if works else retry * 2
            await self._wait(link, retry)

    async def _wait(self, link: Link, retry: float) -> None:
        """Waits for the next probe: the interval, or less where a probe or a client has found that it is needed."""
        began = asyncio.get_running_loop().time()
        interval = self._config.seconds.probe_interval * random.uniform(0.9, 1.1)  # noqa: S311
        while self._connector.link is link and not link.lost.is_set():
            limit = min(retry, interval) if self._state.status.database.status == LayerStatus.FALSE else interval
            left = began + limit - asyncio.get_running_loop().time()
            if left <= 0:
                return
            await wait_for(link.lost, min(left, 1))

    def _wait_for_clients(self) -> None:
        if self._state.status.database != NOT_REACHED:
            return  # what an earlier connection showed still holds
        self._state.unknown(ConditionType.DATABASE_REACHABLE, Reason.NOT_PROBED, why_not_probed(self._config))

    def saw(self, link: Link, first: bytes) -> None:
        """What a database first said to a real client."""
        if self._is_disabled:
            return
        try:
            fact = judge(self._protocol, first)
        except Failure as failure:
            self.failed(link, failure)
        else:
            if fact is not None:
                self._conclude(link, fact)

    def failed(self, link: Link, failure: Failure) -> None:
        """The database could not be reached over `link`, by a probe or for a client.

        Says nothing where a newer attempt to connect has failed: that layer comes first, and the session that goes on
        over an earlier connection does not mend it. Nor where nothing is probed: no later client would be heard.
        """
        if self._is_disabled:
            return
        if self._connector.takes_channels(link) and self._state.works(ConditionType.AUTHENTICATED):
            self._state.failed(failure)

    async def _probe(self, link: Link, probe: "Probe") -> bool:
        try:
            with self._probing():
                fact = await probe(link, self._config)
        except Failure as failure:
            self._metrics.add(PROBES, label=failure.reason)
            self.failed(link, failure)
            return False
        if fact is not None:
            self._metrics.add(PROBES, label="Succeeded")
            self._conclude(link, fact)
        return fact is not None

    async def obstacle(self, link: Link) -> Failure | None:
        """Why no channel can be had over a connection that is not in use yet; None where one can, where the fault is
        the database's, and where nothing is probed.
        """
        if not self._probe_with:
            return None
        try:
            with self._probing():
                await self._probe_with(link, self._config)
        except Failure as failure:
            return failure if failure.reason is Reason.FORWARDING_PROHIBITED else None
        return None

    @contextlib.contextmanager
    def _probing(self) -> Iterator[None]:
        self._under_way += 1
        self.idle.clear()
        try:
            yield
        finally:
            self._under_way -= 1
            if not self._under_way:
                self.idle.set()

    def _conclude(self, link: Link, fact: DatabaseFact) -> None:
        if not self._connector.takes_channels(link):
            return
        known = self._state.status.database_fact
        shown = {name: value for name, value in vars(fact).items() if value is not None}
        self._state.set(database_fact=replace(known, **shown))
        self._state.succeeded(ConditionType.DATABASE_REACHABLE)


class _Stream:
    """A channel that is read as it comes."""

    def __init__(self) -> None:
        self._channel: asyncio.Future[Channel] = asyncio.get_running_loop().create_future()
        self._received: asyncio.Queue[bytes] = asyncio.Queue()

    async def open(self, link: Link, config: ForwarderConfig) -> None:
        """Returns once it is open. Raises what the opening failed with."""
        target = config.database_host, config.database_port
        opening = Opening(link, self, target, _ORIGIN, config.seconds.connect_timeout)
        try:
            await self._channel
        finally:
            opening.give_up()
        link.probed_at = time.monotonic()

    def opened(self, channel: Channel) -> None:
        """As End."""
        if not self._channel.done():
            self._channel.set_result(channel)

    def failed(self, error: Exception) -> None:
        """As End."""
        if not self._channel.done():
            self._channel.set_exception(error)

    def received(self, pieces: list[memoryview]) -> None:
        """As End."""
        for piece in pieces:
            self._received.put_nowait(bytes(piece))
        self._channel.result().taken(sum(map(len, pieces)))

    def ended_sending(self) -> None:
        """As End."""
        self._received.put_nowait(b"")
        self._channel.result().end_sending()

    def may_send(self) -> None:
        """As End."""

    def closed(self, *, whole: bool) -> None:  # noqa: ARG002
        """As End."""
        self._received.put_nowait(b"")

    def write(self, data: bytes) -> None:
        """Sends; what comes too late for the other end is dropped, and its end is read next."""
        channel, slot = self._channel.result(), SLOTS[0]
        if channel.is_open and len(data) <= channel.may_send_bytes:
            slot.data[: len(data)] = data
            channel.send(slot, len(data))

    async def read(self) -> bytes:
        """The next bytes; none at the end."""
        return await self._received.get()

    def close(self) -> None:
        """Ends it once all is sent."""
        self._channel.result().close()


async def probe_postgresql(link: Link, config: ForwarderConfig) -> DatabaseFact | None:
    """Asks for TLS and, where it is offered, completes the handshake, which also shows the certificate.

    Returns None where the SSH connection went away meanwhile. Raises Failure.
    """
    limit = config.seconds.connect_timeout
    stream = _Stream()
    try:
        await stream.open(link, config)
    except (TimeoutError, asyncssh.Error) as error:
        if link.lost.is_set():
            return None
        raise channel_failure(error, limit) from None
    try:
        async with asyncio.timeout(limit):
            fact = await _ask(stream, config.database_server_name)
    except TimeoutError:
        fact, seen = None, f"it takes the connection and does not answer within {limit} s"
        failure = Failure(ConditionType.DATABASE_REACHABLE, Reason.DATABASE_TIMEOUT, seen)
    else:
        seen = "it takes the connection and closes it at once"
        failure = Failure(ConditionType.DATABASE_REACHABLE, Reason.DATABASE_REFUSED, seen)
    finally:
        stream.close()
    if fact is None and not link.lost.is_set():
        raise failure
    return fact


async def _ask(stream: _Stream, server_name: str) -> DatabaseFact | None:
    """What the server says of itself; None where it closes the connection. Raises Failure."""
    stream.write(SSL_REQUEST)
    first = await stream.read()
    if not first:
        return None
    fact = judge(WireProtocol.POSTGRESQL, first) or DatabaseFact(protocol=WireProtocol.POSTGRESQL)
    if not fact.tls_offered:
        return fact
    return replace(fact, certificate_not_after=await _certificate_end(stream, server_name))


async def _certificate_end(stream: _Stream, server_name: str) -> str | None:
    """Completes a TLS handshake, tells when the certificate ends, and says goodbye. No trust is placed in it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = _any_tls().wrap_bio(incoming, outgoing, server_hostname=server_name.rstrip(".") or None)
    try:
        while not _handshaken(tls):
            stream.write(outgoing.read())
            data = await stream.read()
            if not data:
                return None
            incoming.write(data)
    except ssl.SSLError:
        stream.write(outgoing.read())  # an alert says why
        return None
    # without close_notify PostgreSQL logs an error each time
    with contextlib.suppress(ssl.SSLError):
        tls.unwrap()
    stream.write(outgoing.read())
    return _not_after(tls.getpeercert(binary_form=True) or b"")


def _any_tls() -> ssl.SSLContext:
    """Takes what the oldest servers have: a handshake that fails would be an error in the database's log each time."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:!aNULL:@SECLEVEL=0")
    return context


def _not_after(certificate: bytes) -> str | None:
    from cryptography import x509  # noqa: PLC0415 - not at the start, which it would make longer

    try:
        end = x509.load_der_x509_certificate(certificate).not_valid_after_utc
    except (ValueError, x509.InvalidVersion):
        return None
    return end.isoformat().replace("+00:00", "Z")


def _handshaken(tls: ssl.SSLObject) -> bool:
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


Probe = Callable[[Link, ForwarderConfig], Awaitable[DatabaseFact | None]]

PROBES_BY_KIND: dict[QuietProbe, Probe] = {QuietProbe.SSL_REQUEST: probe_postgresql}


def probe_of(config: ForwarderConfig) -> Probe | None:
    """What shows over a connection of its own whether the database answers; None where nothing does."""
    kind = ENGINES[config.engine].quiet_probe if config.probe_mode is ProbeMode.AUTO else None
    return PROBES_BY_KIND[kind] if kind else None


def why_not_probed(config: ForwarderConfig) -> str:
    """What is told where there is no such probe, and no client has come."""
    if config.probe_mode is ProbeMode.DISABLED:
        return "spec.probe.mode is Disabled"
    return "no client has connected yet; the first that does will show whether the database answers"
