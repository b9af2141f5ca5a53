"""The SSH connection's life: made, used, lost, made again."""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import ForwarderConfig
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.forwarder.failures import Failure, transport_failure
from dbtunnel.forwarder.keys import KeyFiles, MountedFile
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.login import Login, Material
from dbtunnel.forwarder.logs import event
from dbtunnel.forwarder.metrics import SSH_CONNECTS, SSH_FAILURES, SSH_UP, Metrics
from dbtunnel.forwarder.state import State

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
class Sources:
    """Where the key and known_hosts are read, again and again: both may come late and may change."""

    read_key: Callable[[], KeyFiles]
    read_known_hosts: Callable[[], MountedFile] = MountedFile

    def look(self) -> Material:
        """What stands there now."""
        return Material(self.read_key(), self.read_known_hosts())


class Connector:
    """Keeps an SSH connection. `link` is the one for new channels; None while there is none."""

    def __init__(self, config: ForwarderConfig, sources: Sources, state: State, metrics: Metrics) -> None:
        self._config, self._sources, self._state, self._metrics = config, sources, state, metrics
        self._login = Login(config, state)
        self.link: Link | None = None
        self.up = asyncio.Event()
        self.on_up: Callable[[], None] = lambda: None
        """Called when there is a connection for new channels."""
        self.down_since: float | None = asyncio.get_running_loop().time()
        """The loop's time; None while there is a connection."""
        self._attempts = 0
        self._retiring: set[Link] = set()

    async def run(self) -> None:
        """Connects, again and again, until cancelled."""
        try:
            while True:
                material = self._sources.look()
                try:
                    link = await self._login.connect(material)
                except Failure as failure:
                    self._report(failure)
                    await self._pause(failure.reason, material)
                else:
                    await self._hold(link, material)
        finally:
            links = {*self._retiring, *([self.link] if self.link else [])}
            self.link = None
            self.up.clear()  # before anybody who waits for it looks for a connection that is none
            for link in links:
                link.close()

    # --- the connection in use ------------------------------------------------------------------------------------

    async def _hold(self, link: Link, material: Material) -> None:
        """Uses a connection until it is lost, or until other files are there."""
        began = asyncio.get_running_loop().time()
        self._use(link)
        while not link.lost.is_set() and self._sources.look() == material:
            await wait_for(link.lost, _LOOK_SECONDS)
        if asyncio.get_running_loop().time() - began >= STABLE_SECONDS:
            self._attempts = 0
        if link.lost.is_set():
            await self._pause(Reason.CONNECTION_LOST, material)

    def _use(self, link: Link) -> None:
        """New channels go over `link`; those of an earlier connection stay where they are."""
        old, self.link = self.link, link
        if old:
            self._retire(old)
        self.up.set()
        self.down_since = None
        self._metrics.add(SSH_CONNECTS)
        self._metrics.set(SSH_UP, 1)
        event(_LOG, "connected", host=self._config.bastion.host, port=self._config.bastion.port)
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
        event(_LOG, "connection lost", seen=link.end.reason)
        if self._state.works(ConditionType.AUTHENTICATED):  # else a newer attempt has more to tell
            self._state.failed(transport_failure(Reason.CONNECTION_LOST, link.end.reason))

    def _retire(self, link: Link) -> None:
        """It gets no more channels; the last one out closes it."""
        self._retiring.add(link)
        link.on_unused = link.close
        if not link.uses:
            link.close()

    def _report(self, failure: Failure) -> None:
        self._metrics.add(SSH_FAILURES, label=failure.reason)
        self._state.failed(failure)

    # --- when to try again ----------------------------------------------------------------------------------------

    async def _pause(self, reason: Reason, material: Material) -> None:
        """Waits before the next attempt; other files end the wait."""
        seconds = pause_seconds(reason, self._attempts, self._config.replicas)
        deadline = asyncio.get_running_loop().time() + seconds
        self._attempts += 1
        while (remaining := deadline - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(min(_LOOK_SECONDS, remaining))
            if self._sources.look() != material:
                self._attempts = 0
                return


def pause_seconds(reason: Reason, attempts: int, replicas: int) -> float:
    """How long to wait after a failure, with jitter; `attempts` counts those before it since a stable connection."""
    if REASONS[reason].type is ConditionType.KEY_READY:
        return LONGEST_BACKOFF_SECONDS  # nothing but a change of the files helps
    usual = min(FIRST_BACKOFF_SECONDS * 2 ** min(attempts, 16), LONGEST_BACKOFF_SECONDS)
    slow = REASONS[reason].retry_seconds * (1 + _NEIGHBOUR_FACTOR * (replicas - 1))
    # sshd penalises the source address, which neighbours share: never faster than the table says
    return slow * random.uniform(1, 1.5) if slow else usual * random.uniform(0.5, 1)  # noqa: S311


async def wait_for(happening: asyncio.Event, timeout_seconds: float) -> None:
    """Returns when it happens, or at the timeout."""
    try:
        async with asyncio.timeout(timeout_seconds):
            await happening.wait()
    except TimeoutError:
        return
