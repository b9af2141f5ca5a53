"""Which of those who take part had the processors while something was measured."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.lane import TICK_SECONDS, Lane, fields
from tests.support.bastion import descendants
from tests.support.processes import wait_until


@dataclass(frozen=True)
class Spent:
    """Seconds since the machine's start, or within a while: of user and kernel by role, and those nobody used."""

    at: float
    used: Mapping[str, tuple[float, float]]
    unused: float

    def since(self, before: "Spent") -> "Spent":
        """What was spent between the two."""
        used = {
            role: (user - before.used[role][0], kernel - before.used[role][1])
            for role, (user, kernel) in self.used.items()
        }
        return Spent(self.at - before.at, used, self.unused - before.unused)

    def share(self, role: str) -> float:
        """Processors that a role had all the time."""
        return sum(self.used[role]) / self.at

    def kernel_share(self, role: str) -> float:
        """The part of that in the kernel."""
        return self.used[role][1] / self.at


def total(parts: Iterable[Spent]) -> Spent:
    """What was spent within several whiles."""
    known = list(parts)
    used = {
        role: (sum(one.used[role][0] for one in known), sum(one.used[role][1] for one in known))
        for role in known[0].used
    }
    return Spent(sum(one.at for one in known), used, sum(one.unused for one in known))


def spent_until_now(lane: Lane) -> Spent:
    """By everybody who has to do with a lane; clients count once they have ended."""
    site, at = lane.site, time.monotonic()
    unused = Path("/proc/stat").read_text().split(maxsplit=6)
    settle(lane)
    roots = {"forwarder": lane.pids(), "sshd": [site.bastion.pid], "server": [site.server_pid]}
    used = {role: _tree(pids) for role, pids in roots.items()}
    used["clients"] = _ticks(os.getpid(), 13)
    return Spent(at, used, (int(unused[4]) + int(unused[5])) * TICK_SECONDS)


_SETTLED_SECONDS = 0.2


def settle(lane: Lane) -> None:
    """Waits until none of the servers' processes ends any more: what one has used is nowhere until it is waited for."""
    roots = lane.site.bastion.pid, lane.site.server_pid
    seen: list[list[int]] = []

    def is_as_before() -> bool:
        seen.append([pid for root in roots for pid in descendants(root)])
        return len(seen) > 1 and seen[-1] == seen[-2]

    wait_until(is_as_before, "the servers' processes to be as they were", interval_seconds=_SETTLED_SECONDS)


def _tree(roots: Sequence[int]) -> tuple[float, float]:
    """Of processes and all below them, those that have ended and were waited for counted too."""
    pids = [pid for root in roots for pid in (root, *descendants(root))]
    found = [_ticks(pid, first) for pid in pids for first in (11, 13)]
    return sum(user for user, _ in found), sum(kernel for _, kernel in found)


def _ticks(pid: int, first: int) -> tuple[float, float]:
    """Two neighbours of the fields of proc(5)'s stat, in seconds; none for a process that has gone."""
    try:
        user, kernel = fields(pid)[first : first + 2]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0.0
    return int(user) * TICK_SECONDS, int(kernel) * TICK_SECONDS
