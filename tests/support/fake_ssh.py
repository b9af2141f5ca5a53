"""SSH servers and clients of a forwarder that are none, for its connector and listener in virtual time."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Protocol, cast

import asyncssh

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.keyring import Keyring
from dbtunnel.forwarder.keys import Key
from dbtunnel.forwarder.link import End, Link
from dbtunnel.forwarder.listener import Listener
from dbtunnel.forwarder.metrics import CLIENTS_PARKED, Metrics
from dbtunnel.forwarder.pace import pause_seconds
from dbtunnel.forwarder.transport import Congestion
from tests.support.virtual_time import now

ANSWER_SECONDS, SILENT_SECONDS = 0.05, 10.0
"""How long a server takes for a login or a channel, and how long nobody waits any more for one that is silent."""

_REJECTED = Failure(ConditionType.AUTHENTICATED, Reason.KEY_REJECTED)


@dataclass(eq=False)
class Connection:
    """An SSH connection, and what became of it."""

    hop: int
    key: Key
    link: Link = field(init=False)
    made_at: float = field(default_factory=now)
    ended_at: float | None = None
    is_closed: bool = False
    """By the forwarder."""
    had_users: bool = False
    """When it was closed."""

    def __post_init__(self) -> None:
        packets = cast(Any, SimpleNamespace(why_not=""))
        self.link = Link(cast(Any, self), lambda: not self.stands, Congestion(), End(self.hop), packets, self.key)

    @property
    def stands(self) -> bool:
        """Whether neither side has ended it."""
        return not self.is_closed and self.ended_at is None

    def abort(self) -> None:
        """As asyncssh's: the forwarder closes it."""
        if not self.is_closed:
            self.is_closed, self.had_users = True, self.link.uses > 0
            asyncio.get_running_loop().call_soon(self.end, ())

    def end(self, clients: "Iterable[Client]") -> None:
        """It is gone; channels hear of that first."""
        if self.ended_at is None:
            self.ended_at = now()
            for client in clients:
                client.connection_ended(self.link)
            self.link.end.happen("reset")


@dataclass
class Attempt:
    """An attempt to log in, and what came of it."""

    hop: int
    files: int
    """Number of the state of the Secret that the forwarder knew."""
    began: float = field(default_factory=now)
    ended: float | None = None
    failure: Failure | None = None
    made: Connection | None = None


class Server:
    """An SSH server; stands for the Login there."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.keyring = cast(Keyring, None)
        self.fails: Reason | None = None
        """What it does to everybody."""
        self.rejected: set[str] = set()
        """Fingerprints of keys that it does not know."""
        self.on_attempt: Callable[[Attempt], None] = lambda _: None
        self.files: Callable[[], int] = lambda: 0

    async def connect(self, _: object, carrier: None = None) -> Link:
        """As Login's."""
        attempt = Attempt(self.number, self.files())
        self.on_attempt(attempt)
        try:
            attempt.made = await self._made()
        except Failure as failure:
            attempt.failure = failure
            raise
        finally:
            attempt.ended = now()
        return attempt.made.link

    async def _made(self) -> Connection:
        fails = self.fails
        await self.keyring.keys.ready()
        offers = self.keyring.offers(now())
        await asyncio.sleep(SILENT_SECONDS if fails is Reason.CONNECT_TIMEOUT else ANSWER_SECONDS)
        if fails:
            raise Failure(REASONS[fails].type, fails, hop=self.number)
        for key in offers:
            if key.fingerprint not in self.rejected:
                return Connection(self.number, key)
            self.rest(key, _REJECTED)
        raise Failure(_REJECTED.layer, _REJECTED.reason, hop=self.number)

    def rest(self, key: Key, failure: Failure) -> None:
        """As Login's."""
        self.keyring.refused(key, failure, now() + pause_seconds(_REJECTED, 0, 1))


class ClientsWorld(Protocol):
    """Whoever wants to know the clients."""

    clients: "list[Client]"
    metrics: Metrics


class Client:
    """A client as the listener sees it, and what became of it. It is given the world in the place of its address."""

    def __init__(self, _: object, world: ClientsWorld, host: Listener) -> None:
        self._host, self._metrics = host, world.metrics
        self.came_at = self.asked_at = now()
        self.is_gone = self.was_joined = self.was_refused = self.was_greeted = False
        self.address = ("", 0)
        self.visitor, self.how = None, ""
        self.sent = self.received_bytes = 0
        self.joined_at = 0.0
        self.link: Link | None = None
        self._opening: asyncio.TimerHandle | None = None
        self.gone_at = 0.0
        self.parked_then = 0.0
        """How many clients were parked when it was refused."""
        world.clients.append(self)

    @property
    def waits(self) -> bool:
        """Whether it has no channel yet."""
        return not self.is_gone and not self.was_joined

    def park(self, *, parked: bool) -> None:
        """The listener counts."""

    def open_channel(self, link: Link, *_: object) -> None:
        """It opens after a moment."""
        link.enter()
        self.link = link
        self._opening = asyncio.get_running_loop().call_later(ANSWER_SECONDS, self._opened)

    def _opened(self) -> None:
        self._opening, self.was_joined = None, True
        self._host.joined(cast(Any, self))

    def connection_ended(self, link: Link) -> None:
        """Where it is that of its channel."""
        if self.is_gone or self.link is not link:
            return
        if self._opening:
            self._end_channel()
            self._host.has_no_channel(cast(Any, self), asyncssh.ChannelOpenError(2, "SSH connection closed"))
        elif self.was_joined:
            self.refuse()

    def _end_channel(self) -> None:
        if self.link and (self._opening or self.was_joined):
            self.link.leave()
        if self._opening:
            self._opening.cancel()
        self._opening = None

    def refuse(self, _: str = "") -> None:
        """As the listener asks for it."""
        if not self.is_gone:
            self.was_refused, self.parked_then = True, self._metrics.get(CLIENTS_PARKED)
            self.leave()

    def leave(self) -> None:
        """Its own connection ends."""
        if not self.is_gone:
            self.is_gone, self.gone_at = True, now()
            self._end_channel()
            self._host.gone(cast(Any, self))
