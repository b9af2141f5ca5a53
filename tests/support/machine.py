"""The SSH server of a person who follows a page: a copy of this machine's /etc with an sshd as it is installed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.support.bastion import PACKAGES, children, sshd_program
from tests.support.debian import ensure_packages
from tests.support.forwarder import SshServer
from tests.support.pages import follow_by
from tests.support.private_network import free_addresses
from tests.support.processes import Process, run

_PREPARE = """
mount -t tmpfs -o mode=755 none /mnt
cp -a /etc /mnt/etc
mount --bind /mnt/etc /etc
rm -rf /etc/ssh/ssh_host_* /etc/ssh/sshd_config.d
mkdir -p /etc/ssh/sshd_config.d
printf 'Include /etc/ssh/sshd_config.d/*.conf\\nSubsystem sftp internal-sftp\\n' > /etc/ssh/sshd_config
printf '%s\\n' '{host} localhost' {names} > /etc/hosts
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
exec {sshd} -D -e -o ListenAddress={host} -o PidFile=none
"""

_ASKED = "#!/bin/sh\necho 'open sesame'\n"
"""Types a passphrase, where ssh-keygen asks for one."""

_SYSTEMCTL = """#!/bin/sh
test "$*" = 'reload ssh'
listened() { grep -c 'Server listening' "$(dirname "$0")/sshd.log"; }
before=$(listened)
kill -HUP 1
until test "$(listened)" -gt "$before"; do sleep 0.05; done
"""
"""In the place of systemd; returns when sshd has read its configuration."""


class Machine(SshServer):
    """It has namespaces of its own, in which sshd is the first process and the page's commands run as root's. Its
    localhost is an address of its own.
    """

    def __init__(self, directory: Path, hosts: Mapping[str, str]) -> None:
        """`hosts`: the private names that it resolves."""
        ensure_packages(PACKAGES)
        self.port, self.directory = 22, directory
        (self.host,) = free_addresses([self.port])
        directory.mkdir(parents=True, exist_ok=True)
        names = " ".join(f"'{address} {name}'" for name, address in hosts.items())
        script = _PREPARE.format(names=names, sshd=sshd_program(), host=self.host)
        namespaces = ["--mount", "--mount-proc", "--pid", "--fork", "--kill-child"]
        self._process = Process(["unshare", *namespaces, "sh", "-euc", script], directory / "sshd.log")
        for name, text in (("asked", _ASKED), ("systemctl", _SYSTEMCTL)):
            (directory / name).write_text(text)
            (directory / name).chmod(0o755)

    def start(self) -> Self:
        """Starts it; returns once it takes connections. Raises ProcessError with sshd's log where it does not."""
        Path("/run/sshd").mkdir(exist_ok=True)
        self._process.start()
        self._process.wait_until(lambda: "Server listening" in self.log_text(), "sshd listened")
        return self

    def stop(self) -> None:
        """Ends it and all its connections."""
        self._process.kill()

    def log_text(self) -> str:
        """What sshd wrote."""
        return self._process.log_end(10**7)

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Its host key's."""
        return {"ed25519": self.run("ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub").split()[1]}

    def connections(self) -> int:
        """How many SSH connections there are."""
        return len(children(self._sshd))

    @property
    def _sshd(self) -> int:
        (sshd,) = children(self._process.pid)
        return sshd

    def run(self, commands: str) -> str:
        """What root's commands print. Raises ProcessError."""
        return run([*self._enter(), "sh", "-euc", commands])

    def follow(self, page: str, word: str, **changes: str) -> str:
        """What the commands of a page print, run by root in the machine's folder. Raises ProcessError."""
        return follow_by(page, self._enter(), word, **changes)

    def _enter(self) -> list[str]:
        here = str(self.directory.absolute())
        variables = [
            f"PATH={here}:/usr/sbin:/usr/bin:/sbin:/bin",
            "SSH_ASKPASS_REQUIRE=force",
            f"SSH_ASKPASS={here}/asked",
        ]
        return ["nsenter", "--target", str(self._sshd), "--mount", "--pid", f"--wd={here}", "env", *variables]
