"""The operator's settings: where each is read from, and what is said of a value that cannot be used."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import pytest

from dbtunnel.api.forwarder import ProbeMode
from dbtunnel.api.pods import PodSecurity, PodTemplate, Resources
from dbtunnel.controller.settings import SETTINGS, PodAccess, SettingError, Settings, add_flags
from dbtunnel.domain.observed import Observation
from dbtunnel.domain.settings import Defaults, Installation
from dbtunnel.domain.status import decide
from tests.support.values import NOW, tunnel

NEEDED = {"DBTUNNEL_FORWARDER_IMAGE": "registry.example/dbtunnel:1"}


def read(*words: str, **environment: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return Settings.read(parser.parse_args(words), {**NEEDED, **environment})


def refused(words: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> str:
    with pytest.raises(SettingError) as refusal:
        read(*words, **(environment or {}))
    return str(refusal.value)


# --- where values come from -------------------------------------------------------------------------------------------


def test_every_setting_has_a_field_a_flag_and_a_variable_of_one_name() -> None:
    assert [one.field for one in SETTINGS] == [field.name for field in fields(Settings)]
    for one in SETTINGS:
        assert one.variable == f"DBTUNNEL_{one.name.upper().replace('-', '_')}"


def test_the_flag_goes_before_the_environment_and_the_environment_before_the_default() -> None:
    assert read().workers == 8
    assert read(DBTUNNEL_WORKERS="3").workers == 3
    assert read("--workers", "5", DBTUNNEL_WORKERS="3").workers == 5
    assert read("--namespaces", "", DBTUNNEL_NAMESPACES="shop").namespaces == (), "an empty flag is a value, too"


def test_the_defaults() -> None:
    settings = read()
    assert settings.installation() == Installation(forwarder_image=NEEDED["DBTUNNEL_FORWARDER_IMAGE"])
    assert settings.pod_access is PodAccess.DIRECT
    assert settings.default_probe_mode is ProbeMode.AUTO
    assert (settings.liveness_port, settings.metrics_port, settings.listen_address) == (8081, 8082, "")
    assert not settings.leader_election


OTHER: dict[str, tuple[str, Any]] = {
    "replicas": ("3", 3),
    "keepalive_interval_seconds": ("20", 20),
    "keepalive_count_max": ("5", 5),
    "parking_max_seconds": ("0", 0),
    "parking_max_clients": ("0", 0),
    "drain_min_seconds": ("0", 0),
    "drain_max_seconds": ("604800", 604800),
    "probe_mode": ("Passive", ProbeMode.PASSIVE),
    "probe_interval_seconds": ("5", 5),
    "pod_template": (
        '{"resources": {"limits": {"memory": "1Gi", "cpu": 1}}, "labels": {"a": "b"}}',
        PodTemplate(resources=Resources(limits={"memory": "1Gi", "cpu": 1}), labels={"a": "b"}),
    ),
}


def test_every_default_for_tunnels_can_be_set() -> None:
    words = [word for name, (text, _) in OTHER.items() for word in (f"--default-{name.replace('_', '-')}", text)]
    assert OTHER.keys() == {field.name for field in fields(Defaults)}
    assert read(*words).installation().defaults == Defaults(**{name: value for name, (_, value) in OTHER.items()})


def test_what_decisions_take_of_the_settings() -> None:
    installation = read(
        *("--forwarder-image-pull-policy", "Always"),
        *("--forwarder-log-level", "DEBUG"),
        *("--forwarder-log-format", "text"),
        *("--forwarder-packets", "asyncssh"),
        *("--forwarder-pod-security", '{"runAsUser": 10001}'),
        *("--operator-namespace", "dbtunnel-system"),
        *("--scraper-namespaces", "monitoring,metrics"),
        *("--egress-addresses", " 203.0.113.7, 2001:db8::/64 ,"),
        *("--unreachable-after-seconds", "5"),
    ).installation()
    assert installation == Installation(
        forwarder_image=NEEDED["DBTUNNEL_FORWARDER_IMAGE"],
        forwarder_image_pull_policy="Always",
        forwarder_log_level="DEBUG",
        forwarder_log_format="text",
        forwarder_packets="asyncssh",
        forwarder_pod_security=PodSecurity(run_as_user=10001),
        operator_namespace="dbtunnel-system",
        scraper_namespaces=("monitoring", "metrics"),
        egress_addresses=("203.0.113.7", "2001:db8::/64"),
        unreachable_after_seconds=5,
    )


@pytest.mark.parametrize(
    ("words", "field", "value"),
    [
        (["--namespaces", "shop, billing,"], "namespaces", ("shop", "billing")),
        (["--pod-access", "Proxy"], "pod_access", "Proxy"),
        (["--leader-election", "TRUE", "--operator-namespace", "a"], "leader_election", True),
        (["--lease-name", "orders-2.shop"], "lease_name", "orders-2.shop"),
        (["--log-level", "DEBUG"], "log_level", "DEBUG"),
        (["--listen-address", "::"], "listen_address", "::"),
    ],
)
def test_values_that_can_be_used(words: list[str], field: str, value: object) -> None:
    assert getattr(read(*words), field) == value


@pytest.mark.parametrize("access", PodAccess)
def test_a_choice_is_the_member_that_the_code_asks_for(access: PodAccess) -> None:
    assert read("--pod-access", str(access)).pod_access is access
    assert read("--default-probe-mode", "Passive").default_probe_mode is ProbeMode.PASSIVE


@pytest.mark.parametrize(
    ("words", "address"),
    [
        ([], "0.0.0.0"),
        (["--pod-ip", "10.1.2.3"], "0.0.0.0"),
        (["--pod-ip", "fd00::7"], "::"),
        (["--pod-ip", "fd00::7", "--listen-address", "127.0.0.1"], "127.0.0.1"),
    ],
)
def test_it_listens_where_the_kubelet_asks(words: list[str], address: str) -> None:
    assert read(*words).listens_on == address


# --- values that cannot be used ---------------------------------------------------------------------------------------

BAD: dict[str, tuple[list[str], str]] = {
    "forwarder-image": ([""], "it is required"),
    "forwarder-image-pull-policy": (["always", "Sometimes"], "write one of Always, IfNotPresent, Never"),
    "forwarder-log-level": (["debug", ""], "write one of DEBUG, INFO, WARNING, ERROR"),
    "namespaces": (["Shop", "a b", "a,-b", "a" * 64], "write names of namespaces with commas in between"),
    "scraper-namespaces": (["Monitoring"], "write names of namespaces with commas in between"),
    "egress-addresses": (
        ["bastion.example", "203.0.113.7/24", "203.0.113", 'a",command="x', ",".join(["203.0.113.7"] * 33)],
        "write at most 32 addresses or networks such as 203.0.113.7 or 203.0.113.0/24",
    ),
    "pod-access": (["direct"], "write one of Direct, Proxy"),
    "default-replicas": (["0", "17", "1.5", "two", "", "-1", "+1", " 1"], "write an integer from 1 to 16"),
    "default-keepalive-interval-seconds": (["0", "3601"], "write an integer from 1 to 3600"),
    "default-keepalive-count-max": (["0", "101"], "write an integer from 1 to 100"),
    "default-parking-max-seconds": (["-1", "3601"], "write an integer from 0 to 3600"),
    "default-parking-max-clients": (["100001", "9" * 5000], "write an integer from 0 to 100000"),
    "default-drain-min-seconds": (["301"], "write an integer from 0 to 300"),
    "default-drain-max-seconds": (["604801"], "write an integer from 0 to 604800"),
    "default-probe-interval-seconds": (["4", "86401"], "write an integer from 5 to 86400"),
    "default-probe-mode": (["Active"], "write one of Auto, Passive, Disabled"),
    "default-pod-template": (
        [
            "cpu=1",
            "null",
            "[]",
            '{"resources": {"limits": {"cpu": "lots"}}}',
            '{"resources": {"limits": {"cpu": 0.5}}}',
            '{"hostNetwork": true}',
        ],
        'write JSON such as {"priorityClassName": "tunnels", "resources": {"limits": {"memory": "256Mi"}}}',
    ),
    "forwarder-pod-security": (
        ["{", '{"runAsUser": 0}', '{"privileged": true}', '{"runAsNonRoot": false}', '{"seLinuxOptions": {"x": "y"}}'],
        'write JSON such as {"runAsUser": 10001, "fsGroup": 10001}',
    ),
    "forwarder-log-format": (["JSON", ""], "write one of json, text"),
    "forwarder-packets": (["openssh", "Own", ""], "write one of own, asyncssh"),
    "log-format": (["yaml"], "write one of json, text"),
    "workers": (["0", "65"], "write an integer from 1 to 64"),
    "rollouts": (["0", "1001"], "write an integer from 1 to 1000"),
    "resync-seconds": (["9", "86401"], "write an integer from 10 to 86400"),
    "unreachable-after-seconds": (["0", "3601"], "write an integer from 1 to 3600"),
    "liveness-port": (["0", "65536"], "write an integer from 1 to 65535"),
    "metrics-port": (["0", "65536"], "write an integer from 1 to 65535"),
    "leader-election": (["yes", "1"], "write one of true, false"),
    "lease-name": (
        ["", "Release", "a/b", "-a", "a.", "a..b", "a b", "a" * 254],
        "write an object's name: at most 253 lower-case letters, digits, '-' and '.'",
    ),
    "log-level": (["info", "TRACE"], "write one of DEBUG, INFO, WARNING, ERROR"),
}

ANYTHING = {"listen-address", "operator-namespace", "pod-ip"}
"""Settings that take every text."""


def test_every_setting_is_tried() -> None:
    assert BAD.keys() | ANYTHING == {one.name for one in SETTINGS}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, (texts, _) in BAD.items() for text in texts])
def test_what_is_said_of_a_value_that_cannot_be_used(name: str, text: str) -> None:
    variable = f"DBTUNNEL_{name.upper().replace('-', '_')}"
    expected = f"--{name} ({variable}): found {text[:200]!r}; {BAD[name][1]}"
    assert refused([f"--{name}={text}"]).startswith(expected)
    assert refused(environment={variable: text}).startswith(expected)


def test_the_field_that_cannot_be_used_is_named() -> None:
    told = refused(["--default-pod-template", '{"tolerations": [{"effect": "Never"}]}'])
    assert "(tolerations.0.effect: Input should be 'NoSchedule'" in told
    assert "(hostNetwork: Extra inputs are not permitted)" in refused(["--default-pod-template", '{"hostNetwork": 1}'])


def test_leader_election_needs_a_namespace_for_its_lease() -> None:
    assert refused(["--leader-election=true"]) == (
        "--leader-election needs --operator-namespace: the Lease is kept there"
    )


def test_a_status_can_show_whatever_egress_addresses_are_taken() -> None:
    addresses = ",".join(f"2001:db8:ffff:ffff:ffff:ffff:ffff:{number:x}/128" for number in range(32))
    installation = read("--egress-addresses", addresses).installation()
    assert len(decide(tunnel(), Observation(), installation, NOW).status.egress_addresses or ()) == 32


def test_the_help_names_each_variable_and_default() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    text = " ".join(parser.format_help().split())
    for one in SETTINGS:
        assert f"--{one.name} VALUE" in text
        assert f"[{one.variable}{f'; default: {one.default}' if one.default else ''}]" in text
