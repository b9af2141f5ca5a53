"""The SSH connection's life: made, used, lost, made again."""

import asyncio
import logging
import random
from pathlib import Path

from dbtunnel.api.conditions import REASONS, ConditionType, Reason
from dbtunnel.api.forwarder import ForwarderConfig, LayerStatus
from dbtunnel.forwarder.failures import Failure, transport_failure
from dbtunnel.forwarder.keys import MountedFile, read_file, read_key_files
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


class Connector:
    """Keeps an SSH connection. `link` is the one for new channels; None while there is none."""

    def __init__(
        self, config: ForwarderConfig, key_directory: Path, known_hosts_directory: Path, state: State, metrics: Metrics
    ) -> None:
        self._config, self._state, self._metrics = config, state, metrics
        self._key_directory, self._known_hosts_directory = key_directory, known_hosts_directory
        self._login = Login(config, state)
        self.link: Link | None = None
        self.up = asyncio.Event()
        self.down_since: float | None = asyncio.get_running_loop().time()
        """The loop's time; None while there is a connection."""
        self._attempts = 0
        self._retiring: set[Link] = set()

    async def run(self) -> None:
        """Connects, again and again, until cancelled."""
        try:
            while True:
                material = self._look()
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
            for link in links:
                link.close()

    # --- the connection in use ------------------------------------------------------------------------------------

    async def _hold(self, link: Link, material: Material) -> None:
        """Uses a connection until it is lost, or until other files are there."""
        began = asyncio.get_running_loop().time()
        self._use(link)
        while not link.lost.is_set() and self._look() == material:
            await wait_for(link.lost, _LOOK_SECONDS)
        if asyncio.get_running_loop().time() - began >= STABLE_SECONDS:
            self._attempts = 0
        if link.lost.is_set():
            await self._pause(Reason.CONNECTION_LOST, material)

    def _use(self, link: Link) -> None:
        """New channels go over `link`; those of an earlier connection stay where they are."""
        old, self.link = self.link, link
        if old:
            self._retiring.add(old)
            self.release(old)
        self.up.set()
        self.down_since = None
        self._metrics.add(SSH_CONNECTS)
        self._metrics.set(SSH_UP, 1)
        event(_LOG, "connected", host=self._config.bastion.host, port=self._config.bastion.port)
        link.end.on_end = lambda: self._lose(link)
        if link.lost.is_set():
            self._lose(link)

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
        if self._state.status.authentication.status == LayerStatus.TRUE:  # else a newer attempt has more to tell
            self._state.failed(transport_failure(Reason.CONNECTION_LOST, link.end.reason))

    def release(self, link: Link) -> None:
        """A channel of `link` ended, or it is no longer wanted: the last one out closes it."""
        if link in self._retiring and link.uses == 0:
            self._retiring.discard(link)
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
            if self._look() != material:
                self._attempts = 0
                return

    def _look(self) -> Material:
        name = self._config.bastion.host_key.known_hosts_file
        known_hosts = read_file(self._known_hosts_directory, name) if name else MountedFile()
        return Material(read_key_files(self._key_directory, self._config.key), known_hosts)


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
