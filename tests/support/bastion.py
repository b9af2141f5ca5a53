"""A real OpenSSH server as a bastion.

sshd runs in a mount namespace of its own, where /etc/hosts has the private names that only the bastion resolves and
/etc/passwd has the tunnels' user; the machine's own files are not touched.
"""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self

from tests.support.debian import ensure_packages
from tests.support.files import let_others_in
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import Process, free_port, listens, wait_until

USER = "dbtunnel"
"""The tunnels' login name on the bastion."""

HOST_KEY_TYPES = {"ed25519": "ssh-ed25519", "ecdsa": "ecdsa-sha2-nistp256", "rsa": "ssh-rsa"}
"""The host keys that a Debian server has."""

HARDENED = (
    "AllowTcpForwarding local",
    "AllowStreamLocalForwarding no",
    "AuthenticationMethods publickey",
    "MaxSessions 0",
    "PermitTTY no",
    "X11Forwarding no",
)
"""What the documentation recommends for the tunnels' user."""

_UID = 64999


class Bastion:
    """sshd with a configuration, host keys and users of its own. Needs root for its namespace."""

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        hosts: Mapping[str, str] | None = None,
        config: Iterable[str] = HARDENED,
        survives: bool = False,
    ) -> None:
        """`hosts` maps the private names that only the bastion resolves to their addresses."""
        ensure_packages({"openssh-server": "the bastion"})
        self.directory, self.host, self.port = directory, host, port or free_port(host)
        self.config = tuple(config)
        self._survives = survives
        self._process: Process | None = None
        directory.mkdir(parents=True, exist_ok=True)
        let_others_in(directory)
        self.log = directory / "sshd.log"
        self._authorized_keys = directory / "authorized_keys"
        self._authorized_keys.touch()
        self._write_system_files(hosts or {})
        self.host_keys: dict[str, KeyPair] = {}
        self.replace_host_keys()

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Starts it; returns once it takes connections."""
        self._write_config()
        Path("/run/sshd").mkdir(exist_ok=True)
        script = " && ".join(
            [f"mount --bind {self.directory}/{name} /etc/{name}" for name in ("passwd", "shadow", "hosts")]
            + [f"exec $(command -v sshd || echo /usr/sbin/sshd) -D -e -f {self.directory}/sshd_config"]
        )
        command = ["unshare", "--mount", "sh", "-c", script]
        self._process = Process(command, self.log, survives=self._survives).start()
        self._process.wait_until(lambda: listens(self.host, self.port), "sshd to listen")
        return self

    @property
    def pid(self) -> int:
        """Id of the listening sshd."""
        assert self._process is not None, "not started"
        return self._process.pid

    def stop(self) -> None:
        """Ends it and all its connections."""
        if self._process:
            self.kill_sessions()
            self._process.stop()
            self._process = None

    def restart(self) -> None:
        """A restart as an administrator does it: connections end, address and host keys stay."""
        self.stop()
        self.start()

    def kill_sessions(self) -> None:
        """Ends all connections; new ones are taken."""
        for child in self._descendants():
            _signal(child, signal.SIGKILL)

    def pause(self) -> None:
        """Hangs it with all connections: nothing is answered, nothing is closed."""
        for process in [self.pid, *self._descendants()]:
            _signal(process, signal.SIGSTOP)

    def resume(self) -> None:
        """Ends the hang."""
        for process in [self.pid, *self._descendants()]:
            _signal(process, signal.SIGCONT)

    def _descendants(self) -> list[int]:
        found: list[int] = []
        waiting = [self.pid]
        while waiting:
            pid = waiting.pop()
            path = Path(f"/proc/{pid}/task/{pid}/children")
            children = [int(word) for word in path.read_text().split()] if path.exists() else []
            found += children
            waiting += children
        return found

    # --- what an administrator changes ----------------------------------------------------------------------------

    def authorize(self, *lines: str) -> None:
        """Sets the user's authorized_keys; sshd reads it at each login."""
        self._authorized_keys.write_text("".join(f"{line}\n" for line in lines))

    def set_config(self, *lines: str) -> None:
        """Sets the configuration, for connections from now on."""
        self.config = lines
        self._write_config()
        if self._process:
            marks = self.log_text().count("Server listening")
            self._process.signal(signal.SIGHUP)
            wait_until(lambda: self.log_text().count("Server listening") > marks, "sshd to read its configuration")

    def replace_host_keys(self, types: Iterable[str] = HOST_KEY_TYPES) -> None:
        """Makes new host keys, of these types alone; used after the next start."""
        for path in self.directory.glob("ssh_host_*"):
            path.unlink()
        self.host_keys = {name: key_pair(HOST_KEY_TYPES[name], bits=2048) for name in types}
        for name, pair in self.host_keys.items():
            path = self.directory / f"ssh_host_{name}_key"
            path.write_text(pair.private)
            path.chmod(0o600)
            path.with_suffix(".pub").write_text(f"{pair.public}\n")

    def certify_host_key(self, name: str, authority: KeyPair, principals: str, validity: str = "-1h:+1h") -> None:
        """Has a host key signed (ssh-keygen -s -h); used after the next start."""
        signer = self.directory / "authority"
        signer.write_text(authority.private)
        signer.chmod(0o600)
        public = self.directory / f"ssh_host_{name}_key.pub"
        command: list[str | Path] = [
            "ssh-keygen",
            "-q",
            "-s",
            signer,
            "-h",
            "-I",
            "bastion",
            "-n",
            principals,
            "-V",
            validity,
            public,
        ]
        subprocess.run(command, check=True, capture_output=True)

    # --- what a client needs --------------------------------------------------------------------------------------

    @property
    def fingerprints(self) -> dict[str, str]:
        """The host keys' fingerprints by type: ed25519, ecdsa, rsa."""
        return {name: pair.fingerprint for name, pair in self.host_keys.items()}

    def known_hosts(self, host: str | None = None) -> str:
        """known_hosts lines as ssh-keyscan prints them."""
        name = f"[{host or self.host}]:{self.port}"
        return "".join(f"{name} {pair.public}\n" for pair in self.host_keys.values())

    def log_text(self) -> str:
        """What sshd wrote."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    # --- files ----------------------------------------------------------------------------------------------------

    def _write_config(self) -> None:
        host_keys = [f"HostKey {path}" for path in sorted(self.directory.glob("ssh_host_*_key"))]
        certificates = [f"HostCertificate {path}" for path in sorted(self.directory.glob("ssh_host_*-cert.pub"))]
        lines = [
            *self.config,  # the first value of a keyword counts
            f"ListenAddress {self.host}:{self.port}",
            f"AuthorizedKeysFile {self._authorized_keys}",
            f"PidFile {self.directory}/sshd.pid",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UseDNS no",
            "MaxStartups 200:30:300",
            "LogLevel VERBOSE",
            *host_keys,
            *certificates,
        ]
        (self.directory / "sshd_config").write_text("\n".join(lines) + "\n")

    def _write_system_files(self, hosts: Mapping[str, str]) -> None:
        account = f"{USER}:x:{_UID}:65534:tunnels:/nonexistent:/bin/sh\n"
        (self.directory / "passwd").write_text(Path("/etc/passwd").read_text() + account)
        (self.directory / "shadow").write_text(Path("/etc/shadow").read_text() + f"{USER}:*:19000:0:99999:7:::\n")
        names = "".join(f"{address} {name}\n" for name, address in hosts.items())
        (self.directory / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{names}")


def record(directory: Path, pids: Mapping[str, int]) -> None:
    """Remembers processes that outlive this command, for `stop_recorded`."""
    entries = {name: {"pid": pid, "started": _start_time(pid)} for name, pid in pids.items()}
    (directory / "processes.json").write_text(json.dumps(entries))


def stop_recorded(directory: Path) -> None:
    """Ends the processes that were recorded, unless their ids are others' by now, and removes the directory."""
    path = directory / "processes.json"
    for entry in json.loads(path.read_text()).values() if path.exists() else ():
        if entry["started"] and _start_time(entry["pid"]) == entry["started"]:
            _signal(entry["pid"], signal.SIGTERM)
            wait_until(lambda pid=entry["pid"]: _start_time(pid) is None, "a server's end", 20)  # type: ignore[misc]
    shutil.rmtree(directory, ignore_errors=True)


def _start_time(pid: int) -> str | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
