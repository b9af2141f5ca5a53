"""One test of a tunnel: every SSH server and the database once, as a forwarder goes about it. Nothing stays open."""

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import ForwarderConfig, ForwarderStatus
from dbtunnel.api.reasons import Reason
from dbtunnel.forwarder.connection import Sources, wait_for
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.login import lost
from dbtunnel.forwarder.metrics import Metrics
from dbtunnel.forwarder.probes import Probe, probe_for_once, probe_of, why_not_probed
from dbtunnel.forwarder.route import KnownHosts, Route
from dbtunnel.forwarder.state import State
from dbtunnel.forwarder.steps import Step

_PROBE_END_SECONDS = 2
"""How long a connection waits for the end of a probe, which, cut in the middle, would be an error in the database's
log."""


@dataclass(frozen=True)
class Findings:
    """What a test has shown."""

    status: ForwarderStatus
    """What a forwarder would report: of the first bastion or fallback that lets us in, else of the bastion."""
    ends: Sequence[ForwarderStatus]
    """The same of each bastion and fallback, by number."""
    steps: Sequence[Mapping[Step, float]]
    """Seconds that each step took, by the hop's number. The last step of a hop may be the one that failed."""
    key_seconds: float
    """How long it took to read the keys."""
    seconds: float
    """How long all took."""


async def check(config: ForwarderConfig, sources: Sequence[Sources], *, always_probe: bool = False) -> Findings:
    """Tries each bastion and fallback once, and the database through each that lets us in. `sources`: by number;
    `always_probe`: the database also where a forwarder would not probe it.
    """
    began = time.monotonic()
    test = _Test(config, sources, probe_for_once(config) if always_probe else probe_of(config))
    await test.read_keys()
    key_seconds = time.monotonic() - began
    await test.try_all([source.read_known_hosts() for source in sources])
    return Findings(test.conclude(), test.ends, test.steps(), key_seconds, time.monotonic() - began)


class _Test:
    def __init__(self, config: ForwarderConfig, sources: Sequence[Sources], probe: Probe | None) -> None:
        self._config, self._state = config, State(config, "")
        self._route = Route(config, [source.keys for source in sources], self._state, Metrics())
        self._probe = probe
        self._failures: list[Failure | None] = []
        self._steps: dict[int, dict[Step, float]] = {}
        """How long the database took, by the number of the bastion or fallback."""
        self._told: dict[int, str] = {}
        """What the database showed through it, by the number of the bastion or fallback."""
        self._serving: int | None = None
        """Number of the one that a forwarder would go through."""
        self.ends: list[ForwarderStatus] = []

    async def read_keys(self) -> None:
        """Returns once they are read."""
        self._route.look()
        await self._route.ready()

    async def try_all(self, known_hosts: KnownHosts) -> None:
        """Tries one end after the other."""
        async with contextlib.aclosing(self._route.every(known_hosts)) as results:
            async for number, result in results:
                failure = result if isinstance(result, Failure) else await self._use(number, result)
                self._failures.append(failure)
                self._tell(number)
                self.ends.append(self._state.status)

    async def _use(self, number: int, link: Link) -> Failure | None:
        """What becomes of a connection that stands, up to the database's answer."""
        self._route.uses(link)
        if self._serving is None:
            self._serving = number
            self._state.uses(number)
        try:
            return await self._ask(number, link, self._probe) if self._probe else None
        except Failure as failure:
            failure.hop = number
            return failure
        finally:
            await _unused(link)

    async def _ask(self, number: int, link: Link, probe: Probe) -> Failure | None:
        began = time.monotonic()
        try:
            seen = await probe(link, self._config)
        finally:
            opened = time.monotonic() if link.probed_at is None else link.probed_at
            self._steps[number] = {Step.CHANNEL: opened - began}
            if link.probed_at is not None:
                self._steps[number][Step.DATABASE] = time.monotonic() - opened
        if seen is None:
            return lost(link)
        self._told[number] = seen.told(self._config)
        if number == self._serving:
            self._state.set(database_fact=seen.fact)
        return None

    def _tell(self, number: int) -> None:
        failure = self._failures[number]
        if failure:
            self._state.failed(failure)
            return
        self._state.succeeded(ConditionType.TRANSPORT_READY)
        self._state.succeeded(ConditionType.AUTHENTICATED)
        if self._probe:
            self._state.succeeded(ConditionType.DATABASE_REACHABLE, self._told[number])
        else:
            why = f"{why_not_probed(self._config)}. With --probe it is asked all the same"
            self._state.unknown(ConditionType.DATABASE_REACHABLE, Reason.NOT_PROBED, why)

    def conclude(self) -> ForwarderStatus:
        """What counts of all that was found."""
        self._tell(self._serving or 0)
        return self._state.status

    def steps(self) -> Sequence[Mapping[Step, float]]:
        """How long each took, by the hop's number."""
        return [{**login, **self._steps.get(number, {})} for number, login in enumerate(self._route.seconds)]


async def _unused(link: Link) -> None:
    """Returns once the last channel has ended."""
    if link.uses:
        unused = asyncio.Event()
        link.on_unused = unused.set
        await wait_for(unused, _PROBE_END_SECONDS)
