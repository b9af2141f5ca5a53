"""One contender at one site, and what clients do to it."""

import os
import subprocess
import time
from pathlib import Path
from typing import Self

from bench.contenders import Contender
from bench.programs import program
from bench.sites import Site, pgbench
from tests.support.bastion import descendants
from tests.support.processes import Process, ProcessError, free_port

_PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20
TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")
"""What the fields of proc(5)'s stat count in."""
_LONGEST_SECONDS = 120
"""No measurement takes as long."""


class Lane:
    """Its process starts when it is first needed, and ends with the context."""

    def __init__(self, contender: Contender, site: Site, directory: Path) -> None:
        self.site = site
        self._contender, self._directory = contender, directory
        self._port = free_port()
        self._process: Process | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def is_direct(self) -> bool:
        """Whether no process lies between."""
        return self._contender.start is None

    @property
    def address(self) -> tuple[str, int]:
        """Where clients connect."""
        return (self.site.host, self.site.port) if self.is_direct else ("127.0.0.1", self._port)

    def start(self) -> float:
        """Starts it anew; returns the seconds until the first byte came through it. Raises ProcessError."""
        self.stop()
        waiting = self.begin("first")  # before the process, so that its own start is not counted
        begun = time.monotonic()
        try:
            if self._contender.start:
                self._process = self._contender.start(self.site, self._directory, self._port)
            return float(finished(waiting)) - begun
        except ProcessError as error:
            waiting.kill()
            log = self._process.log_end(1000) if self._process else ""
            raise ProcessError(f"{self._contender.title} does not forward: {error}\n{log}") from None

    def ensure_started(self) -> None:
        """Starts it where it does not run."""
        if not self.is_direct and self._process is None:
            self.start()

    def stop(self) -> None:
        """Ends it at once."""
        if self._process:
            self._process.kill()
            self._process = None

    # --- clients --------------------------------------------------------------------------------------------------

    def begin(self, measurement: str, *options: object) -> "subprocess.Popen[str]":
        """A measurement of `load.c`, to be waited for with `finished`."""
        host, port = self.address
        command = [*self.site.near, program("load"), measurement, host, port, *options]
        return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def load(self, measurement: str, *options: object) -> list[float]:
        """The numbers of a measurement of `load.c`."""
        return [float(word) for word in finished(self.begin(measurement, *options)).split()]

    def pgbench(self, *options: str, directory: Path) -> str:
        """What pgbench prints; files go to the directory."""
        command = [*self.site.near, *pgbench(*self.address, *options)]
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, timeout=_LONGEST_SECONDS, check=False
        )
        if done.returncode:
            raise ProcessError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    # --- what it costs --------------------------------------------------------------------------------------------

    def cpu_seconds(self) -> float:
        """Processor time, user and system, that it has used; 0 where there is no process."""
        return sum(sum(map(int, fields(pid)[11:13])) for pid in self.pids()) * TICK_SECONDS

    def resident_mib(self) -> float:
        """Resident memory (RSS) now, in MiB; 0 where there is no process."""
        return sum(int(fields(pid)[21]) for pid in self.pids()) * _PAGE_MIB

    def pids(self) -> list[int]:
        """Its processes."""
        return [self._process.pid, *descendants(self._process.pid)] if self._process else []


def finished(waiting: "subprocess.Popen[str]") -> str:
    """What a measurement has printed at its end. Raises ProcessError."""
    try:
        printed, errors = waiting.communicate(timeout=_LONGEST_SECONDS)
    except subprocess.TimeoutExpired:
        waiting.kill()
        raise
    if waiting.returncode:
        raise ProcessError(f"{' '.join(map(str, waiting.args))}\n{errors}")  # type: ignore[arg-type]
    return printed


def fields(pid: int) -> list[str]:
    """The fields of proc(5)'s stat from the third on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
