"""The SSH connection's life: made, used, lost, made again."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import ForwarderConfig
from dbtunnel.domain.hops import hop_name
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.keys import KeyFiles, MountedFile
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.login import Material, lost
from dbtunnel.forwarder.logs import event
from dbtunnel.forwarder.metrics import SSH_CONNECTS, SSH_UP, Metrics
from dbtunnel.forwarder.pace import STABLE_SECONDS
from dbtunnel.forwarder.route import Materials, Route
from dbtunnel.forwarder.state import State

_LOG = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0
"""How often the mounted files are looked at."""


@dataclass(frozen=True)
class Sources:
    """Where a hop's key and known_hosts are read, again and again: both may come late and may change."""

    read_key: Callable[[], KeyFiles]
    read_known_hosts: Callable[[], MountedFile] = MountedFile

    def look(self) -> Material:
        """What stands there now."""
        return Material(self.read_key(), self.read_known_hosts())


class Connector:
    """Keeps an SSH connection. `link` is the one for new channels; None while there is none."""

    def __init__(self, config: ForwarderConfig, sources: Sequence[Sources], state: State, metrics: Metrics) -> None:
        """`sources`: by the hop's number."""
        self._config, self._sources, self._state, self._metrics = config, sources, state, metrics
        self._route = Route(config, state, metrics)
        self.link: Link | None = None
        self.up = asyncio.Event()
        self.on_up: Callable[[], None] = lambda: None
        """Called when there is a connection for new channels."""
        self.down_since: float | None = asyncio.get_running_loop().time()
        """The loop's time; None while there is a connection."""
        self._retiring: set[Link] = set()

    async def run(self) -> None:
        """Connects, again and again, until cancelled."""
        try:
            while True:
                materials = self._look()
                try:
                    link: Link | None = await self._route.connect(materials, self._worst())
                except Failure as failure:
                    self._state.failed(failure)
                    await self._pause(self._route.wait_seconds(self._worst()), materials)
                else:
                    while link:
                        link = await self._hold(link, materials)
        finally:
            links = {*self._retiring, *([self.link] if self.link else [])}
            self.link = None
            self.up.clear()  # before anybody who waits for it looks for a connection that is none
            for link in links:
                link.close()

    def _look(self) -> Materials:
        return [source.look() for source in self._sources]

    def _worst(self) -> int | None:
        """What a connection that stands is not given up for."""
        return self.link.end.hop if self.link else None

    # --- the connection in use ------------------------------------------------------------------------------------

    async def _hold(self, link: Link, materials: Materials) -> Link | None:
        """Uses a connection until it is lost, or other files are there, or a better one is had, which is returned."""
        began = asyncio.get_running_loop().time()
        self._use(link)
        await self._route.learn_keys(materials)
        better = asyncio.ensure_future(self._route.better(link, materials))
        try:
            while not (link.lost.is_set() or better.done()) and self._look() == materials:
                await wait_for(link.lost, _LOOK_SECONDS)
        finally:
            better.cancel()
        if asyncio.get_running_loop().time() - began >= STABLE_SECONDS:
            self._route.stood(link)
        if better.done():
            return better.result()
        if link.lost.is_set():
            await self._pause(self._route.lost(link), materials)
        else:
            self._route.reset()
        return None

    def _use(self, link: Link) -> None:
        """New channels go over `link`; those of an earlier connection stay where they are."""
        old, self.link = self.link, link
        if old:
            self._retire(old)
        self.up.set()
        self.down_since = None
        self._metrics.add(SSH_CONNECTS)
        self._metrics.set(SSH_UP, 1)
        self._state.uses(link.end.hop)
        self._state.succeeded(ConditionType.TRANSPORT_READY)
        self._state.succeeded(ConditionType.AUTHENTICATED)
        hop = self._config.hops[link.end.hop]
        event(_LOG, "connected", hop=hop_name(self._config, link.end.hop), host=hop.host, port=hop.port)
        link.end.on_end = lambda: self._lose(link)
        if link.lost.is_set():
            self._lose(link)
        else:
            self.on_up()

    def _lose(self, link: Link) -> None:
        """Notes the connection's end at once, whatever the attempts to make another are waiting for."""
        self._retiring.discard(link)
        if self.link is not link:
            return
        self.link = None
        self.up.clear()
        self.down_since = asyncio.get_running_loop().time()
        self._metrics.set(SSH_UP, 0)
        self._state.uses(None)
        event(_LOG, "connection lost", hop=hop_name(self._config, link.end.at), seen=link.end.reason)
        if self._state.works(ConditionType.AUTHENTICATED):  # else a newer attempt has more to tell
            self._state.failed(lost(link))

    def _retire(self, link: Link) -> None:
        """It gets no more channels; the last one out closes it."""
        self._retiring.add(link)
        link.on_unused = link.close
        if not link.uses:
            link.close()

    # --- when to try again ----------------------------------------------------------------------------------------

    async def _pause(self, seconds: float, materials: Materials) -> None:
        """Waits before the next attempt; other files end the wait."""
        deadline = asyncio.get_running_loop().time() + seconds
        await self._route.learn_keys(materials)
        while (remaining := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(_LOOK_SECONDS, remaining))
            if self._look() != materials:
                self._route.reset()
                return


async def wait_for(happening: asyncio.Event, timeout_seconds: float) -> None:
    """Returns when it happens, or at the timeout."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await happening.wait()
    except TimeoutError:
        return
