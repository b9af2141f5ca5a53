"""What forwarders are told, from the tunnel and the installer's defaults."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.api.engines import ENGINES, Engine
from dbtunnel.api.forwarder import (
    Algorithms,
    ForwarderConfig,
    ForwarderHop,
    ForwarderKey,
    HostKeyRule,
    ProbeMode,
    Seconds,
)
from dbtunnel.domain.forwarding import (
    database_port,
    drain_seconds,
    forwarder_config,
    replicas,
    server_name,
    service_port,
)
from dbtunnel.domain.settings import Defaults
from tests.support.values import tunnel

FINGERPRINT = "SHA256:" + "A" * 43


def test_the_smallest_tunnel() -> None:
    assert forwarder_config(tunnel(), Defaults()) == ForwarderConfig(
        namespace="shop",
        name="orders",
        engine=Engine.POSTGRESQL,
        database_host="orders.internal",
        database_port=5432,
        database_server_name="orders.internal",
        bastion=ForwarderHop(host="203.0.113.7", port=22, user="dbtunnel"),
        key=ForwarderKey(secret="orders-ssh", key="ssh-privatekey", passphrase_key="passphrase"),
    )


def test_the_defaults_are_those_of_the_documentation() -> None:
    config = forwarder_config(tunnel(), Defaults())
    assert config.seconds == Seconds(
        connect_timeout=10, keepalive_interval=15, parking_max=30, drain_min=3, drain_max=30, probe_interval=60
    )
    assert (config.keepalive_count_max, config.parking_max_clients, config.replicas) == (3, 1000, 1)
    assert config.probe_mode is ProbeMode.AUTO
    assert not config.compression


def test_everything_that_is_given_is_passed_on() -> None:
    config = forwarder_config(
        tunnel(
            {
                "engine": "MySQL",
                "database": {"host": "10.0.0.5", "port": 3307, "tls": {"serverName": "orders.example"}},
                "tunnel": {
                    "host": "2001:db8::7",
                    "port": 2222,
                    "user": "svc",
                    "keySecretRef": {"name": "key", "key": "id", "passphraseKey": "words"},
                    "hostKey": {"knownHostsRef": {"name": "hosts", "key": "file"}, "alias": "bastion"},
                    "algorithms": "Legacy",
                    "connectTimeoutSeconds": 1,
                    "keepalive": {"intervalSeconds": 2, "countMax": 4},
                    "compression": True,
                    "connections": 8,
                },
                "replicas": 5,
                "connectionLimits": {"max": 500, "idleTimeoutSeconds": 3600},
                "parking": {"maxSeconds": 0, "maxClients": 0},
                "drain": {"minSeconds": 0, "maxSeconds": 0},
                "probe": {"mode": "Disabled", "intervalSeconds": 5},
            }
        ),
        Defaults(),
    )
    assert config == ForwarderConfig(
        namespace="shop",
        name="orders",
        engine=Engine.MYSQL,
        database_host="10.0.0.5",
        database_port=3307,
        database_server_name="orders.example",
        bastion=ForwarderHop(
            host="2001:db8::7",
            port=2222,
            user="svc",
            host_key=HostKeyRule(known_hosts_file="file", alias="bastion"),
            algorithms=Algorithms.LEGACY,
        ),
        key=ForwarderKey(secret="key", key="id", passphrase_key="words"),
        keepalive_count_max=4,
        compression=True,
        connections=8,
        parking_max_clients=0,
        max_clients=500,
        probe_mode=ProbeMode.DISABLED,
        replicas=5,
        seconds=Seconds(
            connect_timeout=1,
            keepalive_interval=2,
            parking_max=0,
            drain_min=0,
            drain_max=0,
            probe_interval=5,
            idle=3600,
        ),
    )


@pytest.mark.parametrize(
    ("host_key", "rule"),
    [
        ({}, HostKeyRule()),
        ({"fingerprints": [FINGERPRINT]}, HostKeyRule(fingerprints=(FINGERPRINT,))),
        ({"knownHosts": "a b c"}, HostKeyRule(known_hosts="a b c")),
        ({"knownHostsRef": {"name": "hosts"}}, HostKeyRule(known_hosts_file="known_hosts")),
        ({"alias": "bastion"}, HostKeyRule(alias="bastion")),
    ],
)
def test_how_the_host_key_is_verified(host_key: dict[str, Any], rule: HostKeyRule) -> None:
    assert forwarder_config(tunnel({"tunnel.hostKey": host_key}), Defaults()).bastion.host_key == rule


@pytest.mark.parametrize("engine", Engine)
def test_ports_follow_the_engine_the_database_and_the_service(engine: Engine) -> None:
    usual = ENGINES[engine].default_port
    assert (database_port(tunnel({"engine": engine})), service_port(tunnel({"engine": engine}))) == (usual, usual)
    given_port = tunnel({"engine": engine, "database.port": 1})
    assert (database_port(given_port), service_port(given_port)) == (1, 1)
    both = tunnel({"engine": engine, "database.port": 1, "service.port": 2})
    assert (database_port(both), service_port(both)) == (1, 2)


def test_the_name_on_the_certificate() -> None:
    assert server_name(tunnel()) == "orders.internal"
    assert server_name(tunnel({"database.tls.serverName": "orders.example"})) == "orders.example"


def test_zero_is_a_choice_and_not_a_gap() -> None:
    seconds = forwarder_config(tunnel({"parking": {"maxSeconds": 0}, "drain.minSeconds": 0}), Defaults()).seconds
    assert (seconds.parking_max, seconds.drain_min) == (0, 0)


def test_replicas_are_the_installers_unless_given() -> None:
    assert replicas(tunnel(), Defaults(replicas=3)) == 3
    assert replicas(tunnel({"replicas": 1}), Defaults(replicas=3)) == 1


@given(
    least=st.none() | st.integers(0, 300),
    most=st.none() | st.integers(0, 604800),
    default_least=st.integers(0, 300),
    default_most=st.integers(0, 604800),
)
def test_a_pod_never_drains_longer_than_the_kubelet_waits(
    least: int | None, most: int | None, default_least: int, default_most: int
) -> None:
    if least is not None and most is not None and least > most:
        return  # refused by the schema
    drain = {name: value for name, value in (("minSeconds", least), ("maxSeconds", most)) if value is not None}
    defaults = Defaults(drain_min_seconds=default_least, drain_max_seconds=default_most)
    decided = drain_seconds(tunnel({"drain": drain}), defaults)
    assert 0 <= decided[0] <= decided[1]
    assert decided[0] == least or least is None
    assert decided[1] == most or most is None
