"""The pace at which a lost SSH connection is made again, in virtual time."""

import asyncio
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dbtunnel.api.reasons import REASONS, Reason
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
    STABLE_SECONDS,
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
    assert round(pause, 6) >= FIRST_BACKOFF_SECONDS * 2**FAILURES / 2


# --- while a client waits ---------------------------------------------------------------------------------------------


def times_of_attempts(monkeypatch: pytest.MonkeyPatch, reason: Reason, comes: float, leaves: float) -> list[float]:
    """When a server that is away is tried for five minutes, while a client waits for a part of them."""
    attempts: list[float] = []

    class Away:
        number = 0

        async def connect(self, *_: object) -> Link:
            attempts.append(now())
            raise transport_failure(reason)

    monkeypatch.setattr(route, "Login", lambda *_: Away())
    monkeypatch.setattr(keyring, "in_daemon_thread", at_once)

    async def main() -> None:
        sources = [Sources(Secret({"ssh-privatekey": key_pair().private}))]
        connector, clients = Connector(CONFIG, sources, State(CONFIG, "pod-1"), Metrics()), set[str]()
        connector.waiting = clients
        connecting = asyncio.ensure_future(connector.run())
        asyncio.get_running_loop().call_at(comes, clients.add, "client")
        asyncio.get_running_loop().call_at(leaves, clients.clear)
        await asyncio.sleep(300)
        connecting.cancel()

    run(main())
    return attempts


def test_a_server_is_tried_within_two_seconds_of_its_return_while_a_client_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However long it was away, and whenever the client has come; with nobody there attempts are rare."""
    attempts = times_of_attempts(monkeypatch, Reason.CONNECTION_REFUSED, 100.0, 130.0)

    eager = [one for one in attempts if 100 <= one < 130]
    assert eager[0] <= 101
    assert max(later - sooner for sooner, later in pairwise([*eager, 130.0])) <= EAGER_BACKOFF_SECONDS + 1e-6
    rare = [later - sooner for sooner, later in pairwise(one for one in attempts if not 100 <= one < 130)]
    assert min(rare[-3:]) >= LONGEST_BACKOFF_SECONDS / 2


def test_what_a_retry_makes_worse_is_not_hastened_by_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = times_of_attempts(monkeypatch, Reason.HOST_KEY_MISMATCH, 100.0, 300.0)

    slow = REASONS[Reason.HOST_KEY_MISMATCH].retry_seconds
    assert min(later - sooner for sooner, later in pairwise(attempts)) >= slow
