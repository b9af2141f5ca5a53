"""When an operator tells of a real forwarder's failures: not of a moment's, of those that last, and of its silence."""

import asyncio
from collections.abc import Callable

import pymysql

from dbtunnel.api.engines import Engine
from dbtunnel.api.reasons import PASSING_SECONDS, Reason
from tests.support.bastion import Bastion
from tests.support.databases import PASSWORD, USER, MariaDBServer, PostgresServer
from tests.support.following import KEY, following
from tests.support.forwarder import Forwarder
from tests.support.keys import key_pair
from tests.support.processes import wait_until
from tests.support.produced import note, produces
from tests.support.values import INSTALLATION

StartForwarder = Callable[..., Forwarder]

CONNECTS = "dbtunnel_forwarder_ssh_connects_total"


async def test_a_restart_of_the_bastion_changes_no_condition_and_counts(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start_forwarder(postgres.port)
    async with following(forwarder) as view:
        await view.until("Succeeded")
        before = view.conditions
        for times in (2, 3):
            await asyncio.to_thread(bastion.restart)
            await asyncio.to_thread(wait_until, lambda times=times: forwarder.metric(CONNECTS) == times, "another")
            await asyncio.to_thread(forwarder.wait_for, "database", "Succeeded")
            view.decide()
            assert view.conditions == before
        assert view.told[-1] == ("True", "Succeeded")
        assert len(view.told) == 2, "and Progressing at the start"
    assert forwarder.log.read_text().count('"event": "connection lost"') == 2


async def test_what_a_client_has_shown_of_mysql_outlives_a_restart_of_the_bastion(
    start_forwarder: StartForwarder, bastion: Bastion, mariadb: MariaDBServer
) -> None:
    """It is not probed, and the next client may be long in coming."""
    forwarder = start_forwarder(mariadb.port, engine=Engine.MYSQL)
    forwarder.wait_for("database", "NotProbed")
    pymysql.connect(host="127.0.0.1", port=forwarder.port, user=USER, password=PASSWORD, connect_timeout=10).close()
    async with following(forwarder) as view:
        await view.wait(lambda: view.decide() is None and view.conditions["DatabaseReachable"].status == "True")
        before = view.conditions
        await asyncio.to_thread(bastion.restart)
        await asyncio.to_thread(wait_until, lambda: forwarder.metric(CONNECTS) == 2, "another")
        await asyncio.to_thread(forwarder.wait_for, "database", "Succeeded")
        view.decide()
        assert view.conditions == before


async def test_a_bastion_that_stays_away_is_told_and_its_return_at_once(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    async with following(start_forwarder(postgres.port)) as view:
        up_at = await view.until("Succeeded")
        await asyncio.to_thread(bastion.stop)
        assert await view.until("ConnectionRefused") - up_at >= PASSING_SECONDS
        await asyncio.to_thread(bastion.start)
        await view.until("Succeeded")
        told = [status for status, _ in view.told if status != "Unknown"]  # while the database is asked again
        assert told == ["True", "False", "True"]


async def test_a_first_attempt_that_fails_is_not_told(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    """As where nodes do not know the Service before a bastion yet."""
    bastion.stop()
    forwarder = start_forwarder(postgres.port)
    forwarder.wait_for("transport", "ConnectionRefused")
    async with following(forwarder) as view:
        await asyncio.to_thread(bastion.start)
        await view.until("Succeeded")
        assert view.told == [("Unknown", "Progressing"), ("True", "Succeeded")]


async def test_a_clear_failure_is_told_at_once(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    bastion.authorize(key_pair().public)
    async with following(start_forwarder(postgres.port)) as view:
        await view.until("KeyRejected", PASSING_SECONDS)
        assert view.told == [("Unknown", "Progressing"), ("False", "KeyRejected")]


@produces(Reason.FORWARDER_UNREACHABLE)
async def test_a_forwarder_that_cannot_be_read(start_forwarder: StartForwarder, postgres: PostgresServer) -> None:
    """It is as with a NetworkPolicy that keeps the operator out: its port refuses."""
    forwarder = start_forwarder(postgres.port)
    async with following(forwarder) as view:
        await view.until("Succeeded")
        known = view.conditions["Authenticated"]
        await asyncio.to_thread(forwarder.stop)
        await view.wait(lambda: any(report.failing_since for report in view.forwarders.reports(KEY).values()))
        view.ahead_seconds = INSTALLATION.unreachable_after_seconds - 2
        view.decide()
        assert view.told[-1] == ("True", "Succeeded"), "the last known facts"
        view.ahead_seconds += 2
        await view.until("ForwarderUnreachable")
        told = view.conditions["WorkloadReady"]
        assert (told.status, told.reason) == ("False", "ForwarderUnreachable")
        assert "Allow TCP from the operator's namespace to port 8080" in told.message
        assert view.conditions["Authenticated"] == known
        assert view.event == ("Warning", "ForwarderUnreachable", told.message)
        note(Reason.FORWARDER_UNREACHABLE, told.message)
