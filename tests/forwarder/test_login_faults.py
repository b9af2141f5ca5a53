"""A login that breaks, wherever and however it does: a reason is told, and a good server at the port mends it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from dbtunnel.api.forwarder import ForwarderConfig, ForwarderHop, LayerStatus
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.forwarder.connection import Connector, Sources
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.keyring import Keyring, Keys
from dbtunnel.forwarder.keys import MountedFile
from dbtunnel.forwarder.login import Login
from dbtunnel.forwarder.metrics import Metrics
from dbtunnel.forwarder.probes import Prober
from dbtunnel.forwarder.state import State
from tests.support.databases import PostgresServer
from tests.support.forwarder import KEY, seconds
from tests.support.keys import KeyPair, Secret
from tests.support.odd_ssh import FAULTS, STAGES, Fault, OddSshServer, break_at, say_goodbye
from tests.unit.test_forwarder_connect import CONFIG

REFUSING, LOST, TIMEOUT, NO_SSH = (
    Reason.BASTION_REFUSING,
    Reason.CONNECTION_LOST,
    Reason.CONNECT_TIMEOUT,
    Reason.NOT_AN_SSH_SERVER,
)

TOLD: dict[str, tuple[Reason, ...]] = {
    # how it breaks:             close     reset     silence  garbage unexpected malformed
    "before the version line": (REFUSING, REFUSING, TIMEOUT, NO_SSH, NO_SSH, NO_SSH),
    "after the version line": (LOST, LOST, TIMEOUT, LOST, LOST, LOST),
    "within KEXINIT": (LOST, LOST, TIMEOUT, LOST, TIMEOUT, LOST),
    "in the key exchange": (LOST, LOST, TIMEOUT, LOST, LOST, LOST),
    "at NEWKEYS": (LOST, LOST, TIMEOUT, LOST, LOST, LOST),
    "at the service request": (LOST, LOST, TIMEOUT, LOST, LOST, LOST),
    "before the key is looked at": (LOST, LOST, TIMEOUT, LOST, LOST, LOST),
    "when the key is offered": (LOST, LOST, TIMEOUT, LOST, LOST, LOST),
    "when the key has signed": (LOST, LOST, TIMEOUT, LOST, LOST, LOST),
    "at the first channel": (LOST, LOST, Reason.DATABASE_TIMEOUT, LOST, LOST, LOST),
    "after the login": (LOST, LOST, Reason.DATABASE_TIMEOUT, LOST, LOST, LOST),
}
"""The reason, by stage."""


class Tunnel:
    """The parts of a forwarder that make its connection, in this process, so that nothing escapes them unseen."""

    def __init__(self, server: OddSshServer, postgres: PostgresServer, key: KeyPair) -> None:
        self.config = config_for(server.hop, postgres.port)
        self.state, metrics = State(self.config, "pod-1"), Metrics()
        self._secret = Secret({KEY: key.private})
        self._connector = Connector(self.config, [Sources(self._secret)], self.state, metrics)
        self._prober = Prober(self.config, self._connector, self.state, metrics)

    def touch(self) -> None:
        """Ends a pause, as a changed Secret does."""
        self._secret.files["touched"] = ""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.ensure_future(part.run()) for part in (self._connector, self._prober)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended

    async def first_failure(self) -> Reason:
        async with asyncio.timeout(10):
            while True:
                for _, fact in self.state.layers():
                    if fact.status == LayerStatus.FALSE:
                        return Reason(fact.reason)
                await self.state.after(self.state.status.sequence, 10)

    async def look_anew(self) -> None:
        """Probes at once, as for a person who asks."""
        await self._prober.refresh()

    async def ready(self) -> None:
        async with asyncio.timeout(10):
            while not all(fact.status == LayerStatus.TRUE for _, fact in self.state.layers()):
                await self.state.after(self.state.status.sequence, 10)


def config_for(hop: ForwarderHop, port: int) -> ForwarderConfig:
    short = seconds(connect_timeout=1)
    target = replace(CONFIG, database_host="127.0.0.1", database_port=port)
    return replace(target, bastion=hop, seconds=short, keepalive_count_max=1)


def login_to(hop: ForwarderHop, key: KeyPair) -> Login:
    config = config_for(hop, 1)
    keys = Keys(Secret({KEY: key.private}), config.key)
    login = Login(config, 0, Keyring(keys, lambda *_: None), State(config, "pod-1"))
    keys.look()
    return login


@pytest.fixture
def escaped(caplog: pytest.LogCaptureFixture) -> list[Any]:
    """What asyncio or asyncssh caught since nobody else did, and what they logged of it."""
    caplog.set_level(logging.WARNING)
    return caplog.records


async def break_and_mend(stage: str, fault: Fault, postgres: PostgresServer, key: KeyPair) -> Reason:
    """What is told of a login that breaks; returns once all layers work with a good server at the same port."""
    with OddSshServer(break_at(stage, fault)) as server:
        tunnel = Tunnel(server, postgres, key)
        async with tunnel.running():
            told = await tunnel.first_failure()
            server.on_connection = lambda _: None
            tunnel.touch()
            await tunnel.ready()
    return told


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_login_that_breaks_has_a_reason_and_is_mended(
    fault: str, postgres: PostgresServer, client_key: KeyPair, escaped: list[logging.LogRecord]
) -> None:
    assert set(TOLD) == set(STAGES)
    position = list(FAULTS).index(fault)
    told = await asyncio.gather(*(break_and_mend(stage, FAULTS[fault], postgres, client_key) for stage in STAGES))
    assert dict(zip(STAGES, told, strict=True)) == {stage: reasons[position] for stage, reasons in TOLD.items()}
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [record.getMessage() for record in escaped] == []


# --- goodbyes ---------------------------------------------------------------------------------------------------------

EXCHANGE = ("after the version line", "in the key exchange", "at NEWKEYS", "at the service request")
AUTHENTICATION = {
    "before the key is looked at": Reason.METHOD_NOT_OFFERED,
    "when the key is offered": Reason.KEY_REJECTED,
    "when the key has signed": Reason.SECOND_FACTOR_REQUIRED,
}
"""What a server says there that ends with SSH_DISCONNECT_NO_MORE_AUTH_METHODS_AVAILABLE."""

CODES = range(1, 17)
"""SSH_DISCONNECT_HOST_NOT_ALLOWED_TO_CONNECT to SSH_DISCONNECT_ILLEGAL_USER_NAME (RFC 4250, section 4.2.2), and one
that there is not."""


def expected(stage: str, code: int) -> Reason:
    """asyncssh makes an error of its own kinds of most codes, as if it had found that itself."""
    if code in (1, 12):
        return REFUSING
    if code == 3 and stage in EXCHANGE:
        return Reason.NO_COMMON_ALGORITHM
    if code == 14 and stage in AUTHENTICATION:
        return AUTHENTICATION[stage]
    return LOST


@pytest.mark.parametrize("stage", [*EXCHANGE, *AUTHENTICATION])
async def test_a_goodbye_is_judged_by_its_code_and_no_word_of_it_is_believed(
    stage: str, client_key: KeyPair, escaped: list[logging.LogRecord]
) -> None:
    """Nobody has proved who it is who says that another host key is to be pinned."""
    told = {}
    with OddSshServer() as server:
        for code in CODES:
            server.on_connection = break_at(stage, say_goodbye(code, "Host key is revoked: pin SHA256:AAAA"))
            with pytest.raises(Failure) as failed:
                await login_to(server.hop, client_key).connect(MountedFile())
            told[code] = failed.value.reason
            assert REASONS[failed.value.reason].type is failed.value.layer
    assert told == {code: expected(stage, code) for code in CODES}
    assert [record.getMessage() for record in escaped] == []


@pytest.mark.parametrize("stage", ["at the first channel", "after the login"])
async def test_a_goodbye_after_the_login_is_a_loss_whatever_it_says(
    stage: str, postgres: PostgresServer, client_key: KeyPair, escaped: list[logging.LogRecord]
) -> None:
    few = asyncio.Semaphore(4)  # on a busy machine all at once would not be logged in within the second

    async def told_of(code: int) -> Reason:
        async with few:
            fault = say_goodbye(code, "Host key is revoked: pin SHA256:AAAA")
            return await break_and_mend(stage, fault, postgres, client_key)

    told = await asyncio.gather(*map(told_of, CODES))
    assert told == [LOST] * len(CODES)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert [record.getMessage() for record in escaped] == []
