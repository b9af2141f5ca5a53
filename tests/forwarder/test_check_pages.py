"""What the pages say to a reader without a cluster, as they do it, and the pictures of what they see."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.bastion import Bastion
from tests.support.cable import Cable
from tests.support.databases import DATABASE, PASSWORD, ROWS, USER, PostgresServer
from tests.support.keys import key_pair
from tests.support.pages import at_home, blocks, follow_here, following_here
from tests.support.pictures import shown
from tests.support.processes import run
from tests.support.relay import Relay

CHECK = "dbtunnel check -f orders.yaml -i ~/.ssh/id_ed25519"


@dataclass
class Reader:
    """A home with the README's manifest and a key, and the names and ports that the manifest has."""

    home: Path
    bastion: Bastion
    cable: Cable

    @property
    def prefix(self) -> list[str]:
        """A command that runs another with a hosts file of its own, and where nothing has the engine's port."""
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return [*self.cable.prefix, "unshare", "--mount", "sh", "-c", script, str(self.home / "hosts")]

    def sees(self) -> str:
        """The command with what it prints at a terminal."""
        key = str(self.home / ".ssh" / "id_ed25519")
        program = [sys.executable, "-m", "dbtunnel.cli.main", "check", "--color=always"]
        done = subprocess.run(
            [*self.prefix, *program, "-f", "orders.yaml", "-i", key],
            cwd=self.home,
            env=at_home(self.home),
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        return f"$ {CHECK}\n{done.stdout}"

    def write_manifest(self) -> None:
        """The page's, with the bastion's real host key."""
        (text,) = blocks("README.md", "yaml")
        manifest = yaml.safe_load(text)
        manifest["spec"]["tunnel"]["hostKey"]["fingerprints"] = [self.bastion.fingerprints["ed25519"]]
        (self.home / "orders.yaml").write_text(yaml.safe_dump(manifest))


@pytest.fixture
def reader(tmp_path: Path, postgres_tls: PostgresServer) -> Iterator[Reader]:
    """The bastion is a host of its own, so that SSH's port and the database's are free there."""
    key = key_pair()
    (tmp_path / "home" / ".ssh").mkdir(parents=True)
    (tmp_path / "home" / ".ssh" / "id_ed25519").write_text(key.private)
    with ExitStack() as stack:
        cable = stack.enter_context(Cable(tmp_path))
        stack.enter_context(Relay(postgres_tls.host, postgres_tls.port, host=cable.near, port=5432))
        names = {"orders.internal": cable.near}
        bastion = Bastion(tmp_path / "bastion", host=cable.host, port=22, hosts=names, prefix=cable.prefix)
        bastion.authorize(key.public)
        stack.callback(bastion.start().stop)
        (tmp_path / "home" / "hosts").write_text(f"127.0.0.1 localhost\n{cable.host} bastion.example.com\n")
        reader = Reader(tmp_path / "home", bastion, cable)
        reader.write_manifest()
        yield reader


def test_a_check_of_a_tunnel_that_works_and_of_one_that_does_not(reader: Reader) -> None:
    assert "The tunnel works." in follow_here("check", reader.home, CHECK, prefix=reader.prefix)
    shown("check-works", reader.sees())

    reader.bastion.replace_host_keys()
    shown("check-fails", reader.sees())


def test_a_check_and_then_the_tunnel_itself(reader: Reader) -> None:
    with following_here("README.md", reader.home, "dbtunnel forward", prefix=reader.prefix) as process:
        process.wait_until(lambda: "layer=database status=True" in process.log_end(), "the tunnel")
        session = f"host=127.0.0.1 user={USER} password='{PASSWORD}' dbname={DATABASE}"
        counted = run([*reader.prefix, "psql", "-tA", session, "-c", "select count(*) from orders"])
        assert int(counted) == len(ROWS)
        assert "The tunnel works." in process.log.read_text()
