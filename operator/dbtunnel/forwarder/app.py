"""The forwarder as a whole: what is started, in which order, and how it ends."""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from dbtunnel.api.forwarder import ForwarderConfig
from dbtunnel.forwarder.admin import Admin
from dbtunnel.forwarder.connection import Connector, Sources
from dbtunnel.forwarder.listener import Listener, listening_socket
from dbtunnel.forwarder.logs import event
from dbtunnel.forwarder.loop import ForwarderLoop
from dbtunnel.forwarder.metrics import OWN_PACKETS, Metrics
from dbtunnel.forwarder.packets import why_never
from dbtunnel.forwarder.probes import Prober
from dbtunnel.forwarder.state import State
from dbtunnel.forwarder.watch import hot_loop

_LOG = logging.getLogger(__name__)

_PROBE_END_SECONDS = 2
"""How long the end waits for a probe, which, cut in the middle, would be an error in the database's log."""


@dataclass(frozen=True)
class Address:
    """Where to listen; an empty host means every address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Surroundings:
    """What a forwarder has around it beside its configuration."""

    pod_uid: str
    listen: Address
    admin_listen: Address
    sources: Sequence[Sources]
    """By the hop's number."""


class ListenError(Exception):
    """An address cannot be listened on; the text names it."""


class _Stop:
    """What SIGTERM and SIGINT ask for: first to drain, then to end."""

    def __init__(self) -> None:
        self.drain, self.now = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._asked)

    def _asked(self) -> None:
        (self.now if self.drain.is_set() else self.drain).set()


def run(config: ForwarderConfig, around: Surroundings) -> None:
    """Runs until told to end. Raises ListenError."""
    with asyncio.Runner(loop_factory=lambda: hot_loop(ForwarderLoop)) as runner:
        runner.run(_run(config, around))


async def _run(config: ForwarderConfig, around: Surroundings) -> None:
    stop = _Stop()
    state, metrics = State(config, around.pod_uid), Metrics()
    connector = Connector(config, around.sources, state, metrics)
    prober = Prober(config, connector, state, metrics)
    connector.obstacle = prober.obstacle
    listener = Listener(config, connector, prober, metrics)
    admin = Admin(config, state, listener, connector, prober, metrics)
    clients, administrators = _bound(around.listen), _bound(around.admin_listen)
    await admin.start(administrators)
    listener.start(clients)
    why_not_own = why_never(own=config.own_packets)  # before there is a client, whom it would hold up
    metrics.set(OWN_PACKETS, not why_not_own)
    _tell_start(config, clients, administrators, why_not_own)
    tasks = [asyncio.ensure_future(part.run()) for part in (connector, prober, listener)]
    try:
        await _until_stopped(stop, tasks)
        state.set(draining=True)
        await _drain(config, listener, stop)
        await _either(stop.now, prober.idle, _PROBE_END_SECONDS)
    finally:
        listener.cut()
        admin.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        event(_LOG, "ended")


def _tell_start(
    config: ForwarderConfig, clients: socket.socket, administrators: socket.socket, why_not_own: str
) -> None:
    event(
        _LOG,
        "started",
        tunnel=f"{config.namespace}/{config.name}",
        config=config.digest(),
        listen=str(Address(*clients.getsockname()[:2])),
        admin=str(Address(*administrators.getsockname()[:2])),
        packets="asyncssh" if why_not_own else "own",
        why_not_own=why_not_own,
    )


def _bound(address: Address) -> socket.socket:
    try:
        return listening_socket(address.host, address.port)
    except OSError as error:
        # Python repeats the address in the text; a name that does not resolve has a negative number
        text = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise ListenError(f"{address}: {text or error}") from None


async def _until_stopped(stop: _Stop, tasks: "list[asyncio.Task[None]]") -> None:
    """Returns when told to stop; a task that ends is a bug, and ends the process so that it shows."""
    told = asyncio.ensure_future(stop.drain.wait())
    done, _ = await asyncio.wait([told, *tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


async def _drain(config: ForwarderConfig, listener: Listener, stop: _Stop) -> None:
    """Serves new clients for a while, since endpoints lag, then lets the others finish."""
    seconds = config.seconds
    event(_LOG, "draining", least=seconds.drain_min, most=seconds.drain_max, clients=listener.clients)
    await _either(stop.now, None, seconds.drain_min)
    listener.refuse_new()
    left = seconds.drain_max - seconds.drain_min
    ending = asyncio.ensure_future(listener.end_quiet(left))
    await _either(stop.now, listener.empty, left)
    ending.cancel()


async def _either(first: asyncio.Event, second: asyncio.Event | None, timeout_seconds: float) -> None:
    waits = [asyncio.ensure_future(happening.wait()) for happening in (first, second) if happening]
    await asyncio.wait(waits, timeout=max(timeout_seconds, 0), return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
