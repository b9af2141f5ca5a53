"""The pace at which a lost SSH connection is made again, in virtual time."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dbtunnel.api.reasons import Reason
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.settings import Defaults
from dbtunnel.forwarder import keyring, route
from dbtunnel.forwarder.connection import Connector, Sources
from dbtunnel.forwarder.failures import transport_failure
from dbtunnel.forwarder.link import End, Link
from dbtunnel.forwarder.metrics import Metrics
from dbtunnel.forwarder.pace import (
    EAGER_BACKOFF_SECONDS,
    FIRST_BACKOFF_SECONDS,
    LONGEST_BACKOFF_SECONDS,
    RESTART_SECONDS,
    STABLE_SECONDS,
    Pace,
)
from dbtunnel.forwarder.state import State
from dbtunnel.forwarder.transport import Congestion
from tests.support.keys import Secret, key_pair
from tests.support.values import tunnel
from tests.support.virtual_time import at_once, now, run

CONFIG = forwarder_config(tunnel(), Defaults())

FAILURES = 5
"""How many attempts fail before one succeeds."""


class Bastion:
    """Refuses the first attempts, then lets in; the connection is lost after `stood` seconds."""

    def __init__(self, stood: float) -> None:
        self._stood = stood
        self.attempts: list[float] = []
        """When they came."""
        self.came_back = asyncio.Event()
        """Set by the attempt that follows the loss."""

    number = 0

    async def connect(self, *_: object) -> Link:
        self.attempts.append(now())
        if len(self.attempts) <= FAILURES:
            raise transport_failure(Reason.CONNECTION_REFUSED)
        if len(self.attempts) > FAILURES + 1:
            self.came_back.set()
        connection, packets = SimpleNamespace(abort=lambda: None), SimpleNamespace(why_not="")
        link = Link(cast(Any, connection), lambda: False, Congestion(), End(), cast(Any, packets))
        asyncio.get_running_loop().call_later(self._stood, lambda: link.end.happen("reset"))
        return link


def pause_after_loss(monkeypatch: pytest.MonkeyPatch, stood: float) -> float:
    """Seconds from the loss of a connection that stood so long to the next attempt."""
    bastion = Bastion(stood)
    monkeypatch.setattr(route, "Login", lambda *_: bastion)
    monkeypatch.setattr(keyring, "in_daemon_thread", at_once)

    async def main() -> None:
        sources = [Sources(Secret({"ssh-privatekey": key_pair().private}))]
        connecting = asyncio.ensure_future(Connector(CONFIG, sources, State(CONFIG, "pod-1"), Metrics()).run())
        await bastion.came_back.wait()
        connecting.cancel()

    run(main())
    return bastion.attempts[FAILURES + 1] - bastion.attempts[FAILURES] - stood


def test_a_connection_that_stood_long_enough_resets_the_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    pause = pause_after_loss(monkeypatch, STABLE_SECONDS + 1)
    assert FIRST_BACKOFF_SECONDS / 2 <= round(pause, 6) <= FIRST_BACKOFF_SECONDS


def test_a_connection_that_is_soon_lost_again_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a server that lets in and cuts would be asked five times a second for ever."""
    pause = pause_after_loss(monkeypatch, STABLE_SECONDS - 1)
    assert EAGER_BACKOFF_SECONDS / 2 <= round(pause, 6) <= EAGER_BACKOFF_SECONDS


PARKING_SECONDS = 30


def pauses(reason: Reason, count: int, *, restart_seconds: float = RESTART_SECONDS) -> list[tuple[float, float]]:
    """When so many attempts fail, each at once, and the pauses after them."""

    async def main() -> list[tuple[float, float]]:
        pace, found = Pace(1, PARKING_SECONDS, restart_seconds), []
        for _ in range(count):
            pace.failed(transport_failure(reason))
            found.append((now(), pace.not_before - now()))
            await asyncio.sleep(pace.not_before - now())
        return found

    return run(main())


@pytest.mark.parametrize(
    ("found", "eager_seconds"),
    [
        (pauses(Reason.CONNECTION_LOST, 100), PARKING_SECONDS),
        (pauses(Reason.CONNECTION_REFUSED, 1500), RESTART_SECONDS),
        (pauses(Reason.CONNECTION_REFUSED, 100, restart_seconds=0), PARKING_SECONDS),
    ],
    ids=["a server that is heard", "one that is being started again", "one behind a jump host"],
)
def test_a_server_that_returns_soon_is_back_within_two_seconds(
    found: list[tuple[float, float]], eager_seconds: float
) -> None:
    early = [pause for begun, pause in found if begun < eager_seconds]
    assert len(early) > eager_seconds / EAGER_BACKOFF_SECONDS
    assert max(early) <= EAGER_BACKOFF_SECONDS
    assert found[len(early) + 4][1] > EAGER_BACKOFF_SECONDS, "then attempts become rare"
    assert found[-1][1] >= LONGEST_BACKOFF_SECONDS / 2
