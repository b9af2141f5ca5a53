"""Which SSH servers a connection goes through: all jump hosts, then the first bastion or fallback that lets us in.

A fallback is taken whatever the reason why those before it cannot be used, an unpinned host key or a rejected key too.
Nothing is trusted for it that is not pinned for it, and whoever can show a wrong host key could as well drop packets,
so that staying would add no safety. What is wrong is told all the same: in the status, an Event, the log.
"""

import asyncio
import contextlib
from collections.abc import Sequence

from dbtunnel.api.forwarder import ForwarderConfig
from dbtunnel.domain.hops import ends_of, jumps_of
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.login import Keys, Login, Material, lost
from dbtunnel.forwarder.metrics import SSH_FAILURES, Metrics
from dbtunnel.forwarder.pace import FIRST_BACKOFF_SECONDS, Pace, return_seconds
from dbtunnel.forwarder.state import State

Materials = Sequence[Material]
"""What stands in the mounted directories, by the hop's number."""


class _End:
    """A bastion or fallback, where the way of a connection ends."""

    def __init__(self, login: Login, pace: Pace) -> None:
        self.login, self.pace = login, pace
        self.failure: Failure | None = None
        """Of the last attempt."""


class Route:
    """Makes connections, each to the best that can be had."""

    def __init__(self, config: ForwarderConfig, state: State, metrics: Metrics) -> None:
        self._state, self._metrics, self._keys = state, metrics, Keys()
        self._logins = [Login(config, number, self._keys, state) for number in range(len(config.hops))]
        self._ends = [_End(self._logins[number], Pace(config.replicas)) for number in ends_of(config)]
        self._jumps = [self._logins[number] for number in jumps_of(config)]
        self._jumps_pace = Pace(config.replicas)

    # --- to connect -----------------------------------------------------------------------------------------------

    async def connect(self, materials: Materials, worst: int | None = None) -> Link:
        """A connection to the first end that lets us in, of those whose time has come, to none after `worst`.

        Raises Failure, that of the first end: it is the one to be mended.
        """
        ends = self._up_to(worst)
        if self._jumps_pace.is_due and any(end.pace.is_due for end in ends):
            with contextlib.ExitStack() as undo:
                carrier = await self._through_jump_hosts(ends, materials, undo)
                link = await self._first_of(ends, materials, carrier)
                if link:
                    undo.pop_all()
                    return link
        raise next(end.failure for end in ends if end.failure)

    async def better(self, link: Link, materials: Materials) -> Link:
        """A connection to an end before that of `link`, once one lets us in again. Never returns where it is the first.

        Attempts that fail leave the conditions alone.
        """
        while link.end.hop:
            ends = self._ends[: link.end.hop]
            await asyncio.sleep(return_seconds(min(end.pace.attempts for end in ends)))
            with contextlib.suppress(Failure):
                return await self.connect(materials, link.end.hop - 1)
        never: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        return await never

    async def _through_jump_hosts(
        self, ends: Sequence[_End], materials: Materials, undo: contextlib.ExitStack
    ) -> Link | None:
        """A connection to the last jump host; None where there is none. Raises Failure."""
        link: Link | None = None
        for login in self._jumps:
            try:
                link = await login.connect(materials[login.number], link)
            except Failure as failure:
                self._metrics.add(SSH_FAILURES, label=failure.reason)
                self._jumps_pace.failed(failure.reason)
                for end in ends:
                    self._note(end, failure)
                raise
            undo.callback(link.close)
        return link

    async def _first_of(self, ends: Sequence[_End], materials: Materials, carrier: Link | None) -> Link | None:
        for end in ends:
            if not end.pace.is_due:
                continue
            try:
                link = await end.login.connect(materials[end.login.number], carrier)
            except Failure as failure:
                self._metrics.add(SSH_FAILURES, label=failure.reason)
                end.pace.failed(failure.reason)
                self._note(end, failure)
            else:
                self._note(end, None)
                return link
        return None

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
        end.pace.failed(failure.reason)
        self._note(end, failure)
        seconds = end.pace.not_before - asyncio.get_running_loop().time()
        return seconds if len(self._ends) == 1 else min(seconds, FIRST_BACKOFF_SECONDS)

    def stood(self, link: Link) -> None:
        """A connection was stable."""
        self._ends[link.end.hop].pace.reset()
        self._jumps_pace.reset()

    def reset(self) -> None:
        """Something has changed: all may be tried at once."""
        for pace in (self._jumps_pace, *(end.pace for end in self._ends)):
            pace.reset()

    # --- keys -----------------------------------------------------------------------------------------------------

    async def learn_keys(self, materials: Materials) -> None:
        """Shows the public keys of all hops, those not in use too: their administrators need them."""
        for login, material in zip(self._logins, materials, strict=True):
            with contextlib.suppress(Failure):
                await login.learn_key(material)
        self._keys.keep([material.key for material in materials])
