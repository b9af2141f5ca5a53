"""A real forwarder process, as a pod runs it: no environment but its configuration, no home, no writable directory."""

import json
import os
import sys
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from dbtunnel.api.documents import read
from dbtunnel.api.engines import Engine
from dbtunnel.api.forwarder import (
    CONFIG_VARIABLE,
    ForwarderConfig,
    ForwarderHop,
    ForwarderKey,
    ForwarderStatus,
    HostKeyRule,
    LayerFact,
    Seconds,
)
from dbtunnel.domain.authorized_keys import forward_target
from tests.support.bastion import USER
from tests.support.keys import write_key_directory
from tests.support.processes import Process, free_port, wait_until

KEY, PASSPHRASE_KEY = "ssh-privatekey", "passphrase"


class SshServer(Protocol):
    """What a forwarder has to know of one."""

    host: str
    port: int

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of its host keys."""


def seconds(**changes: int) -> Seconds:
    """Short times."""
    usual = {"connect_timeout": 5, "keepalive_interval": 1, "parking_max": 10, "drain_min": 0, "drain_max": 5}
    return Seconds(**{**usual, **changes})


def hop_to(bastion: SshServer, **changes: Any) -> ForwarderHop:
    """The way into a bastion, its keys pinned."""
    usual = {
        "host": bastion.host,
        "port": bastion.port,
        "user": USER,
        "host_key": HostKeyRule(fingerprints=tuple(bastion.fingerprints.values())),
    }
    return ForwarderHop(**{**usual, **changes})


def forwarder_config(bastion: SshServer, database_port: int, /, **changes: Any) -> ForwarderConfig:
    """A configuration that works: the bastion's keys pinned, short times."""
    usual: dict[str, Any] = {
        "namespace": "shop",
        "name": "orders",
        "engine": Engine.POSTGRESQL,
        "database_host": "orders.internal",
        "database_port": database_port,
        "database_server_name": "orders.internal",
        "bastion": hop_to(bastion),
        "key": ForwarderKey(secret="orders-ssh", key=KEY, passphrase_key=PASSPHRASE_KEY),
        "keepalive_count_max": 1,
        "seconds": seconds(),
    }
    return ForwarderConfig(**{**usual, **changes})


def as_a_stranger() -> list[str]:
    """The command that runs another as an id without an account and with nothing to write to, as a pod has it."""
    number = "123456"
    if os.geteuid() != 0:
        return ["unshare", "--user", f"--map-user={number}", f"--map-group={number}"]
    read_only = "mount -o remount,bind,ro / && (! mountpoint -q /tmp || mount -o remount,bind,ro /tmp)"
    # it may read what it could not otherwise: Python and the key directory, wherever they lie
    may_read = [
        "--inh-caps=-all,+dac_read_search",
        "--ambient-caps=+dac_read_search",
        "--bounding-set=-all,+dac_read_search",
    ]
    become = ["setpriv", f"--reuid={number}", f"--regid={number}", "--clear-groups", *may_read, "--pdeathsig=KILL"]
    return ["unshare", "--mount", "sh", "-c", f'{read_only} && exec "$@"', "stranger", *become]


class Forwarder:
    """`dbtunnel forward`. Its key directory is written as the kubelet does it."""

    def __init__(self, directory: Path, config: ForwarderConfig, files: Mapping[str, str] | None = None) -> None:
        """`files`: the key Secret; None for a Secret that is not there."""
        self.directory, self.config = directory, config
        self.port, self.admin_port = free_port(), free_port()
        self.host = ""
        """At which clients and the admin port are reached."""
        self.log = directory / "forwarder.log"
        for name in ("key", "known-hosts"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        if files is not None:
            self.write_secret(files)
        self._process: Process | None = None

    def start(
        self,
        *prefix: str,
        environment: Mapping[str, str] | None = None,
        address: str = "127.0.0.1",
        arguments: Sequence[str] = (),
    ) -> Self:
        """Starts it; returns once it listens. `prefix`: a command that runs it. `address`: empty for every one."""
        self.host = address or "127.0.0.1"
        command = [
            *prefix,
            sys.executable,
            "-m",
            "dbtunnel.cli.main",
            "forward",
            f"--listen={forward_target(address, self.port)}",
            f"--admin-listen={forward_target(address, self.admin_port)}",
            f"--key-directory={self.directory / 'key'}",
            f"--known-hosts-directory={self.directory / 'known-hosts'}",
            f"--hops-directory={self.directory / 'hops'}",
            *arguments,
        ]
        variables = {CONFIG_VARIABLE: self.config.to_json(), "POD_UID": "pod-1", **(environment or {})}
        self._process = Process(command, self.log, env=variables, cwd=Path("/")).start()
        # its log tells, since a connection to its port would be a client
        self._process.wait_until(lambda: '"event": "started"' in self._process_log(), "the forwarder to listen")
        return self

    @property
    def process(self) -> Process:
        """The running process."""
        assert self._process is not None, "not started"
        return self._process

    def write_secret(self, files: Mapping[str, str]) -> None:
        """The key Secret's content from now on."""
        write_key_directory(self.directory / "key", dict(files))

    def write_known_hosts(self, text: str, name: str = "known_hosts") -> None:
        """The known_hosts object's content from now on."""
        write_key_directory(self.directory / "known-hosts", {name: text})

    def write_hop(self, number: int, name: str, files: Mapping[str, str]) -> None:
        """The content of a hop's own `key` or `known-hosts` from now on."""
        directory = self.directory / "hops" / str(number) / name
        directory.mkdir(parents=True, exist_ok=True)
        write_key_directory(directory, dict(files))

    def get(self, path: str, timeout_seconds: float = 10) -> str:
        """What the admin port answers. Raises urllib.error.HTTPError."""
        address = f"http://{forward_target(self.host, self.admin_port)}{path}"
        with urllib.request.urlopen(address, timeout=timeout_seconds) as answer:
            return str(answer.read().decode())

    def status(self) -> ForwarderStatus:
        """The current facts."""
        return read(ForwarderStatus, self.get("/status"))

    def metric(self, line: str) -> float:
        """The value of a metric, named with its label as it stands at /metrics; 0 where it is not there."""
        values = [words.rsplit(" ", 1) for words in self.get("/metrics").splitlines() if not words.startswith("#")]
        return next((float(value) for name, value in values if name == line), 0.0)

    def wait(
        self, condition: Callable[[ForwarderStatus], bool], what: str, timeout_seconds: float = 15
    ) -> ForwarderStatus:
        """The first status that fulfils the condition."""

        def fulfilled() -> ForwarderStatus | None:
            status = self.status()
            return status if condition(status) else None

        found = wait_until(
            fulfilled, what, timeout_seconds, describe=lambda: f"{self._told()}\n{self.process.log_end()}"
        )
        assert found is not None
        return found

    def wait_for(self, layer: str, reason: str, timeout_seconds: float = 15) -> LayerFact:
        """Waits for a layer (key, transport, authentication, database) to have a reason."""
        status = self.wait(lambda status: getattr(status, layer).reason == reason, f"{layer} {reason}", timeout_seconds)
        fact: LayerFact = getattr(status, layer)
        return fact

    def stop(self) -> None:
        """Ends it as the kubelet does."""
        if self._process:
            self._process.stop()

    def _process_log(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def events(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]

    def _told(self) -> str:
        return self.get("/status") if self.process.is_running() else "it has ended"
