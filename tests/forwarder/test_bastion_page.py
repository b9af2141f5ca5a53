"""What docs/bastion.md tells a bastion's administrator, done by root on a machine with an sshd of its own."""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dbtunnel.api.forwarder import HostKeyRule
from dbtunnel.domain.authorized_keys import authorized_keys_line
from dbtunnel.domain.sshd_config import match_block
from tests.support.databases import PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config, hop_to
from tests.support.keys import KeyPair, key_pair
from tests.support.machine import Machine
from tests.support.pages import blocks
from tests.support.private_network import free_addresses
from tests.support.relay import Relay

PAGE = "bastion"
PORT = 5432
"""Of the page's database, whose name the machine resolves to an address of its own."""

EXAMPLE_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIEw5auDWfzNkmm1qm1NVGkWsABYEcVx878Bz4tzB4/MG"

TRIALS = ("a command", "a shell", "a file", "another target", "a listener")

KEYS_ALONE = "AuthorizedKeysFile /etc/ssh/authorized_keys.d/%u"
"""All that its sshd_config has."""


@dataclass(frozen=True)
class Place:
    """The machine that the page has made of one, and the forwarders that use it."""

    machine: Machine
    directory: Path
    stack: ExitStack

    def follow(self, word: str, **changes: str) -> str:
        """Does what one block of the page says."""
        return self.machine.follow(PAGE, word, **changes)

    def forwarder(self, files: dict[str, str], rule: HostKeyRule | None = None, **changes: Any) -> Forwarder:
        """A tunnel to the page's database, or where `changes` say."""
        hop = hop_to(self.machine, **({"host_key": rule} if rule else {}))
        config = forwarder_config(self.machine, PORT, bastion=hop, **changes)
        number = len(list(self.directory.glob("forwarder-*")))
        forwarder = Forwarder(self.directory / f"forwarder-{number}", config, files)
        self.stack.callback(forwarder.stop)
        return forwarder.start()


@pytest.fixture
def place(tmp_path: Path, postgres: PostgresServer) -> Iterator[Place]:
    """A machine after the page's first two steps, and what its own database is reached by."""
    (address,) = free_addresses([PORT])
    with ExitStack() as stack:
        stack.enter_context(Relay(postgres.host, postgres.port, host=address, port=PORT))
        machine = Machine(tmp_path / "machine", {"orders.internal": address})
        stack.callback(machine.stop)
        place = Place(machine.start(), tmp_path, stack)
        place.follow("useradd")
        place.follow("MaxStartups")
        yield place


def answers(forwarder: Forwarder, postgres: PostgresServer) -> bool:
    with postgres.connect(port=forwarder.port) as session:
        return session.execute("select 1").fetchone() == (1,)


def patterns_of_log() -> list[str]:
    """The messages of the log that the page shows, with any host, address, port and fingerprint."""
    (shown,) = (text for text in blocks(PAGE, "text") if text.startswith("Accepted"))
    lines = [line.split() for line in shown.splitlines()]
    return [" ".join(r"\S+" if re.search(r"\d|\.internal", word) else re.escape(word) for word in one) for one in lines]


def test_the_page_has_what_the_hand_out_has() -> None:
    text = "\n".join(blocks(PAGE, "sh"))
    assert (match_block("dbtunnel") or "").partition("\n")[2] in text
    line = authorized_keys_line(EXAMPLE_KEY, "shop/orders", ("orders.internal", PORT))
    assert f"\n{line}\n" in text
    assert text.count(line.partition(" ")[0]) == 3, "of a key, of a trial, of a certificate's name"


def test_a_tunnel_works_and_its_key_is_worth_nothing_else(place: Place, postgres: PostgresServer) -> None:
    """And no more once its line is gone."""
    key = key_pair()
    place.follow("tee -a /etc/ssh/authorized_keys.d", **{EXAMPLE_KEY: key.public})
    assert place.machine.fingerprints["ed25519"] in place.follow("ssh-keygen -lf /etc/ssh")
    forwarder = place.forwarder({KEY: key.private})
    forwarder.wait_for("database", "Succeeded")
    assert answers(forwarder, postgres)

    refused = [f"{what}: refused" for what in TRIALS]
    assert place.follow("-f trial").splitlines() == ["its database: possible", *refused]
    assert " trial" not in place.machine.run("cat /etc/ssh/authorized_keys.d/dbtunnel")

    place.follow("/ shop")
    place.follow("pkill")
    forwarder.wait_for("authentication", "KeyRejected")
    for pattern in patterns_of_log():
        assert re.search(pattern, place.machine.log_text()), pattern


def test_the_trial_tells_what_is_possible(place: Place) -> None:
    """On a server whose administrator has not read the page."""
    place.machine.run(f"usermod --shell /bin/sh dbtunnel; echo '{KEYS_ALONE}' > /etc/ssh/sshd_config.d/dbtunnel.conf")
    place.machine.run("systemctl reload ssh")
    (trial,) = (text for text in blocks(PAGE, "sh") if "-f trial" in text)
    printed = place.machine.run(trial.replace("$options $(cat", "$(cat")).splitlines()
    assert printed == [f"{what}: possible" for what in ("its database", *TRIALS)]


def test_a_certificate_opens_the_database_of_its_name_until_it_is_revoked(
    place: Place, postgres: PostgresServer
) -> None:
    place.follow("-f tunnels_ca")
    place.follow("AuthorizedPrincipalsFile")
    key = key_pair()
    certified = {KEY: key.private, f"{KEY}-cert.pub": signed(place, key)}
    forwarder = place.forwarder(certified)
    forwarder.wait_for("database", "Succeeded")
    assert answers(forwarder, postgres)
    assert re.search(r"ED25519-CERT SHA256:\S+ ID shop/orders \(serial 1\) CA ED25519", place.machine.log_text())
    elsewhere = place.forwarder(certified, database_host="localhost")
    elsewhere.wait_for("database", "ForwardingProhibited")
    elsewhere.stop()

    stranger = {KEY: key.private, f"{KEY}-cert.pub": signed(place, key, **{"-n shop/orders": "-n shop/stock"})}
    place.forwarder(stranger).wait_for("authentication", "KeyRejected")

    place.follow("dbtunnel_revoked -s")
    assert forwarder.status().authentication.status == "True", "what stands goes on"
    place.follow("pkill")
    forwarder.wait_for("authentication", "KeyRejected")


def signed(place: Place, key: KeyPair, **changes: str) -> str:
    """The certificate of a tunnel's key."""
    (place.machine.directory / "orders.pub").write_text(f"{key.public} shop/orders\n")
    assert "shop/orders" in place.follow("ssh-keygen -Lf", **changes)
    return (place.machine.directory / "orders-cert.pub").read_text()


def test_a_host_key_that_an_authority_has_signed_is_trusted(place: Place) -> None:
    known_hosts = place.follow("-f bastions_ca")
    place.machine.run("cp /etc/ssh/ssh_host_ed25519_key.pub .")
    place.follow("-h -I bastion.example.com")
    place.follow("HostCertificate")
    key = key_pair()
    place.follow("tee -a /etc/ssh/authorized_keys.d", **{EXAMPLE_KEY: key.public})
    rule = HostKeyRule(known_hosts=known_hosts, alias="bastion.example.com")
    place.forwarder({KEY: key.private}, rule).wait_for("database", "Succeeded")
    other = HostKeyRule(known_hosts=known_hosts, alias="other.example.com")
    place.forwarder({KEY: key.private}, other).wait_for("transport", "HostCertificateInvalid")


@pytest.mark.parametrize(("allowed", "line"), [("stock.internal", "orders.internal"), ("orders.internal", "localhost")])
def test_what_the_server_permits_and_what_the_line_permits_are_two_walls(place: Place, allowed: str, line: str) -> None:
    key = key_pair()
    place.machine.run(f"echo '    PermitOpen {allowed}:{PORT}' >> /etc/ssh/sshd_config.d/dbtunnel.conf")
    place.machine.run("systemctl reload ssh")
    place.follow("tee -a /etc/ssh/authorized_keys.d", **{EXAMPLE_KEY: key.public, '"orders.internal:': f'"{line}:'})
    place.forwarder({KEY: key.private}).wait_for("database", "ForwardingProhibited")
