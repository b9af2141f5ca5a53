"""An sshd that penalises addresses, the real one: a forwarder behind such an address says so, asks seldom, and is back
by itself; what it does itself brings no penalty.
"""

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from dbtunnel.api.forwarder import ForwarderConfig, HostKeyRule
from dbtunnel.api.reasons import Reason
from tests.support.bastion import HARDENED, USER, Bastion
from tests.support.databases import PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config, hop_to, seconds
from tests.support.keys import KeyPair, key_pair
from tests.support.newer_sshd import root_of_newer_sshd
from tests.support.pages import blocks
from tests.support.processes import wait_until
from tests.support.produced import produces
from tests.support.relay import Relay
from tests.support.told import check_told

OURS, NEIGHBOURS = "127.0.0.7", "127.0.0.8"
"""Two addresses from which a bastion may be asked."""

PENALTIES = "PerSourcePenalties authfail:5s noauth:1s min:10s"
"""sshd's own, but for `min`: three failed logins are enough, however long they take."""

DEFAULT_PENALTIES = "PerSourcePenalties yes"
"""Four failed logins at once, of 5 s each, are more than its `min` of 15 s; 1 s counts who looks at a host key."""

PENALTY_SECONDS = 15
"""Of those three; the forwarder asks again after 15 to 22.5 s."""

REFUSALS = 'dbtunnel_forwarder_ssh_failures_total{reason="BastionRefusing"}'


@pytest.fixture(scope="module")
def newer_sshd(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    return root_of_newer_sshd(tmp_path_factory.mktemp("sshd"))


class Place:
    """A bastion that penalises, and two ways to it, from an address each."""

    def __init__(self, directory: Path, root: Path | None, key: KeyPair, stack: ExitStack) -> None:
        names = {"orders.internal": "127.0.0.1"}
        self.bastion = Bastion(directory / "newer", hosts=names, config=(PENALTIES, *HARDENED), root=root)
        self.bastion.authorize(key.public)
        stack.callback(self.bastion.stop)
        self.bastion.start()
        self._directory, self._key, self._stack = directory, key, stack
        self.ways = {
            source: stack.enter_context(Relay(self.bastion.host, self.bastion.port, source=source))
            for source in (OURS, NEIGHBOURS)
        }
        self._number = 0

    def config(self, source: str, database_port: int, **changes: Any) -> ForwarderConfig:
        """That of a forwarder behind an address."""
        way = self.ways[source]
        hop = hop_to(self.bastion, host=way.host, port=way.port, **changes)
        return forwarder_config(self.bastion, database_port, bastion=hop, seconds=seconds(parking_max=60))

    def start(self, config: ForwarderConfig, key: KeyPair | None = None) -> Forwarder:
        """A forwarder with a key."""
        self._number += 1
        private = (key or self._key).private
        forwarder = Forwarder(self._directory / f"forwarder-{self._number}", config, {KEY: private})
        self._stack.callback(forwarder.stop)
        return forwarder.start()

    def fail_to_log_in(self, source: str) -> None:
        """As somebody else does who has no key."""
        way, identity = self.ways[source], self._directory / "stranger"
        identity.touch(0o600)
        identity.write_text(key_pair().private)
        options = ["BatchMode=yes", "StrictHostKeyChecking=no", f"UserKnownHostsFile={self._directory / 'known'}"]
        words = [word for option in options for word in ("-o", option)]
        command = ["ssh", "-F", "none", "-i", str(identity), *words, "-p", str(way.port), f"{USER}@{way.host}"]
        assert subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 255

    def counted(self) -> tuple[int, int]:
        """How many addresses the bastion watches since they did wrong, and how many it has begun to turn away."""
        told = self.bastion.log_text()
        return told.count("deferred penalty"), told.count("activating ipv4 penalty")


@pytest.fixture
def place(tmp_path: Path, newer_sshd: Path | None, client_key: KeyPair) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path, newer_sshd, client_key, stack)


def ask(forwarder: Forwarder, postgres: PostgresServer) -> int:
    with postgres.connect(port=forwarder.port, connect_timeout=60) as session:
        row = session.execute("select count(*) from orders").fetchone()
    return row[0] if row else 0


@produces(Reason.BASTION_REFUSING)
def test_an_address_that_is_penalised_for_somebody_else(place: Place, postgres: PostgresServer) -> None:
    """Who stands is left alone, who must connect anew is turned away, and those who come meanwhile are served in the
    end. Nobody at another address suffers.
    """
    ours, others = (place.start(place.config(source, postgres.port)) for source in (OURS, NEIGHBOURS))
    for forwarder in (ours, others):
        forwarder.wait_for("database", "Succeeded")
    for _ in range(3):
        place.fail_to_log_in(OURS)
    wait_until(lambda: place.counted() == (1, 1), "the address to be penalised", describe=place.bastion.log_text)
    assert ask(ours, postgres) == 3
    for way in place.ways.values():
        way.reset()
    began = time.monotonic()
    with ThreadPoolExecutor(5) as clients:
        coming = [clients.submit(ask, ours, postgres) for _ in range(5)]
        fact = ours.wait_for("transport", "BastionRefusing")
        assert fact.seen == 'it says "Not allowed at this time"'
        check_told(ours, Reason.BASTION_REFUSING, 'away: it says "Not allowed at this time". Raise MaxStartups in its')
        others.wait_for("database", "Succeeded")
        assert ask(others, postgres) == 3
        assert [client.result(PENALTY_SECONDS * 2) for client in coming] == [3] * len(coming)
    print(f"served after {time.monotonic() - began:.1f} s")
    ours.wait_for("database", "Succeeded")
    assert (ours.metric(REFUSALS), others.metric(REFUSALS)) == (1, 0)
    assert ours.metric("dbtunnel_forwarder_ssh_connects_total") == 2


def test_an_address_that_the_page_exempts_is_not_penalised(place: Place, postgres: PostgresServer) -> None:
    """Whatever neighbours do, as docs/bastion.md has it."""
    (line,) = (text for text in blocks("bastion", "text") if text.startswith("PerSource"))
    place.bastion.set_config(line.strip().replace("203.0.113.0/24", f"{OURS}/32"), PENALTIES, *HARDENED)
    for _ in range(3):
        place.fail_to_log_in(OURS)
    assert place.counted() == (0, 0)
    place.start(place.config(OURS, postgres.port)).wait_for("database", "Succeeded")


def test_forwarders_of_two_bad_tunnels_bring_no_penalty_on_their_address(
    place: Place, postgres: PostgresServer
) -> None:
    """Their rejected keys count, and are tried too seldom; looking at the host keys of a third one counts little."""
    place.bastion.set_config(DEFAULT_PENALTIES, *HARDENED)
    rejected = [place.start(place.config(OURS, postgres.port), key_pair()) for _ in range(2)]
    unpinned = place.start(place.config(OURS, postgres.port, host_key=HostKeyRule()))
    for forwarder in rejected:
        forwarder.wait_for("authentication", "KeyRejected")
    unpinned.wait_for("transport", "HostKeyUnknown")
    wait_until(lambda: place.counted() == (1, 0), "sshd to count", describe=place.bastion.log_text)
    place.start(place.config(OURS, postgres.port)).wait_for("database", "Succeeded")
    assert place.counted() == (1, 0)
    for _ in range(4):
        place.fail_to_log_in(OURS)
    wait_until(lambda: place.counted() == (1, 1), "more to be too many", describe=place.bastion.log_text)
