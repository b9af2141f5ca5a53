"""The SSH servers of a tunnel by number: what each is called, where it stands in the spec, what it leads to."""

from collections.abc import Sequence
from enum import StrEnum

from dbtunnel.api.forwarder import ForwarderConfig, ForwarderKey
from dbtunnel.domain.authorized_keys import Target, forward_target


class Role(StrEnum):
    """What an SSH server is to a tunnel."""

    BASTION = "Bastion"
    FALLBACK = "Fallback"
    JUMP_HOST = "JumpHost"


_WORDS = {Role.BASTION: "bastion", Role.FALLBACK: "fallback", Role.JUMP_HOST: "jump host"}


def role_of(config: ForwarderConfig, number: int) -> Role:
    """What a hop is to the tunnel."""
    if number == 0:
        return Role.BASTION
    return Role.FALLBACK if number in ends_of(config) else Role.JUMP_HOST


def hop_name(config: ForwarderConfig, number: int = 0) -> str:
    """How messages, logs and metrics name a hop."""
    hop = config.hops[number]
    return server_name(role_of(config, number), hop.host, hop.port)


def server_name(role: Role, host: str, port: int) -> str:
    """The same, of what is told of it elsewhere."""
    return f"{_WORDS[role]} {forward_target(host, port)}"


def ends_of(config: ForwarderConfig) -> range:
    """Numbers of the bastion and its fallbacks, in the order in which they are tried."""
    return range(1 + len(config.fallbacks or ()))


def jumps_of(config: ForwarderConfig) -> range:
    """Numbers of the jump hosts, in their order."""
    return range(len(ends_of(config)), len(config.hops))


def spec_path(config: ForwarderConfig, number: int) -> str:
    """Where a hop's `host`, `port` and the like stand in the resource."""
    role = role_of(config, number)
    if role is Role.BASTION:
        return "spec.tunnel"
    if role is Role.FALLBACK:
        return f"spec.tunnel.fallbacks[{number - 1}]"
    return f"spec.tunnel.jumpHosts[{jumps_of(config).index(number)}]"


def key_of(config: ForwarderConfig, number: int) -> ForwarderKey:
    """The key for a hop: its own, else the tunnel's."""
    return config.hops[number].key or config.key


def way_to(config: ForwarderConfig, number: int) -> Sequence[int]:
    """Numbers of the jump hosts before a hop."""
    jumps = jumps_of(config)
    return jumps[: jumps.index(number)] if number in jumps else jumps


def targets_of(config: ForwarderConfig, number: int) -> tuple[Target, ...]:
    """What the tunnel opens from a hop: the database, or for a jump host what comes next."""
    if role_of(config, number) is not Role.JUMP_HOST:
        return ((config.database_host, config.database_port),)
    is_last = number == len(config.hops) - 1
    return tuple(
        (config.hops[one].host, config.hops[one].port) for one in (ends_of(config) if is_last else [number + 1])
    )
