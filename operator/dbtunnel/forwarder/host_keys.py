"""Which host keys are trusted. Nothing is ever read from a home folder, and nothing is learned silently.

asyncssh skips known_hosts lines that it cannot parse, @revoked ones too, and takes an empty text for permission to
read `~/.ssh/known_hosts`; so every line is checked here first, and it is given the result, never a text.
"""

from collections.abc import Sequence
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
    _check_lines(content)
    try:
        known = asyncssh.import_known_hosts(content)
    except ValueError as error:
        raise KnownHostsError(printable(str(error))) from None
    matched = asyncssh.match_known_hosts(known, rule.alias or host, "", port)
    keys, authorities, revoked = (tuple(group) for group in matched[:3])
    return Trust(keys=keys, authorities=authorities, revoked=revoked)


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


def _check_lines(content: str) -> None:
    lines = 0
    for number, line in enumerate(content.splitlines(), start=1):
        words = line.split("#", 1)[0].split() if line.lstrip().startswith("#") else line.split()
        if words:
            _check_line(number, words)
            lines += 1
    if not lines:
        raise KnownHostsError("it has no line")


def _check_line(number: int, words: list[str]) -> None:
    if words[0].startswith("@"):
        if words[0] not in _MARKERS:
            found = printable(words[0], 40)
            raise KnownHostsError(f"line {number}: marker {found}; write @cert-authority or @revoked")
        words = words[1:]
    if len(words) < 3:
        raise KnownHostsError(f"line {number}: it needs host names, a key type and a key; it has {len(words)} parts")
    try:
        asyncssh.import_public_key(" ".join(words[1:3]))
    except (asyncssh.KeyImportError, ValueError):
        raise KnownHostsError(f"line {number}: its key, of type {printable(words[1], 40)}, cannot be read") from None
