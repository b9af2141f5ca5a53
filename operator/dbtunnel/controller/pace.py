"""How often a tunnel's status may be written, so that a forwarder that changes its mind all the time floods nothing."""

from datetime import datetime, timedelta

from dbtunnel.controller.queue import TunnelKey

BURST = 12
"""Writes at once; a tunnel that starts or fails takes half of them."""

INTERVAL = timedelta(seconds=5)
"""Between two writes of a tunnel that has used its burst up."""


class Pace:
    """Leaky buckets: each tunnel's fills by a write and leaks one an interval."""

    def __init__(self) -> None:
        self._empty_at: dict[TunnelKey, datetime] = {}

    def wait_seconds(self, key: TunnelKey, now: datetime) -> float:
        """How long a write has to wait; 0 for one that may be made now."""
        excess = self._level(key, now) - (BURST - 1) * INTERVAL
        return max(excess.total_seconds(), 0)

    def written(self, key: TunnelKey, now: datetime) -> None:
        """Counts a write."""
        self._empty_at[key] = now + self._level(key, now) + INTERVAL

    def forget(self, key: TunnelKey) -> None:
        """Drops what is remembered of a tunnel."""
        self._empty_at.pop(key, None)

    def _level(self, key: TunnelKey, now: datetime) -> timedelta:
        """Time until the bucket is empty; bounded, since a clock may be set back."""
        return min(max(self._empty_at.get(key, now) - now, timedelta(0)), BURST * INTERVAL)
