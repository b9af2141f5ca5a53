"""What `kubectl dbtunnel handout` prints, pasted into a real sshd: tunnels work, and who steals a key can do nothing
else with it."""

import re
import select
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dbtunnel.api.engines import Engine
from dbtunnel.api.forwarder import PublicKeyFact
from dbtunnel.cli.plugin.handout_text import handout_text
from dbtunnel.cli.terminal import Style
from dbtunnel.domain.diagnosis import Subject, key_lines
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.settings import Defaults
from tests.support import values
from tests.support.bastion import USER, Bastion
from tests.support.databases import PostgresServer
from tests.support.faults import FaultServer
from tests.support.forwarder import KEY, Forwarder
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import free_port

StartForwarder = Callable[..., Forwarder]

SECONDS = 20
"""For one attempt."""


@dataclass
class Thief:
    """Who has a tunnel's private key, and OpenSSH's client."""

    bastion: Bastion
    directory: Path
    """Of the key."""
    sockets: Path
    """A directory that everybody may write to."""
    database: str
    """What the key is to open; it says hello."""
    other_port: int
    """Where something else listens, and says hello."""

    @contextmanager
    def ssh(self, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
        """OpenSSH's client, logged in if it can be."""
        known_hosts = self.directory / "known_hosts"
        known_hosts.write_text(self.bastion.known_hosts())
        options = [f"UserKnownHostsFile={known_hosts}", "BatchMode=yes", "ExitOnForwardFailure=yes"]
        options += ["IdentitiesOnly=yes", "IdentityAgent=none", "StrictHostKeyChecking=yes"]
        command = ["timeout", str(SECONDS), "ssh", "-F", "none", "-i", str(self.directory / "key"), "-l", USER]
        command += ["-p", str(self.bastion.port), *(word for option in options for word in ("-o", option)), *words]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as ssh:
            yield ssh
            ssh.terminate()

    def runs_a_command(self) -> bool:
        with self.ssh(self.bastion.host, "echo $((6 * 7))!") as ssh:
            return says(ssh, "42!")

    def runs_a_shell(self) -> bool:
        with self.ssh("-T", self.bastion.host) as ssh:
            assert ssh.stdin
            with suppress(BrokenPipeError):
                ssh.stdin.write(b"echo $((6 * 7))!\n")
                ssh.stdin.flush()
            return says(ssh, "42!")

    def has_a_terminal(self) -> bool:
        with self.ssh("-tt", self.bastion.host, "tty") as ssh:
            return says(ssh, "/dev/pts/")

    def listens(self) -> bool:
        return self.listens_at(f"127.0.0.1:{free_port()}")

    def listens_at_any_port(self) -> bool:
        return self.listens_at("127.0.0.1:0")

    def listens_everywhere(self) -> bool:
        return self.listens_at(f"0.0.0.0:{free_port()}")

    def listens_at_a_unix_socket(self) -> bool:
        return self.listens_at(str(self.sockets / "listener"))

    def listens_at(self, where: str) -> bool:
        with self.ssh("-v", "-N", "-R", f"{where}:127.0.0.1:9", self.bastion.host) as ssh:
            return says(ssh, "remote forward success")

    def opens_another_port(self) -> bool:
        return self.opens(f"orders.internal:{self.other_port}")

    def opens_another_host(self) -> bool:
        return self.opens(f"mysql.internal:{self.other_port}")

    def opens_an_address(self) -> bool:
        return self.opens(f"127.0.0.1:{self.other_port}")

    def opens(self, target: str) -> bool:
        with self.ssh("-W", target, self.bastion.host) as ssh:
            return says(ssh, "hello")

    def opens_a_unix_socket(self) -> bool:
        """Sees whether the server's socket gets a client, or the own one loses it."""
        port, path = free_port(), self.sockets / "server"
        forward = f"127.0.0.1:{port}:{path}"
        with socket.socket(socket.AF_UNIX) as server, self.ssh("-v", "-N", "-L", forward, self.bastion.host) as ssh:
            server.bind(str(path))
            path.chmod(0o777)
            server.listen()
            assert says(ssh, "Entering interactive session")
            with socket.create_connection(("127.0.0.1", port), SECONDS) as client:
                ready, _, _ = select.select([server, client], [], [], SECONDS)
        assert ready
        return server in ready


ATTEMPTS = (
    Thief.runs_a_command,
    Thief.runs_a_shell,
    Thief.has_a_terminal,
    Thief.listens,
    Thief.listens_at_any_port,
    Thief.listens_everywhere,
    Thief.listens_at_a_unix_socket,
    Thief.opens_another_port,
    Thief.opens_another_host,
    Thief.opens_an_address,
    Thief.opens_a_unix_socket,
)


def says(ssh: "subprocess.Popen[bytes]", words: str) -> bool:
    """Whether these are seen before it ends."""
    assert ssh.stdout
    return any(words.encode() in line for line in ssh.stdout)


def greeter() -> FaultServer:
    return FaultServer(lambda peer: peer.sendall(b"hello\n"))


def pasted(bastion: Bastion, name: str, database: tuple[str, int], key: KeyPair) -> tuple[list[str], str]:
    """What the hand-out of a tunnel has for authorized_keys and for sshd_config, as a person cuts it out."""
    host, port = database
    changes = {"database": {"host": host, "port": port}, "tunnel": {"host": bastion.host, "port": bastion.port}}
    of = values.tunnel(changes)
    of = of.model_copy(update={"metadata": of.metadata.model_copy(update={"name": name})})
    config = forwarder_config(of, Defaults())
    line = key_lines(Subject(config, public_key=PublicKeyFact(key=key.public, fingerprint=key.fingerprint)))
    place = {"role": "Bastion", "host": bastion.host, "port": bastion.port, "authorizedKeysLine": line}
    told = type(of).parse({**of.document(), "status": {"hops": [place]}})
    text = handout_text(told, Style(color=False, unicode=False))
    (block,) = re.findall(r"^Match .*\n(?:    .*\n)+", text, re.MULTILINE)
    return re.findall("^restrict.*$", text, re.MULTILINE), block


@pytest.fixture
def theft(bastion: Bastion, client_key: KeyPair, tmp_path: Path) -> Iterator[Thief]:
    """A thief, and servers for them; the bastion's configuration is OpenSSH's own."""
    bastion.set_config()
    (tmp_path / "key").touch(0o600)
    (tmp_path / "key").write_text(client_key.private)
    with greeter() as database, greeter() as other, tempfile.TemporaryDirectory() as sockets:
        Path(sockets).chmod(0o777)
        yield Thief(bastion, tmp_path, Path(sockets), f"orders.internal:{database.port}", other.port)


def test_a_key_alone_is_good_for_all_of_it(theft: Thief) -> None:
    """Else the next test would prove nothing."""
    assert [attempt.__name__ for attempt in ATTEMPTS if not attempt(theft)] == []
    assert theft.opens(theft.database)


@pytest.mark.parametrize("paste_block", [True, False], ids=["line and block", "line alone"])
def test_a_stolen_key_opens_the_database_and_nothing_else(
    theft: Thief, client_key: KeyPair, *, paste_block: bool
) -> None:
    """The line alone leaves one thing, as the README says."""
    host, _, port = theft.database.partition(":")
    lines, block = pasted(theft.bastion, "orders", (host, int(port)), client_key)
    theft.bastion.authorize(*lines)
    theft.bastion.set_blocks(*[block] * paste_block)
    left = [] if paste_block else ["listens_at_a_unix_socket"]
    assert [attempt.__name__ for attempt in ATTEMPTS if attempt(theft)] == left
    assert not theft.listens_at("localhost:1"), "the only port that the line permits"
    assert theft.opens(theft.database)


def test_two_tunnels_of_one_user_work_together(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair
) -> None:
    """Each with its own key and database, and both blocks pasted; neither opens the other's."""
    databases = {"orders": ("orders.internal", postgres.port), "stock": ("mysql.internal", postgres.port)}
    keys = {"orders": client_key, "stock": key_pair()}
    found = [pasted(bastion, name, databases[name], keys[name]) for name in databases]
    bastion.set_config()
    bastion.authorize(*(line for lines, _ in found for line in lines))
    bastion.set_blocks(*(block for _, block in found))
    assert len({block for _, block in found}) == 1

    def start(name: str, host: str) -> Forwarder:
        changes: dict[str, Any] = {"name": name, "database_host": host, "engine": Engine.POSTGRESQL}
        return start_forwarder(postgres.port, {KEY: keys[name].private}, **changes)

    for name, (host, _) in databases.items():
        forwarder = start(name, host)
        forwarder.wait_for("database", "Succeeded")
        with postgres.connect(port=forwarder.port) as client:
            assert client.execute("select 1").fetchone() == (1,)
    start("orders", "mysql.internal").wait_for("database", "ForwardingProhibited")
