"""`dbtunnel check -f MANIFEST -i KEY`: each reason with its exit code and message, and nothing left open."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dbtunnel.api.conditions import LAYERS
from dbtunnel.api.reasons import REASONS, Reason
from tests.support import bastion as bastions
from tests.support import faults, odd_ssh
from tests.support.bastion import Bastion
from tests.support.databases import MariaDBServer
from tests.support.faults import BlackHole, FaultServer
from tests.support.keys import key_pair
from tests.support.laptop import Laptop, as_text, statuses, too_wide
from tests.support.odd_ssh import OddSshServer
from tests.support.processes import free_port, wait_until
from tests.support.produced import checks, note_exit

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\nREADY\u202e\x9b31m"
"""What a server would like a terminal to do."""


@dataclass
class Site:
    """A laptop and what its manifest leads to."""

    directory: Path
    laptop: Laptop
    bastion: Bastion
    mariadb: MariaDBServer


@pytest.fixture
def site(tmp_path: Path, bastion: Bastion, laptop: Laptop, mariadb: MariaDBServer) -> Iterator[Site]:
    """All works, and after the test the bastion has no connection any more."""
    yield Site(tmp_path, laptop, bastion, mariadb)
    wait_until(lambda: bastion.connections() == 0, "no connection to the bastion", 5)


# --- every reason -----------------------------------------------------------------------------------------------------

Change = Callable[[Site, ExitStack], None]


def spec(**changes: Any) -> Change:
    """Changes of `spec.tunnel`."""

    def change(site: Site, stack: ExitStack) -> None:
        site.laptop.tunnel.update(changes)

    return change


def bastion_is(start: Callable[[], FaultServer]) -> Change:
    """Something else stands on the bastion's port."""

    def change(site: Site, stack: ExitStack) -> None:
        fault = stack.enter_context(start())
        site.laptop.tunnel.update({"host": fault.host, "port": fault.port, "connectTimeoutSeconds": 1})

    return change


def database_is(start: Callable[[], FaultServer]) -> Change:
    """Something else stands on the database's port."""

    def change(site: Site, stack: ExitStack) -> None:
        site.laptop.tunnel["connectTimeoutSeconds"] = 1
        site.laptop.manifest["spec"]["database"]["port"] = stack.enter_context(start()).port

    return change


def sshd(*config: str, authorized: bool = True) -> Change:
    """The bastion's configuration."""

    def change(site: Site, stack: ExitStack) -> None:
        site.bastion.set_config(*config)
        if not authorized:
            site.bastion.unauthorize()

    return change


def odd(prepare: Callable[[OddSshServer], None]) -> Change:
    """The bastion is an SSH server that misbehaves."""

    def change(site: Site, stack: ExitStack) -> None:
        server = stack.enter_context(OddSshServer())
        prepare(server)
        pins = list(server.hop.host_key.fingerprints)
        site.laptop.tunnel.update({"port": server.port, "hostKey": {"fingerprints": pins}})

    return change


def no_network(open_hole: Callable[[Path], BlackHole], place: str, timeout_seconds: int) -> Change:
    """An address where nobody answers, of the bastion or the database."""

    def change(site: Site, stack: ExitStack) -> None:
        hole = stack.enter_context(open_hole(site.directory))
        site.laptop.tunnel["connectTimeoutSeconds"] = timeout_seconds
        site.laptop.manifest["spec"][place]["host"] = hole.host

    return change


def database(**changes: Any) -> Change:
    """Changes of `spec.database`."""

    def change(site: Site, stack: ExitStack) -> None:
        site.laptop.manifest["spec"]["database"].update(changes)

    return change


def _stopped(site: Site, _: ExitStack) -> None:
    site.laptop.tunnel["port"] = free_port()


def _other_host_keys(site: Site, _: ExitStack) -> None:
    site.bastion.replace_host_keys()


def _revoked(site: Site, _: ExitStack) -> None:
    line = f"@revoked * {site.bastion.host_keys['ed25519'].public}\n"
    site.laptop.tunnel["hostKey"] = {"knownHosts": site.bastion.known_hosts() + line}


def _certificate_of_another(site: Site, _: ExitStack) -> None:
    authority = key_pair()
    site.bastion.certify_host_key("ed25519", authority, "elsewhere.internal")
    line = f"@cert-authority {site.bastion.known_hosts_name()} {authority.public}\n"
    site.laptop.tunnel["hostKey"] = {"knownHosts": line}


def _mariadb(site: Site, _: ExitStack) -> None:
    site.laptop.manifest["spec"]["database"]["port"] = site.mariadb.port


def _no_channels(server: OddSshServer) -> None:
    server.most_channels = 0


def _loses(server: OddSshServer) -> None:
    server.on_connection = odd_ssh.break_at("in the key exchange", odd_ssh.close)


def _loses_at_the_channel(site: Site, stack: ExitStack) -> None:
    def prepare(server: OddSshServer) -> None:
        server.on_connection = odd_ssh.break_at("at the first channel", odd_ssh.reset)

    site.laptop.manifest["spec"]["database"]["host"] = "127.0.0.1"
    odd(prepare)(site, stack)


REASONS_SEEN: dict[str, tuple[Change, Reason, str]] = {
    "name": (spec(host="bastion.invalid"), Reason.HOST_UNRESOLVABLE, "Check spec.tunnel.host"),
    "route": (no_network(faults.no_host, "tunnel", 30), Reason.NETWORK_UNREACHABLE, "no route from the cluster"),
    "stopped": (_stopped, Reason.CONNECTION_REFUSED, "set spec.tunnel.port"),
    "dropped": (no_network(BlackHole, "tunnel", 1), Reason.CONNECT_TIMEOUT, "no TCP connection after 1 s"),
    "silent": (bastion_is(faults.says_nothing), Reason.CONNECT_TIMEOUT, "no SSH version line comes within 1 s"),
    "http": (bastion_is(faults.says_http), Reason.NOT_AN_SSH_SERVER, "HTTP/1.1 400"),
    "endless": (bastion_is(faults.says_for_ever), Reason.NOT_AN_SSH_SERVER, "xxxx"),
    "startups": (
        bastion_is(lambda: faults.says(faults.EXCEEDED_MAX_STARTUPS)),
        Reason.BASTION_REFUSING,
        "Exceeded MaxStartups",
    ),
    "closes": (bastion_is(lambda: faults.says(b"")), Reason.BASTION_REFUSING, "it closes the connection"),
    "resets": (bastion_is(faults.resets), Reason.BASTION_REFUSING, "it resets the connection"),
    "old": (sshd(*bastions.SHA1_ONLY), Reason.NO_COMMON_ALGORITHM, "set spec.tunnel.algorithms to Legacy"),
    "no pin": (spec(hostKey={}), Reason.HOST_KEY_UNKNOWN, "nothing was sent"),
    "reinstalled": (_other_host_keys, Reason.HOST_KEY_MISMATCH, "somebody intercepts the connection"),
    "revoked": (_revoked, Reason.HOST_KEY_REVOKED, "marked @revoked"),
    "certificate": (_certificate_of_another, Reason.HOST_CERTIFICATE_INVALID, "principal mismatch"),
    "lost": (odd(_loses), Reason.CONNECTION_LOST, "Connection lost"),
    "not authorized": (sshd(*bastions.HARDENED, authorized=False), Reason.KEY_REJECTED, "authorized_keys"),
    "second factor": (sshd(*bastions.SECOND_FACTOR), Reason.SECOND_FACTOR_REQUIRED, "AuthenticationMethods publickey"),
    "no public keys": (sshd(*bastions.NO_PUBLIC_KEYS), Reason.METHOD_NOT_OFFERED, "PubkeyAuthentication yes"),
    "one try": (sshd(*bastions.ONE_TRY, authorized=False), Reason.TOO_MANY_AUTH_FAILURES, "Raise MaxAuthTries"),
    "no forwarding": (sshd(*bastions.NO_FORWARDING), Reason.FORWARDING_PROHIBITED, "AllowTcpForwarding local"),
    "elsewhere": (sshd(*bastions.OTHER_TARGET), Reason.FORWARDING_PROHIBITED, "PermitOpen any or orders.internal"),
    "no channels": (odd(_no_channels), Reason.TOO_MANY_CONNECTIONS, "the SSH server opens no more channels"),
    "lost later": (_loses_at_the_channel, Reason.CONNECTION_LOST, "the SSH connection was lost"),
    "database's name": (database(host="nowhere.invalid"), Reason.DATABASE_UNRESOLVABLE, "not in the cluster"),
    "database's route": (no_network(faults.no_host, "database", 30), Reason.DATABASE_UNREACHABLE, "No route to host"),
    "database stopped": (database(port=1), Reason.DATABASE_REFUSED, "Connection refused"),
    "database dropped": (no_network(BlackHole, "database", 1), Reason.DATABASE_TIMEOUT, "within 1 s"),
    "database silent": (database_is(faults.says_nothing), Reason.DATABASE_TIMEOUT, "does not answer within 1 s"),
    "database closes": (database_is(lambda: faults.says(b"")), Reason.DATABASE_REFUSED, "closes it at once"),
    "another database": (_mariadb, Reason.UNEXPECTED_PROTOCOL, "does not speak the protocol of PostgreSQL"),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=checks(case[1])) for name, case in REASONS_SEEN.items()])
def test_each_failure_has_its_reason_and_says_what_to_do(site: Site, name: str) -> None:
    change, reason, told = REASONS_SEEN[name]
    with ExitStack() as stack:
        change(site, stack)
        document = site.laptop.checked(1)
        server = f"{site.laptop.tunnel['host']}:{site.laptop.tunnel['port']}"
    failed = LAYERS.index(REASONS[reason].type)

    assert (document["ready"], document["reason"]) == (False, reason)
    assert statuses(document) == ["True"] * failed + ["False"] + ["Unknown"] * (3 - failed)
    assert document["layers"][failed]["message"] == document["message"]
    assert document["message"].startswith(f"bastion {server}: ")
    assert told in document["message"]
    (hop,) = document["hops"]
    assert statuses(hop) == statuses(document)[1:]
    text = as_text(document)
    assert f"NOT READY: {reason}\n" in text
    assert too_wide(text) == []
    assert text.replace("\n", "").isprintable()
    note_exit(reason, 1)


# --- hostile servers --------------------------------------------------------------------------------------------------


def _says_goodbye(server: OddSshServer) -> None:
    server.on_connection = odd_ssh.break_at("when the key is offered", odd_ssh.say_goodbye(2, HOSTILE))


def _opens_nothing(server: OddSshServer) -> None:
    def talk(connection: Any) -> None:
        tell = connection.send_channel_open_failure
        connection.send_channel_open_failure = lambda channel, code, reason, lang: tell(channel, code, HOSTILE, lang)

    server.on_connection = talk


def _has_a_version(server: OddSshServer) -> None:
    def rename(connection: Any) -> None:
        connection._version = HOSTILE.encode("ascii", "ignore").replace(b"\r\n", b"")

    server.on_connection = rename


HOSTILE_SERVERS: dict[str, tuple[Change, int]] = {
    "banner": (bastion_is(lambda: faults.says(HOSTILE.encode())), 1),
    "goodbye": (odd(_says_goodbye), 1),
    "version": (odd(_has_a_version), 1),
    "channel": (odd(_opens_nothing), 1),
    "database": (database_is(lambda: faults.says(HOSTILE.encode())), 1),
}


@pytest.mark.parametrize("name", HOSTILE_SERVERS)
def test_nothing_that_a_server_says_reaches_the_terminal_as_it_is(site: Site, name: str) -> None:
    change, code = HOSTILE_SERVERS[name]
    with ExitStack() as stack:
        change(site, stack)
        done = [site.laptop.check("-o", form) for form in ("text", "json", "yaml")]
    for one in done:
        assert one.returncode == code
        assert "owned" in one.stdout, "it was told"
        assert all(char == "\n" or char.isprintable() for char in one.stdout)
        assert "\nREADY" not in one.stdout
