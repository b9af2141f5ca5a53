"""Real load: PostgreSQL's own benchmark."""

import os
from pathlib import Path
from typing import Self

from tests.support.databases import DATABASE, PASSWORD, USER, PostgresServer, postgres_program
from tests.support.processes import Process, run

_RATE = 300
"""Transactions a second that are begun: more would take the processor from what is tested, and from other tests."""

_SCRIPT = "begin;\nupdate pgbench_branches set bbalance = bbalance + 1 where bid = 1 + :client_id % 4;\nend;\n"
"""A transaction of three statements, so that one is often under way."""


class Pgbench:
    """pgbench, for some seconds."""

    def __init__(self, directory: Path, port: int, *, clients: int, seconds: int, connect: bool = False) -> None:
        """`connect`: a connection for each transaction."""
        script = directory / "pgbench.sql"
        script.write_text(_SCRIPT)
        words = [
            f"--client={clients}",
            "--jobs=2",
            f"--time={seconds}",
            f"--rate={_RATE}",
            "--no-vacuum",
            f"--file={script}",
        ]
        target = ["--host=127.0.0.1", f"--port={port}", f"--username={USER}", DATABASE]
        program = [postgres_program("pgbench"), *(["--connect"] if connect else []), *words, *target]
        self.log = directory / f"pgbench-{'connect' if connect else 'stay'}.log"
        self._process = Process(program, self.log, env={**os.environ, "PGPASSWORD": PASSWORD})
        self._seconds = seconds

    def start(self) -> Self:
        """Starts it."""
        self._process.start()
        return self

    @property
    def is_running(self) -> bool:
        return self._process.is_running()

    def transactions(self) -> int:
        """How many there were, once it has ended. Raises AssertionError where one failed."""
        code = self._process.wait(self._seconds + 30)
        told = self.log.read_text()
        assert code == 0, told
        assert "number of failed transactions: 0 (" in told, told
        return int(told.split("number of transactions actually processed: ")[1].split()[0])


def prepare(server: PostgresServer) -> None:
    """Makes the tables that the load needs."""
    target = [f"--host={server.host}", f"--port={server.port}", f"--username={USER}", DATABASE]
    run(
        [postgres_program("pgbench"), "--initialize", "--scale=4", "--quiet", *target],
        env={**os.environ, "PGPASSWORD": PASSWORD},
    )
