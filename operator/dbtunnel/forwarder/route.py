"""Which SSH servers a connection goes through: all jump hosts, then the first bastion or fallback that lets us in.

A fallback is taken whatever the reason why those before it cannot be used, an unpinned host key or a rejected key too.
Nothing is trusted for it that is not pinned for it, and whoever can show a wrong host key could as well drop packets,
so that staying would add no safety. What is wrong is told all the same: in the status, an Event, the log.
"""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import cast

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import ForwarderConfig
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.hops import ends_of, jumps_of
from dbtunnel.forwarder.failures import Failure, transport_failure
from dbtunnel.forwarder.keyring import Keyring, Keys
from dbtunnel.forwarder.keys import KeySource, MountedFile
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.login import Login, lost
from dbtunnel.forwarder.metrics import HANDSHAKE_SECONDS, SSH_FAILURES, Metrics
from dbtunnel.forwarder.pace import FIRST_BACKOFF_SECONDS, RESTART_SECONDS, Pace, return_seconds
from dbtunnel.forwarder.state import State
from dbtunnel.forwarder.steps import Step
from dbtunnel.forwarder.windows import Windows

KnownHosts = Sequence[MountedFile]
"""What stands in the mounted directories, by the hop's number."""


class _End:
    """A bastion or fallback, where the way of a connection ends."""

    def __init__(self, login: Login, pace: Pace) -> None:
        self.login, self.pace = login, pace
        self.failure: Failure | None = None
        """Of the last attempt."""
        self.logins = 0
        """How many attempts were let in."""


class Route:
    """Makes connections, each to the best that can be had."""

    def __init__(self, config: ForwarderConfig, sources: Sequence[KeySource], state: State, metrics: Metrics) -> None:
        """`sources`: by the hop's number."""
        self._state, self._metrics = state, metrics
        shared = Keys(sources[0], config.key)
        own = [Keys(source, hop.key) if hop.key else shared for source, hop in zip(sources, config.hops, strict=True)]
        self._secrets = list(dict.fromkeys(own))
        rings = [Keyring(keys, functools.partial(state.set_keys, number)) for number, keys in enumerate(own)]
        self._logins = [Login(config, number, ring, state) for number, ring in enumerate(rings)]
        # behind a jump host each attempt is a login there
        eager = config.replicas, config.seconds.parking_max, 0 if config.jump_hosts else RESTART_SECONDS
        self._ends = [_End(self._logins[number], Pace(*eager)) for number in ends_of(config)]
        self._jumps = [self._logins[number] for number in jumps_of(config)]
        self._jumps_pace = Pace(*eager)
        self._windows = Windows()
        self._changes = 0
        """How often something has changed. What an attempt finds that began before says nothing about the next one."""

    # --- to connect -----------------------------------------------------------------------------------------------

    async def connect(self, known_hosts: KnownHosts, worst: int | None = None) -> Link:
        """A connection to the first end that lets us in, of those whose time has come, to none after `worst`.

        Raises Failure, that of the first end: it is the one to be mended.
        """
        ends, changes = self._up_to(worst), self._changes
        if self._jumps_pace.is_due and any(end.pace.is_due for end in ends):
            with contextlib.ExitStack() as undo:
                carrier = await self._through_jump_hosts(ends, known_hosts, undo, changes)
                link = await self._first_of(ends, known_hosts, carrier, changes)
                if link:
                    undo.pop_all()
                    return link
        # none, where another attempt has succeeded while this one waits for its turn
        raise next((end.failure for end in ends if end.failure), transport_failure(Reason.CONNECTION_LOST))

    async def better(self, link: Link, known_hosts: KnownHosts) -> Link:
        """A connection to an end before that of `link`, once one lets us in again. Never returns where it is the first.

        Attempts that fail leave the conditions alone.
        """
        while link.end.hop:
            ends = self._ends[: link.end.hop]
            await asyncio.sleep(return_seconds(min(end.pace.attempts for end in ends)))
            with contextlib.suppress(Failure):
                return await self.connect(known_hosts, link.end.hop - 1)
        never: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        return await never

    async def every(self, known_hosts: KnownHosts) -> AsyncGenerator[tuple[int, Link | Failure], None]:
        """What comes of each bastion and fallback, by number, whether or not those before it let us in.

        The connections stand until all have been told, since with one goes that to the jump host.
        """
        with contextlib.ExitStack() as undo:
            carrier = None
            with contextlib.suppress(Failure):  # which is noted for each end
                carrier = await self._through_jump_hosts(self._ends, known_hosts, undo, self._changes)
            for end in self._ends:
                link = None if end.failure else await self._first_of([end], known_hosts, carrier, self._changes)
                if link:
                    undo.callback(link.close)
                yield end.login.number, link or cast(Failure, end.failure)

    @property
    def seconds(self) -> Sequence[Mapping[Step, float]]:
        """How long the steps of the last login took, by the hop's number."""
        return [login.seconds for login in self._logins]

    async def _through_jump_hosts(
        self, ends: Sequence[_End], known_hosts: KnownHosts, undo: contextlib.ExitStack, changes: int
    ) -> Link | None:
        """A connection to the last jump host; None where there is none. Raises Failure."""
        link: Link | None = None
        for login in self._jumps:
            try:
                link = await self._log_in(login, known_hosts, link)
            except Failure as failure:
                self._slow_down(self._jumps_pace, login, failure, changes)
                for end in ends:
                    self._note(end, failure)
                raise
            undo.callback(link.close)
        return link

    async def _first_of(
        self, ends: Sequence[_End], known_hosts: KnownHosts, carrier: Link | None, changes: int
    ) -> Link | None:
        logins = {end: end.logins for end in self._ends}
        for end in ends:
            if not end.pace.is_due:
                continue
            try:
                link = await self._log_in(end.login, known_hosts, carrier)
            except Failure as failure:
                if end.logins == logins[end]:
                    self._slow_down(end.pace, end.login, failure, changes)
                    self._note(end, failure)
                if any(one.logins != count for one, count in logins.items()):
                    raise  # another attempt was let in meanwhile: none after this one is needed
            else:
                end.logins += 1
                self._note(end, None)
                return link
        return None

    def _slow_down(self, pace: Pace, login: Login, failure: Failure, changes: int) -> None:
        if changes == self._changes:
            pace.failed(_for_the_pace(login, failure))

    async def _log_in(self, login: Login, known_hosts: KnownHosts, carrier: Link | None) -> Link:
        began = _now()
        try:
            link = await login.connect(known_hosts[login.number], carrier)
        except Failure as failure:
            self._metrics.add(SSH_FAILURES, label=failure.reason)
            raise
        link.windows = self._windows
        self._metrics.observe(HANDSHAKE_SECONDS, _now() - began)
        return link

    def _note(self, end: _End, failure: Failure | None) -> None:
        end.failure = failure
        self._state.passed_over(end.login.number, failure)

    def _up_to(self, worst: int | None) -> Sequence[_End]:
        return self._ends if worst is None else self._ends[: worst + 1]

    # --- when to connect ------------------------------------------------------------------------------------------

    def wait_seconds(self, worst: int | None = None) -> float:
        """How long until `connect` tries anything."""
        first = min(end.pace.not_before for end in self._up_to(worst))
        return max(first, self._jumps_pace.not_before) - asyncio.get_running_loop().time()

    def lost(self, link: Link) -> float:
        """A connection was lost. Returns the seconds to wait: where there are others, its end gets one quick try."""
        failure, end = lost(link), self._ends[link.end.hop]
        end.pace.failed(failure)
        self._note(end, failure)
        seconds = end.pace.not_before - asyncio.get_running_loop().time()
        return seconds if len(self._ends) == 1 else min(seconds, FIRST_BACKOFF_SECONDS)

    def stood(self, link: Link) -> None:
        """A connection was stable."""
        self._ends[link.end.hop].pace.stood()
        self._jumps_pace.stood()

    def reset(self) -> None:
        """Something has changed: all may be tried at once."""
        self._changes += 1
        for pace in (self._jumps_pace, *(end.pace for end in self._ends)):
            pace.reset()

    # --- keys -----------------------------------------------------------------------------------------------------

    def look(self) -> bool:
        """Begins to read the keys anew where they are others. Returns whether they are."""
        changed = [keys.look() for keys in self._secrets]
        return any(changed)

    async def ready(self) -> None:
        """Returns once the keys are read."""
        for keys in self._secrets:
            await keys.ready()

    def has_better_keys(self, link: Link) -> bool:
        """Whether a connection with other keys is to take the place of this one."""
        return any(self._logins[number].keyring.replaces(key, _now()) for number, key in link.logins())

    def has_refused(self, link: Link) -> bool:
        """Whether a key that made it would not be let in any more."""
        return any(self._logins[number].keyring.is_resting(key, _now()) for number, key in link.logins())

    def is_revoked(self, link: Link) -> bool:
        """Whether a key that must not be used any more has made it."""
        return any(self._logins[number].keyring.keys.is_revoked(key) for number, key in link.logins())

    def uses(self, link: Link) -> None:
        """The keys that made it are the ones to go on with."""
        for number, key in link.logins():
            self._logins[number].keyring.accepted(key)

    def refuses(self, link: Link, obstacle: Failure) -> None:
        """The connection is of no use, and its key is why."""
        if link.key:
            self._logins[link.end.hop].rest(link.key, obstacle)


def _for_the_pace(login: Login, failure: Failure) -> Failure:
    """By what the pace of the next attempt is chosen: where another key is left, that need not wait."""
    is_left = failure.layer is ConditionType.AUTHENTICATED and login.keyring.best(_now())
    return replace(failure, may_pass=True) if is_left else failure


def _now() -> float:
    return asyncio.get_running_loop().time()
