"""Why SSH connections had to be made anew, as the metric counts it."""

from collections.abc import Callable

from dbtunnel.forwarder.failures import Loss
from tests.support.bastion import Bastion
from tests.support.databases import PostgresServer
from tests.support.forwarder import KEY, Forwarder
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import wait_until

StartForwarder = Callable[..., Forwarder]


def counted(forwarder: Forwarder) -> dict[str, float]:
    """How often each was counted, of those that were."""
    name = "dbtunnel_forwarder_ssh_reconnects_total"
    found = {loss: forwarder.metric(f'{name}{{reason="{loss}"}}') for loss in Loss}
    return {loss: count for loss, count in found.items() if count}


def connected(forwarder: Forwarder, times: int) -> None:
    connects = "dbtunnel_forwarder_ssh_connects_total"
    wait_until(lambda: forwarder.metric(connects) == times, f"{times} connections", 30, describe=forwarder.events)
    wait_until(lambda: forwarder.metric("dbtunnel_forwarder_ssh_up") == 1, "one that is up")


def test_each_end_of_a_connection_is_counted_by_why(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair
) -> None:
    second, third = key_pair(), key_pair()
    bastion.authorize(client_key.public, second.public, third.public)
    forwarder = start_forwarder(postgres.port)
    connected(forwarder, 1)
    assert counted(forwarder) == {}

    forwarder.write_secret({KEY: second.private})
    connected(forwarder, 2)
    assert counted(forwarder) == {"Replaced": 1}

    forwarder.write_secret({KEY: third.private, f"{KEY}-revoked": second.public})
    connected(forwarder, 3)
    assert counted(forwarder) == {"Replaced": 1, "KeyRevoked": 1}

    bastion.kill_sessions()
    connected(forwarder, 4)
    assert counted(forwarder) == {"Replaced": 1, "KeyRevoked": 1, "Lost": 1}

    bastion.pause()
    wait_until(lambda: "KeepaliveUnanswered" in counted(forwarder), "the keepalive to give up")
    bastion.resume()
    connected(forwarder, 5)
    assert counted(forwarder) == {"Replaced": 1, "KeyRevoked": 1, "Lost": 1, "KeepaliveUnanswered": 1}
