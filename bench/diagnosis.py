"""`python -m bench.diagnosis`: how long from a fault to the condition that tells of it.

A real forwarder, bastion and database, and the operator's own code, which follows the forwarder's /status and decides
the conditions. Not in it: the write of the status, a few hundredths of a second in a cluster.
"""

import argparse
import asyncio
import contextlib
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

from bench.figures import spread
from bench.machine import machine_line
from bench.report import insert, table
from tests.support.bastion import PACKAGES, Bastion
from tests.support.databases import PostgresServer
from tests.support.debian import ensure_packages
from tests.support.following import Following, following
from tests.support.forwarder import KEY, Forwarder, forwarder_config
from tests.support.keys import key_pair

_LONGEST_SECONDS = 60
_CLIENT_SECONDS = 1.0


@dataclass
class Site:
    """What a fault happens to."""

    bastion: Bastion
    database: PostgresServer
    forwarder: Forwarder


async def stop_bastion(site: Site) -> None:
    """Nothing listens there any more."""
    await asyncio.to_thread(site.bastion.stop)


async def change_host_keys(site: Site) -> None:
    """As a reinstallation does."""
    await asyncio.to_thread(site.bastion.replace_host_keys)
    await asyncio.to_thread(site.bastion.kill_sessions)


async def revoke_key(site: Site) -> None:
    """The line goes, and with it the sessions: by itself sshd keeps those."""
    site.bastion.unauthorize()
    await asyncio.to_thread(site.bastion.kill_sessions)


async def stop_database(site: Site) -> None:
    """While a client tries each second; else the next probe finds it out."""
    await asyncio.to_thread(site.database.stop)


Fault = Callable[[Site], Awaitable[None]]

FAULTS: dict[str, tuple[Fault, str]] = {
    "the bastion stops": (stop_bastion, "ConnectionRefused"),
    "its host keys are others, and its sessions end": (change_host_keys, "HostKeyMismatch"),
    "the key is revoked, and its sessions end": (revoke_key, "KeyRejected"),
    "the database stops, and a client comes each second": (stop_database, "DatabaseRefused"),
}
"""Each fault, and the reason that it leads to."""


async def measure(fault: Fault, reason: str, directory: Path) -> float:
    """Seconds from the fault until the condition tells of it."""
    key = key_pair()
    database = PostgresServer(directory / "database").start()
    bastion = Bastion(directory / "bastion", hosts={"orders.internal": "127.0.0.1"})
    bastion.authorize(key.public)
    bastion.start()
    forwarder = Forwarder(directory / "forwarder", forwarder_config(bastion, database.port), {KEY: key.private})
    site = Site(bastion, database, await asyncio.to_thread(forwarder.start))
    try:
        async with following(forwarder) as view:
            await view.until("Succeeded", _LONGEST_SECONDS)
            return await _measured(view, site, fault, reason)
    finally:
        forwarder.stop()
        bastion.stop()
        with contextlib.suppress(Exception):
            database.stop()


async def _measured(view: Following, site: Site, fault: Fault, reason: str) -> float:
    clients = asyncio.ensure_future(_come_and_go(site.forwarder.port))
    began = time.monotonic()
    try:
        await fault(site)
        return await view.until(reason, _LONGEST_SECONDS) - began
    finally:
        clients.cancel()


async def _come_and_go(port: int) -> None:
    """A client of PostgreSQL that asks for TLS each second."""
    while True:
        with contextlib.suppress(OSError):
            client = socket.create_connection(("127.0.0.1", port), 1)
            client.sendall(bytes.fromhex("0000000804d2162f"))
            await asyncio.sleep(_CLIENT_SECONDS)
            client.close()


def report(directory: Path, runs: int) -> str:
    """Measures each fault so many times, in a directory that stays until the process ends; the table in Markdown, and
    what it was measured on.
    """
    head = fill(f"{machine_line()} Runs of each: {runs}.", 120)
    return "\n".join([head, "", *table([["fault", "reason", "p50, s", "max, s"], *_rows(directory, runs)])])


def _rows(directory: Path, runs: int) -> Iterator[Sequence[str]]:
    for number, (name, (fault, reason)) in enumerate(FAULTS.items()):
        taken = [asyncio.run(measure(fault, reason, directory / f"{number}-{run}")) for run in range(runs)]
        print(f"{name}: {', '.join(f'{seconds:.1f}' for seconds in taken)} s", file=sys.stderr, flush=True)
        yield name, f"`{reason}`", f"{spread(taken).median:.1f}", f"{spread(taken).most:.1f}"


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line: measures, and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.diagnosis", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each fault (default %(default)s)")
    parser.add_argument("--into", type=Path, metavar="DOCUMENT", help="put it between the marker comments, too")
    arguments = parser.parse_args(words)
    ensure_packages({**PACKAGES, **PostgresServer.packages})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        told = report(Path(directory), arguments.runs)
    print(told)
    if arguments.into:
        arguments.into.write_text(insert(arguments.into.read_text(), told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
