"""The operator's process: everything is made here and runs until it is told to end or cannot go on."""

import asyncio
import logging
import os
import signal
from collections.abc import Awaitable
from contextlib import AsyncExitStack

from aiohttp import web
from kubernetes.aio.client import ApiClient

from dbtunnel.controller import forwarders as pods
from dbtunnel.controller.client import Client, load_configuration
from dbtunnel.controller.endpoints import serving
from dbtunnel.controller.leader import Election
from dbtunnel.controller.logs import event
from dbtunnel.controller.metrics import Metrics
from dbtunnel.controller.operator import Operator
from dbtunnel.controller.settings import PodAccess, Settings
from dbtunnel.domain.metrics import CONTENT_TYPE

logger = logging.getLogger(__name__)


async def run_operator(settings: Settings) -> None:
    """Runs the operator until it gets SIGTERM or SIGINT. Raises where it cannot go on."""
    metrics, elected = Metrics(), asyncio.Event()
    async with AsyncExitStack() as stack:
        api = await stack.enter_async_context(ApiClient(await load_configuration()))
        session = await stack.enter_async_context(pods.open_session())
        election = Election(Client(api, metrics), settings.operator_namespace, settings.lease_name)
        client = Client(api, metrics, election.seconds_left) if settings.leader_election else Client(api, metrics)
        read = pods.direct_reader(session) if settings.pod_access is PodAccess.DIRECT else pods.proxy_reader(client)
        operator = Operator(settings, client, metrics, read)
        answers = {"/metrics": lambda: _metrics(metrics), "/readyz": lambda: _readiness(operator, election, elected)}
        await stack.enter_async_context(serving((settings.listens_on, settings.metrics_port), answers))
        parts: list[Awaitable[object]] = [_told_to_end(operator.begun), _work(settings, operator, elected)]
        if settings.leader_election:
            parts.append(election.hold(elected))
        else:
            elected.set()
        await _until_first_ends(*parts)
    # watches that Kopf cut in the midst complain once the loop closes them
    asyncio.get_running_loop().set_exception_handler(lambda *_: None)
    event(logger, "ended")


async def _work(settings: Settings, operator: Operator, elected: asyncio.Event) -> None:
    """Waits for the lease and for the API server, alive but idle, and then works."""
    address = settings.listens_on, settings.liveness_port
    async with serving(address, {"/healthz": lambda: web.json_response({"standby": True})}):
        await elected.wait()
        await operator.start()
    event(logger, "started", pid=os.getpid(), tunnels=len(operator.store.tunnels()), namespaces=settings.namespaces)
    workers = [operator.queue.work(operator.handle) for _ in range(settings.workers)]
    await _until_first_ends(operator.watch(), operator.resync_forever(), *workers)


async def _told_to_end(begun: asyncio.Event) -> None:
    """Returns at a signal, which a container's first process does not hear unless it asks for it.

    Kopf takes the signals over when it begins. They are taken back then, so that everything ends at once and not Kopf
    first, which takes its time while tunnels go on being reconciled.
    """
    told, loop = asyncio.Event(), asyncio.get_running_loop()
    for until in (begun, told):
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told.set)
        waits = [asyncio.create_task(one.wait()) for one in {until, told}]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if told.is_set():
            return
    # where Kopf ends by itself it cancels tasks that have begun since it did, and the wait above is one
    await told.wait()


def _metrics(metrics: Metrics) -> web.Response:
    return web.Response(body=metrics.text().encode(), headers={"Content-Type": CONTENT_TYPE})


def _readiness(operator: Operator, election: Election, elected: asyncio.Event) -> web.Response:
    """Ready: at work, or standing by. Not: the API server does not answer, so that an installation can tell."""
    is_ready = operator.is_watching or (not elected.is_set() and election.stands_by())
    return web.json_response({"watching": operator.is_watching}, status=200 if is_ready else 503)


async def _until_first_ends(*parts: Awaitable[object]) -> None:
    """Runs all parts until one returns, which ends the others, or raises, which is raised."""
    tasks = [asyncio.ensure_future(part) for part in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
