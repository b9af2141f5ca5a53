"""What the pages say to a reader without a cluster, as they do it, and the pictures of what they see."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import yaml

from tests.support.bastion import Bastion
from tests.support.cable import Cable
from tests.support.databases import DATABASE, PASSWORD, ROWS, USER, PostgresServer
from tests.support.keys import key_pair
from tests.support.pages import at_home, blocks, follow_here, following_here
from tests.support.pictures import shown
from tests.support.processes import free_port
from tests.support.relay import Relay

CHECK = "dbtunnel check -f orders.yaml -i ~/.ssh/id_ed25519"


@dataclass
class Reader:
    """A home with the README's manifest and a key, and the names and ports that the manifest has."""

    home: Path
    bastion: Bastion

    @property
    def prefix(self) -> list[str]:
        """A command that runs another with a hosts file of its own."""
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        return ["unshare", "--mount", "sh", "-c", script, str(self.home / "hosts")]

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
        reader = Reader(tmp_path / "home", bastion)
        reader.write_manifest()
        yield reader


def test_a_check_of_a_tunnel_that_works_and_of_one_that_does_not(reader: Reader) -> None:
    color = {"dbtunnel check": "dbtunnel check --color=always"}
    shown("check-works", f"$ {CHECK}\n{follow_here('check', reader.home, CHECK, prefix=reader.prefix, **color)}")

    reader.bastion.replace_host_keys()
    command = [
        *reader.prefix,
        sys.executable,
        "-m",
        "dbtunnel.cli.main",
        "check",
        "--color=always",
        "-f",
        "orders.yaml",
    ]
    command += ["-i", str(reader.home / ".ssh" / "id_ed25519")]
    done = subprocess.run(
        command, cwd=reader.home, env=at_home(reader.home), stdout=subprocess.PIPE, text=True, check=False
    )
    assert done.returncode == 1
    shown("check-fails", f"$ {CHECK}\n{done.stdout}")


def test_a_check_and_then_the_tunnel_itself(reader: Reader) -> None:
    port = free_port()
    # others of this machine may have the engine's port, and the forwarder's own
    places = {"forward -f": f"forward --listen=127.0.0.1:{port} --admin-listen=127.0.0.1:0 -f"}
    with following_here("README.md", reader.home, "dbtunnel forward", prefix=reader.prefix, **places) as process:
        process.wait_until(lambda: "layer=database status=True" in process.log_end(), "the tunnel")
        session = f"host=127.0.0.1 port={port} user={USER} password='{PASSWORD}' dbname={DATABASE}"
        with psycopg.connect(session) as connection:
            assert connection.execute("select count(*) from orders").fetchone() == (len(ROWS),)
        assert "The tunnel works." in process.log.read_text()
