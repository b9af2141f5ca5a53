"""Applications at work: programs in the pod of clients that connect again and again, or hold their sessions."""

import json
import threading
import uuid
from dataclasses import dataclass
from typing import Any, Self

from tests.support.clients import Endpoint, first_query, query
from tests.support.cluster import Cluster, ClusterError
from tests.support.databases import DATABASE, USER
from tests.support.processes import wait_until

_LONGEST_SECONDS = 240
"""After which a program ends by itself: nobody told it to."""

_AROUND = """
import json, os, sys, time
stop, end = sys.argv[1], time.monotonic() + float(sys.argv[2])
def begun():
    open(stop + ".begun", "w").close()
def is_over():
    return os.path.exists(stop) or time.monotonic() > end
"""
"""Stands before each program: the words after it are `sys.argv[3:]`."""


class Program:
    """A Python program in the pod of clients, while the context lasts: it calls `begun`, goes on until `is_over`, and
    prints what it has seen as JSON.
    """

    def __init__(self, cluster: Cluster, namespace: str, program: str, *words: object) -> None:
        self._cluster, self._namespace = cluster, namespace
        self._stop_file = f"/tmp/stop-{uuid.uuid4().hex}"
        arguments = [self._stop_file, _LONGEST_SECONDS, *words]
        self._command = ["python", "-c", _AROUND + program, *map(str, arguments)]
        self._printed = ""
        self._failure: ClusterError | None = None
        self._was_at_work = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        # it waits in the pod, since each look from here costs more than the program itself
        look = f"[ -e {self._stop_file}.begun ] && echo begun && break; sleep 0.1"
        found = ["sh", "-c", f"for _ in 1 2 3 4 5 6 7 8 9 10; do {look}; done"]
        wait_until(lambda: query(self._cluster, self._namespace, found) or not self._thread.is_alive(), "its begin")
        return self

    def __exit__(self, *_: object) -> None:
        self._was_at_work = self._thread.is_alive()
        query(self._cluster, self._namespace, ["touch", self._stop_file])
        self._thread.join(_LONGEST_SECONDS)

    @property
    def printed(self) -> Any:
        """What it has seen, once the context has been left. Raises ClusterError where it failed."""
        if self._failure:
            raise self._failure
        assert self._was_at_work, f"it saw the first {_LONGEST_SECONDS} s alone"
        return json.loads(self._printed.splitlines()[-1])

    def _run(self) -> None:
        try:
            self._printed = query(self._cluster, self._namespace, self._command, _LONGEST_SECONDS + 30)
        except ClusterError as error:
            self._failure = error


def target_of(endpoint: Endpoint) -> str:
    """Where and as whom psycopg connects."""
    return f"host={endpoint.host} port={endpoint.port} user={USER} dbname={DATABASE}"


# --- one after the other ----------------------------------------------------------------------------------------------

_TRAFFIC = """
import psycopg
served, errors, outages, since = 0, [], [], None
begun()
while not is_over():
    began = time.monotonic()
    try:
        with psycopg.connect(sys.argv[3], connect_timeout=20) as session:
            session.execute("select 1")
        served += 1
        if since is not None:
            outages.append(time.monotonic() - since)
            since = None
    except psycopg.Error as error:
        errors.append(str(error)[:300])
        since = began if since is None else since
    time.sleep(0.05)
if since is not None:
    outages.append(time.monotonic() - since)
print(json.dumps({"served": served, "errors": errors, "outages": outages}))
"""


@dataclass(frozen=True)
class Outcome:
    """What became of the connections."""

    served: int
    errors: list[str]
    outages: list[float]
    """Seconds from the first failure of several in a row until one was served again."""


class Traffic(Program):
    """A new PostgreSQL session every 50 ms, one after the other."""

    def __init__(self, cluster: Cluster, namespace: str, endpoint: Endpoint) -> None:
        self._target = target_of(endpoint)
        super().__init__(cluster, namespace, _TRAFFIC, self._target)

    def __enter__(self) -> Self:
        first_query(self._cluster, self._namespace, ["psql", self._target, "-c", "select 1"])
        return super().__enter__()

    @property
    def outcome(self) -> Outcome:
        """What became of it, once the context has been left."""
        return Outcome(**self.printed)


# --- one for all the time ---------------------------------------------------------------------------------------------

_HELD = """
import psycopg
with psycopg.connect(sys.argv[3], connect_timeout=20) as session:
    begun()
    queries = 0
    while not is_over():
        session.execute("select 1")
        queries += 1
        time.sleep(0.1)
print(json.dumps(queries))
"""


class Held(Program):
    """One PostgreSQL session with a query every 100 ms. It prints how many there were, and fails where it is cut."""

    def __init__(self, cluster: Cluster, namespace: str, endpoint: Endpoint) -> None:
        super().__init__(cluster, namespace, _HELD, target_of(endpoint))


# --- many at a time ---------------------------------------------------------------------------------------------------

_ARRIVALS = """
import asyncio
address, port, count, pause = sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), float(sys.argv[6])
comings = []
async def come():
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 20)
    except (OSError, asyncio.TimeoutError) as error:
        return "no connection: " + repr(error)
    try:
        writer.write(bytes.fromhex("0000000804d2162f"))
        answer = await asyncio.wait_for(reader.read(1), 60)
        return "served" if answer == b"N" else "closed without a byte"
    except (OSError, asyncio.TimeoutError) as error:
        return "no answer: " + repr(error)
    finally:
        writer.close()
async def keep_coming(number):
    await asyncio.sleep(pause * number / count)
    while not is_over():
        came = time.time()
        comings.append((came, await come(), time.time()))
        await asyncio.sleep(pause)
async def all_of_them():
    coming = [asyncio.ensure_future(keep_coming(number)) for number in range(count)]
    while not comings:
        await asyncio.sleep(0.01)
    begun()
    await asyncio.gather(*coming)
asyncio.run(all_of_them())
print(json.dumps(comings))
"""

_ARRIVAL_PAUSE_SECONDS = 0.5
"""Of each client between two connections: a hundred make some 200 connections a second."""


@dataclass(frozen=True)
class Coming:
    """A client's connection, from its begin to the first byte of the database's or its end. Times are the epoch's, by
    the pod's clock, which is the machine's where the cluster runs on it.
    """

    came: float
    what: str
    """`served`, or what happened instead."""
    went: float

    @property
    def is_served(self) -> bool:
        """Whether the database has answered."""
        return self.what == "served"


class Arrivals(Program):
    """Clients that all the time connect to the Service, ask the database for TLS, which answers, leave, come again."""

    def __init__(self, cluster: Cluster, namespace: str, endpoint: Endpoint, count: int) -> None:
        self._endpoint = endpoint
        words = endpoint.address, endpoint.port, count, _ARRIVAL_PAUSE_SECONDS
        super().__init__(cluster, namespace, _ARRIVALS, *words)

    def __enter__(self) -> Self:
        first_query(self._cluster, self._namespace, ["psql", target_of(self._endpoint), "-c", "select 1"])
        return super().__enter__()

    @property
    def comings(self) -> list[Coming]:
        """All of them, once the context has been left."""
        return [Coming(*one) for one in self.printed]
