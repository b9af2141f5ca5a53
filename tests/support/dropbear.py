"""A real dropbear as a bastion: the SSH server of small machines, whose words are not OpenSSH's."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from dbtunnel.api.forwarder import ForwarderHop, HostKeyRule
from tests.support.bastion import USER
from tests.support.debian import ensure_packages
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import Process, ProcessError, free_port, wait_until

PACKAGES = {"dropbear-bin": "another SSH server than OpenSSH's"}


class Dropbear:
    """dropbear with a key and a user of its own, in a mount namespace. Use it as a context manager. Needs root."""

    def __init__(self, directory: Path, authorized: Sequence[KeyPair], *options: str) -> None:
        """`options`: dropbear's, such as -j, which forbids forwarding."""
        if os.geteuid() != 0:
            raise ProcessError("dropbear needs a user of its own: run the tests as root")
        ensure_packages(PACKAGES)
        self.host, self.port, self._options = "127.0.0.1", free_port(), options
        self._directory, self._key = directory, key_pair(form="openssh")
        self._write(authorized)
        self._process = Process(self._command(), directory / "dropbear.log")

    def _write(self, authorized: Sequence[KeyPair]) -> None:
        home = self._directory / "home"
        (home / ".ssh").mkdir(parents=True)
        for directory in (self._directory, home, home / ".ssh"):
            directory.chmod(0o755)
        (home / ".ssh" / "authorized_keys").write_text("".join(f"{pair.public}\n" for pair in authorized))
        account = f"{USER}:x:0:0:tunnels:{home}:/bin/sh\n"
        (self._directory / "passwd").write_text(account + Path("/etc/passwd").read_text())
        (self._directory / "shadow").write_text(f"{USER}:*:19000:0:99999:7:::\n" + Path("/etc/shadow").read_text())
        (self._directory / "openssh_key").write_text(self._key.private)

    def _command(self) -> list[str]:
        mounts = [f'mount --bind "$0/{name}" /etc/{name}' for name in ("passwd", "shadow")]
        convert = 'dropbearconvert openssh dropbear "$0/openssh_key" "$0/host_key"'
        options = " ".join(["-F", "-E", "-s", f"-p {self.host}:{self.port}", *self._options])
        run = f'exec dropbear -r "$0/host_key" -P "$0/pid" {options}'
        return ["unshare", "--mount", "sh", "-c", " && ".join([*mounts, convert, run]), str(self._directory)]

    @property
    def hop(self) -> ForwarderHop:
        """What a forwarder needs to connect to it."""
        pin = HostKeyRule(fingerprints=(self._key.fingerprint,))
        return ForwarderHop(host=self.host, port=self.port, user=USER, host_key=pin)

    def __enter__(self) -> Self:
        self._process.start()
        wait_until(lambda: "Not backgrounding" in self._process.log_end(), "dropbear", describe=self._process.log_end)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()
