"""Messages at a terminal: wrapped, but for what is to be pasted, which stands after them in one piece."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import yaml

from dbtunnel.cli.terminal import Color, Style
from dbtunnel.domain.diagnosis import unquoted
from dbtunnel.domain.hops import Role, server_name

_PIN = re.compile(r"pin it: (?=[\[{].*$)")
"""After it stands the patch in a message, in whose place the lines of the manifest are shown."""

_LISTS = {Role.JUMP_HOST: "jumpHosts", Role.FALLBACK: "fallbacks"}
"""Where SSH servers beside the bastion stand in `spec.tunnel`."""


class Server(Protocol):
    """What is known of an SSH server of which a message speaks."""

    @property
    def role(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def host_key_fingerprints(self) -> tuple[str, ...] | None: ...
    @property
    def authorized_keys_line(self) -> str | None: ...


def told(message: str, servers: Sequence[Server], style: Style) -> Iterator[str]:
    """A message; what is to be pasted stands after it, each line of it whole."""
    pasted: list[str] = []
    for server in servers:
        lines = (server.authorized_keys_line or "").splitlines()
        for line in lines:
            if line in message:
                message, pasted = message.replace(line, "(below)"), [line]
    ours = unquoted(message)  # a server could say the same words
    place = next((server for server in servers if f"{name_of(server)}: " in ours), None)
    if place and (found := _PIN.search(ours)):
        message, pasted = f"{message[: found.end()]}(below)", pin_lines([place])
    yield from style.wrapped(message)
    if pasted:
        yield ""
        yield from (style.text(text, Color.BOLD) for text in pasted)


def pin_lines(servers: Sequence[Server]) -> list[str]:
    """The lines of a manifest that pin the host keys which these showed."""
    pinned: dict[str, Any] = {}
    for server in servers:
        fingerprints = [shown.rpartition(" ")[2] for shown in server.host_key_fingerprints or ()]
        host_key = {"hostKey": {"fingerprints": fingerprints}}
        if server.role == Role.BASTION:
            pinned |= host_key
        else:
            place = {"host": server.host, "port": server.port}
            pinned.setdefault(_LISTS[Role(server.role)], []).append({**place, **host_key})
    return yaml.safe_dump({"spec": {"tunnel": pinned}}, sort_keys=False).splitlines()


def name_of(server: Server) -> str:
    """How messages name it."""
    return server_name(Role(server.role), server.host, server.port)
