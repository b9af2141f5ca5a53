"""A real OpenSSH server as a bastion.

sshd runs in namespaces of its own. In the one of mounts, /etc/hosts has the private names that only the bastion
resolves and /etc/passwd has the tunnels' user; the machine's own files are not touched. The one of processes ends
every SSH session with the listener, also when the test run is killed.
"""

import contextlib
import itertools
import os
import shutil
import signal
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Self

from dbtunnel.domain import sshd_config
from tests.support.debian import ensure_packages
from tests.support.keys import KeyPair, key_pair
from tests.support.mounts import MOUNT_POINT
from tests.support.processes import Process, ProcessError, free_port, run, wait_until

USER = "dbtunnel"
"""The tunnels' login name on the bastion."""

PACKAGES = {"openssh-server": "the bastion", "openssh-client": "ssh-keygen signs host certificates"}

HOST_KEY_TYPES = {"ed25519": "ssh-ed25519", "ecdsa": "ecdsa-sha2-nistp256", "rsa": "ssh-rsa"}
"""The host keys that a Debian server has."""

_RSA_KEYS = 12
"""More than a test has servers: one takes longer to make than all else that a bastion needs, so they go round."""

_rsa_turns = itertools.count()

HARDENED = sshd_config.HARDENED
"""What the documentation recommends for the tunnels' user."""

SECOND_FACTOR = ("KbdInteractiveAuthentication yes", "AuthenticationMethods publickey,keyboard-interactive")
"""The key is accepted and is not enough."""

NO_PUBLIC_KEYS = ("PubkeyAuthentication no", "PasswordAuthentication yes")
"""Public keys are no way to log in."""

ONE_TRY = ("MaxAuthTries 1", *HARDENED)
"""A client that offers a wrong key first is disconnected."""

ONE_STARTUP = ("MaxStartups 1:100:1", *HARDENED)
"""A second connection that is not authenticated yet is refused before the version exchange."""

NO_FORWARDING = ("AllowTcpForwarding no",)
"""Channels are refused as prohibited."""

OTHER_TARGET = ("PermitOpen elsewhere.internal:5432", *HARDENED)
"""Channels are refused as prohibited, but for one target that nobody wants."""

SHA1_ONLY = (
    "KexAlgorithms diffie-hellman-group14-sha1",
    "HostKeyAlgorithms ssh-rsa",
    "PubkeyAcceptedAlgorithms ssh-rsa",
    "MACs hmac-sha1",
    "Ciphers aes128-ctr",
    *HARDENED,
)
"""A bastion of the year 2010."""

_UID = 64999
_GID = 65534


class Bastion:
    """sshd with a configuration, host keys and users of its own.

    As root the tunnels' user has an id of its own; as another user it is that user under another name, which needs
    a kernel that lets users make namespaces.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        hosts: Mapping[str, str] | None = None,
        config: Iterable[str] = HARDENED,
        prefix: Iterable[str] = (),
        root: Path | None = None,
        survives: bool = False,
    ) -> None:
        """`hosts` maps the private names that only the bastion resolves to their addresses.

        `config`: lines of sshd_config that go before those that every bastion has; sshd takes a keyword's first value.
        `prefix`: a command that runs it. `root`: the folder of another system whose sshd it is.
        """
        ensure_packages(PACKAGES)
        self.directory, self.host, self.port = directory, host, port or free_port(host)
        self.config, self._prefix, self._root = tuple(config), tuple(prefix), root
        self._survives = survives
        self._process: Process | None = None
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o711)  # the tunnels' user reads authorized_keys
        self.log = directory / "sshd.log"
        self._authorized_keys = directory / "authorized_keys"
        self._authorized_keys.touch()
        self._blocks: tuple[str, ...] = ()
        self._write_system_files(hosts or {})
        self.host_keys: dict[str, KeyPair] = {}
        """Host keys by type: ed25519, ecdsa, rsa."""
        self.replace_host_keys()

    # --- life -----------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Starts it; returns once it takes connections. Raises ProcessError with sshd's log where it does not."""
        self._write_config()
        if _is_root():
            Path("/run/sshd").mkdir(exist_ok=True)
        marks = self._times_listening()
        self._process = Process(self._command(), self.log, survives=self._survives).start()
        need = "" if _is_root() else " (without root it needs a kernel that lets users make namespaces)"
        self._process.wait_until(lambda: self._times_listening() > marks, f"sshd listened{need}")
        return self

    @property
    def pid(self) -> int:
        """Id of the process that holds the namespaces, leader of its process group."""
        assert self._process is not None, "not started"
        return self._process.pid

    def stop(self) -> None:
        """Ends it and all its connections, also while it is paused."""
        if self._process is None:
            return
        for listener in children(self.pid):
            _signal(listener, signal.SIGKILL)
        # it returns only when the last process of the namespace has ended, so the port is free then
        with contextlib.suppress(ProcessError):
            self._process.wait(10)
        self._process.kill()
        self._process = None

    def restart(self) -> None:
        """A restart as an administrator does it: connections end, address and host keys stay."""
        self.stop()
        self.start()

    def kill_sessions(self) -> None:
        """Ends all connections; new ones are taken."""
        monitors = self.monitors()
        # halted first: one that has just let a client in is about to start the process that serves it, which is in no
        # list of processes yet and would go on
        for monitor in monitors:
            _signal(monitor, signal.SIGSTOP)
        wait_until(lambda: all(map(_is_halted, monitors)), "sshd to halt")
        for process in [*monitors, *(pid for monitor in monitors for pid in descendants(monitor))]:
            _signal(process, signal.SIGKILL)

    def connections(self) -> int:
        """How many SSH connections there are, those that are not authenticated yet counted too."""
        return len(self.monitors())

    def monitors(self) -> list[int]:
        """The processes that hold a connection each, the oldest first."""
        return [pid for listener in children(self.pid) for pid in children(listener)]

    def cut(self, monitor: int) -> None:
        """Ends one connection."""
        for process in [*children(monitor), monitor]:
            _signal(process, signal.SIGKILL)

    def pause(self) -> None:
        """Hangs it with all connections: nothing is answered, nothing is closed."""
        halted: set[int] = set()
        # one that is about to start another process does so before it halts
        while fresh := {*children(self.pid), *self._sessions()} - halted:
            for process in fresh:
                _signal(process, signal.SIGSTOP)
            halted |= fresh
            _wait_until_halted(fresh)

    def resume(self) -> None:
        """Ends the hang."""
        for process in [*children(self.pid), *self._sessions()]:
            _signal(process, signal.SIGCONT)

    def _sessions(self) -> list[int]:
        return [pid for listener in children(self.pid) for pid in descendants(listener)]

    def _command(self) -> list[str]:
        """sshd with files of its own mounted over the machine's, as process 1 of its namespace."""
        files = ("passwd", "shadow", "hosts") if _is_root() else ("passwd", "hosts")
        root = self._root or ""
        places = {"$0": f"{MOUNT_POINT}", **{f"$0/{name}": f"/etc/{name}" for name in files}}
        if root:
            places["/dev"] = "/dev"
        mounts = [f'mount --bind "{what}" "{root}{where}"' for what, where in places.items()]
        program = f'chroot "{root}" /usr/sbin/sshd' if root else sshd_program()
        back = "" if _is_root() else f"unshare --user --map-user={os.geteuid()} --map-group={os.getegid()} "
        script = " && ".join([*mounts, f"exec {back}{program} -D -e -f {MOUNT_POINT}/sshd_config"])
        become = [] if _is_root() else ["--map-root-user"]
        namespaces = [*become, "--mount", "--pid", "--fork", "--kill-child"]
        return [*self._prefix, "unshare", *namespaces, "sh", "-c", script, str(self.directory.absolute())]

    # --- what an administrator changes ----------------------------------------------------------------------------

    def authorize(self, *lines: str) -> None:
        """Sets the user's authorized_keys; sshd reads it at each login."""
        # whole at any moment, since sshd may be reading
        new = self._authorized_keys.with_suffix(".new")
        new.write_text("".join(f"{line}\n" for line in lines))
        new.rename(self._authorized_keys)

    def trust_authority(self, authority: KeyPair, *lines: str) -> None:
        """Lets in whoever has a certificate of this authority for the user. `lines`: of sshd_config, before its own."""
        (self.directory / "user_authority.pub").write_text(f"{authority.public}\n")
        self.set_config(*lines, f"TrustedUserCAKeys {MOUNT_POINT}/user_authority.pub", *HARDENED)

    def authorized(self) -> list[str]:
        """The lines of the user's authorized_keys."""
        return self._authorized_keys.read_text().splitlines()

    def unauthorize(self) -> None:
        """Takes all keys away; who is logged in stays so."""
        self.authorize()

    def set_config(self, *lines: str) -> None:
        """Sets the configuration, for connections from now on."""
        self.config = lines
        self._write_config()
        self._reload()

    def set_blocks(self, *blocks: str) -> None:
        """Sets the `Match` blocks at the end of the configuration, for connections from now on."""
        self._blocks = blocks
        self._write_config()
        self._reload()

    def replace_host_keys(self, types: Iterable[str] = HOST_KEY_TYPES) -> None:
        """Has other host keys, of these types alone, for connections from now on. Certificates go."""
        for path in self.directory.glob("ssh_host_*"):
            path.unlink()
        self.host_keys = {name: _host_key(name) for name in types}
        for name, pair in self.host_keys.items():
            path = self.directory / f"ssh_host_{name}_key"
            _write_private(path, pair.private)
            path.with_suffix(".pub").write_text(f"{pair.public}\n")
        self._write_config()
        self._reload()

    def drop_host_keys(self, *types: str) -> None:
        """Has the others alone, for connections from now on."""
        for name in types:
            del self.host_keys[name]
            for path in self.directory.glob(f"ssh_host_{name}_key*"):
                path.unlink()
        self._write_config()
        self._reload()

    def certify_host_key(self, name: str, authority: KeyPair, principals: str, validity: str = "-1h:+1h") -> None:
        """Has a host key signed (ssh-keygen -s -h), for connections from now on. `validity`: as ssh-keygen's -V."""
        signer = self.directory / "authority"
        _write_private(signer, authority.private)
        public = self.directory / f"ssh_host_{name}_key.pub"
        run(["ssh-keygen", "-q", "-s", signer, "-h", "-I", "bastion", "-n", principals, "-V", validity, public])
        self._write_config()
        self._reload()

    def _reload(self) -> None:
        if self._process is None:
            return
        marks = self._times_listening()
        for listener in children(self.pid):
            _signal(listener, signal.SIGHUP)
        self._process.wait_until(lambda: self._times_listening() > marks, "sshd read its configuration")

    # --- what a client needs --------------------------------------------------------------------------------------

    @property
    def fingerprints(self) -> dict[str, str]:
        """The host keys' fingerprints by type: ed25519, ecdsa, rsa."""
        return {name: pair.fingerprint for name, pair in self.host_keys.items()}

    def known_hosts(self, host: str | None = None) -> str:
        """known_hosts lines as ssh-keyscan prints them."""
        return "".join(f"{self.known_hosts_name(host)} {pair.public}\n" for pair in self.host_keys.values())

    def known_hosts_name(self, host: str | None = None) -> str:
        """What a known_hosts line calls it."""
        return f"[{host or self.host}]:{self.port}"

    def log_text(self) -> str:
        """What sshd wrote."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def _times_listening(self) -> int:
        return self.log_text().count(f"Server listening on {self.host} port {self.port}")

    # --- files ----------------------------------------------------------------------------------------------------

    def _write_config(self) -> None:
        keys = sorted(self.directory.glob("ssh_host_*_key"))
        certificates = sorted(self.directory.glob("ssh_host_*-cert.pub"))
        # of this keyword alone sshd takes the last value
        startups = any(line.startswith("MaxStartups ") for line in self.config)
        lines = [
            *self.config,
            f"ListenAddress {_bracketed(self.host)}:{self.port}",
            f"AuthorizedKeysFile {MOUNT_POINT}/{self._authorized_keys.name}",
            f"PidFile {MOUNT_POINT}/sshd.pid",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "UseDNS no",
            *(() if startups else ("MaxStartups 200:30:300",)),
            "LogLevel VERBOSE",
            *(f"HostKey {MOUNT_POINT}/{path.name}" for path in keys),
            *(f"HostCertificate {MOUNT_POINT}/{path.name}" for path in certificates),
            *self._blocks,
        ]
        (self.directory / "sshd_config").write_text("\n".join(lines) + "\n")

    def _write_system_files(self, hosts: Mapping[str, str]) -> None:
        uid, gid = (_UID, _GID) if _is_root() else (os.geteuid(), os.getegid())
        # before the others, since an id may have an account already
        account = f"{USER}:x:{uid}:{gid}:tunnels:/nonexistent:/bin/sh\n"
        (self.directory / "passwd").write_text(account + Path("/etc/passwd").read_text())
        if _is_root():
            shadow = f"{USER}:*:19000:0:99999:7:::\n" + Path("/etc/shadow").read_text()
            _write_private(self.directory / "shadow", shadow)
        names = "".join(f"{address} {name}\n" for name, address in hosts.items())
        (self.directory / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{names}")


def _host_key(name: str) -> KeyPair:
    return _rsa_key(next(_rsa_turns) % _RSA_KEYS) if name == "rsa" else key_pair(HOST_KEY_TYPES[name])


@cache
def _rsa_key(_: int) -> KeyPair:
    return key_pair(HOST_KEY_TYPES["rsa"], bits=2048)


def _is_root() -> bool:
    return os.geteuid() == 0


def sshd_program() -> str:
    """sshd's absolute path, which it insists on; /usr/sbin is not on every user's PATH."""
    return shutil.which("sshd") or "/usr/sbin/sshd"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _write_private(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text)


def children(pid: int) -> list[int]:
    """Ids of the processes that a process started and that have not been waited for."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:  # it has ended meanwhile
        return []


def descendants(pid: int) -> list[int]:
    """Ids of the processes below a process."""
    found = children(pid)
    for each in found:  # grows meanwhile
        found += children(each)
    return found


def _is_halted(pid: int) -> bool:
    """Whether a process runs no code now: halted, ended, or gone."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "TtZX"


def _wait_until_halted(pids: Iterable[int]) -> None:
    wait_until(lambda: all(map(_is_halted, pids)), "sshd to halt")


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
