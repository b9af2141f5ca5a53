"""Which host keys are trusted. Nothing is ever read from a home folder, and nothing is learned silently.

asyncssh skips known_hosts lines that it cannot parse, @revoked ones too, and takes an empty text for permission to
read `~/.ssh/known_hosts`; so every line is checked here first, and it is given the result, never a text.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import asyncssh

from dbtunnel.api.forwarder import HostKeyRule
from dbtunnel.domain.diagnosis import printable
from dbtunnel.forwarder.keys import MountedFile

PLAIN_KINDS: tuple[tuple[str, ...], ...] = (
    ("ssh-ed25519",),
    ("ecdsa-sha2-nistp256",),
    ("ecdsa-sha2-nistp384",),
    ("ecdsa-sha2-nistp521",),
    ("rsa-sha2-256", "rsa-sha2-512"),
)
"""Host key algorithms by kind of key. A server shows one key a connection: the first that both sides have."""

LEGACY_RSA = ("ssh-rsa",)
"""RSA with SHA-1, for old servers."""

_MARKERS = ("@cert-authority", "@revoked")

_KEY_TYPE = re.compile(r"(?:sk-)?(?:ssh-(?:ed25519|ed448|rsa|dss)|ecdsa-sha2-nistp\d{3})(?:@openssh\.com)?")
"""All that is told of a line that is none: the mounted object may be any Secret of the namespace."""

_DEFAULT_PORT = 22
"""ssh writes and looks up names without it."""


class KnownHostsError(ValueError):
    """A known_hosts text that cannot be used; the text names the line."""


@dataclass(frozen=True)
class Trust:
    """What is trusted for one server."""

    fingerprints: frozenset[str] = frozenset()
    keys: tuple[asyncssh.SSHKey, ...] = ()
    authorities: tuple[asyncssh.SSHKey, ...] = ()
    revoked: tuple[asyncssh.SSHKey, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether nothing is pinned, so that nothing may be sent."""
        return not (self.fingerprints or self.keys or self.authorities)

    def accepts(self, key: asyncssh.SSHKey) -> bool:
        """Whether this very key is pinned and not revoked."""
        if any(key == revoked for revoked in self.revoked):
            return False
        return key.get_fingerprint() in self.fingerprints or any(key == pinned for pinned in self.keys)

    def for_asyncssh(self) -> tuple[Sequence[asyncssh.SSHKey], ...]:
        """As asyncssh takes known hosts: trusted, authorities, revoked, and nothing of X.509. Never empty."""
        return (self.keys, self.authorities, self.revoked, (), (), (), ())


def trust_of(rule: HostKeyRule, file: MountedFile, host: str, port: int) -> Trust:
    """What the rule trusts for a server; `file` is the mounted known_hosts. Raises KnownHostsError."""
    if rule.fingerprints:
        return Trust(fingerprints=frozenset(rule.fingerprints))
    content = rule.known_hosts if rule.known_hosts is not None else _mounted(rule, file)
    if content is None:
        return Trust()
    known = asyncssh.import_known_hosts("\n".join(_checked_lines(content)))
    # ssh looks an alias up as it is, whatever the port
    return _trust_in(known, (rule.alias or host).lower(), _DEFAULT_PORT if rule.alias else port)


def _trust_in(known: asyncssh.SSHKnownHosts, name: str, port: int) -> Trust:
    """What the lines for `[name]:port` say, else those for `name`; what any of them revokes is revoked.

    Looked up one by one: asyncssh, given the port, forgets what the first lookup revoked when it makes the second.
    """
    names = [name] if port == _DEFAULT_PORT else [f"[{name}]:{port}", name]
    found = [asyncssh.match_known_hosts(known, each, "", None) for each in names]
    keys, authorities = next(((match[0], match[1]) for match in found if match[0] or match[1]), ((), ()))
    revoked = tuple(key for match in found for key in match[2])
    return Trust(keys=tuple(keys), authorities=tuple(authorities), revoked=revoked)


def _mounted(rule: HostKeyRule, file: MountedFile) -> str | None:
    if rule.known_hosts_file is None:
        return None
    if file.content is None:
        raise KnownHostsError(file.problem or f"there is no file {printable(rule.known_hosts_file)} (yet)")
    return file.content.decode("utf-8", "replace")


def kinds_to_try(trust: Trust, *, legacy: bool) -> list[tuple[str, ...]]:
    """The algorithms to offer, by kind of key, those first that may lead to a trusted key.

    The others are offered as well, so that a server whose key is of another kind shows it.
    """
    plain = [(*kind, *LEGACY_RSA) if legacy and "rsa-sha2-256" in kind else kind for kind in PLAIN_KINDS]
    pinned = {name.decode("ascii") for key in trust.keys for name in key.sig_algorithms}
    ordered = sorted(plain, key=lambda kind: not pinned & set(kind))
    certificates = tuple(_certified(name) for kind in plain for name in kind)
    return [certificates, *ordered] if trust.authorities else ordered


def kinds_left(
    kinds: Sequence[tuple[str, ...]], shown: asyncssh.SSHKey, offered: frozenset[str]
) -> list[tuple[str, ...]]:
    """The kinds that may show another key, once a server has shown one and said what it offers."""
    seen = {name.decode("ascii") for name in shown.sig_algorithms}
    return [kind for kind in kinds if not seen & set(kind) and offered & set(kind)]


def _certified(name: str) -> str:
    return f"{name.removesuffix('@openssh.com')}-cert-v01@openssh.com"


def _checked_lines(content: str) -> Iterator[str]:
    """The lines, each of marker, host names in lower case as ssh compares them, key type and key."""
    lines = 0
    for number, line in enumerate(content.splitlines(), start=1):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield _checked_line(number, words)
            lines += 1
    if not lines:
        raise KnownHostsError("it has no line")


def _checked_line(number: int, words: list[str]) -> str:
    marker = words[:1] if words[0].startswith("@") else []
    if marker and marker[0] not in _MARKERS:
        raise KnownHostsError(f"line {number}: its marker is another than @cert-authority and @revoked")
    words = words[len(marker) :]
    if len(words) < 3:
        raise KnownHostsError(f"line {number}: it needs host names, a key type and a key; it has {len(words)} parts")
    names, *key = words[:3]
    if not all(names.split(",")):
        # asyncssh would take it for a line that holds for every server
        raise KnownHostsError(f"line {number}: one of its host names is empty: a comma too many")
    try:
        asyncssh.import_public_key(" ".join(key))
    except (asyncssh.KeyImportError, ValueError):
        told = f", of type {key[0]}," if _KEY_TYPE.fullmatch(key[0]) else ""
        raise KnownHostsError(f"line {number}: its key{told} cannot be read") from None
    checked = " ".join([*marker, names if names.startswith("|") else names.lower(), *key])
    try:
        asyncssh.import_known_hosts(checked)
    except ValueError:
        raise KnownHostsError(f"line {number}: its host names cannot be read") from None
    return checked
