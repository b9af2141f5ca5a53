"""The SSH connection's life: connect, verify, authenticate, watch, connect again."""

import asyncio
import logging
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import asyncssh
from asyncssh.public_key import SSHLocalKeyPair

from dbtunnel.api.conditions import REASONS, ConditionType, Reason
from dbtunnel.api.forwarder import ForwarderConfig, HopFact, HostKeyFact
from dbtunnel.domain.diagnosis import printable
from dbtunnel.forwarder.algorithms import offered
from dbtunnel.forwarder.failures import Failure, Progress, connect_failure, transport_failure
from dbtunnel.forwarder.host_keys import KnownHostsError, Trust, kinds_to_try, trust_of
from dbtunnel.forwarder.keys import Key, KeyProblemError, read_key, read_text
from dbtunnel.forwarder.logs import event
from dbtunnel.forwarder.metrics import SSH_CONNECTS, SSH_FAILURES, SSH_UP, Metrics
from dbtunnel.forwarder.state import State
from dbtunnel.forwarder.transport import Dialer, Greeting

_LOG = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 30.0

STABLE_SECONDS = 30.0
"""A connection that stood this long resets the backoff."""

_LOOK_SECONDS = 1.0
"""How often the mounted files are looked at."""

_NEIGHBOUR_FACTOR = 0.5
"""By how much each further replica slows the attempts that sshd penalises."""


@dataclass(frozen=True)
class Material:
    """What stands in the mounted directories."""

    key: Key | None
    known_hosts: bytes | None = None
    problem: KeyProblemError | None = None

    @property
    def identity(self) -> tuple[object, ...]:
        """Changes when a file does, in what counts."""
        problem = (self.problem.reason, self.problem.seen) if self.problem else None
        return (self.key.public.fingerprint if self.key else None, self.known_hosts, problem)


class _WitnessedKeyPair(SSHLocalKeyPair):
    """A key pair that tells when it is asked to sign: the server has then said that it would accept the key."""

    def __init__(self, key: asyncssh.SSHKey, progress: Progress) -> None:
        super().__init__(key, None, None, None)
        self._progress = progress

    def sign(self, data: bytes) -> bytes:
        self._progress.key_accepted = True
        return super().sign(data)


class _Watcher(asyncssh.SSHClient):
    """asyncssh's view of us: judges host keys, gives the key, hears of the connection's end."""

    def __init__(self, trust: Trust, key: Key | None, progress: Progress) -> None:
        self.trust, self.key, self.progress = trust, key, progress
        self.shown: asyncssh.SSHKey | None = None
        self.lost = asyncio.Event()
        self.error = ""

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        self.shown = key
        return self.trust.accepts(key)

    def begin_auth(self, username: str) -> None:  # noqa: ARG002
        self.progress.host_key_verified = True

    def public_key_auth_requested(self) -> Any:
        first = not self.progress.key_asked_for
        self.progress.key_asked_for = True
        return _WitnessedKeyPair(self.key.private, self.progress) if self.key and first else None

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = str(exc) if exc else "the server closed it"
        self.lost.set()


@dataclass(eq=False)
class Link:
    """One SSH connection that stands."""

    connection: asyncssh.SSHClientConnection
    greeting: Greeting
    watcher: _Watcher
    uses: int = 0
    """Channels that are open or being opened."""

    @property
    def lost(self) -> asyncio.Event:
        """Set when the connection is gone."""
        return self.watcher.lost

    def close(self) -> None:
        """Ends it with all its channels."""
        self.connection.abort()


class Connector:
    """Keeps an SSH connection. `link` is the one for new channels; None while there is none."""

    def __init__(
        self, config: ForwarderConfig, key_directory: Path, known_hosts_directory: Path, state: State, metrics: Metrics
    ) -> None:
        self._config, self._state, self._metrics = config, state, metrics
        self._key_directory, self._known_hosts_directory = key_directory, known_hosts_directory
        self.link: Link | None = None
        self.up = asyncio.Event()
        self.down_since: float | None = asyncio.get_running_loop().time()
        self._attempts = 0
        self._last_kind: tuple[str, ...] | None = None
        self._retiring: set[Link] = set()

    async def run(self) -> None:
        """Connects, again and again, until cancelled."""
        try:
            while True:
                material = self._read()
                try:
                    link = await self._establish(material)
                except Failure as failure:
                    self._report(failure)
                    await self._pause(failure.reason, material)
                else:
                    await self._hold(link, material)
        finally:
            for link in {*self._retiring, *([self.link] if self.link else [])}:
                link.close()

    # --- one connection -------------------------------------------------------------------------------------------

    async def _hold(self, link: Link, material: Material) -> None:
        """Uses a connection until it is lost, or until another key or known_hosts text is there."""
        began = asyncio.get_running_loop().time()
        self._use(link)
        while not link.lost.is_set() and self._read().identity == material.identity:
            await wait_for(link.lost, _LOOK_SECONDS)
        if asyncio.get_running_loop().time() - began >= STABLE_SECONDS:
            self._attempts = 0
        if link.lost.is_set():
            self._lose(link)

    def _use(self, link: Link) -> None:
        """New channels go over `link`; those of an earlier connection stay where they are."""
        old, self.link = self.link, link
        if old and not old.lost.is_set():
            self._retiring.add(old)
            self.release(old)
        self.up.set()
        self.down_since = None
        self._metrics.add(SSH_CONNECTS)
        self._metrics.set(SSH_UP, 1)
        event(_LOG, "connected", host=self._config.bastion.host, port=self._config.bastion.port)

    def _lose(self, link: Link) -> None:
        if self.link is not link:
            return
        self.link = None
        self.up.clear()
        self.down_since = asyncio.get_running_loop().time()
        self._metrics.set(SSH_UP, 0)
        failure = transport_failure(Reason.CONNECTION_LOST, link.watcher.error)
        event(_LOG, "connection lost", seen=failure.seen)
        self._state.failed(failure)

    def release(self, link: Link) -> None:
        """A channel of `link` ended, or it is no longer wanted: the last one out closes it."""
        if link in self._retiring and link.uses == 0:
            self._retiring.discard(link)
            link.close()

    def _report(self, failure: Failure) -> None:
        self._metrics.add(SSH_FAILURES, label=failure.reason)
        event(_LOG, "connection failed", layer=failure.layer, reason=failure.reason, seen=failure.seen)
        if self.link and self.link.lost.is_set():
            self._lose(self.link)
        self._state.failed(failure)

    # --- when to try again ----------------------------------------------------------------------------------------

    async def _pause(self, reason: Reason, material: Material) -> None:
        """Waits before the next attempt; another key or known_hosts text ends the wait."""
        seconds = self._pause_seconds(reason)
        self._attempts += 1
        deadline = asyncio.get_running_loop().time() + seconds
        while (remaining := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(_LOOK_SECONDS, remaining))
            if self._read().identity != material.identity:
                self._attempts = 0
                return

    def _pause_seconds(self, reason: Reason) -> float:
        if REASONS[reason].type is ConditionType.KEY_READY:
            return LONGEST_BACKOFF_SECONDS  # nothing but a change of the files helps
        usual = min(FIRST_BACKOFF_SECONDS * 2**self._attempts, LONGEST_BACKOFF_SECONDS)
        slow = REASONS[reason].retry_seconds * (1 + _NEIGHBOUR_FACTOR * (self._config.replicas - 1))
        # sshd penalises the source address, which neighbours share: never faster than the table says
        return slow * random.uniform(1, 1.5) if slow else usual * random.uniform(0.5, 1)  # noqa: S311

    def _read(self) -> Material:
        try:
            name = self._config.bastion.host_key.known_hosts_file
            known_hosts = read_text(self._known_hosts_directory, name) if name else None
            return Material(read_key(self._key_directory, self._config.key), known_hosts)
        except KeyProblemError as problem:
            return Material(None, problem=problem)

    # --- one attempt ----------------------------------------------------------------------------------------------

    async def _establish(self, material: Material) -> Link:
        """A connection that is verified and authenticated. Raises Failure."""
        if material.key is None:
            problem = material.problem or KeyProblemError(Reason.SECRET_NOT_FOUND)
            self._state.set(public_key=None)
            raise Failure(ConditionType.KEY_READY, problem.reason, problem.seen)
        self._state.set(public_key=material.key.public)
        self._state.succeeded(ConditionType.KEY_READY)
        bastion = self._config.bastion
        try:
            text = material.known_hosts.decode("utf-8", "replace") if material.known_hosts is not None else None
            trust = trust_of(bastion.host_key, text, bastion.host, bastion.port)
        except KnownHostsError as error:
            raise transport_failure(Reason.KNOWN_HOSTS_INVALID, str(error)) from None
        return await self._connect(trust, material.key)

    async def _connect(self, trust: Trust, key: Key) -> Link:
        """Connects with each kind of host key until a trusted one is shown; with none pinned, shows them all."""
        shown: list[asyncssh.SSHKey] = []
        refusal: Failure | None = None
        for kind in self._kinds(trust):
            progress = Progress(limit_seconds=self._config.seconds.connect_timeout)
            watcher = _Watcher(trust, key, progress)
            try:
                link = await self._dial(trust, watcher, kind)
            except Failure as failure:
                if failure.layer is ConditionType.AUTHENTICATED:
                    self._authentication_failed(key, watcher, failure)
                if failure.reason not in (Reason.HOST_KEY_MISMATCH, Reason.NO_COMMON_ALGORITHM):
                    raise
                refusal = failure
                shown += [watcher.shown] if watcher.shown else []
            else:
                self._last_kind = kind
                self._authenticated(link, key)
                return link
        raise self._judge(trust, shown, refusal)

    def _kinds(self, trust: Trust) -> list[tuple[str, ...]]:
        kinds = kinds_to_try(trust, legacy=self._config.bastion.algorithms.value == "Legacy")
        return sorted(kinds, key=lambda kind: kind != self._last_kind)

    async def _dial(self, trust: Trust, watcher: _Watcher, kind: tuple[str, ...]) -> Link:
        """One TCP connection, one key exchange, one authentication. Raises Failure."""
        dialer = Dialer()
        try:
            async with asyncio.timeout(self._config.seconds.connect_timeout):
                connection = await asyncssh.connect(
                    self._config.bastion.host,
                    self._config.bastion.port,
                    tunnel=dialer,
                    client_factory=lambda: watcher,
                    server_host_key_algs=kind,
                    known_hosts=trust.for_asyncssh(),
                    **self._options(),
                )
        except asyncssh.HostKeyNotVerifiable as error:
            raise self._unverified(trust, watcher, error) from None
        except (OSError, asyncssh.Error, ValueError) as error:
            raise connect_failure(error, watcher.progress, dialer.greeting) from None
        except BaseException:
            dialer.abort()
            raise
        finally:
            if watcher.progress.host_key_verified is False or watcher.lost.is_set():
                dialer.abort()
        return Link(connection, cast(Greeting, dialer.greeting), watcher)

    def _options(self) -> dict[str, Any]:
        """asyncssh's options. Each source of keys, hosts and settings beside ours is shut."""
        config = self._config
        return {
            **offered(config.bastion.algorithms, compression=config.compression),
            "username": config.bastion.user,
            "client_username": config.bastion.user,  # else asyncssh asks the environment for the local user
            "host_key_alias": config.bastion.host_key.alias,
            "preferred_auth": "publickey",
            "client_keys": None,
            "agent_path": None,
            "config": None,
            "password_auth": False,
            "kbdint_auth": False,
            "host_based_auth": False,
            "gss_host": None,
            "x509_trusted_certs": None,
            "keepalive_interval": config.seconds.keepalive_interval,
            "keepalive_count_max": config.keepalive_count_max,
            "login_timeout": 2 * config.seconds.connect_timeout,  # ours comes first, and is told apart
        }

    # --- judging --------------------------------------------------------------------------------------------------

    def _unverified(self, trust: Trust, watcher: _Watcher, error: Exception) -> Failure:
        text = str(error)
        if watcher.shown is not None:
            return transport_failure(Reason.HOST_KEY_MISMATCH)
        if "revoked" in text:
            return transport_failure(Reason.HOST_KEY_REVOKED, text)
        if trust.authorities:
            return transport_failure(Reason.HOST_CERTIFICATE_INVALID, text)
        return transport_failure(Reason.HOST_KEY_MISMATCH, text)

    def _judge(self, trust: Trust, shown: list[asyncssh.SSHKey], refusal: Failure | None) -> Failure:
        """No kind of host key led to a trusted one."""
        if not shown:
            return refusal or transport_failure(Reason.NO_COMMON_ALGORITHM)
        facts = tuple(HostKeyFact(algorithm=key.get_algorithm(), fingerprint=key.get_fingerprint()) for key in shown)
        self._state.set(hop=self._state.status.hop.model_copy(update={"host_keys": facts[:8]}))
        seen = ", ".join(f"{fact.algorithm} {fact.fingerprint}" for fact in facts)
        if trust.is_empty:
            return transport_failure(Reason.HOST_KEY_UNKNOWN, seen)
        return transport_failure(Reason.HOST_KEY_MISMATCH, seen)

    def _authentication_failed(self, key: Key, watcher: _Watcher, failure: Failure) -> None:
        accepted = True if watcher.progress.key_accepted else None
        if failure.reason is Reason.KEY_REJECTED:
            accepted = False
        self._state.set(public_key=key.public.model_copy(update={"accepted": accepted}))

    def _authenticated(self, link: Link, key: Key) -> None:
        shown = link.connection.get_server_host_key()
        facts = (HostKeyFact(algorithm=shown.get_algorithm(), fingerprint=shown.get_fingerprint()),) if shown else ()
        told = link.connection.get_extra_info
        hop = HopFact(
            host_keys=facts,
            server_version=printable(str(told("server_version", "")), 255) or None,
            cipher=told("send_cipher"),
            mac=told("send_mac") or None,
        )
        self._state.set(hop=hop, public_key=key.public.model_copy(update={"accepted": True}))
        self._state.succeeded(ConditionType.TRANSPORT_READY)
        self._state.succeeded(ConditionType.AUTHENTICATED)


async def wait_for(happening: asyncio.Event, timeout_seconds: float) -> None:
    """Returns when it happens, or at the timeout."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await happening.wait()
    except TimeoutError:
        return
