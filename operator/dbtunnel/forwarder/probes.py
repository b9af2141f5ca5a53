"""Whether the database answers: quiet probes for PostgreSQL, the eyes of real clients for all.

A probe leaves no broken packet behind: half a packet, or an end in the middle of a handshake, is an error in the
database's log, and counts against `max_connect_errors` on MySQL, which is therefore never probed.
"""

import asyncio
import contextlib
import random
import ssl
from typing import cast

import asyncssh
from cryptography import x509

from dbtunnel.api.conditions import ConditionType, Reason
from dbtunnel.api.engines import ENGINES, WireProtocol
from dbtunnel.api.forwarder import DatabaseFact, ForwarderConfig, LayerStatus, ProbeMode
from dbtunnel.forwarder.channel import open_channel
from dbtunnel.forwarder.connection import Connector, wait_for
from dbtunnel.forwarder.evidence import SSL_REQUEST, judge
from dbtunnel.forwarder.failures import Failure, channel_failure
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.metrics import PROBES, Metrics
from dbtunnel.forwarder.state import NOT_REACHED, State

_FIRST_RETRY_SECONDS = 2.0

_ORIGIN = ("127.0.0.1", 0)
"""What the bastion's log shows as the client of a probe."""


class Prober:
    """Keeps the condition of the database."""

    def __init__(self, config: ForwarderConfig, connector: Connector, state: State, metrics: Metrics) -> None:
        self._config, self._connector, self._state, self._metrics = config, connector, state, metrics
        self._protocol = ENGINES[config.engine].protocol
        self._probes = config.probe_mode is ProbeMode.AUTO and ENGINES[config.engine].probes_actively

    async def run(self) -> None:
        """Probes each new connection, and again at intervals, until cancelled."""
        while True:
            await self._connector.up.wait()
            link = self._connector.link
            if link is not None:
                await self._watch(link)

    async def _watch(self, link: Link) -> None:
        """Probes over one connection, sooner while the database does not answer."""
        if not self._probes:
            self._wait_for_clients()
        retry = _FIRST_RETRY_SECONDS
        while self._connector.link is link:
            works = not self._probes or await self._probe(link)
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
        seen = (
            "probe.mode is Disabled" if self._config.probe_mode is ProbeMode.DISABLED else "no client has connected yet"
        )
        self._state.unknown(ConditionType.DATABASE_REACHABLE, Reason.NOT_PROBED, seen)

    def saw(self, link: Link, first: bytes) -> None:
        """What a database first said to a real client."""
        if self._config.probe_mode is ProbeMode.DISABLED:
            return
        try:
            fact = judge(self._protocol, first)
        except Failure as failure:
            self.failed(link, failure)
        else:
            if fact is not None:
                self._conclude(link, fact)

    def failed(self, link: Link, failure: Failure) -> None:
        """The database could not be reached over `link`, by a probe or for a client."""
        if self._connector.link is link:
            self._state.failed(failure)

    async def _probe(self, link: Link) -> bool:
        try:
            fact = await probe_postgresql(link, self._config)
        except Failure as failure:
            self._metrics.add(PROBES, label=failure.reason)
            self.failed(link, failure)
            return False
        if fact is not None:
            self._metrics.add(PROBES, label="Succeeded")
            self._conclude(link, fact)
        return fact is not None

    def _conclude(self, link: Link, fact: DatabaseFact) -> None:
        if self._connector.link is not link:
            return
        known = self._state.status.database_fact
        self._state.set(database_fact=known.model_copy(update=fact.model_dump(exclude_none=True)))
        self._state.succeeded(ConditionType.DATABASE_REACHABLE)


class _Stream(asyncssh.SSHTCPSession[bytes]):
    """A channel that is read as it comes."""

    def __init__(self) -> None:
        self._channel = cast("asyncssh.SSHTCPChannel[bytes]", None)
        self._received: asyncio.Queue[bytes] = asyncio.Queue()

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._channel = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:  # noqa: ARG002
        self._received.put_nowait(data)

    def eof_received(self) -> bool:
        self._received.put_nowait(b"")
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._received.put_nowait(b"")

    def write(self, data: bytes) -> None:
        """Sends; what comes too late for the other end is dropped, and its end is read next."""
        if not self._channel.is_closing():
            self._channel.write(data)

    async def read(self) -> bytes:
        """The next bytes; none at the end."""
        return await self._received.get()

    def close(self) -> None:
        """Ends it once all is sent."""
        self._channel.close()


async def probe_postgresql(link: Link, config: ForwarderConfig) -> DatabaseFact | None:
    """Asks for TLS and, where it is offered, completes the handshake, which also shows the certificate.

    Returns None where the SSH connection went away meanwhile. Raises Failure.
    """
    limit = config.seconds.connect_timeout
    target = (config.database_host, config.database_port)
    try:
        stream = cast(_Stream, await open_channel(link, _Stream, target, _ORIGIN, limit))
    except (OSError, asyncssh.Error) as error:
        if link.lost.is_set():
            return None
        raise channel_failure(error, limit) from None
    try:
        async with asyncio.timeout(limit):
            fact = await _ask(stream)
    except TimeoutError:
        fact, seen = None, f"it takes the connection and says nothing within {limit} s"
        failure = Failure(ConditionType.DATABASE_REACHABLE, Reason.DATABASE_TIMEOUT, seen)
    else:
        seen = "it takes the connection and closes it at once"
        failure = Failure(ConditionType.DATABASE_REACHABLE, Reason.DATABASE_REFUSED, seen)
    finally:
        stream.close()
    if fact is None and not link.lost.is_set():
        raise failure
    return fact


async def _ask(stream: _Stream) -> DatabaseFact | None:
    """What the server says of itself; None where it closes the connection. Raises Failure."""
    stream.write(SSL_REQUEST)
    first = await stream.read()
    if not first:
        return None
    fact = judge(WireProtocol.POSTGRESQL, first) or DatabaseFact(protocol=WireProtocol.POSTGRESQL)
    if not fact.tls_offered:
        return fact
    return fact.model_copy(update={"certificate_not_after": await _certificate_end(stream)})


async def _certificate_end(stream: _Stream) -> str | None:
    """Completes a TLS handshake, tells when the certificate ends, and says goodbye. No trust is placed in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    try:
        while not _handshaken(tls):
            stream.write(outgoing.read())
            data = await stream.read()
            if not data:
                return None
            incoming.write(data)
        certificate = x509.load_der_x509_certificate(tls.getpeercert(binary_form=True) or b"")
    except (ssl.SSLError, ValueError):
        return None
    # without close_notify PostgreSQL logs an error each time
    with contextlib.suppress(ssl.SSLError):
        tls.unwrap()
    stream.write(outgoing.read())
    return certificate.not_valid_after_utc.isoformat().replace("+00:00", "Z")


def _handshaken(tls: ssl.SSLObject) -> bool:
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
