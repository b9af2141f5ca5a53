"""What each SSH server's administrator is handed: who logs in, with which key, from where, and what to add."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dbtunnel.api.forwarder import ForwarderConfig
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import Hop
from dbtunnel.cli.terminal import Color, Style
from dbtunnel.domain.authorized_keys import forward_target
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.hops import ends_of, hop_name, jumps_of, role_of, targets_of, way_to
from dbtunnel.domain.settings import Defaults
from dbtunnel.domain.sshd_config import match_block

NO_KEY = "No forwarder has told of a key yet: `kubectl dbtunnel status` says why."

_ADD_LINE = "Add to authorized_keys of the user {user}, as one line:"
_ADD_LINES = "Add to authorized_keys of the user {user}, one line for each key while the key is replaced:"
_ADD_BLOCK = (
    "Add at the end of sshd_config, once for this user however many tunnels it has, and have sshd read it anew:"
)
_NO_BLOCK = (
    "Restrict the user in sshd_config. Its name has a character that `Match User` reads as a pattern, so that no block"
    " is shown."
)
_UNKNOWN_SOURCES = "not declared (settings.egressAddresses of the chart)"


@dataclass(frozen=True)
class Part:
    """What one administrator needs."""

    server: str
    """Its role, host and port."""
    user: str
    facts: Sequence[tuple[str, str]]
    """A word and what it is, in the order in which they are told."""
    lines: Sequence[str]
    """For authorized_keys; none while no key is known."""
    block: str | None
    """For sshd_config; None where the user's name cannot stand in one."""


def parts_of(tunnel: DatabaseTunnel) -> list[Part]:
    """A part for each SSH server, in the order of the way."""
    config = forwarder_config(tunnel, Defaults())
    return [_part(tunnel, config, number) for number in (*jumps_of(config), *ends_of(config))]


def _part(tunnel: DatabaseTunnel, config: ForwarderConfig, number: int) -> Part:
    server, known = config.hops[number], known_hop(tunnel, config, number)
    lines = (known.authorized_keys_line or "").splitlines()
    facts = [
        ("user", server.user),
        *(("public key", " ".join(line.split()[-3:])) for line in lines),
        ("connects from", _sources(tunnel, config, number)),
        ("to", f"TCP port {server.port}"),
        ("opens from there", ", ".join(forward_target(*target) for target in targets_of(config, number))),
    ]
    return Part(hop_name(config, number), server.user, facts, lines, match_block(server.user))


def known_hop(tunnel: DatabaseTunnel, config: ForwarderConfig, number: int) -> Hop:
    """What the status tells of an SSH server of the spec; an empty one where it tells nothing."""
    place = (role_of(config, number), config.hops[number].host, config.hops[number].port)
    return next((hop for hop in tunnel.status.hops or () if (hop.role, hop.host, hop.port) == place), Hop())


def _sources(tunnel: DatabaseTunnel, config: ForwarderConfig, number: int) -> str:
    way = way_to(config, number)
    if way:
        return f"the addresses of {hop_name(config, way[-1])}"
    return ", ".join(tunnel.status.egress_addresses or ()) or _UNKNOWN_SOURCES


def _title(tunnel: DatabaseTunnel) -> str:
    return f"Database tunnel {tunnel.metadata.namespace}/{tunnel.metadata.name}"


def _ask_for_line(part: Part) -> str:
    if not part.lines:
        return NO_KEY
    return (_ADD_LINE if len(part.lines) == 1 else _ADD_LINES).format(user=part.user)


def handout_text(tunnel: DatabaseTunnel, style: Style) -> str:
    """For a terminal or a mail. What is to be pasted begins at the margin and is never broken."""
    lines = [style.text(_title(tunnel), Color.BOLD)]
    for part in parts_of(tunnel):
        lines += ["", *_text(part, style)]
    return "\n".join(lines) + "\n"


def _text(part: Part, style: Style) -> Iterator[str]:
    yield style.text(f"== {part.server} ==", Color.BOLD)
    width = max(len(word) for word, _ in part.facts)
    yield from (style.text(f"{word.ljust(width)}  {fact}") for word, fact in part.facts)
    for sentence, pasted in ((_ask_for_line(part), part.lines), (_ask_for_block(part), (part.block or "").split("\n"))):
        yield ""
        yield from style.wrapped(sentence)
        if any(pasted):
            yield ""
            yield from (style.text(line, Color.BOLD) for line in pasted)


def _ask_for_block(part: Part) -> str:
    return _ADD_BLOCK if part.block else _NO_BLOCK


def handout_markdown(tunnel: DatabaseTunnel, style: Style) -> str:
    """For a ticket or a page."""
    lines = [style.text(f"# {_title(tunnel)}")]
    for part in parts_of(tunnel):
        lines += ["", f"## {_inline(style.text(part.server))}", ""]
        lines += [f"- {word}: {_code(style.text(fact))}" for word, fact in part.facts]
        lines += ["", _inline(style.text(_ask_for_line(part)))]
        lines += _fenced([style.text(line) for line in part.lines])
        lines += ["", style.text(_ask_for_block(part))]
        lines += _fenced([style.text(line) for line in (part.block or "").split("\n")])
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """An inline code span, whatever the text has of backticks (CommonMark, 6.1)."""
    mark = "`" * (_longest_run(text) + 1)
    space = " " if "`" in text else ""
    return f"{mark}{space}{text}{space}{mark}"


def _inline(text: str) -> str:
    """A text that Markdown shows as it is."""
    return re.sub(r"([\\*_\[\]<>&])", r"\\\1", text)


def _fenced(lines: Sequence[str]) -> list[str]:
    if not any(lines):
        return []
    mark = "`" * max(3, *(_longest_run(line) + 1 for line in lines))
    return ["", mark, *lines, mark]


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
