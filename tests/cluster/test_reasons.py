"""Reasons that take a server of their own: in a real cluster each is told by its condition, an Event, the operator's
metric and `kubectl dbtunnel check`. The tunnels are all there at once, since many a failure is told after a while.
"""

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dbtunnel.api.engines import Engine
from dbtunnel.api.reasons import Reason
from tests.support import produced
from tests.support.bastion import HARDENED, NO_PUBLIC_KEYS, ONE_STARTUP, ONE_TRY, SECOND_FACTOR, Bastion
from tests.support.clients import COMMANDS, Endpoint, query
from tests.support.cluster import Cluster, ClusterError
from tests.support.faults import FaultServer, no_host, says
from tests.support.keys import KeyPair, key_pair
from tests.support.private_network import PrivateNetwork, secret
from tests.support.processes import wait_until
from tests.support.produced import produces
from tests.support.relay import Relay
from tests.support.told_in_cluster import check_counted, check_told, events_about, run_check
from tests.support.tunnels import Manifest, apply, tunnel_manifest, wait_for_ready, wait_for_reason

KEY = "any-ssh"
"""The Secret of all of them."""

PATIENCE = 130
"""Seconds for all of them to start, on a busy machine."""

MOST_CLIENTS = 400
"""More than it takes to fill MariaDB, or to be blocked by it, as it is by default."""

NOTE_SHOWN = 900
"""Characters of a message that an Event has in any case."""

Spec = dict[str, Any]


@dataclass
class Place:
    """Where the servers are that these tunnels lead to; what is entered into `stack` ends with them."""

    network: PrivateNetwork
    key: KeyPair
    directory: Path
    stack: ExitStack

    @property
    def host(self) -> str:
        """The address of this machine that pods reach."""
        return self.network.bastion.host

    def bastion(self, *config: str, authorized: bool = True) -> Bastion:
        """Another sshd, with these lines of configuration."""
        number = len(list(self.directory.glob("bastion-*")))
        bastion = Bastion(
            self.directory / f"bastion-{number}", host=self.host, hosts=self.network.addresses, config=config
        )
        self.stack.callback(bastion.stop)
        bastion.authorize(*[self.key.public] * authorized)
        return bastion.start()

    def through(self, bastion: Bastion, **spec: Any) -> Spec:
        """The way through one whose host keys are pinned."""
        return self.to(bastion.host, bastion.port, list(bastion.fingerprints.values()), **spec)

    def to(self, host: str, port: int, fingerprints: list[str], **spec: Any) -> Spec:
        """The way to an SSH server."""
        pins = {"hostKey": {"fingerprints": fingerprints}, "keySecretRef": {"name": KEY}}
        return {"tunnel": {"host": host, "port": port, **pins}, **spec}

    def to_none(self, server: FaultServer) -> Spec:
        """The way to what is no SSH server."""
        self.stack.enter_context(server)
        return self.to(server.host, server.port, [self.key.fingerprint])

    def behind(self, **database: Any) -> Spec:
        """Another database, behind a bastion that lets the key in and forwards."""
        return self.through(self.good, database=database)

    def __post_init__(self) -> None:
        self.good = self.bastion(*HARDENED)


# --- what is wrong with each ------------------------------------------------------------------------------------------


def soon(spec: Spec) -> Spec:
    """With a short time limit, for one that is reached."""
    spec["tunnel"]["connectTimeoutSeconds"] = 3
    return spec


def _full(place: Place) -> Spec:
    bastion = place.bastion(*ONE_STARTUP)
    other = place.stack.enter_context(socket.create_connection((bastion.host, bastion.port), 5))
    assert other.recv(4) == b"SSH-"
    return place.through(bastion)


def _revoked(place: Place) -> Spec:
    spec = place.through(place.good)
    line = f"@revoked * {place.good.host_keys['ed25519'].public}\n"
    spec["tunnel"]["hostKey"] = {"knownHosts": place.good.known_hosts() + line}
    return spec


def _certificate_of_another(place: Place) -> Spec:
    bastion, authority = place.bastion(*HARDENED), key_pair()
    bastion.certify_host_key("ed25519", authority, "elsewhere.internal")
    spec = place.through(bastion)
    line = f"@cert-authority {bastion.known_hosts_name()} {authority.public}\n"
    spec["tunnel"]["hostKey"] = {"knownHosts": line}
    return spec


def _no_route_to_the_database(place: Place) -> Spec:
    return place.behind(host=place.stack.enter_context(no_host(place.directory)).host)


def _silent_database(place: Place) -> Spec:
    silent = place.stack.enter_context(FaultServer(lambda _: None))
    return soon(place.behind(host="localhost", port=silent.port))


def _full_database(place: Place) -> Spec:
    return {**place.behind(host="inventory.internal"), "engine": "MySQL"}


def _database_that_blocks(place: Place) -> Spec:
    """At 127.0.0.1 it would not."""
    server = place.network.servers["inventory"]
    relay = place.stack.enter_context(Relay(server.host, server.port, source="127.0.0.5"))
    return {**place.behind(host="localhost", port=relay.port), "engine": "MySQL"}


FAILURES: dict[Reason, tuple[Callable[[Place], Spec], str]] = {
    Reason.NETWORK_UNREACHABLE: (
        lambda place: place.to("2001:db8::1", 22, [place.key.fingerprint]),
        "no route from the cluster",
    ),
    Reason.CONNECT_TIMEOUT: (
        lambda place: soon(place.to_none(FaultServer(lambda _: None, place.host))),
        "no SSH version line comes within 3 s",
    ),
    Reason.BASTION_REFUSING: (_full, "Exceeded MaxStartups"),
    Reason.NO_COMMON_ALGORITHM: (
        lambda place: place.through(place.bastion("Ciphers aes128-cbc", *HARDENED)),
        'the server offers "aes128-cbc"',
    ),
    Reason.HOST_KEY_REVOKED: (_revoked, "marked @revoked"),
    Reason.HOST_CERTIFICATE_INVALID: (_certificate_of_another, "principal mismatch"),
    Reason.CONNECTION_LOST: (
        lambda place: place.to_none(says(b"SSH-2.0-OpenSSH_9.2p1\r\n", host=place.host)),
        "spec.tunnel.keepalive",
    ),
    Reason.SECOND_FACTOR_REQUIRED: (
        lambda place: place.through(place.bastion(*SECOND_FACTOR)),
        "AuthenticationMethods publickey",
    ),
    Reason.TOO_MANY_AUTH_FAILURES: (
        lambda place: place.through(place.bastion(*ONE_TRY, authorized=False)),
        "Raise MaxAuthTries",
    ),
    Reason.METHOD_NOT_OFFERED: (
        lambda place: place.through(place.bastion(*NO_PUBLIC_KEYS)),
        "PubkeyAuthentication yes",
    ),
    Reason.DATABASE_UNRESOLVABLE: (lambda place: place.behind(host="nowhere.invalid"), "not in the cluster"),
    Reason.DATABASE_UNREACHABLE: (_no_route_to_the_database, "No route to host"),
    Reason.DATABASE_TIMEOUT: (_silent_database, "does not answer within 3 s"),
    Reason.TOO_MANY_CONNECTIONS: (_full_database, "max_connections"),
    Reason.HOST_BLOCKED: (_database_that_blocks, "Run FLUSH HOSTS"),
}
"""What leads to each, and words of its message."""


# --- clients that a database turns away -------------------------------------------------------------------------------

TURNS_AWAY = {Reason.TOO_MANY_CONNECTIONS: "1040", Reason.HOST_BLOCKED: "1129"}
"""MySQL's errors. It is not probed, so that a client shows them."""


def fill(host: str, port: int, stays: ExitStack | None = None) -> int:
    """The error with which MySQL's server greets a client at last. Those before it, who do not log in, leave at once or
    with `stays`.
    """
    for _ in range(MOST_CLIENTS):
        with ExitStack() as leaves:
            client = (stays or leaves).enter_context(socket.create_connection((host, port), 5))
            head = client.recv(7, socket.MSG_WAITALL)
            if head[4] == 0xFF:
                return int.from_bytes(head[5:7], "little")
    raise AssertionError("everybody is let in")


def use_in_vain(cluster: Cluster, found: Manifest, reason: Reason) -> None:
    """A real client is told the error through the Service, of which nodes learn a moment after the API."""
    command = COMMANDS[Engine.MYSQL](Endpoint.of(found), "select 1")

    def is_told() -> bool:
        with pytest.raises(ClusterError) as raised:
            query(cluster, found["metadata"]["namespace"], command)
        return TURNS_AWAY[reason] in str(raised.value)

    wait_until(is_told, f"error {TURNS_AWAY[reason]}", 20)


def turn_away(cluster: Cluster, network: PrivateNetwork, tunnels: dict[Reason, Manifest]) -> None:
    """Both databases turn their tunnel's client away."""
    server, blocked = network.servers["inventory"], tunnels[Reason.HOST_BLOCKED]
    assert fill("127.0.0.1", blocked["spec"]["database"]["port"]) == int(TURNS_AWAY[Reason.HOST_BLOCKED])
    use_in_vain(cluster, blocked, Reason.HOST_BLOCKED)
    with ExitStack() as guests:
        assert fill(server.host, server.port, guests) == int(TURNS_AWAY[Reason.TOO_MANY_CONNECTIONS])
        use_in_vain(cluster, tunnels[Reason.TOO_MANY_CONNECTIONS], Reason.TOO_MANY_CONNECTIONS)
    with server.connect() as session, session.cursor() as cursor:
        cursor.execute("flush hosts")


# --- all of them ------------------------------------------------------------------------------------------------------


def name_of(reason: Reason) -> str:
    return str(reason).lower()


@pytest.fixture(scope="module")
def tunnels(
    installed: Cluster, shop: str, private_network: PrivateNetwork, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[Reason, Manifest]]:
    """As they were applied."""
    key = key_pair()
    with ExitStack() as stack:
        place = Place(private_network, key, tmp_path_factory.mktemp("reasons"), stack)
        found = {
            reason: tunnel_manifest(shop, name_of(reason), **lead(place)) for reason, (lead, _) in FAILURES.items()
        }
        apply(installed, secret(shop, KEY, {"ssh-privatekey": key.private}), *found.values())
        yield found


@pytest.fixture(scope="module")
def ready(installed: Cluster, shop: str, tunnels: dict[Reason, Manifest]) -> dict[Reason, Manifest]:
    """Those of MySQL before their first client."""
    return {reason: wait_for_ready(installed, shop, name_of(reason), PATIENCE) for reason in TURNS_AWAY}


@pytest.fixture(scope="module")
def failing(
    installed: Cluster, private_network: PrivateNetwork, tunnels: dict[Reason, Manifest], ready: dict[Reason, Manifest]
) -> dict[Reason, Manifest]:
    """All of them after it."""
    turn_away(installed, private_network, ready)
    return tunnels


def posted(cluster: Cluster, found: Manifest, reason: str) -> list[Manifest]:
    """The Events about a tunnel with a reason: one for a transition, and for those like it."""
    return [one for one in events_about(cluster, found) if one["reason"] == reason]


@produces(Reason.NOT_PROBED)
def test_a_database_that_is_not_probed_is_ready(installed: Cluster, ready: dict[Reason, Manifest]) -> None:
    found = ready[Reason.TOO_MANY_CONNECTIONS]
    conditions = {one["type"]: one for one in found["status"]["conditions"]}
    told = conditions["DatabaseReachable"]
    assert (told["status"], told["reason"]) == ("Unknown", Reason.NOT_PROBED)
    wait_until(lambda: posted(installed, found, "Ready"), "an Event", 10)
    (event,) = posted(installed, found, "Ready")
    assert (event["type"], event["note"]) == ("Normal", conditions["Ready"]["message"])
    check_counted(installed, found, Reason.SUCCEEDED)
    code, shown = run_check(installed, found["metadata"])
    assert (code, "DatabaseReachable  not probed" in shown) == (0, True), shown
    produced.note(Reason.NOT_PROBED, told["message"])


@pytest.mark.parametrize("reason", [pytest.param(reason, marks=produces(reason)) for reason in FAILURES])
def test_a_reason_is_told_everywhere(
    installed: Cluster, shop: str, failing: dict[Reason, Manifest], reason: Reason
) -> None:
    found = wait_for_reason(installed, shop, name_of(reason), reason, PATIENCE)
    message = check_told(installed, found, reason, [FAILURES[reason][1]])
    (event,) = posted(installed, found, reason)
    assert (event["type"], event["note"][:NOTE_SHOWN]) == ("Warning", message[:NOTE_SHOWN])
