"""A week of probes does a database no harm: nothing in its log, nobody blocked. Its pauses are left out.

They are those of a forwarder's start and of each connection that is made anew, those at intervals, and those that
people ask for, by `kubectl dbtunnel check` and `dbtunnel check`.
"""

import asyncio
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pymysql
import pytest

from dbtunnel.api.conditions import LAYERS
from dbtunnel.api.engines import Engine
from dbtunnel.api.forwarder import ForwarderConfig, LayerFact
from dbtunnel.api.reasons import Reason
from dbtunnel.forwarder.check import check
from dbtunnel.forwarder.connection import Sources
from dbtunnel.forwarder.link import Link
from dbtunnel.forwarder.metrics import PROBES, Metrics
from dbtunnel.forwarder.probes import Prober
from dbtunnel.forwarder.state import State
from tests.support.bastion import Bastion
from tests.support.cable import Cable
from tests.support.certificates import ServerCertificate
from tests.support.databases import DATABASE, PASSWORD, USER, MariaDBServer, PostgresServer
from tests.support.forwarder import KEY, forwarder_config
from tests.support.in_process import DataPath
from tests.support.keys import KeyPair, Secret
from tests.support.processes import wait_until

DAYS, PROBES_A_DAY = 7, int(os.environ.get("DBTUNNEL_PROBES_A_DAY", "48"))
"""As with `probe.intervalSeconds: 1800`, and in `make soak` as with the default, 60; and an SSH connection that is made
anew each day, at which probes begin."""

_SLOWEST_PROBE_SECONDS = 0.1
"""On average."""

ASKED_A_DAY = 5
"""How often somebody runs `kubectl dbtunnel check`, one right after the other, which the first probe is for. `dbtunnel
check` is run once a day."""

BLOCKED, MOST_ERRORS = 1129, 3
"""MySQL's error, and how many clients in a row that do not log in lead to it here."""


class _HastyProber(Prober):
    """Its intervals are over at once, and its days after some of them."""

    def __init__(self, config: ForwarderConfig, link: Link, metrics: Metrics) -> None:
        up = asyncio.Event()
        up.set()
        connector: Any = SimpleNamespace(up=up, link=link, takes_channels=lambda _: True)
        state = State(config, "pod-1")
        for layer in LAYERS[:-1]:
            state.succeeded(layer)
        super().__init__(config, connector, state, metrics)
        self.state = state
        self._intervals = 0
        self.is_evening = asyncio.Event()

    async def _wait(self, link: Link, retry: float) -> None:
        self._intervals += 1
        if self._intervals == PROBES_A_DAY:
            self.is_evening.set()
            await asyncio.Event().wait()
        await asyncio.sleep(0)


def spend_a_week(key: KeyPair, config: ForwarderConfig) -> Metrics:
    """Probes as the configuration says and as people ask, and returns what was counted of a forwarder."""
    metrics = Metrics()
    for _ in range(DAYS):
        with DataPath(config.bastion, config.database_port, key=key.private) as path:
            path.run(partial(_spend_a_day, path.link, config, metrics), 20 + PROBES_A_DAY * _SLOWEST_PROBE_SECONDS)
        check_once(key, config)
    return metrics


def check_once(key: KeyPair, config: ForwarderConfig, *, always_probe: bool = False) -> LayerFact:
    """As `dbtunnel check` does, also with `--probe`; what it shows of the database."""
    findings = asyncio.run(check(config, [Sources(Secret({KEY: key.private}))], always_probe=always_probe))
    assert findings.status.authentication.status == "True"
    return findings.status.database


async def _spend_a_day(link: Link, config: ForwarderConfig, metrics: Metrics) -> None:
    prober = _HastyProber(config, link, metrics)
    probing = asyncio.ensure_future(prober.run())
    try:
        async with asyncio.timeout(15 + PROBES_A_DAY * _SLOWEST_PROBE_SECONDS):
            await prober.is_evening.wait()
            for _ in range(ASKED_A_DAY):
                await prober.refresh()
    finally:
        probing.cancel()


# --- PostgreSQL -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tls", "log_connections"), [(False, "on"), (True, "off")])
def test_postgresql_has_nothing_to_log(
    bastion: Bastion,
    client_key: KeyPair,
    certificate: ServerCertificate,
    tmp_path: Path,
    tls: bool,
    log_connections: str,
) -> None:
    settings = [f"log_connections={log_connections}", "log_min_messages=info"]
    server = PostgresServer(tmp_path / "pg", tls=certificate if tls else None, settings=settings).start()
    begin = len(server.log_text())
    metrics = spend_a_week(client_key, forwarder_config(bastion, server.port))
    assert metrics.get(PROBES, "Succeeded") == DAYS * (PROBES_A_DAY + 1), "and one for those who ask"
    lines = server.log_text()[begin:].splitlines()
    received = [line for line in lines if "connection received" in line]
    assert [line for line in lines if line not in received] == []
    assert len(received) == (DAYS * (PROBES_A_DAY + 2) if log_connections == "on" else 0)
    server.stop()


# --- MariaDB ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[Cable]:
    with Cable(tmp_path) as cable:
        yield cable


@pytest.fixture
def far_bastion(tmp_path: Path, cable: Cable, client_key: KeyPair) -> Iterator[Bastion]:
    """One whose address is not loopback's, which MariaDB would never block."""
    bastion = Bastion(
        tmp_path / "far", host=cable.host, port=2222, hosts={"mysql.internal": cable.near}, prefix=cable.prefix
    )
    bastion.authorize(client_key.public)
    yield bastion.start()
    bastion.stop()


@pytest.fixture
def wary_mariadb(tmp_path: Path, cable: Cable) -> Iterator[MariaDBServer]:
    settings = [f"max-connect-errors={MOST_ERRORS}", "skip-name-resolve=0", "log-warnings=9"]
    server = MariaDBServer(tmp_path / "my", host=cable.near, settings=settings)
    yield server.start()
    server.stop()


def counted(server: MariaDBServer, name: str) -> int:
    """One of the server's own counters."""
    session = server.connect()
    with session, session.cursor() as cursor:
        cursor.execute("show global status like %s", (name,))
        row = cursor.fetchone()
    assert row is not None
    return int(row[1])


def log_in(port: int) -> None:
    """As an application does it."""
    pymysql.connect(host="127.0.0.1", port=port, user=USER, password=PASSWORD, database=DATABASE).close()


def test_mariadb_hears_of_no_probe_and_blocks_nobody(
    far_bastion: Bastion, client_key: KeyPair, wary_mariadb: MariaDBServer
) -> None:
    """Neither forwarders nor those who run a check ask it, unless they say --probe, which counts as an error and tells
    so. With one of these a day nobody is blocked, since applications log in between; with three in a row they would be.
    """
    config = forwarder_config(far_bastion, wary_mariadb.port, engine=Engine.MYSQL, database_host="mysql.internal")
    connections, log = counted(wary_mariadb, "Connections"), wary_mariadb.log_text()
    spend_a_week(client_key, config)
    assert counted(wary_mariadb, "Connections") == connections + 1, "the one that asks"
    assert counted(wary_mariadb, "Aborted_connects") == 0
    assert wary_mariadb.log_text() == log

    def probe(number: int) -> None:
        assert check_once(client_key, config, always_probe=True).status == "True"
        wait_until(lambda: counted(wary_mariadb, "Aborted_connects") == number, "the probe to count")

    with DataPath(config.bastion, wary_mariadb.port, key=client_key.private, database_host="mysql.internal") as path:
        for day in range(DAYS):
            probe(day + 1)
            log_in(path.port)
        for number in range(1, MOST_ERRORS + 1):
            probe(DAYS + number)
        assert check_once(client_key, config, always_probe=True).reason == Reason.HOST_BLOCKED
        with pytest.raises(pymysql.err.OperationalError, match=str(BLOCKED)):
            log_in(path.port)
