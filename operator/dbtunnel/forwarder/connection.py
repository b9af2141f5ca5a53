"""The SSH connection's life: made, used, lost, made again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import ForwarderConfig, KeySessions
from dbtunnel.domain.hops import hop_name
from dbtunnel.forwarder.failures import Failure, Loss
from dbtunnel.forwarder.keys import KeySource, MountedFile
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.login import lost, unanswered
from dbtunnel.forwarder.logs import event
from dbtunnel.forwarder.metrics import OWN_PACKETS, SSH_CONNECTS, SSH_RECONNECTS, SSH_UP, Metrics
from dbtunnel.forwarder.pace import STABLE_SECONDS, Pace
from dbtunnel.forwarder.route import KnownHosts, Route
from dbtunnel.forwarder.state import State

_LOG = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""How often the mounted files are looked at."""


@dataclass(frozen=True)
class Sources:
    """Where a hop's keys and known_hosts are read, again and again: all may come late and may change."""

    keys: KeySource
    read_known_hosts: Callable[[], MountedFile] = MountedFile


async def _no_obstacle(_: Link) -> Failure | None:
    return None


class Connector:
    """Keeps an SSH connection, `link`, and what it is the first of: `connections` that were made alike and take new
    channels. None while there is none.
    """

    def __init__(self, config: ForwarderConfig, sources: Sequence[Sources], state: State, metrics: Metrics) -> None:
        """`sources`: by the hop's number."""
        self._config, self._sources, self._state, self._metrics = config, sources, state, metrics
        self._route = Route(config, [source.keys for source in sources], state, metrics)
        self._known_hosts: KnownHosts = ()
        self.link: Link | None = None
        self._has_news = False
        """Whether the files have changed since the last attempt."""
        self._made_with: KnownHosts = ()
        """What `link` was verified by."""
        self._since = 0.0
        """When it was put in use, by the loop's time."""
        self._has_complained = False
        """Whether a failure was told since then: only another connection can take it back."""
        self.up = asyncio.Event()
        self.on_up: Callable[[], None] = lambda: None
        """Called when there is a connection for new channels."""
        self.obstacle: Callable[[Link], Awaitable[Failure | None]] = _no_obstacle
        """Why no channels can be had over a connection, as far as can be found out before it is in use."""
        self.down_since: float | None = _now()
        """The loop's time; None while there is a connection."""
        self._further: list[Link] = []
        """Those beside `link` that take new channels."""
        self._are_missing = asyncio.Event()
        self._further_pace = Pace(config.replicas)
        self._added_at = 0.0
        """When the last of them was made, by the loop's time."""
        self._retiring: set[Link] = set()
        self._last_lost: Link | None = None
        """With which the last connection was lost, the last time that there was none."""

    async def run(self) -> None:
        """Keeps connections until cancelled. A bug in any part ends all of it (ExceptionGroup)."""
        try:
            async with asyncio.TaskGroup() as parts:
                for part in (self._keep_first(), self._add_further(), self._keep_looking()):
                    parts.create_task(part)
        finally:
            links = self._all()
            self.link = None
            self._further.clear()
            self.up.clear()  # before anybody who waits for it looks for a connection that is none
            for link in links:
                link.close()

    async def _keep_first(self) -> None:
        """Connects, again and again."""
        while True:
            self._look()
            if self.link is None or self._is_outdated(self.link):
                await self._attempt()
            else:
                await self._hold(self.link)

    async def _keep_looking(self) -> None:
        """Looks at the files while an attempt goes on, too: what a revoked key has made must not outlast it."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._look()
            if self.least_used():
                self.on_up()  # one that was cut off may be no more

    def _look(self) -> None:
        """Takes up the mounted files."""
        known_hosts = [source.read_known_hosts() for source in self._sources]
        has_changed = self._route.look() or known_hosts != self._known_hosts
        self._known_hosts = known_hosts
        if has_changed:
            self._has_news = True
            self._route.reset()
            self._further_pace.reset()
        for link in self._all():
            if self._route.is_revoked(link) and not link.is_closing():
                event(_LOG, "connection of a revoked key ended", channels=link.uses)
                link.end.loss = Loss.KEY_REVOKED
                link.close()

    def _all(self) -> list[Link]:
        return [*([self.link] if self.link else []), *self._further, *self._retiring]

    def takes_channels(self, link: Link) -> bool:
        """Whether new channels go over this connection, among others."""
        return link is self.link or link in self._further

    def least_used(self) -> Link | None:
        """The connection for a new channel: where there is least in its way."""
        usable = [link for link in (self.link, *self._further) if link and link.is_usable()]
        return min(usable, key=Link.burden, default=None)

    def is_cut_off(self, link: Link) -> bool:
        """Whether somebody waits in vain since packets to the SSH server are dropped. Then new clients do not take the
        connection, and another is made where there is none beside it. What goes over it may go on: keepalives decide
        whether it is lost.
        """
        if not link.is_unanswered():
            return False
        if not link.is_doubted:
            link.is_doubted = True
            event(_LOG, "connection unanswered", hop=hop_name(self._config, link.first().end.hop))
        if self.link and not (self._has_complained or self.least_used()):
            self._has_complained = True
            self._state.failed(unanswered(link))
        return True

    def sessions(self) -> tuple[KeySessions, ...]:
        """What goes over the connections, by the keys with which they logged in, those to jump hosts too."""
        found: dict[str, set[Link]] = {}
        for link in self._all():
            for fingerprint in link.fingerprints().values():
                found.setdefault(fingerprint, set()).add(link)
        return tuple(
            KeySessions(fingerprint=fingerprint, connections=len(links), channels=sum(link.uses for link in links))
            for fingerprint, links in sorted(found.items())
        )

    # --- another connection ---------------------------------------------------------------------------------------

    async def _attempt(self) -> None:
        """Tries to make a connection; waits where that fails."""
        known_hosts, standing, rival, self._has_news = self._known_hosts, self.link, self._rival(), False
        try:
            link = await self._route.connect(known_hosts, self._worst())
        except Failure as failure:
            if self.link in (None, standing):  # else another has come in its place
                self._tell(failure, rival)
            await self._pause(self._route.wait_seconds(self._worst()))
        else:
            await self._admit(link, known_hosts)

    def _rival(self) -> Link | None:
        """The connection that goes on serving, and says that all is well, whatever becomes of another."""
        return None if self._has_complained or self._made_with != self._known_hosts else self.link

    def _worst(self) -> int | None:
        """What a connection that stands is not given up for."""
        return self.link.end.hop if self.link and self.least_used() else None

    async def _admit(self, link: Link, known_hosts: KnownHosts) -> None:
        """Uses a connection in place of what there is, or beside it where it was made alike and more are wanted."""
        obstacle = None
        if self._rival() and not self._is_alike(link):
            obstacle = await self.obstacle(link)
        if obstacle:
            self._route.refuses(link, obstacle)
        worst = self._worst()
        if worst is not None and link.end.hop > worst:
            link.close()  # another has come to a server before it meanwhile
        elif self._rival() is None or not (obstacle or self._is_alike(link)):
            self._use(link, known_hosts)
        elif obstacle or self._count_missing() <= 0 or known_hosts != self._made_with:
            link.close()
        else:
            self._further.append(link)
            self._added_at = _now()
            self._begin(link)

    def _is_alike(self, link: Link) -> bool:
        """Whether it was made as the one in use: through the same servers, with the same keys."""
        return self.link is not None and link.is_like(self.link)

    def _tell(self, failure: Failure, rival: Link | None) -> None:
        """Tells what went wrong, as the tunnel's failure unless another connection goes on that could be made again."""
        goes_on = rival is not None and self.link is rival and not self._route.has_refused(rival)
        if goes_on and failure.layer is not ConditionType.KEY_READY:
            event(_LOG, "another connection failed", reason=failure.reason, seen=failure.seen)
            return
        self._has_complained = True
        self._state.failed(failure)

    # --- the connection in use ------------------------------------------------------------------------------------

    def _is_outdated(self, link: Link) -> bool:
        """Whether another connection is to take its place: keys or known_hosts have changed, a failure was told, or a
        fallback is in use and other files may be what its betters wait for.
        """
        is_as_now = self._made_with == self._known_hosts and not (
            self._has_complained or self._route.has_better_keys(link)
        )
        return not is_as_now or (self._has_news and link.end.hop > 0)

    async def _hold(self, link: Link) -> None:
        """Waits until the connection is lost, or until another has taken its place or is to do so."""
        known_hosts = self._known_hosts
        better = asyncio.ensure_future(self._route.better(link, known_hosts))
        try:
            while self.link is link and not (better.done() or self._is_outdated(link)):
                await wait_for(link.lost, _LOOK_SECONDS)
                self._look()
        finally:
            better.cancel()
        if _now() - self._since >= STABLE_SECONDS:
            self._route.stood(link)
        if better.done() and (self.link is None or self.link.end.hop > better.result().end.hop):
            self._use(better.result(), known_hosts)
        elif better.done():
            better.result().close()  # one of those beside it has come to the same server
        elif self.link is None:
            self._has_news = False  # which another connection was not needed for
            await self._pause(self._route.lost(self._last_lost or link))

    def _use(self, link: Link, known_hosts: KnownHosts) -> None:
        """New channels go over `link`; those of earlier connections stay where they are."""
        old, self.link, self._further = [*([self.link] if self.link else []), *self._further], link, []
        self._made_with, self._since, self._has_complained = known_hosts, _now(), False
        for one in old:
            self._metrics.add(SSH_RECONNECTS, label=Loss.REPLACED)
            self._retire(one)
        self.up.set()
        self.down_since = None
        self._route.uses(link)
        self._state.uses(link.end.hop)
        self._state.succeeded(ConditionType.TRANSPORT_READY)
        self._state.succeeded(ConditionType.AUTHENTICATED)
        self._metrics.set(OWN_PACKETS, not link.packets.why_not)
        self._begin(link)
        if not link.lost.is_set():
            self.on_up()

    def _begin(self, link: Link) -> None:
        """It takes new channels from now on."""
        self._metrics.add(SSH_CONNECTS)
        self._tell_of(link)
        self._tell_count()
        link.end.on_end = lambda: self._lose(link)
        if link.lost.is_set():
            self._lose(link)

    def _tell_of(self, link: Link) -> None:
        number, why_not = link.end.hop, link.packets.why_not
        hop, way, key = self._config.hops[number], "asyncssh" if why_not else "own", link.key
        event(
            _LOG,
            "connected",
            hop=hop_name(self._config, number),
            host=hop.host,
            port=hop.port,
            key=key.fingerprint if key else None,
            certificate=str(key.certificate or "") if key else "",
            packets=way,
            why_not_own=why_not,
        )

    def _tell_count(self) -> None:
        count = (self.link is not None) + len(self._further)
        self._metrics.set(SSH_UP, count)
        self._state.set(connections=count)
        if self.link and self._count_missing():
            self._are_missing.set()

    def _count_missing(self) -> int:
        return (self._config.connections or 1) - 1 - len(self._further)

    def _lose(self, link: Link) -> None:
        """Notes the connection's end at once, whatever the attempts to make another are waiting for."""
        self._retiring.discard(link)
        if link in self._further:
            self._further.remove(link)
        elif link is not self.link:
            return
        event(_LOG, "connection lost", hop=hop_name(self._config, link.end.at), seen=link.end.reason)
        self._metrics.add(SSH_RECONNECTS, label=link.end.loss or Loss.LOST)
        self._slow_down(lost(link))
        if link is self.link:
            self.link = self._further.pop(0) if self._further else None
        if self.link is None:
            self._have_lost_all(link)
        self._tell_count()

    def _have_lost_all(self, last: Link) -> None:
        self.up.clear()
        self.down_since, self._last_lost = _now(), last
        self._state.uses(None)
        if self._state.works(ConditionType.AUTHENTICATED):  # else a newer attempt has more to tell
            self._state.failed(lost(last))

    def _retire(self, link: Link) -> None:
        """It gets no more channels; the last one out closes it."""
        self._retiring.add(link)
        event(_LOG, "connection retired", hop=hop_name(self._config, link.end.hop), channels=link.uses)
        link.on_unused = link.close
        if not link.uses:
            link.close()

    # --- those beside it ------------------------------------------------------------------------------------------

    async def _add_further(self) -> None:
        """Makes what is missing of the connections, one after the other, while the first stands."""
        while True:
            await self._are_missing.wait()
            await asyncio.sleep(max(self._further_pace.not_before - _now(), 0))
            self._are_missing.clear()
            if self.link is None or self._count_missing() <= 0:
                continue
            if self._rival() is None or self._is_outdated(self.link):
                await asyncio.sleep(_LOOK_SECONDS)  # another first one comes before
            else:
                await self._add()
            self._tell_count()

    async def _add(self) -> None:
        known_hosts = self._known_hosts
        try:
            link = await self._route.connect(known_hosts, self._worst())
        except Failure as failure:
            self._further_pace.failed(failure)
            event(_LOG, "further connection failed", reason=failure.reason, seen=failure.seen)
        else:
            await self._admit(link, known_hosts)

    def _slow_down(self, failure: Failure) -> None:
        """Several that are lost together count as one."""
        if _now() - self._added_at >= STABLE_SECONDS:
            self._further_pace.reset()
        if self._further_pace.is_due:
            self._further_pace.failed(failure)

    # --- when to try again ----------------------------------------------------------------------------------------

    async def _pause(self, seconds: float) -> None:
        """Waits before the next attempt; other files end the wait. Where the connection is lost meanwhile, another is
        made at that pace.
        """
        standing, worst, deadline = self.link, self._worst(), _now() + seconds
        while (remaining := deadline - _now()) > 0:
            left = min(_LOOK_SECONDS, remaining)
            await (wait_for(standing.lost, left) if standing else asyncio.sleep(left))
            self._look()
            if self._has_news:
                return
            if standing and not standing.lost.is_set() and self._worst() != worst:
                return  # it is cut off, or is not any more
            if standing and standing.lost.is_set():
                if self.link:
                    return
                deadline = _now() + self._route.lost(standing)
                standing = None


def _now() -> float:
    return asyncio.get_running_loop().time()


async def wait_for(happening: asyncio.Event, timeout_seconds: float) -> None:
    """Returns when it happens, or at the timeout."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await happening.wait()
    except TimeoutError:
        return
