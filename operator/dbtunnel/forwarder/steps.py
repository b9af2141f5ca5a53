"""How long each step of the way to a database takes."""

import time
from enum import StrEnum


class Step(StrEnum):
    """What is done at one SSH server, in this order."""

    CONNECT = "connect"
    """The name is looked up and TCP connects; behind a jump host, that one opens the connection."""
    VERSION = "version"
    """The server says its version."""
    KEY_EXCHANGE = "keyExchange"
    """Keys are exchanged, and the host key is verified."""
    AUTHENTICATION = "authentication"
    """The server accepts the key."""
    CHANNEL = "channel"
    """It connects to the database."""
    DATABASE = "database"
    """The database answers."""


LOGIN = (Step.CONNECT, Step.VERSION, Step.KEY_EXCHANGE, Step.AUTHENTICATION)


class Stopwatch:
    """Notes when the steps of one login end."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._ends: dict[Step, float] = {}

    def ended(self, step: Step, at: float | None = None) -> None:
        """A step has ended, now or at a time of `time.monotonic`."""
        self._ends[step] = time.monotonic() if at is None else at

    def seconds(self) -> dict[Step, float]:
        """How long each took. The one that has not ended took until now; those after it are left out."""
        taken: dict[Step, float] = {}
        before = self._began
        for step in LOGIN:
            end = self._ends.get(step)
            taken[step] = (time.monotonic() if end is None else end) - before
            if end is None:
                break
            before = end
        return taken
