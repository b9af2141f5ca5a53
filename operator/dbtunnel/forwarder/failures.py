"""From what went wrong to the layer and the reason. Each failure is classified here, once."""

import errno
import re
import socket
from dataclasses import dataclass
from enum import StrEnum

import asyncssh

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.diagnosis import SEEN_LIMIT, printable, quoted
from dbtunnel.forwarder.greeting import Greeting

_TURNED_AWAY = (b"exceeded maxstartups", b"not allowed at this time", b"too many connections", b"connection refused by")
"""What SSH servers say before their version line when they turn a client away; in lower case."""

_DISCONNECTS_TURNED_AWAY = frozenset({1, 12})
"""What those say that turn a client away later: SSH_DISCONNECT_HOST_NOT_ALLOWED_TO_CONNECT and
SSH_DISCONNECT_TOO_MANY_CONNECTIONS (RFC 4253, section 11.1)."""

_OF_THE_NETWORK = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EHOSTDOWN, errno.EADDRNOTAVAIL}
)

_CUT = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError)
"""What comes of a reset, which there can be only where a connection was taken."""

_BROKEN = (asyncssh.ProtocolError, asyncssh.MACError, asyncssh.CompressionError, asyncssh.KeyExchangeFailed)
"""What comes of packets that cannot be."""

_DATABASE_TEXTS: tuple[tuple[str, Reason], ...] = (
    # the bastion's own words: those of sshd are its C library's (glibc, musl), for getaddrinfo(3) and connect(2)
    ("refused", Reason.DATABASE_REFUSED),
    ("timed out", Reason.DATABASE_TIMEOUT),
    ("timeout", Reason.DATABASE_TIMEOUT),
    ("no route", Reason.DATABASE_UNREACHABLE),
    ("unreachable", Reason.DATABASE_UNREACHABLE),
    ("name or service not known", Reason.DATABASE_UNRESOLVABLE),
    ("name resolution", Reason.DATABASE_UNRESOLVABLE),
    ("no address", Reason.DATABASE_UNRESOLVABLE),
    ("not known", Reason.DATABASE_UNRESOLVABLE),
    ("resolve", Reason.DATABASE_UNRESOLVABLE),
    ("unknown host", Reason.DATABASE_UNRESOLVABLE),
    ("no such host", Reason.DATABASE_UNRESOLVABLE),
    ("try again", Reason.DATABASE_UNRESOLVABLE),
)


@dataclass(eq=False)
class Failure(Exception):
    """A layer does not work, and why."""

    layer: ConditionType
    reason: Reason
    seen: str = ""
    hop: int | None = None
    """Number of the SSH server that this speaks of; None: the one at hand."""
    may_pass: bool = False
    """It may be over in a moment, so that the reason's slow pace is not for it."""


class Loss(StrEnum):
    """Why an SSH connection that was in use is not any more."""

    LOST = "Lost"
    """It ended without a word of the server's."""
    NOT_ALIVE = "KeepaliveUnanswered"
    NETWORK = "NetworkFailed"
    """The system says so: a reset, no route."""
    DISCONNECTED = "Disconnected"
    """The server said that it ends it."""
    BROKEN = "ProtocolBroken"
    JUMP_HOST = "JumpHostLost"
    KEY_REVOKED = "KeyRevoked"
    REPLACED = "Replaced"
    """By one with other keys, to a server that comes before, or verified by another known_hosts; or since packets on
    the way to its server were dropped."""


def loss_of(error: Exception | None) -> Loss:
    """Why asyncssh gave a connection up. What a server sent chooses among these at most."""
    if error is None:
        return Loss.DISCONNECTED
    if isinstance(error, asyncssh.ConnectionLost):
        return Loss.NOT_ALIVE if "keepalive" in str(error) else Loss.LOST
    if isinstance(error, OSError):
        return Loss.NETWORK
    return Loss.BROKEN if isinstance(error, _BROKEN) or not isinstance(error, asyncssh.Error) else Loss.DISCONNECTED


@dataclass
class Progress:
    """How far an attempt to connect has come."""

    host_key_verified: bool = False
    key_asked_for: bool = False
    """The server offered publickey authentication."""
    key_accepted: bool = False
    """The server said that it would accept the key, and a signature was sent."""
    limit_seconds: float = 0
    """How long the attempt may take."""


def transport_failure(reason: Reason, seen: str = "") -> Failure:
    """A failure of the transport layer."""
    return Failure(ConditionType.TRANSPORT_READY, reason, seen)


def _closed_unheard(verb: str) -> Failure:
    """A connection that ended without a word: so does one to a load balancer whose bastion restarts.

    OpenSSL ends one so, too, when it hears a version line and no TLS. Nothing here tells that from an old sshd's
    MaxStartups; today's says why it turns a client away.
    """
    seen = f"it {verb} the connection before its version line, as a server that expects TLS does: check its port first"
    return Failure(ConditionType.TRANSPORT_READY, Reason.BASTION_REFUSING, seen, may_pass=True)


def connect_failure(error: BaseException, progress: Progress, greeting: Greeting | None) -> Failure:
    """Why an attempt to connect failed; host keys are judged elsewhere."""
    if isinstance(error, asyncssh.DisconnectError) and error.code in _DISCONNECTS_TURNED_AWAY:
        return transport_failure(Reason.BASTION_REFUSING, f"it says {quoted(error.reason)}")
    if progress.host_key_verified:
        return _authentication_failure(error, progress)
    if isinstance(error, _CUT) and not (greeting and greeting.heard):
        return _closed_unheard("resets")
    if greeting is None:
        return _interruption(error, progress)
    if greeting.has_version:
        return _exchange_failure(error, progress)
    return _greeting_failure(error, greeting, progress)


def _interruption(error: BaseException, progress: Progress) -> Failure:
    if isinstance(error, OSError):
        return _network_failure(error, progress)
    return transport_failure(Reason.CONNECTION_LOST, text_of(error))


def text_of(error: BaseException) -> str:
    """What an error says. One of another kind than asyncssh's is what it stumbled over in a malformed message."""
    if isinstance(error, OSError):
        return str(error)
    if isinstance(error, asyncssh.Error):
        return quoted(str(error))  # one of the server's own words cannot be told from asyncssh's
    return f"a message that breaks the SSH protocol ({type(error).__name__})"


def _network_failure(error: OSError, progress: Progress) -> Failure:
    text = error.strerror or str(error)
    if isinstance(error, socket.gaierror):
        return transport_failure(Reason.HOST_UNRESOLVABLE, text)
    if isinstance(error, TimeoutError):
        return transport_failure(Reason.CONNECT_TIMEOUT, f"no TCP connection after {progress.limit_seconds:g} s")
    numbers = _error_numbers(error)
    if errno.ECONNREFUSED in numbers:
        return transport_failure(Reason.CONNECTION_REFUSED, text)
    if numbers & _OF_THE_NETWORK:
        return transport_failure(Reason.NETWORK_UNREACHABLE, text)
    if errno.ETIMEDOUT in numbers:
        return transport_failure(Reason.CONNECT_TIMEOUT, text)
    return transport_failure(Reason.CONNECTION_LOST, text)


def _error_numbers(error: OSError) -> set[int]:
    """The error's number; where several addresses were tried, asyncio joins their texts into one without a number."""
    if error.errno is not None:
        return {error.errno}
    known = (errno.ECONNREFUSED, errno.ETIMEDOUT, *_OF_THE_NETWORK)
    return {number for number in known if f"[Errno {number}]" in str(error)}


def _greeting_failure(error: BaseException, greeting: Greeting, progress: Progress) -> Failure:
    """There is a TCP connection and no SSH version line on it."""
    said = greeting.text_before_version()
    shown = f"it says {quoted(said.decode('latin-1'))}"
    if any(text in said.lower() for text in _TURNED_AWAY):
        return transport_failure(Reason.BASTION_REFUSING, shown)
    if said or greeting.heard:
        return transport_failure(Reason.NOT_AN_SSH_SERVER, shown)
    if isinstance(error, TimeoutError):
        seconds = f"{progress.limit_seconds:g} s"
        return transport_failure(
            Reason.CONNECT_TIMEOUT, f"TCP connects, and no SSH version line comes within {seconds}"
        )
    if isinstance(error, OSError):
        return _network_failure(error, progress)
    return _closed_unheard("closes")


def _exchange_failure(error: BaseException, progress: Progress) -> Failure:
    """The server has told its version, and its host key is not verified."""
    if isinstance(error, asyncssh.KeyExchangeFailed):
        found = _NO_MATCH.fullmatch(str(error))
        return no_common_algorithm(*found.groups()) if found else _disagreement(text_of(error))
    if isinstance(error, TimeoutError):
        return transport_failure(
            Reason.CONNECT_TIMEOUT, f"the key exchange is not finished after {progress.limit_seconds:g} s"
        )
    return _interruption(error, progress)


_NO_MATCH = re.compile(r"No matching (.+?) algorithm found, sent (.*?) and received (.*)", re.DOTALL)
"""What asyncssh finds in the two sides' lists. The server's is the last, so that nothing in it can pass for ours."""

_OPTIONS = {
    "key exchange": "KexAlgorithms",
    "server host key": "HostKeyAlgorithms",
    "encryption": "Ciphers",
    "MAC": "MACs",
    "compression": "Compression",
}
"""sshd's option for each kind of algorithm, as asyncssh calls the kind."""


def no_common_algorithm(kind: str, ours: str, theirs: str) -> Failure:
    """The two sides have no algorithm of a kind in common; the lists are separated by commas. Ours is shown whole."""
    begin = f"{printable(kind, 40)} ({_OPTIONS.get(kind, 'its own')}): the server offers "
    end = f"; the tunnel offers {printable(ours.replace(',', ', '))}"
    return _disagreement(begin + _listed(theirs, SEEN_LIMIT - len(begin + end)) + end)


def _listed(names: str, limit: int) -> str:
    """As many whole names of a server's as there is room for, in quotes, and how many more there are: half a name would
    be pasted as if it were one.
    """
    found = names.split(",")
    shown: list[str] = []
    room = limit - len(f" and {len(found)} more")
    for name in found:
        room -= len(quoted(name, limit))  # whose quotes are as long as a comma and a space
        if room < 0:
            return f"{quoted(', '.join(shown), limit)} and {len(found) - len(shown)} more"
        shown.append(name)
    return quoted(", ".join(shown), limit)


def _disagreement(seen: str) -> Failure:
    return transport_failure(Reason.NO_COMMON_ALGORITHM, seen)


def _authentication_failure(error: BaseException, progress: Progress) -> Failure:
    layer = ConditionType.AUTHENTICATED
    text = text_of(error)
    if "too many authentication failures" in text.lower():
        return Failure(layer, Reason.TOO_MANY_AUTH_FAILURES, text)
    if isinstance(error, asyncssh.PermissionDenied):
        if progress.key_accepted:
            return Failure(layer, Reason.SECOND_FACTOR_REQUIRED, "publickey succeeded and another method is demanded")
        if progress.key_asked_for:
            return Failure(layer, Reason.KEY_REJECTED)
        return Failure(layer, Reason.METHOD_NOT_OFFERED, "its list of methods has no publickey")
    if isinstance(error, TimeoutError):
        seen = f"authentication is not finished after {progress.limit_seconds:g} s"
        return transport_failure(Reason.CONNECT_TIMEOUT, seen)
    return transport_failure(Reason.CONNECTION_LOST, f"during authentication: {text}")


_NO_DESCRIPTOR = "too many open files"
"""sshd's words where its process has no descriptor left for another client; it is none of the database's."""


_SEEN_FROM_A_JUMP_HOST = {
    Reason.DATABASE_UNRESOLVABLE: Reason.HOST_UNRESOLVABLE,
    Reason.DATABASE_UNREACHABLE: Reason.NETWORK_UNREACHABLE,
    Reason.DATABASE_REFUSED: Reason.CONNECTION_REFUSED,
    Reason.DATABASE_TIMEOUT: Reason.CONNECT_TIMEOUT,
}
"""What keeps a jump host from opening a connection is the same as what keeps a bastion."""


def jump_failure(error: BaseException, jump_host: int, target: str, limit_seconds: float) -> Failure:
    """Why a jump host opened no connection to what comes next. It is the jump host that prohibits it, else the next."""
    failure = channel_failure(error, limit_seconds)
    if failure.reason is Reason.FORWARDING_PROHIBITED:
        seen = f"{failure.seen}, to {target}"
        return Failure(ConditionType.TRANSPORT_READY, failure.reason, seen, jump_host)
    if failure.reason is Reason.TOO_MANY_CONNECTIONS:
        return Failure(ConditionType.TRANSPORT_READY, Reason.BASTION_REFUSING, failure.seen, jump_host)
    return transport_failure(_SEEN_FROM_A_JUMP_HOST[failure.reason], failure.seen)


def channel_failure(error: BaseException, limit_seconds: float) -> Failure:
    """Why a channel to the database did not open, on an SSH connection that stands."""
    layer = ConditionType.DATABASE_REACHABLE
    if isinstance(error, TimeoutError):
        return Failure(layer, Reason.DATABASE_TIMEOUT, f"the SSH server opens no connection within {limit_seconds:g} s")
    if not isinstance(error, asyncssh.ChannelOpenError):
        return Failure(layer, Reason.DATABASE_REFUSED, text_of(error))
    if error.code == asyncssh.OPEN_RESOURCE_SHORTAGE or _NO_DESCRIPTOR in error.reason.lower():
        return Failure(
            layer, Reason.TOO_MANY_CONNECTIONS, f"the SSH server opens no more channels: {quoted(error.reason)}"
        )
    if error.code != asyncssh.OPEN_CONNECT_FAILED:
        # its policy (code 1), or no such channel type
        return Failure(layer, Reason.FORWARDING_PROHIBITED, quoted(error.reason))
    text = error.reason.lower()
    reason = next((reason for part, reason in _DATABASE_TEXTS if part in text), Reason.DATABASE_REFUSED)
    return Failure(layer, reason, quoted(error.reason))
