"""What a bastion's administrator adds to `sshd_config` beside the line in `authorized_keys`."""

import re

HARDENED = (
    "AuthenticationMethods publickey",
    "AllowTcpForwarding local",
    "AllowStreamLocalForwarding no",
    "MaxSessions 0",
    "PermitTTY no",
    "X11Forwarding no",
    "AllowAgentForwarding no",
    "PermitTunnel no",
    "ClientAliveInterval 15",
    "ClientAliveCountMax 3",
)
"""For the tunnels' user. What the line cannot forbid is the forwarding of Unix sockets; the rest holds for keys whose
line is written otherwise as well. No PermitOpen: several tunnels share a user, and each key's line has its own."""

_LITERAL = re.compile(r"[A-Za-z0-9_@.+$][A-Za-z0-9_@.+$-]*")
"""User names that sshd_config's Match takes for nothing but themselves: no pattern, list, quote or comment."""


def match_block(user: str) -> str | None:
    """The block that restricts this user (sshd_config(5), Match); None where the name would be read as a pattern."""
    if not _LITERAL.fullmatch(user):
        return None
    return "\n".join([f"Match User {user}", *(f"    {line}" for line in HARDENED)])
