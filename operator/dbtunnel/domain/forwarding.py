"""What a forwarder is told, decided from the tunnel and the installer's defaults."""

from collections.abc import Iterable
from typing import TypeVar

from dbtunnel.api.engines import ENGINES
from dbtunnel.api.forwarder import ForwarderConfig, ForwarderHop, ForwarderKey, HostKeyRule, Seconds
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.spec import HostKey, KeySecretRef, SshServer
from dbtunnel.domain.names import key_secret_name
from dbtunnel.domain.settings import Defaults, Installation

T = TypeVar("T")


def forwarder_config(tunnel: DatabaseTunnel, defaults: Defaults) -> ForwarderConfig:
    """The configuration of the tunnel's forwarders. Whatever changes it rolls the pods."""
    spec, bastion = tunnel.spec, tunnel.spec.tunnel
    reference = bastion.key_secret_ref or KeySecretRef(name=key_secret_name(tunnel))
    return ForwarderConfig(
        namespace=tunnel.metadata.namespace,
        name=tunnel.metadata.name,
        engine=spec.engine,
        database_host=spec.database.host,
        database_port=database_port(tunnel),
        database_server_name=server_name(tunnel),
        bastion=ForwarderHop(
            host=bastion.host,
            port=bastion.port,
            user=bastion.user,
            host_key=_host_key_rule(bastion.host_key),
            algorithms=bastion.algorithms,
        ),
        fallbacks=_further_hops(bastion.fallbacks, bastion.user),
        jump_hosts=_further_hops(bastion.jump_hosts, bastion.user),
        key=_key(reference),
        keepalive_count_max=_or(bastion.keepalive.count_max, defaults.keepalive_count_max),
        compression=bastion.compression,
        connections=bastion.connections if bastion.connections > 1 else None,
        parking_max_clients=_or(spec.parking.max_clients, defaults.parking_max_clients),
        max_clients=spec.connection_limits.max,
        probe_mode=_or(spec.probe.mode, defaults.probe_mode),
        replicas=replicas(tunnel, defaults),
        seconds=_seconds(tunnel, defaults),
    )


def database_port(tunnel: DatabaseTunnel) -> int:
    """The database's port, by engine where it is not given."""
    return tunnel.spec.database.port or ENGINES[tunnel.spec.engine].default_port


def service_port(tunnel: DatabaseTunnel) -> int:
    """The port that applications connect to."""
    return tunnel.spec.service.port or database_port(tunnel)


def server_name(tunnel: DatabaseTunnel) -> str:
    """The name that the database's certificate bears."""
    return tunnel.spec.database.tls.server_name or tunnel.spec.database.host


def replicas(tunnel: DatabaseTunnel, defaults: Defaults) -> int:
    """How many forwarders run while the tunnel is not suspended."""
    return _or(tunnel.spec.replicas, defaults.replicas)


FIRST_REPLICAS = 1
"""How many forwarders start before an SSH server has let one in. sshd turns an address away once more than 15 s of
penalties have come together, at 5 s for each failed login (sshd_config(5), PerSourcePenalties), and others' tunnels,
which may be rejected as well, share that address.
"""


def started_replicas(tunnel: DatabaseTunnel, installation: Installation) -> int:
    """How many forwarders are to run now."""
    wanted, most = replicas(tunnel, installation.defaults), installation.most_forwarders
    if tunnel.spec.suspend:
        return 0
    return wanted if most is None else min(wanted, most)


def drain_seconds(tunnel: DatabaseTunnel, defaults: Defaults) -> tuple[int, int]:
    """Least and most seconds that a pod takes to end; a given minimum raises a default maximum."""
    drain = tunnel.spec.drain
    least = _or(drain.min_seconds, min(defaults.drain_min_seconds, _or(drain.max_seconds, defaults.drain_min_seconds)))
    return least, _or(drain.max_seconds, max(defaults.drain_max_seconds, least))


def _seconds(tunnel: DatabaseTunnel, defaults: Defaults) -> Seconds:
    least, most = drain_seconds(tunnel, defaults)
    return Seconds(
        connect_timeout=tunnel.spec.tunnel.connect_timeout_seconds,
        keepalive_interval=_or(tunnel.spec.tunnel.keepalive.interval_seconds, defaults.keepalive_interval_seconds),
        parking_max=_or(tunnel.spec.parking.max_seconds, defaults.parking_max_seconds),
        idle=tunnel.spec.connection_limits.idle_timeout_seconds,
        drain_min=least,
        drain_max=most,
        probe_interval=_or(tunnel.spec.probe.interval_seconds, defaults.probe_interval_seconds),
    )


def further_servers(tunnel: DatabaseTunnel) -> tuple[SshServer, ...]:
    """The SSH servers beside the bastion, in the order of `ForwarderConfig.hops`: the first has the number 1."""
    return (*(tunnel.spec.tunnel.fallbacks or ()), *(tunnel.spec.tunnel.jump_hosts or ()))


def _further_hops(servers: Iterable[SshServer] | None, user: str) -> tuple[ForwarderHop, ...] | None:
    """None for none, so that the text of the configuration stays what it is for most tunnels, and no pods roll."""
    return tuple(_further_hop(server, user) for server in servers or ()) or None


def _further_hop(server: SshServer, user: str) -> ForwarderHop:
    return ForwarderHop(
        host=server.host,
        port=server.port,
        user=server.user or user,
        host_key=_host_key_rule(server.host_key),
        algorithms=server.algorithms,
        key=_key(server.key_secret_ref) if server.key_secret_ref else None,
    )


def _key(reference: KeySecretRef) -> ForwarderKey:
    return ForwarderKey(secret=reference.name, key=reference.key, passphrase_key=reference.passphrase_key)


def _host_key_rule(host_key: HostKey) -> HostKeyRule:
    return HostKeyRule(
        fingerprints=host_key.fingerprints or (),
        known_hosts=host_key.known_hosts,
        known_hosts_file=host_key.known_hosts_ref.key if host_key.known_hosts_ref else None,
        alias=host_key.alias,
    )


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
