"""`dbtunnel` on a machine without a cluster, as a person runs it."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dbtunnel.cli.check_text import text_of
from dbtunnel.cli.results import CheckResult
from dbtunnel.cli.terminal import COLUMNS, Style
from tests.support.bastion import USER as BASTION_USER
from tests.support.bastion import Bastion
from tests.support.keys import KeyPair
from tests.support.processes import Process, free_port

DBTUNNEL = (sys.executable, "-m", "dbtunnel.cli.main")
COMMAND = (*DBTUNNEL, "forward")

PASSPHRASE = "open sesame"


class Laptop:
    """A directory with a manifest and a key, and the command that is run there."""

    def __init__(self, directory: Path, bastion: Bastion, database_port: int, key: KeyPair) -> None:
        self.directory = directory
        self.manifest: dict[str, Any] = {
            "apiVersion": "dbtunnel.dev/v1alpha1",
            "kind": "DatabaseTunnel",
            "metadata": {"name": "orders"},
            "spec": {
                "engine": "PostgreSQL",
                "database": {"host": "orders.internal", "port": database_port},
                "tunnel": {
                    "host": bastion.host,
                    "port": bastion.port,
                    "user": BASTION_USER,
                    "hostKey": {"fingerprints": list(bastion.fingerprints.values())},
                },
                "service": {"port": free_port()},
            },
        }
        self.write("id", key.private)
        self.admin_port = free_port()
        self.process: Process | None = None

    @property
    def tunnel(self) -> dict[str, Any]:
        """The manifest's `spec.tunnel`."""
        found: dict[str, Any] = self.manifest["spec"]["tunnel"]
        return found

    def write(self, name: str, text: str) -> str:
        """A file there; tells its path."""
        (self.directory / name).write_text(text)
        return str(self.directory / name)

    def arguments(self, *more: str, command: str = "forward") -> list[str]:
        """The command for the manifest as it is now."""
        manifest = self.write("tunnel.yaml", json.dumps(self.manifest))
        return [*DBTUNNEL, command, "-f", manifest, "-i", str(self.directory / "id"), *more]

    def refused(self, *more: str, command: str = "forward") -> str:
        """What it says of input that it cannot use."""
        arguments = self.arguments(*more, command=command)
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    def check(self, *more: str) -> "subprocess.CompletedProcess[str]":
        """`dbtunnel check`, which has ended by itself."""
        arguments = self.arguments(*more, command="check")
        environment = {"HOME": str(self.directory), "LANG": "C.UTF-8"}
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def checked(self, exit_code: int, *more: str) -> dict[str, Any]:
        """What `dbtunnel check -o json` says, and nothing else."""
        done = self.check("-o", "json", *more)
        assert (done.returncode, done.stderr) == (exit_code, ""), done.stdout
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def start(self, *more: str) -> Process:
        """Starts it; returns once it listens."""
        arguments = self.arguments(f"--admin-listen=127.0.0.1:{self.admin_port}", *more)
        # a home full of traps, as a laptop has it
        self.process = Process(arguments, self.directory / "log", env={"HOME": str(self.directory)}).start()
        self.process.wait_until(lambda: "listen" in self.log(), "it to listen")
        return self.process

    def log(self) -> str:
        """What it has said."""
        return (self.directory / "log").read_text()


def terminal(columns: int) -> tuple[int, int]:
    """Both ends of a terminal of this width: what a person has, and what a command has."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    return ours, theirs


def at_a_terminal(
    arguments: list[str],
    typed: str,
    until: str,
    asks: str = "Passphrase of ",
    environment: Mapping[str, str] | None = None,
    columns: int = COLUMNS,
) -> str:
    """What a command shows at a terminal that is typed at once it asks; ends it when it has shown `until`."""
    ours, theirs = terminal(columns)

    def control() -> None:
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    shown = ""
    streams: Any = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(arguments, preexec_fn=control, env=environment, **streams) as process:
        os.close(theirs)
        asked = False
        while until not in shown:
            shown += os.read(ours, 4096).decode()
            if not asked and asks in shown:
                asked = True
                os.write(ours, f"{typed}\n".encode())
        process.terminate()
        process.wait(10)
    os.close(ours)
    return shown


def as_text(document: dict[str, Any]) -> str:
    """What a person sees of the document that `dbtunnel check -o json` printed, without colour."""
    return text_of(CheckResult.model_validate(document), Style(color=False, unicode=True))


def statuses(place: dict[str, Any]) -> list[str]:
    """Those of the layers of the whole document, or of one hop."""
    return [layer["status"] for layer in place["layers"]]


def too_wide(text: str, columns: int = COLUMNS) -> list[str]:
    """Lines that do not fit, but for those that must stay in one piece."""
    return [line for line in text.splitlines() if len(line) > columns and "ssh-ed25519 AAAA" not in line]
