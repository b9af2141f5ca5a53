"""Applications at work: a pod that connects and queries again and again."""

import json
import threading
from dataclasses import dataclass
from typing import Self

from tests.support.clients import Endpoint, first_query, query
from tests.support.cluster import Cluster
from tests.support.databases import DATABASE, USER
from tests.support.processes import wait_until

_PROGRAM = """
import json, os, sys, time
import psycopg
served, errors = 0, []
print("begun", flush=True)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end and not os.path.exists(sys.argv[3]):
    try:
        with psycopg.connect(sys.argv[1], connect_timeout=20) as session:
            session.execute("select 1")
        served += 1
    except psycopg.Error as error:
        errors.append(str(error)[:300])
    time.sleep(0.05)
print(json.dumps({"served": served, "errors": errors}))
"""

_LONGEST_SECONDS = 120


@dataclass(frozen=True)
class Outcome:
    """What became of the connections."""

    served: int
    errors: list[str]


class Traffic:
    """A new PostgreSQL session every 50 ms, one after the other, from the pod of clients, while the context lasts."""

    def __init__(self, cluster: Cluster, namespace: str, endpoint: Endpoint) -> None:
        self._cluster, self._namespace = cluster, namespace
        self._stop_file = f"/tmp/stop-{id(self)}"
        self._target = f"host={endpoint.host} port={endpoint.port} user={USER} dbname={DATABASE}"
        self._command = ["python", "-c", _PROGRAM, self._target, str(_LONGEST_SECONDS), self._stop_file]
        self._printed = ""
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        first_query(self._cluster, self._namespace, ["psql", self._target, "-c", "select 1"])
        self._thread.start()
        marker = ["sh", "-c", "grep -lz psycopg.connect /proc/[0-9]*/cmdline || true"]
        wait_until(lambda: query(self._cluster, self._namespace, marker), "the traffic's begin")
        return self

    def __exit__(self, *_: object) -> None:
        query(self._cluster, self._namespace, ["touch", self._stop_file])
        self._thread.join(_LONGEST_SECONDS)

    @property
    def outcome(self) -> Outcome:
        """What became of it, once the context has been left."""
        document = json.loads(self._printed.splitlines()[-1])
        return Outcome(document["served"], document["errors"])

    def _run(self) -> None:
        self._printed = query(self._cluster, self._namespace, self._command, _LONGEST_SECONDS + 30)
