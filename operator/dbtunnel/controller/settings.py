"""The operator's settings: one table, from which the flags, their environment variables and their help are made."""

import argparse
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import ip_network
from typing import Any, Self

from pydantic import ValidationError

from dbtunnel.api.base import ApiModel
from dbtunnel.api.forwarder import ProbeMode
from dbtunnel.api.pods import PodSecurity, PodTemplate
from dbtunnel.domain.settings import Defaults, Installation

PREFIX = "DBTUNNEL_"
"""Of every environment variable: `--forwarder-image` is `DBTUNNEL_FORWARDER_IMAGE`."""

_ADDRESSES = 32
"""How many egress addresses a status has room for."""


class SettingError(ValueError):
    """A setting cannot be used; the text names it, what was found and what to write."""


class PodAccess(StrEnum):
    """How forwarders' status is read."""

    DIRECT = "Direct"
    """From the pod's address: the operator runs in the cluster."""
    PROXY = "Proxy"
    """Through the API server's pod proxy: the operator runs outside."""


@dataclass(frozen=True)
class Setting:
    """One setting; `parse` raises ValueError with what to write."""

    name: str
    default: str
    parse: Callable[[str], Any]
    help: str

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return PREFIX + self.name.replace("-", "_").upper()

    @property
    def field(self) -> str:
        """Its name in Python."""
        return self.name.replace("-", "_")

    def read(self, given: str | None, environment: Mapping[str, str]) -> Any:
        """Its value: the flag's, else the environment's, else the default. Raises SettingError."""
        text = given if given is not None else environment.get(self.variable, self.default)
        try:
            return self.parse(text)
        except ValueError as error:
            raise SettingError(f"--{self.name} ({self.variable}): found {text[:200]!r}; {error}") from error


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(f"write an integer from {low} to {high}")
        return int(text)

    return parse


def _one_of(*values: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in values:
            raise ValueError(f"write one of {', '.join(values)}")
        # the member itself where the values are an enumeration's
        return values[values.index(text)]

    return parse


def _boolean(text: str) -> bool:
    return _one_of("true", "false")(text.lower()) == "true"


def _required(text: str) -> str:
    if not text:
        raise ValueError("it is required")
    return text


def _list(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _namespaces(text: str) -> tuple[str, ...]:
    names = _list(text)
    if not all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name) for name in names):
        raise ValueError("write names of namespaces with commas in between, or nothing for all")
    return names


def _object_name(text: str) -> str:
    label = "[a-z0-9]([a-z0-9-]*[a-z0-9])?"
    if len(text) > 253 or not re.fullmatch(rf"{label}([.]{label})*", text):
        raise ValueError("write an object's name: at most 253 lower-case letters, digits, '-' and '.'")
    return text


def _addresses(text: str) -> tuple[str, ...]:
    addresses = _list(text)
    try:
        # sshd refuses a network with bits beyond its mask, and with it the line of authorized_keys
        if len(addresses) <= _ADDRESSES and all(map(ip_network, addresses)):
            return addresses
    except ValueError:
        pass
    raise ValueError(f"write at most {_ADDRESSES} addresses or networks such as 203.0.113.7 or 203.0.113.0/24")


def _json_of(model: type[ApiModel], example: str) -> Callable[[str], ApiModel]:
    def parse(text: str) -> ApiModel:
        try:
            return model.model_validate_json(text, extra="forbid")
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the whole"
            raise ValueError(f"write JSON such as {example} ({place}: {first['msg']})") from error

    return parse


_DEFAULTS = Defaults()


def _default(name: str, help_text: str, low: int, high: int) -> Setting:
    value = getattr(_DEFAULTS, name.replace("-", "_"))
    return Setting(f"default-{name}", str(value), _integer(low, high), f"where a tunnel leaves it open: {help_text}")


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
_FORMATS = ("json", "text")

SETTINGS = (
    Setting("forwarder-image", "", _required, "image of the forwarder's pods (required)"),
    Setting(
        "forwarder-image-pull-policy",
        "IfNotPresent",
        _one_of("Always", "IfNotPresent", "Never"),
        "its pull policy: Always, IfNotPresent or Never",
    ),
    Setting("forwarder-log-level", "INFO", _one_of(*_LEVELS), "how much forwarders log; another rolls every tunnel"),
    Setting("forwarder-log-format", "json", _one_of(*_FORMATS), "json or text; another rolls every tunnel"),
    Setting(
        "forwarder-packets",
        "own",
        _one_of("own", "asyncssh"),
        "whose code carries clients' data over SSH: own, or asyncssh, which is slower; another rolls every tunnel",
    ),
    Setting(
        "forwarder-pod-security",
        "{}",
        _json_of(PodSecurity, '{"runAsUser": 10001, "fsGroup": 10001}'),
        "what forwarders' pods have in their securityContext beside what `restricted` asks for, in JSON",
    ),
    Setting("namespaces", "", _namespaces, "namespaces to watch, with commas in between; all unless given"),
    Setting("operator-namespace", "", str, "the operator's own: admitted to the forwarders' admin port"),
    Setting("scraper-namespaces", "", _namespaces, "namespaces of scrapers of metrics, admitted to the admin port too"),
    Setting("egress-addresses", "", _addresses, "addresses from which bastions see the cluster, shown to every tunnel"),
    Setting("pod-access", PodAccess.DIRECT, _one_of(*PodAccess), "how forwarders are read: Direct, or Proxy outside"),
    _default("replicas", "forwarder pods", 1, 16),
    _default("keepalive-interval-seconds", "time between SSH keepalive messages", 1, 3600),
    _default("keepalive-count-max", "unanswered keepalive messages until the connection is lost", 1, 100),
    _default("parking-max-seconds", "how long clients wait while the tunnel reconnects", 0, 3600),
    _default("parking-max-clients", "how many clients wait at most, per replica", 0, 100000),
    _default("drain-min-seconds", "how long an ending pod takes new clients", 0, 300),
    _default("drain-max-seconds", "how long an ending pod lets sessions finish", 0, 604800),
    _default("probe-interval-seconds", "time between probes of the database", 5, 86400),
    Setting("default-probe-mode", ProbeMode.AUTO, _one_of(*ProbeMode), "where a tunnel leaves it open: how to probe"),
    Setting(
        "default-pod-template",
        json.dumps(_DEFAULTS.pod_template.document()),
        _json_of(PodTemplate, '{"priorityClassName": "tunnels", "resources": {"limits": {"memory": "256Mi"}}}'),
        "where a tunnel leaves it open: each field of spec.podTemplate, in JSON",
    ),
    Setting("workers", "8", _integer(1, 64), "tunnels that are reconciled at the same time"),
    Setting(
        "rollouts", "4", _integer(1, 1000), "tunnels that roll at the same time when the installer changes their pods"
    ),
    Setting("resync-seconds", "300", _integer(10, 86400), "time between two comparisons with a fresh list"),
    Setting("unreachable-after-seconds", "20", _integer(1, 3600), "how long facts of a silent forwarder hold"),
    Setting("listen-address", "", str, "address of the liveness and metrics ports; all of pod-ip's family unless set"),
    Setting("pod-ip", "", str, "the pod's own address, which tells the family"),
    Setting("liveness-port", "8081", _integer(1, 65535), "TCP port of /healthz"),
    Setting("metrics-port", "8082", _integer(1, 65535), "TCP port of /metrics"),
    Setting("leader-election", "false", _boolean, "true: several operators, of which one works, by a Lease"),
    Setting("lease-name", "dbtunnel-operator", _object_name, "name of that Lease; each set of operators has its own"),
    Setting("log-level", "INFO", _one_of(*_LEVELS), "how much the operator logs: DEBUG, INFO, WARNING or ERROR"),
    Setting("log-format", "json", _one_of(*_FORMATS), "how the operator logs: json or text"),
)
"""Every setting."""


@dataclass(frozen=True)
class Settings:
    """The values of `SETTINGS`."""

    forwarder_image: str
    forwarder_image_pull_policy: str
    forwarder_log_level: str
    forwarder_log_format: str
    forwarder_packets: str
    forwarder_pod_security: PodSecurity
    namespaces: tuple[str, ...]
    operator_namespace: str
    scraper_namespaces: tuple[str, ...]
    egress_addresses: tuple[str, ...]
    pod_access: PodAccess
    default_replicas: int
    default_keepalive_interval_seconds: int
    default_keepalive_count_max: int
    default_parking_max_seconds: int
    default_parking_max_clients: int
    default_drain_min_seconds: int
    default_drain_max_seconds: int
    default_probe_interval_seconds: int
    default_probe_mode: ProbeMode
    default_pod_template: PodTemplate
    workers: int
    rollouts: int
    resync_seconds: int
    unreachable_after_seconds: int
    listen_address: str
    pod_ip: str
    liveness_port: int
    metrics_port: int
    leader_election: bool
    lease_name: str
    log_level: str
    log_format: str

    @classmethod
    def read(cls, arguments: argparse.Namespace, environment: Mapping[str, str]) -> Self:
        """The settings of a command line and its environment. Raises SettingError."""
        values = {one.field: one.read(getattr(arguments, one.field), environment) for one in SETTINGS}
        settings = cls(**values)
        if settings.leader_election and not settings.operator_namespace:
            raise SettingError("--leader-election needs --operator-namespace: the Lease is kept there")
        return settings

    @property
    def listens_on(self) -> str:
        """Where the liveness and metrics ports are: Kopf's server takes one address, so it is one family's."""
        return self.listen_address or ("::" if ":" in self.pod_ip else "0.0.0.0")  # noqa: S104

    def installation(self) -> Installation:
        """What decisions take of the settings."""
        names = Defaults.__dataclass_fields__
        return Installation(
            forwarder_image=self.forwarder_image,
            forwarder_image_pull_policy=self.forwarder_image_pull_policy,
            forwarder_log_level=self.forwarder_log_level,
            forwarder_log_format=self.forwarder_log_format,
            forwarder_packets=self.forwarder_packets,
            forwarder_pod_security=self.forwarder_pod_security,
            operator_namespace=self.operator_namespace,
            scraper_namespaces=self.scraper_namespaces,
            egress_addresses=self.egress_addresses,
            defaults=Defaults(**{name: getattr(self, f"default_{name}") for name in names}),
            unreachable_after_seconds=self.unreachable_after_seconds,
        )


def add_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting."""
    for one in SETTINGS:
        default = f"; default: {one.default}" if one.default else ""
        text = f"{one.help} [{one.variable}{default}]".replace("%", "%%")
        parser.add_argument(f"--{one.name}", metavar="VALUE", help=text)
