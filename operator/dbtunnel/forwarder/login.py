"""One attempt to make the SSH connection: TCP, key exchange, host key, authentication."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import asyncssh
from asyncssh.public_key import SSHLocalKeyPair

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import Algorithms, ForwarderConfig, HopFact, HostKeyFact
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.diagnosis import printable
from dbtunnel.forwarder.algorithms import offered
from dbtunnel.forwarder.failures import Failure, Progress, connect_failure, transport_failure
from dbtunnel.forwarder.host_keys import KnownHostsError, Trust, kinds_left, kinds_to_try, trust_of
from dbtunnel.forwarder.keys import Key, KeyFiles, KeyProblemError, MountedFile, parse_key
from dbtunnel.forwarder.link import End, Link
from dbtunnel.forwarder.loop import in_daemon_thread
from dbtunnel.forwarder.packets import Packets
from dbtunnel.forwarder.state import State
from dbtunnel.forwarder.transport import Dialer

_PARSE_SECONDS = 60
"""How long decrypting a key may take, on a small share of a processor too: how often to repeat is in the key."""


@dataclass(frozen=True)
class Material:
    """What stands in the mounted directories. A connection is made anew when it changes."""

    key: KeyFiles
    known_hosts: MountedFile


class _WitnessedKeyPair(SSHLocalKeyPair):
    """A key pair that tells when it is asked to sign: the server has then said that it would accept the key."""

    def __init__(self, key: asyncssh.SSHKey, progress: Progress, signatures: Sequence[bytes] = ()) -> None:
        super().__init__(key, None, None, None)
        self.sig_algorithms = signatures or self.sig_algorithms
        self._progress = progress

    def sign(self, data: bytes) -> bytes:
        self._progress.key_accepted = True
        return super().sign(data)


class _Watcher(asyncssh.SSHClient):
    """asyncssh's view of us: judges host keys, gives the key, hears of the connection's end."""

    def __init__(self, trust: Trust, key: Key, progress: Progress, *, legacy: bool) -> None:
        self.trust, self.key, self.progress = trust, key, progress
        self._offers = [_WitnessedKeyPair(key.private, progress)]
        if legacy and key.private.get_algorithm() == "ssh-rsa":
            # an old server may name SHA-2 among what it can do and take SHA-1 alone
            self._offers.append(_WitnessedKeyPair(key.private, progress, [b"ssh-rsa"]))
        self.shown: asyncssh.SSHKey | None = None
        self.end = End()

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        self.shown = key
        return self.trust.accepts(key)

    def begin_auth(self, username: str) -> None:  # noqa: ARG002
        self.progress.host_key_verified = True

    def public_key_auth_requested(self) -> Any:
        self.progress.key_asked_for = True
        return self._offers.pop(0) if self._offers else None

    def connection_lost(self, exc: Exception | None) -> None:
        self.end.happen(str(exc) if exc else "the server closed it")


class Login:
    """Makes connections, and tells the state how far each came."""

    def __init__(self, config: ForwarderConfig, state: State) -> None:
        self._config, self._state = config, state
        self._parsed: tuple[KeyFiles, Key | KeyProblemError] | None = None

    async def connect(self, material: Material) -> Link:
        """A connection that is verified and authenticated. Raises Failure."""
        key = await self._key(material.key)
        self._state.set(public_key=self._unless_known(key))
        self._state.succeeded(ConditionType.KEY_READY)
        bastion = self._config.bastion
        rule, file = bastion.host_key, material.known_hosts
        try:
            trust = await in_daemon_thread(lambda: trust_of(rule, file, bastion.host, bastion.port))
        except KnownHostsError as error:
            raise transport_failure(Reason.KNOWN_HOSTS_INVALID, str(error)) from None
        return await self._trusted(trust, key)

    async def _key(self, files: KeyFiles) -> Key:
        """The key; parsed once, in a thread, since decrypting takes its time."""
        if self._parsed is None or self._parsed[0] != files:
            self._parsed = files, await _parsed_in_time(files)
        outcome = self._parsed[1]
        if isinstance(outcome, KeyProblemError):
            self._state.set(public_key=None)
            raise Failure(ConditionType.KEY_READY, outcome.reason, outcome.seen)
        return outcome

    def _unless_known(self, key: Key) -> Any:
        known = self._state.status.public_key
        return known if known and known.fingerprint == key.public.fingerprint else key.public

    async def _trusted(self, trust: Trust, key: Key) -> Link:
        """Connects with other kinds of host key until a trusted one is shown; with none pinned, all are shown."""
        legacy = self._config.bastion.algorithms is Algorithms.LEGACY
        kinds = kinds_to_try(trust, legacy=legacy)
        shown: list[asyncssh.SSHKey] = []
        for _ in range(len(kinds)):
            progress = Progress(limit_seconds=self._config.seconds.connect_timeout)
            watcher = _Watcher(trust, key, progress, legacy=legacy)
            dialer = Dialer()
            try:
                return await self._dial(dialer, watcher, [name for kind in kinds for name in kind])
            except Failure as failure:
                if failure.layer is ConditionType.AUTHENTICATED:
                    self._rejected(watcher, failure)
                if failure.reason is not Reason.HOST_KEY_MISMATCH or watcher.shown is None:
                    raise
            shown.append(watcher.shown)
            kinds = kinds_left(kinds, watcher.shown, dialer.host_key_algorithms)
            if not kinds:
                break
        raise self._untrusted(trust, shown)

    async def _dial(self, dialer: Dialer, watcher: _Watcher, kinds: list[str]) -> Link:
        """One TCP connection, one key exchange, one authentication. Raises Failure."""
        done = False
        try:
            async with asyncio.timeout(self._config.seconds.connect_timeout):
                connection = await asyncssh.connect(
                    self._config.bastion.host,
                    self._config.bastion.port,
                    tunnel=dialer,
                    client_factory=lambda: watcher,
                    server_host_key_algs=kinds,
                    known_hosts=watcher.trust.for_asyncssh(),
                    **self._options(),
                )
            link = link_over(connection, dialer, watcher.end)
            self._accepted(link, watcher.key)
            done = True
        except asyncssh.HostKeyNotVerifiable as error:
            raise _unverified(watcher, error) from None
        except Exception as error:  # a hostile server can make asyncssh raise anything
            offer = dialer.host_key_algorithms
            if offer and not offer & set(kinds):
                seen = f"the server offers host keys of {', '.join(sorted(offer))}"
                raise transport_failure(Reason.NO_COMMON_ALGORITHM, seen) from None
            raise connect_failure(error, watcher.progress, dialer.greeting) from None
        finally:
            if not done:
                dialer.abort()
        return link

    def _options(self) -> dict[str, Any]:
        """asyncssh's options. Each source of keys, hosts and settings beside ours is shut."""
        config = self._config
        return {
            **offered(config.bastion.algorithms, compression=config.compression),
            "username": config.bastion.user,
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
            "x509_trusted_cert_paths": None,
            "keepalive_interval": config.seconds.keepalive_interval,
            "keepalive_count_max": config.keepalive_count_max,
            "login_timeout": 2 * config.seconds.connect_timeout,  # ours comes first, and is told apart
        }

    def _untrusted(self, trust: Trust, shown: list[asyncssh.SSHKey]) -> Failure:
        """No key that the server has is pinned."""
        facts = tuple(map(_fact, shown))
        self._state.set(hop=self._state.status.hop.model_copy(update={"host_keys": facts}))
        seen = ", ".join(f"{fact.algorithm} {fact.fingerprint}" for fact in facts)
        return transport_failure(Reason.HOST_KEY_UNKNOWN if trust.is_empty else Reason.HOST_KEY_MISMATCH, seen)

    def _rejected(self, watcher: _Watcher, failure: Failure) -> None:
        accepted = True if watcher.progress.key_accepted else None
        if failure.reason is Reason.KEY_REJECTED:
            accepted = False
        self._state.set(public_key=watcher.key.public.model_copy(update={"accepted": accepted}))

    def _accepted(self, link: Link, key: Key) -> None:
        shown = link.connection.get_server_host_key()
        told = link.connection.get_extra_info
        hop = HopFact(
            host_keys=(_fact(shown),) if shown else (),
            server_version=printable(str(told("server_version", "")), 255) or None,
            cipher=told("send_cipher"),
            mac=told("send_mac") or None,
        )
        self._state.set(hop=hop, public_key=key.public.model_copy(update={"accepted": True}))
        self._state.succeeded(ConditionType.TRANSPORT_READY)
        self._state.succeeded(ConditionType.AUTHENTICATED)


def link_over(connection: asyncssh.SSHClientConnection, dialer: Dialer, end: End) -> Link:
    """A connection that is ready for channels."""
    packets = Packets(connection, dialer.wire, dialer.congestion)
    round_trip_seconds = dialer.wire.round_trip_seconds if dialer.wire else lambda: 0.0
    return Link(connection, dialer.is_closing, dialer.congestion, end, packets, round_trip_seconds)


async def _parsed_in_time(files: KeyFiles) -> Key | KeyProblemError:
    try:
        async with asyncio.timeout(_PARSE_SECONDS):
            return await in_daemon_thread(lambda: parse_key(files))
    except KeyProblemError as problem:
        return problem
    except TimeoutError:
        seen = f"it is not decrypted after {_PARSE_SECONDS} s: ssh-keygen -a made too many rounds"
        return KeyProblemError(Reason.PRIVATE_KEY_INVALID, seen)


def _unverified(watcher: _Watcher, error: Exception) -> Failure:
    """Why a host key or certificate was not taken; what asyncssh says of it names the cause."""
    text = str(error)
    if "revoked" in text:
        return transport_failure(Reason.HOST_KEY_REVOKED, text)
    if watcher.shown is None and watcher.trust.authorities:
        return transport_failure(Reason.HOST_CERTIFICATE_INVALID, text)
    return transport_failure(Reason.HOST_KEY_MISMATCH, text)


def _fact(key: asyncssh.SSHKey) -> HostKeyFact:
    return HostKeyFact(algorithm=key.get_algorithm(), fingerprint=key.get_fingerprint())
