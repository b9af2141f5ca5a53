"""Whether the database answers: quiet probes for PostgreSQL, the eyes of real clients for all.

A probe leaves no broken packet behind: half a packet, or an end in the middle of a handshake, is an error in the
database's log, and counts against `max_connect_errors` on MySQL, which is therefore never probed. So a probe that has
begun is not cut either: a connection that is retired waits for it, and so does the end of the process.
"""

import asyncio
import contextlib
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import asyncssh

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.engines import ENGINES, QuietProbe, WireProtocol
from dbtunnel.api.forwarder import DatabaseFact, ForwarderConfig, LayerStatus, ProbeMode
from dbtunnel.api.reasons import PASSING_SECONDS, REASONS, SLOW, Reason
from dbtunnel.domain.certificate import Certificate, read_certificate
from dbtunnel.domain.database import stamp, told
from dbtunnel.domain.metrics import Labels
from dbtunnel.forwarder.connection import Connector, wait_for
from dbtunnel.forwarder.evidence import SSL_REQUEST, judge
from dbtunnel.forwarder.failures import Failure, channel_failure
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.metrics import DATABASE_CERTIFICATE_EXPIRY, DATABASE_FAILURES, PROBES, Metrics
from dbtunnel.forwarder.state import NOT_REACHED, State
from dbtunnel.forwarder.stream import Stream

_FIRST_RETRY_SECONDS = 2.0
"""After a first probe that fails; it doubles with each further one, up to the interval."""

FRESH_SECONDS = 10.0
"""The least time between two probes for those who ask: nobody can hammer a database through the admin port."""

_ASKED_SECONDS = 12.0
"""How long who asks waits for the probe: an answer must come before its reader's patience ends."""

_LOUD_SECONDS = 3600
"""Between probes that leave an error in the database's log."""

_PASSING_REFUSAL_SECONDS = 2 * PASSING_SECONDS
"""How long after a client has heard that the database starts an answer about TLS still says nothing of sessions: long
enough for it to be told."""

_LEAVERS_SECONDS = 600
"""For how long it is told that a client left before its login: those that come every few minutes are one matter."""


@dataclass(frozen=True)
class Seen:
    """What a database showed."""

    fact: DatabaseFact
    certificate: Certificate | None = None
    handshake_fails: bool = False
    """It offers TLS, and the probe could not finish a handshake, which is an error in the database's log."""

    def told(self, config: ForwarderConfig, leaver: str = "") -> str:
        """The same for people, and what clients will find wrong with it now."""
        name, now = config.database_server_name, datetime.now(UTC)
        return told(self.fact, self.certificate, name, now, handshake_fails=self.handshake_fails, leaver=leaver)


class Prober:
    """Keeps the condition of the database."""

    def __init__(self, config: ForwarderConfig, connector: Connector, state: State, metrics: Metrics) -> None:
        self._config, self._connector, self._state, self._metrics = config, connector, state, metrics
        self._protocol = ENGINES[config.engine].protocol
        self._probe_with = probe_of(config)
        self._is_disabled = config.probe_mode is ProbeMode.DISABLED
        self._certificate: Certificate | None = None
        metrics.look_up(DATABASE_CERTIFICATE_EXPIRY, self._expiry)
        self._handshake_fails = False
        """As the last probe saw it."""
        self._refusing_until = 0.0
        """Until then a client's word that no session is to be had counts for more than an answer about TLS."""
        self._shown: str | None = None
        """What was last told of a database that works; None where it did not since."""
        self._left_at = -math.inf
        """When the last connection ended, by the loop's time."""
        self._leaver = ""
        """The address of a client that left before its login; empty where none has lately."""
        self._forgetting: asyncio.TimerHandle | None = None
        self._asked_at = -math.inf
        """When somebody was last given a probe of its own, by the loop's time."""
        self._asked: asyncio.Task[bool] | None = None
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
        retry, works = _FIRST_RETRY_SECONDS, True
        while self._connector.link is link:
            worked, works = works, not self._probe_with or await self._probe(link, self._probe_with)
            retry = _FIRST_RETRY_SECONDS if worked or works else retry * 2
            await self._wait(link, retry)
        self._left_at = asyncio.get_running_loop().time()

    async def _wait(self, link: Link, retry: float) -> None:
        """Waits for the next probe: the interval, or less where a probe or a client has found that it is needed, but
        no less than the reason of the failure at hand demands.
        """
        began, jitter = asyncio.get_running_loop().time(), random.uniform(0.9, 1.1)  # noqa: S311
        interval = self._config.seconds.probe_interval * jitter
        interval = max(interval, _LOUD_SECONDS) if self._handshake_fails else interval
        while self._connector.link is link and not link.lost.is_set():
            fact, limit = self._state.status.database, interval
            if fact.status == LayerStatus.FALSE:
                limit = max(min(retry, interval), REASONS[Reason(fact.reason)].retry_seconds * max(jitter, 1))
            left = began + limit - asyncio.get_running_loop().time()
            if left <= 0:
                return
            await wait_for(link.lost, min(left, 1))

    def _wait_for_clients(self) -> None:
        if self._state.status.database != NOT_REACHED:
            return  # what an earlier connection showed still holds
        if self._shown is not None and asyncio.get_running_loop().time() - self._left_at < PASSING_SECONDS:
            self._state.succeeded(ConditionType.DATABASE_REACHABLE, self._shown)  # and so it does after a moment
            return
        self._state.unknown(ConditionType.DATABASE_REACHABLE, Reason.NOT_PROBED, why_not_probed(self._config))

    def saw(self, link: Link, first: bytes) -> bool:
        """What a database first said to a real client; False where it takes more of its words to tell anything."""
        if self._is_disabled:
            return True
        try:
            fact = judge(self._protocol, first)
        except Failure as failure:
            if self._protocol is WireProtocol.POSTGRESQL and failure.reason is not Reason.UNEXPECTED_PROTOCOL:
                if failure.reason is Reason.DATABASE_REFUSED and not failure.may_pass and link.uses > 1:
                    return True  # others have sessions, so that it is for its own request, not for the address
                seconds = _PASSING_REFUSAL_SECONDS if failure.may_pass else SLOW
                self._refusing_until = asyncio.get_running_loop().time() + seconds
            self.failed(link, failure)
            return True
        if fact is not None and not self._knows(fact):
            self._conclude(link, Seen(fact))
        return fact is not None

    def failed(self, link: Link, failure: Failure) -> None:
        """The database could not be reached over `link`, by a probe or for a client.

        Says nothing where a newer attempt to connect has failed: that layer comes first, and the session that goes on
        over an earlier connection does not mend it. Nor where nothing is probed: no later client would be heard.
        """
        if self._is_disabled:
            return
        self._metrics.add(DATABASE_FAILURES, label=failure.reason)
        if self._connector.takes_channels(link) and self._state.works(ConditionType.AUTHENTICATED):
            self._shown = None
            self._state.failed(failure)

    async def _probe(self, link: Link, probe: "Probe") -> bool:
        try:
            with self._probing():
                seen = await probe(link, self._config)
        except Failure as failure:
            if failure.reason is Reason.DATABASE_TIMEOUT and self._connector.is_cut_off(link):
                return False
            self._metrics.add(PROBES, label=failure.reason)
            self.failed(link, failure)
            return False
        if seen is None:
            return False
        self._metrics.add(PROBES, label="Succeeded")
        self._handshake_fails = seen.handshake_fails
        return self._conclude(link, seen)

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

    async def refresh(self) -> None:
        """Probes the database for somebody who asks, and returns once that has shown something: at once where nothing
        is probed, where there is no connection, and where a probe is an error in the database's log.
        """
        link, now = self._connector.link, asyncio.get_running_loop().time()
        if self._probe_with and link and not self._handshake_fails and now - self._asked_at >= FRESH_SECONDS:
            self._asked_at = now
            self._asked = asyncio.ensure_future(self._probe(link, self._probe_with))
        if self._asked and not self._asked.done():
            await asyncio.wait([self._asked], timeout=_ASKED_SECONDS)  # which does not cut it

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

    def _conclude(self, link: Link, seen: Seen) -> bool:
        """Whether what was seen shows that the database works."""
        if not self._connector.takes_channels(link):
            return True
        self._learn(self._with(seen.fact), seen.certificate)
        if seen.fact.tls_offered is not None and self._is_refusing():
            return False
        self._tell()
        return True

    def _tell(self) -> None:
        """That it works, and all that is known of it."""
        all_seen = Seen(self._state.status.database_fact, self._certificate, handshake_fails=self._handshake_fails)
        self._shown = all_seen.told(self._config, self._leaver)
        self._state.succeeded(ConditionType.DATABASE_REACHABLE, self._shown)

    def left(self, address: str) -> None:
        """One of MySQL's clients left before its login, which is told until none has for a while."""
        if self._forgetting:
            self._forgetting.cancel()
        self._forgetting = asyncio.get_running_loop().call_later(_LEAVERS_SECONDS, self._leaver_is, "")
        if not self._leaver:
            self._leaver_is(address)

    def _leaver_is(self, address: str) -> None:
        self._leaver = address
        if self._state.works(ConditionType.DATABASE_REACHABLE):
            self._tell()

    def _knows(self, fact: DatabaseFact) -> bool:
        """Whether a client's connection shows nothing new, as almost every one does."""
        is_known = self._with(fact) == self._state.status.database_fact
        return is_known and self._state.works(ConditionType.DATABASE_REACHABLE)

    def _with(self, fact: DatabaseFact) -> DatabaseFact:
        """What is known, and what has been seen now."""
        shown = {name: value for name, value in vars(fact).items() if value is not None}
        return replace(self._state.status.database_fact, **shown)

    def _is_refusing(self) -> bool:
        is_down = self._state.status.database.status == LayerStatus.FALSE
        return is_down and asyncio.get_running_loop().time() < self._refusing_until

    def _learn(self, known: DatabaseFact, certificate: Certificate | None) -> None:
        """Without TLS there is no certificate any more."""
        self._certificate = certificate or (self._certificate if known.tls_offered else None)
        end = known.certificate_not_after if self._certificate else None
        self._state.set(database_fact=replace(known, certificate_not_after=end))

    def _expiry(self) -> dict[Labels, float]:
        """When the certificate expires, where there is one."""
        known = self._certificate
        return {self._config.database_server_name: known.not_after.timestamp()} if known else {}


async def probe_postgresql(link: Link, config: ForwarderConfig) -> Seen | None:
    """Asks for TLS and, where it is offered, completes the handshake, which also shows the certificate.

    Returns None where the SSH connection went away meanwhile. Raises Failure.
    """
    return await _over_a_channel(link, config, _ask)


async def read_greeting(link: Link, config: ForwarderConfig) -> Seen | None:
    """As `probe_postgresql`, of MySQL: hears the server's greeting and leaves, which counts as one connection error of
    the bastion's address, so that it is for those alone who ask for it.
    """
    return await _over_a_channel(link, config, _listen)


async def _over_a_channel(link: Link, config: ForwarderConfig, ask: "_Ask") -> Seen | None:
    limit = config.seconds.connect_timeout
    stream = Stream()
    try:
        await stream.open(link, config)
    except (TimeoutError, asyncssh.Error) as error:
        if link.lost.is_set():
            return None
        raise channel_failure(error, limit) from None
    try:
        async with asyncio.timeout(limit):
            seen = await ask(stream, config.database_server_name)
    except TimeoutError:
        seen, why = None, f"it takes the connection and does not answer within {limit} s"
        failure = Failure(ConditionType.DATABASE_REACHABLE, Reason.DATABASE_TIMEOUT, why)
    else:
        why = "it takes the connection and closes it at once"
        failure = Failure(ConditionType.DATABASE_REACHABLE, Reason.DATABASE_REFUSED, why)
    finally:
        stream.close()
    if seen is None and not link.lost.is_set():
        raise failure
    return seen


async def _ask(stream: Stream, server_name: str) -> Seen | None:
    """What the server says of itself; None where it closes the connection. Raises Failure."""
    stream.write(SSL_REQUEST)
    first = await stream.read()
    if not first:
        return None
    fact = judge(WireProtocol.POSTGRESQL, first) or DatabaseFact(protocol=WireProtocol.POSTGRESQL)
    if not fact.tls_offered:
        return Seen(fact)
    from dbtunnel.forwarder.tls import certificate_of  # noqa: PLC0415 - takes memory that not all need

    document = await certificate_of(stream, server_name)
    certificate = read_certificate(document or b"")
    fact = replace(fact, certificate_not_after=stamp(certificate) if certificate else None)
    return Seen(fact, certificate, handshake_fails=document is None)


async def _listen(stream: Stream, _: str) -> Seen | None:
    """What the server says first; None where it closes the connection. Raises Failure."""
    heard, fact = b"", None
    while fact is None:
        more = await stream.read()
        if not more:
            return None
        heard += more
        fact = judge(WireProtocol.MYSQL, heard)
    return Seen(fact)


_Ask = Callable[[Stream, str], Awaitable[Seen | None]]

Probe = Callable[[Link, ForwarderConfig], Awaitable[Seen | None]]

PROBES_BY_KIND: dict[QuietProbe, Probe] = {QuietProbe.SSL_REQUEST: probe_postgresql}


def probe_of(config: ForwarderConfig) -> Probe | None:
    """What shows over a connection of its own whether the database answers; None where nothing does."""
    kind = ENGINES[config.engine].quiet_probe if config.probe_mode is ProbeMode.AUTO else None
    return PROBES_BY_KIND[kind] if kind else None


def probe_for_once(config: ForwarderConfig) -> Probe:
    """The same where somebody asks for it whatever it costs: one connection, once."""
    kind = ENGINES[config.engine].quiet_probe
    return PROBES_BY_KIND[kind] if kind else read_greeting


def why_not_probed(config: ForwarderConfig) -> str:
    """What is told where there is no such probe, and no client has come."""
    if config.probe_mode is ProbeMode.DISABLED:
        return "spec.probe.mode is Disabled"
    return "no client has connected yet; the first that does will show whether the database answers"
