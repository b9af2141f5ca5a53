"""Processes of the tests: each ends with the test run, also when that is killed."""

import contextlib
import ctypes
import itertools
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

T = TypeVar("T")

_FIRST_PORT, _PORTS, _PORTS_EACH = 10_000, 20_000, 2_000
"""Below those that Linux gives to clients (from 32768) and Kubernetes to Services (from 30000)."""

_ports = itertools.count(random.randrange(_PORTS_EACH))

ROOT = Path(__file__).parents[2]
"""The project's folder."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class ProcessError(RuntimeError):
    """A process did not start, did not end, or ended badly; the text has the end of its log."""


class Process:
    """One process in a session of its own, its output in a file.

    The kernel kills it when the thread that started it is gone (PR_SET_PDEATHSIG): start it from the main thread.
    """

    def __init__(
        self,
        argv: Sequence[str | Path],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        survives: bool = False,
    ) -> None:
        """`survives`: it goes on after this process has ended, for what one command starts and another stops."""
        self.argv = [str(word) for word in argv]
        self.log = log
        self._env = dict(env) if env is not None else None
        self._cwd = cwd
        self._survives = survives
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Starts it; raises OSError where the program is not there."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as output:
            self._popen = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
                preexec_fn=None if self._survives else _die_with_parent,
            )
        return self

    @property
    def pid(self) -> int:
        """Its id; it also leads its process group."""
        assert self._popen is not None, "not started"
        return self._popen.pid

    def is_running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process alone."""
        if self.is_running():
            os.kill(self.pid, number)

    def stop(self, timeout_seconds: float = 10) -> None:
        """Ends it and what it started: SIGTERM, and SIGKILL after the timeout. Does nothing where it has ended."""
        if self._popen is None:
            return
        self.signal(signal.SIGTERM)
        try:
            self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def kill(self) -> None:
        """Ends it at once, with what it started."""
        if self._popen is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._popen.wait(10)

    def wait(self, timeout_seconds: float) -> int:
        """Its exit code, once it has ended. Raises ProcessError where it goes on."""
        assert self._popen is not None, "not started"
        try:
            return self._popen.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise ProcessError(f"{self.argv[0]} did not end within {timeout_seconds} s\n{self.log_end()}") from None

    def wait_until(self, condition: Callable[[], T], what: str, timeout_seconds: float = 20) -> T:
        """The first true value of `condition`; raises ProcessError with the log's end where the process ends first."""

        def running() -> T:
            if not self.is_running():
                raise ProcessError(f"{self.argv[0]} ended before {what}\n{self.log_end()}")
            return condition()

        return wait_until(running, what, timeout_seconds, describe=self.log_end)

    def log_end(self, characters: int = 4000) -> str:
        """The last part of what it wrote."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""


def wait_until(
    condition: Callable[[], T],
    what: str,
    timeout_seconds: float = 20,
    *,
    interval_seconds: float = 0.05,
    describe: Callable[[], object] = lambda: "",
) -> T:
    """The first true value of `condition`, asked again and again; raises ProcessError at the deadline."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise ProcessError(f"not within {timeout_seconds} s: {what}; last: {value!r}\n{describe()}")
        time.sleep(interval_seconds)


class Repeating:
    """Does something again and again, after a pause each time, while the context lasts."""

    def __init__(self, action: Callable[[], object], pause_seconds: float) -> None:
        self._action, self._pause_seconds = action, pause_seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._repeat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(30)

    def _repeat(self) -> None:
        while not self._end.wait(self._pause_seconds):
            self._action()


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port that is free now, and that nobody else takes while a server of the test is down: it is of this process
    of the run alone, not one that the system gives to clients, and is not given again soon.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % (_PORTS // _PORTS_EACH)
    for _ in range(_PORTS_EACH):
        port = _FIRST_PORT + worker * _PORTS_EACH + next(_ports) % _PORTS_EACH
        with socket.socket(family_of(host)) as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            return port
    raise ProcessError(f"none of {_PORTS_EACH} TCP ports is free at {host}")


def family_of(host: str) -> socket.AddressFamily:
    """Of a socket that listens at an address."""
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def listens(host: str, port: int) -> bool:
    """Whether something takes TCP connections there."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def run(argv: Sequence[str | Path], *, timeout_seconds: float = 120, **options: object) -> str:
    """What a command prints. Raises ProcessError with its output where it fails."""
    done = subprocess.run(  # type: ignore[call-overload]
        [str(word) for word in argv],
        capture_output=True,
        text=True,
        timeout=timeout_seconds,
        check=False,
        **options,
    )
    if done.returncode:
        raise ProcessError(f"{' '.join(map(str, argv))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
