"""The resource as people write it: what is needed, what is filled in, what is read strictly."""

from typing import Any

import pytest
from pydantic import ValidationError

from dbtunnel.api.documents import read
from dbtunnel.api.engines import ENGINES, Engine, WireProtocol
from dbtunnel.api.forwarder import ForwarderConfig, ForwarderStatus
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.settings import Defaults
from tests.support.values import changed, manifest, tunnel


def parsed(**changes: Any) -> DatabaseTunnel:
    return DatabaseTunnel.parse(changed(manifest(), changes))


# --- the spec ---------------------------------------------------------------------------------------------------------


def test_what_is_filled_in() -> None:
    assert tunnel().spec.document() == {
        "engine": "PostgreSQL",
        "database": {"host": "orders.internal", "tls": {}},
        "tunnel": {
            "host": "203.0.113.7",
            "port": 22,
            "user": "dbtunnel",
            "generatedKeyType": "Ed25519",
            "hostKey": {},
            "algorithms": "Default",
            "connectTimeoutSeconds": 10,
            "keepalive": {},
            "compression": False,
            "connections": 1,
        },
        "access": {"policy": "SameNamespace"},
        "connectionLimits": {},
        "parking": {},
        "drain": {},
        "probe": {},
        "service": {},
        "serviceBinding": "Disabled",
        "podTemplate": {},
        "suspend": False,
    }


def test_references_have_usual_keys() -> None:
    given = tunnel(
        {"tunnel": {"host": "a", "keySecretRef": {"name": "k"}, "hostKey": {"knownHostsRef": {"name": "h"}}}}
    )
    assert given.spec.tunnel.document()["keySecretRef"] == {
        "name": "k",
        "key": "ssh-privatekey",
        "passphraseKey": "passphrase",
    }
    assert given.spec.tunnel.document()["hostKey"] == {
        "knownHostsRef": {"kind": "ConfigMap", "name": "h", "key": "known_hosts"}
    }


@pytest.mark.parametrize("path", ["engine", "database", "database.host", "tunnel", "tunnel.host"])
def test_what_is_needed(path: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        tunnel({path: None})
    (problem,) = refusal.value.errors()
    assert problem["type"] == "missing"
    assert ".".join(map(str, problem["loc"])) == f"spec.{path}"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("database.port", "5432"),
        ("database.port", 5432.5),
        ("database.port", True),
        ("suspend", "true"),
        ("suspend", 1),
        ("replicas", "2"),
        ("engine", "postgresql"),
        ("tunnel.user", 7),
        ("podTemplate.labels", {"a": 1}),
        ("podTemplate.resources", {"limits": {"cpu": 0.5}}),
    ],
)
def test_types_are_as_strict_as_in_the_api_server(path: str, value: object) -> None:
    with pytest.raises(ValidationError):
        tunnel({path: value})


@pytest.mark.parametrize(
    ("path", "low", "high"),
    [
        ("database.port", 1, 65535),
        ("tunnel.port", 1, 65535),
        ("service.port", 1, 65535),
        ("tunnel.connectTimeoutSeconds", 1, 300),
        ("tunnel.keepalive.intervalSeconds", 1, 3600),
        ("tunnel.keepalive.countMax", 1, 100),
        ("replicas", 1, 16),
        ("parking.maxSeconds", 0, 3600),
        ("parking.maxClients", 0, 100_000),
        ("drain.minSeconds", 0, 300),
        ("drain.maxSeconds", 0, 604_800),
        ("probe.intervalSeconds", 5, 86_400),
    ],
)
def test_numbers_are_bounded(path: str, low: int, high: int) -> None:
    for value in (low, high):
        assert tunnel({path: value})
    for value in (low - 1, high + 1):
        with pytest.raises(ValidationError):
            tunnel({path: value})


def test_objects_of_a_newer_schema_can_be_read() -> None:
    newer = parsed(**{"spec.quantum": True, "spec.tunnel.quantum": 1, "status.quantum": {}, "metadata.labels": {}})
    assert newer == parsed()


def test_another_kind_or_version_is_not_read() -> None:
    for change in ({"kind": "Tunnel"}, {"apiVersion": "dbtunnel.dev/v2"}):
        with pytest.raises(ValidationError):
            parsed(**change)


def test_a_status_of_an_older_or_newer_operator_can_be_read() -> None:
    assert parsed(status={}).status.document() == {}
    assert parsed(status={"conditions": [], "hops": [{}], "publicKeys": [{}], "lastFailure": {}})


def test_of_a_status_that_breaks_this_version_s_rules_the_rest_is_known() -> None:
    ready = {"type": "Ready", "status": "True", "reason": "x", "message": "", "lastTransitionTime": "2026-01-01"}
    stalled = {**ready, "type": "Stalled", "message": "m" * 9000}
    foreign = [{"type": f"Future{number}", "quantum": 1} for number in range(40)]
    hops = [{"host": "a" * 600}, {"host": "b", "hostKeyFingerprints": ["c" * 600]}, {"host": "d"}]
    status = {
        "conditions": [*foreign, stalled, ready],
        "hops": hops,
        "publicKeys": [{}] * 17,
        "endpoint": {"port": "many"},
        "replicas": 2,
    }

    known = parsed(status=status).status.document()

    assert known == {"conditions": [ready], "hops": [{"role": "", "host": "d", "port": 22}], "replicas": 2}
    assert parsed(status={"conditions": [1, {"type": []}], "hops": 5, "replicas": "x"}).status.document() == {
        "conditions": []
    }


def test_values_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(tunnel().spec, "suspend", True)  # noqa: B010 - a plain assignment is refused by the type checker


# --- engines ----------------------------------------------------------------------------------------------------------


def test_every_engine_has_its_row() -> None:
    assert {engine: (info.protocol, info.default_port) for engine, info in ENGINES.items()} == {
        Engine.POSTGRESQL: (WireProtocol.POSTGRESQL, 5432),
        Engine.REDSHIFT: (WireProtocol.POSTGRESQL, 5439),
        Engine.ALLOYDB: (WireProtocol.POSTGRESQL, 5432),
        Engine.MYSQL: (WireProtocol.MYSQL, 3306),
    }
    assert set(ENGINES) == set(Engine)


def test_no_engine_whose_server_counts_interrupted_handshakes_is_probed_on_its_own() -> None:
    quiet = {engine for engine, info in ENGINES.items() if info.quiet_probe}
    assert quiet == {engine for engine, info in ENGINES.items() if info.protocol is WireProtocol.POSTGRESQL}


# --- the documents between operator and forwarder ---------------------------------------------------------------------

DIGEST = "6ec1a12e40a813db"


def test_the_configurations_text_and_digest_are_stable() -> None:
    config = forwarder_config(tunnel(), Defaults())
    assert config.to_json() == (
        '{"namespace":"shop","name":"orders","engine":"PostgreSQL","databaseHost":"orders.internal",'
        '"databasePort":5432,"databaseServerName":"orders.internal","bastion":{"host":"203.0.113.7","port":22,'
        '"user":"dbtunnel","hostKey":{"fingerprints":[]},"algorithms":"Default"},"key":{"secret":"orders-ssh",'
        '"key":"ssh-privatekey","passphraseKey":"passphrase"},"keepaliveCountMax":3,"compression":false,'
        '"parkingMaxClients":1000,"probeMode":"Auto","replicas":1,"seconds":{"connectTimeout":10,'
        '"keepaliveInterval":15,"parkingMax":30,"drainMin":3,"drainMax":30,"probeInterval":60}}'
    ), "every tunnel rolls when the operator is updated"
    assert config.digest() == DIGEST


def test_a_configuration_that_was_read_has_the_digest_of_the_one_that_was_written() -> None:
    config = forwarder_config(tunnel({"tunnel.hostKey": {"knownHosts": 'é "\n\x00', "alias": "a"}}), Defaults())
    assert read(ForwarderConfig, config.to_json()) == config
    assert read(ForwarderConfig, config.to_json()).digest() == config.digest()


def test_a_forwarder_reads_the_configuration_of_a_newer_operator() -> None:
    config = forwarder_config(tunnel(), Defaults())
    newer = config.to_json().replace("{", '{"quantum":1,', 1)
    assert read(ForwarderConfig, newer) == config


def test_an_operator_reads_the_status_of_a_newer_forwarder() -> None:
    assert read(ForwarderStatus, '{"sequence": 1, "configHash": "a", "quantum": {}}').sequence == 1
