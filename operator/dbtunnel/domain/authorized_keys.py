"""The line that a bastion's administrator adds to `authorized_keys` (sshd(8), AUTHORIZED_KEYS FILE FORMAT)."""

from collections.abc import Sequence

_NO_LISTENING = 'permitlisten="localhost:1"'
"""Allows listening on a port that sshd cannot bind for a user; `permitlisten="none"` makes the whole line invalid."""


Target = tuple[str, int]
"""Host and port."""


def authorized_keys_line(public_key: str, comment: str, *targets: Target, sources: Sequence[str] = ()) -> str:
    """A line that permits this key to open `targets` and nothing else: no command, terminal, listener or agent.

    `sources` are addresses from which the key may be used; empty for any.
    """
    options = [
        "restrict",
        "port-forwarding",
        *(f'permitopen="{forward_target(*target)}"' for target in targets),
        _NO_LISTENING,
        'command="/bin/false"',
    ]
    if sources:
        options.insert(0, f'from="{",".join(sources)}"')
    return f"{','.join(options)} {public_key} {comment}"


def forward_target(host: str, port: int) -> str:
    """`host:port` as sshd's PermitOpen takes it: it compares the exact text, and needs brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
