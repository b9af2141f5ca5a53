"""Addresses of IPv6 all the way through the process: client, admin port, bastion, database."""

from pathlib import Path
from typing import Any

import pytest

from dbtunnel.domain.authorized_keys import authorized_keys_line
from tests.support.bastion import Bastion
from tests.support.databases import PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config
from tests.support.keys import KeyPair
from tests.support.processes import wait_until
from tests.support.relay import Relay

LOOPBACK = "::1"

CLIENTS = {"::1": ("::1",), "": ("::1", "127.0.0.1")}
"""Where clients reach a forwarder that listens at an address; in a pod it listens at every one."""


@pytest.mark.parametrize("listens_at", CLIENTS, ids=["one address", "every address"])
def test_a_tunnel_of_ipv6_from_end_to_end(
    tmp_path: Path, client_key: KeyPair, postgres: PostgresServer, listens_at: str
) -> None:
    """The key may open this one address, written as the status says it."""
    bastion = Bastion(tmp_path / "six", host=LOOPBACK)
    with Relay(postgres.host, postgres.port, host=LOOPBACK) as database:
        target = database.host, database.port
        bastion.authorize(authorized_keys_line(client_key.public, "shop/orders", target, sources=[LOOPBACK]))
        config = forwarder_config(bastion.start(), database.port, database_host=LOOPBACK)
        forwarder = Forwarder(tmp_path / "forwarder", config, {KEY: client_key.private})
        try:
            forwarder.start(address=listens_at).wait_for("database", "Succeeded")
            for number, address in enumerate(CLIENTS[listens_at], 1):
                check_serves(forwarder, postgres, address, number)
            hop = f'hop="bastion [::1]:{bastion.port}"'
            assert forwarder.metric(f"dbtunnel_forwarder_hop_active{{{hop}}}") == 1
            assert forwarder.metric("dbtunnel_forwarder_ssh_connects_total") == 1
        finally:
            forwarder.stop()
            bastion.stop()


def check_serves(forwarder: Forwarder, postgres: PostgresServer, address: str, number: int) -> None:
    """A client at this address, the forwarder's so many-th, is served, and told by that address."""
    with postgres.connect(host=address, port=forwarder.port) as session:
        assert session.execute("select count(*) from orders").fetchone() == (3,)

    def ended() -> list[dict[str, Any]]:
        return [one for one in forwarder.events() if one["event"] == "session ended"]

    wait_until(lambda: len(ended()) == number, "its end to be told")
    host, _, _ = ended()[-1]["client"].rpartition(":")
    assert host == ("[::1]" if address == LOOPBACK else address)
    assert ended()[-1]["hop"] == f"bastion [::1]:{forwarder.config.bastion.port}"
