"""An SSH server announces a host key before it changes to it (hostkeys-00@openssh.com): told, pinned, and then used."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dbtunnel.api.forwarder import HostKeyRule
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.cli.plugin import trust
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.hops import hop_name
from dbtunnel.domain.news import host_key_news
from dbtunnel.domain.settings import Defaults
from dbtunnel.domain.status import decide
from tests.support.bastion import Bastion
from tests.support.databases import PostgresServer
from tests.support.forwarder import KEY, Forwarder, hop_to
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import wait_until
from tests.support.values import INSTALLATION, changed, manifest, observed

StartForwarder = Callable[..., Forwarder]
StartTunnel = Callable[[dict[str, Any]], Forwarder]

CONNECTS, ANNOUNCED = "dbtunnel_forwarder_ssh_connects_total", "dbtunnel_forwarder_host_keys_announced"


def shown(forwarder: Forwarder) -> set[str]:
    return {key.fingerprint for key in forwarder.status().hops[0].host_keys}


def strange(forwarder: Forwarder) -> list[str]:
    """What the log tells of keys that are not pinned."""
    return [event["keys"] for event in forwarder.events() if "not pinned" in event["event"]]


def test_keys_that_the_server_proves_to_hold_are_told_once_and_not_trusted(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    """Also not where known_hosts has another one."""
    pinned = f"{bastion.known_hosts_name()} {bastion.host_keys['rsa'].public}\n"
    forwarder = start_forwarder(postgres.port, bastion=hop_to(bastion, host_key=HostKeyRule(known_hosts=pinned)))
    forwarder.wait_for("authentication", "Succeeded")
    wait_until(lambda: shown(forwarder) == set(bastion.fingerprints.values()), "the others")
    for _ in range(2):
        in_use, *others = forwarder.status().hops[0].host_keys
        assert (in_use.fingerprint, in_use.announced) == (bastion.fingerprints["rsa"], False)
        assert len(others) == 2
        assert all(one.announced for one in others)
        assert forwarder.metric(f'{ANNOUNCED}{{hop="bastion {bastion.host}:{bastion.port}"}}') == 2
        made = forwarder.metric(CONNECTS)
        bastion.kill_sessions()
        wait_until(lambda made=made: forwarder.metric(CONNECTS) > made, "another connection")  # type: ignore[misc]
    (told,) = strange(forwarder)
    assert set(told.split(", ")) == {bastion.fingerprints[name] for name in ("ed25519", "ecdsa")}

    bastion.replace_host_keys(["ed25519"])
    bastion.kill_sessions()

    forwarder.wait_for("transport", "HostKeyMismatch")


def test_an_authority_vouches_for_the_next_key_as_well(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    authority = key_pair()
    bastion.certify_host_key("ed25519", authority, bastion.host)
    rule = HostKeyRule(known_hosts=f"@cert-authority {bastion.known_hosts_name()} {authority.public}\n")
    forwarder = start_forwarder(postgres.port, bastion=hop_to(bastion, host_key=rule))
    wait_until(lambda: shown(forwarder) == set(bastion.fingerprints.values()), "the others")
    assert not any(key.announced for key in forwarder.status().hops[0].host_keys)
    assert strange(forwarder) == []


@pytest.fixture
def start_tunnel(tmp_path: Path, client_key: KeyPair) -> Iterator[StartTunnel]:
    """Starts the forwarder of a DatabaseTunnel, in place of the one before, as pods roll."""
    running: list[Forwarder] = []

    def start(resource: dict[str, Any]) -> Forwarder:
        config = forwarder_config(DatabaseTunnel.parse(resource), Defaults())
        forwarder = Forwarder(tmp_path / f"pod-{len(running)}", config, {KEY: client_key.private})
        running.append(forwarder.start())
        forwarder.wait_for("database", "Succeeded")
        for before in running[:-1]:
            before.stop()
        return forwarder

    yield start
    for forwarder in running:
        forwarder.stop()


def reported(resource: dict[str, Any], forwarder: Forwarder) -> tuple[dict[str, Any], tuple[str, str, str] | None]:
    """The resource with the status that the operator would give it, and the Event of that."""
    tunnel = DatabaseTunnel.parse(resource)
    status = decide(tunnel, observed(tunnel, forwarder.status()), INSTALLATION, datetime.now(UTC)).status
    return {**resource, "status": status.document()}, host_key_news(resource, status)


def trusted(resource: dict[str, Any]) -> dict[str, Any]:
    """The resource after `kubectl dbtunnel trust --yes`."""
    tunnel = DatabaseTunnel.parse(resource)
    config = forwarder_config(tunnel, Defaults())
    _, pin = trust.pin_operations(tunnel, config, trust.announced(tunnel, config))
    assert pin["path"] == "/spec/tunnel/hostKey"
    return changed(resource, {"spec.tunnel.hostKey": pin["value"]})


def test_a_key_that_is_pinned_when_it_is_announced_takes_over_and_nothing_fails(
    start_tunnel: StartTunnel, bastion: Bastion, postgres: PostgresServer
) -> None:
    old = bastion.fingerprints["ed25519"]
    way = {"host": bastion.host, "port": bastion.port, "hostKey": {"fingerprints": [old]}}
    drain = {"minSeconds": 0, "maxSeconds": 1}
    resource = manifest({"spec.tunnel": way, "spec.database.port": postgres.port, "spec.drain": drain})
    forwarder = start_tunnel(resource)
    wait_until(lambda: shown(forwarder) == set(bastion.fingerprints.values()), "the others")
    resource, news = reported(resource, forwarder)
    name = hop_name(forwarder.config)
    assert news
    assert news[:2] == ("Normal", "HostKeysAnnounced")
    assert f"{name}: " in news[2]
    assert bastion.fingerprints["rsa"] in news[2]
    assert old not in news[2]

    forwarder = start_tunnel(trusted(resource))
    wait_until(lambda: shown(forwarder) == set(bastion.fingerprints.values()), "the others")
    resource, news = reported(resource, forwarder)
    assert news is None
    bastion.drop_host_keys("ed25519")
    bastion.kill_sessions()
    with postgres.connect(port=forwarder.port) as session:
        assert session.execute("select 1").fetchone() == (1,)
    assert forwarder.status().hops[0].host_keys[0].fingerprint != old
    assert forwarder.metric('dbtunnel_forwarder_ssh_failures_total{reason="HostKeyMismatch"}') == 0
    assert "HostKeyMismatch" not in forwarder.log.read_text()
