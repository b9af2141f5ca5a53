"""One attempt to log in to one SSH server: TCP, key exchange, host key, authentication."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import asyncssh
from asyncssh.public_key import SSHLocalKeyPair

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import Algorithms, ForwarderConfig, HostKeyFact
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.authorized_keys import forward_target
from dbtunnel.domain.diagnosis import printable
from dbtunnel.domain.hops import hop_name, jumps_of
from dbtunnel.forwarder.algorithms import offered
from dbtunnel.forwarder.failures import (
    Failure,
    Loss,
    Progress,
    connect_failure,
    jump_failure,
    loss_of,
    no_common_algorithm,
    text_of,
    transport_failure,
)
from dbtunnel.forwarder.host_keys import KnownHostsError, Trust, kinds_left, kinds_to_try, trust_of
from dbtunnel.forwarder.jump import JumpDialer
from dbtunnel.forwarder.keyring import Keyring
from dbtunnel.forwarder.keys import Key, MountedFile
from dbtunnel.forwarder.link import End, Link
from dbtunnel.forwarder.logs import event
from dbtunnel.forwarder.loop import in_daemon_thread
from dbtunnel.forwarder.pace import pause_seconds
from dbtunnel.forwarder.packets import packets_over
from dbtunnel.forwarder.putty import CERTIFIED
from dbtunnel.forwarder.state import State
from dbtunnel.forwarder.steps import Step, Stopwatch
from dbtunnel.forwarder.transport import Dialer

_LOG = logging.getLogger(__name__)


@dataclass
class Attempt:
    """With which keys a connection is tried, and what the server said to them."""

    keys: Sequence[Key]
    """In the order in which they are offered."""
    asked: list[Key] = field(default_factory=list)
    """Those that were offered."""
    signed: Key | None = None
    """The last of which the server said that it would accept it."""


_TOLD_KEYS = 8
"""Host keys of a server that are told; nobody has more."""


class _WitnessedKeyPair(SSHLocalKeyPair):
    """A key pair that tells when it is asked to sign: the server has then said that it would accept the key."""

    def __init__(self, key: Key, attempt: Attempt, progress: Progress, signatures: Sequence[bytes] = ()) -> None:
        super().__init__(key.private, None, key.certificate.signed if key.certificate else None, None)
        self.sig_algorithms = signatures or self.sig_algorithms
        self.of, self._attempt, self._progress = key, attempt, progress

    def set_sig_algorithm(self, sig_algorithm: bytes) -> None:
        super().set_sig_algorithm(sig_algorithm)
        if self.has_cert:
            # else asyncssh offers RSA's first under SHA-1's name, and a server may count that as a failure
            self.algorithm = sig_algorithm + CERTIFIED.encode("ascii")

    def sign(self, data: bytes) -> bytes:
        self._attempt.signed, self._progress.key_accepted = self.of, True
        return super().sign(data)


class _Watcher(asyncssh.SSHClient):
    """asyncssh's view of us: judges host keys, gives the keys, hears of the connection's end."""

    def __init__(
        self, hop: int, trust: Trust, attempt: Attempt, progress: Progress, carrier: Link | None, *, legacy: bool
    ) -> None:
        self.trust, self.attempt, self.progress = trust, attempt, progress
        self.carrier = carrier
        """The connection to the jump host before, over which this one goes."""
        self._offers: list[_WitnessedKeyPair] = []
        for key in attempt.keys:
            self._offers.append(_WitnessedKeyPair(key, attempt, progress))
            if legacy and key.private.get_algorithm() == "ssh-rsa":
                # an old server may name SHA-2 among what it can do and take SHA-1 alone
                self._offers.append(_WitnessedKeyPair(key, attempt, progress, [b"ssh-rsa"]))
        self.shown: asyncssh.SSHKey | None = None
        self.stranger: asyncssh.SSHKey | None = None
        """The authority of its certificate, where it is not pinned."""
        self.end = End(hop)
        self.stopwatch = Stopwatch()
        self.is_in = False
        """Whether the login has succeeded."""
        self.held: Sequence[asyncssh.SSHKey] = ()
        """The host keys that the server has proved to hold."""

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:  # noqa: ARG002
        self.stopwatch.ended(Step.CONNECT)

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        self.shown = key
        return self.trust.accepts(key)

    def validate_host_ca_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:  # noqa: ARG002
        self.stranger = key  # asked of those alone that known_hosts does not name
        return False

    def begin_auth(self, username: str) -> None:  # noqa: ARG002
        self.progress.host_key_verified = True
        self.stopwatch.ended(Step.KEY_EXCHANGE)

    def public_key_auth_requested(self) -> Any:
        self.progress.key_asked_for = True
        if not self._offers:
            return None
        offer = self._offers.pop(0)
        if offer.of not in self.attempt.asked:
            self.attempt.asked.append(offer.of)
        return offer

    def auth_completed(self) -> None:
        self.stopwatch.ended(Step.AUTHENTICATION)

    def connection_lost(self, exc: Exception | None) -> None:
        before = self.carrier
        if before and before.lost.is_set():
            self.end.happen(before.end.reason, before.end.at, Loss.JUMP_HOST)
            return
        self.end.happen(text_of(exc) if exc else "the server closed it", loss=loss_of(exc))
        if before and self.is_in:
            before.close()


class Login:
    """Logs in to one SSH server, and tells the state how far each attempt came."""

    def __init__(self, config: ForwarderConfig, number: int, keyring: Keyring, state: State) -> None:
        self.number, self.keyring = number, keyring
        self._config, self._hop = config, config.hops[number]
        self._is_jump_host = number in jumps_of(config)
        self._state = state
        self.seconds: dict[Step, float] = {}
        """How long the steps of the last connection took."""

    async def connect(self, known_hosts: MountedFile, carrier: Link | None = None) -> Link:
        """A connection that is verified and authenticated; over that to the jump host before. Raises Failure."""
        attempt = Attempt(())
        try:
            await self.keyring.keys.ready()
            attempt.keys = self.keyring.offers(_now())
            if not self._is_jump_host:
                self._state.succeeded(ConditionType.KEY_READY)
            link = await self._trusted(await self._trust(known_hosts), attempt, carrier)
        except Failure as failure:
            if failure.hop is None:
                failure.hop = self.number
            if failure.reason is Reason.KEY_REJECTED:
                failure.seen = self.keyring.refusal(self._hop.user)
            self._refused(attempt, failure)
            raise
        link.carrier, link.key = carrier, attempt.signed or attempt.keys[0]  # a server may let in whoever asks
        for key in attempt.asked:
            if key is not link.key:
                self.rest(key, self._rejection(key))
        return link

    def _rejection(self, key: Key) -> Failure:
        seen = self.keyring.refusal(self._hop.user, key)
        if key.certificate:
            event(_LOG, "certificate not accepted", hop=hop_name(self._config, self.number), seen=seen)
        return Failure(ConditionType.AUTHENTICATED, Reason.KEY_REJECTED, seen, self.number)

    def _refused(self, attempt: Attempt, failure: Failure) -> None:
        """Notes which keys the server did not let in."""
        if failure.layer is not ConditionType.AUTHENTICATED:
            return
        for key in attempt.asked:
            is_other = failure.reason is Reason.SECOND_FACTOR_REQUIRED and key is not attempt.signed
            is_rejected = is_other or failure.reason is Reason.KEY_REJECTED
            self.rest(key, self._rejection(key) if is_rejected else failure)

    def rest(self, key: Key, failure: Failure) -> None:
        """Leaves a key that is of no use alone for a while: as long as a rejected one, since each try is a login."""
        rejected = Failure(ConditionType.AUTHENTICATED, Reason.KEY_REJECTED)
        self.keyring.refused(key, failure, _now() + pause_seconds(rejected, 0, self._config.replicas))

    async def _trust(self, known_hosts: MountedFile) -> Trust:
        hop = self._hop
        try:
            return await in_daemon_thread(lambda: trust_of(hop.host_key, known_hosts, hop.host, hop.port))
        except KnownHostsError as error:
            raise transport_failure(Reason.KNOWN_HOSTS_INVALID, str(error)) from None

    async def _trusted(self, trust: Trust, attempt: Attempt, carrier: Link | None) -> Link:
        """Connects with other kinds of host key until a trusted one is shown; with none pinned, all are shown."""
        legacy = self._hop.algorithms is Algorithms.LEGACY
        kinds = kinds_to_try(trust, legacy=legacy)
        shown: list[asyncssh.SSHKey] = []
        for _ in range(len(kinds)):
            progress = Progress(limit_seconds=self._config.seconds.connect_timeout)
            watcher = _Watcher(self.number, trust, attempt, progress, carrier, legacy=legacy)
            dialer = JumpDialer(carrier, progress.limit_seconds) if carrier else Dialer()
            try:
                return await self._dial(dialer, watcher, [name for kind in kinds for name in kind])
            except Failure as failure:
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
                    self._hop.host,
                    self._hop.port,
                    tunnel=dialer,
                    client_factory=lambda: watcher,
                    server_host_key_algs=kinds,
                    known_hosts=watcher.trust.for_asyncssh(),
                    server_host_keys_handler=lambda added, _, kept, __: self._holds(watcher, [*kept, *added]),
                    **self._options(),
                )
            link = link_over(connection, dialer, watcher.end, own_packets=self._config.own_packets)
            self._accepted(link)
            watcher.is_in = done = True
            self._holds(watcher, watcher.held)
        except Exception as error:  # a hostile server can make asyncssh raise anything
            raise self._failure(error, dialer, watcher, kinds) from None
        finally:
            if dialer.greeting and dialer.greeting.heard_at:
                watcher.stopwatch.ended(Step.VERSION, dialer.greeting.heard_at)
            self.seconds = watcher.stopwatch.seconds()
            if not done:
                dialer.abort()
        return link

    def _failure(self, error: Exception, dialer: Dialer, watcher: _Watcher, kinds: list[str]) -> Failure:
        before = watcher.carrier
        if before and before.lost.is_set():
            return lost(before)
        if unverified := _unverified(watcher, error):
            return unverified
        if before and dialer.greeting is None:
            target = forward_target(self._hop.host, self._hop.port)
            return jump_failure(error, before.end.hop, target, watcher.progress.limit_seconds)
        offer = dialer.host_key_algorithms
        if offer and not offer & set(kinds):
            return no_common_algorithm("server host key", ",".join(kinds), ",".join(sorted(offer)))
        return connect_failure(error, watcher.progress, dialer.greeting)

    def _options(self) -> dict[str, Any]:
        """asyncssh's options. Each source of keys, hosts and settings beside ours is shut."""
        config, hop = self._config, self._hop
        return {
            # what goes through a jump host is encrypted, and would not become smaller
            **offered(hop.algorithms, compression=config.compression and not self._is_jump_host),
            "username": hop.user,
            "host_key_alias": hop.host_key.alias,
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
        self._state.set_hop(self.number, host_keys=facts)
        seen = ", ".join(f"{fact.algorithm} {fact.fingerprint}" for fact in facts)
        return transport_failure(Reason.HOST_KEY_UNKNOWN if trust.is_empty else Reason.HOST_KEY_MISMATCH, seen)

    def _accepted(self, link: Link) -> None:
        shown = link.connection.get_server_host_key()
        known = self._state.status.hops[self.number].host_keys
        told = link.connection.get_extra_info
        cipher, mac = told("send_cipher"), told("send_mac")
        self._state.set_hop(
            self.number,
            # what was announced before will be again in a moment
            host_keys=_in_use_first(_fact(shown), [one for one in known if one.announced]) if shown else (),
            server_version=printable(str(told("server_version", "")), 255) or None,
            cipher=cipher,
            mac=None if mac == cipher else mac or None,  # of an AEAD cipher asyncssh tells the cipher twice
        )

    def _holds(self, watcher: _Watcher, keys: Sequence[asyncssh.SSHKey]) -> None:
        """The server has proved that it holds these host keys (OpenSSH's PROTOCOL, section 2.5). They are told, so that
        they can be pinned before it changes to one of them. None is trusted for that.
        """
        watcher.held = keys
        if not keys or not watcher.is_in:
            return
        pinned = [key for key in keys if watcher.trust.accepts(key)]
        # with none pinned a certificate verifies it, and will verify the next key as well
        facts = [replace(_fact(key), announced=bool(pinned) and key not in pinned) for key in keys]
        known = self._state.status.hops[self.number].host_keys
        told = _in_use_first(known[0], facts) if known else tuple(facts[:_TOLD_KEYS])
        self._state.set_hop(self.number, host_keys=told)
        if any(fact.announced and fact not in known for fact in told):
            strange = ", ".join(fact.fingerprint for fact in told if fact.announced)
            name = hop_name(self._config, self.number)
            event(_LOG, "server holds host keys that are not pinned", hop=name, keys=strange)


def link_over(connection: asyncssh.SSHClientConnection, dialer: Dialer, end: End, *, own_packets: bool = True) -> Link:
    """A connection that is ready for channels."""
    packets = packets_over(connection, dialer.wire, dialer.congestion, own=own_packets)
    is_closing = lambda: packets.is_over or dialer.is_closing()  # noqa: E731
    link = Link(connection, is_closing, dialer.congestion, end, packets)
    if dialer.wire:
        link.round_trip_seconds, link.is_unanswered = dialer.wire.round_trip_seconds, dialer.wire.is_unanswered
    return link


def lost(link: Link) -> Failure:
    """The failure of a connection that was lost."""
    return Failure(ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST, link.end.reason, link.end.at)


def unanswered(link: Link) -> Failure:
    """The failure of a connection on whose way packets are dropped."""
    seen = "nothing that is sent over the connection is acknowledged"
    return Failure(ConditionType.TRANSPORT_READY, Reason.CONNECT_TIMEOUT, seen, link.first().end.hop)


_VERDICTS = {
    "Host key is revoked": Reason.HOST_KEY_REVOKED,
    "Host CA key is revoked": Reason.HOST_KEY_REVOKED,
    "Host CA key is not trusted": Reason.HOST_CERTIFICATE_INVALID,
    "Invalid certificate type": Reason.HOST_CERTIFICATE_INVALID,
    "Certificate not yet valid": Reason.HOST_CERTIFICATE_INVALID,
    "Certificate expired": Reason.HOST_CERTIFICATE_INVALID,
    "Certificate principal mismatch": Reason.HOST_CERTIFICATE_INVALID,
    "Unable to decode host key": Reason.HOST_KEY_MISMATCH,
}
"""What asyncssh finds. A server can send the same error (SSH_DISCONNECT_HOST_KEY_NOT_VERIFIABLE) with words of its own,
and nobody has proved who it is: it shall not tell people what to pin."""


_REVOKED_TOLD = 4
"""Keys that known_hosts revokes for a server. asyncssh does not say which of them it shows."""


def _unverified(watcher: _Watcher, error: Exception) -> Failure | None:
    """Why a host key or certificate was not taken; None where that is not what failed."""
    if watcher.shown is not None and not watcher.trust.accepts(watcher.shown):
        return transport_failure(Reason.HOST_KEY_MISMATCH)
    verdict = str(error).partition(" for host ")[0]
    if not isinstance(error, asyncssh.HostKeyNotVerifiable) or verdict not in _VERDICTS:
        return None
    reason = _VERDICTS[verdict]
    keys: Sequence[asyncssh.SSHKey] = watcher.trust.revoked if reason is Reason.HOST_KEY_REVOKED else ()
    if watcher.stranger:
        keys = [watcher.stranger]
    told = " or ".join(f"{fact.algorithm} {fact.fingerprint}" for fact in map(_fact, keys[:_REVOKED_TOLD]))
    return transport_failure(reason, f"{verdict}{': ' if told else ''}{told}")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _in_use_first(in_use: HostKeyFact, others: Sequence[HostKeyFact]) -> tuple[HostKeyFact, ...]:
    return (in_use, *(one for one in others if one.fingerprint != in_use.fingerprint))[:_TOLD_KEYS]


def _fact(key: asyncssh.SSHKey) -> HostKeyFact:
    return HostKeyFact(algorithm=key.get_algorithm(), fingerprint=key.get_fingerprint())
