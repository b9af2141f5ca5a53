"""What administrators of SSH servers are handed; tests/forwarder/test_handout.py tries it against a real sshd."""

from dataclasses import replace
from typing import Any

import pytest

from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.cli.plugin.handout_text import NO_KEY, handout_markdown, handout_text, parts_of
from dbtunnel.cli.plugin.public_key import public_keys
from dbtunnel.cli.terminal import COLUMNS, Style
from dbtunnel.domain.sshd_config import HARDENED, match_block
from dbtunnel.domain.status import decide
from tests.support.values import INSTALLATION, NOW, manifest, observed, tunnel, working

PLAIN = Style(color=False, unicode=False)

LINE = (
    'restrict,port-forwarding,permitopen="orders.internal:5432",permitlisten="localhost:1",command="/bin/false"'
    " ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 shop/orders"
)

TEXT = f"""\
Database tunnel shop/orders

== bastion 203.0.113.7:22 ==
user              dbtunnel
public key        ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 shop/orders
connects from     198.51.100.0/24, 2001:db8::1
to                TCP port 22
opens from there  orders.internal:5432

Add to authorized_keys of the user dbtunnel, as one line:

from="198.51.100.0/24,2001:db8::1",{LINE}

Add at the end of sshd_config, once for this user however many tunnels it has,
and have sshd read it anew:

{match_block("dbtunnel")}
"""

MARKDOWN = f"""\
# Database tunnel shop/orders

## bastion 203.0.113.7:22

- user: `dbtunnel`
- public key: `ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 shop/orders`
- connects from: `198.51.100.0/24, 2001:db8::1`
- to: `TCP port 22`
- opens from there: `orders.internal:5432`

Add to authorized\\_keys of the user dbtunnel, as one line:

```
from="198.51.100.0/24,2001:db8::1",{LINE}
```

Add at the end of sshd_config, once for this user however many tunnels it has, and have sshd read it anew:

```
{match_block("dbtunnel")}
```
"""

WAY = {
    "tunnel": {
        "host": "bastion.internal",
        "user": "shop",
        "jumpHosts": [{"host": "jump.example.com", "port": 2222, "user": "jumper"}],
        "fallbacks": [{"host": "bastion-2.internal"}],
    }
}


def running(changes: dict[str, Any] | None = None, *sources: str) -> DatabaseTunnel:
    """A tunnel with the status that the operator writes once it works."""
    of = tunnel(changes)
    installation = replace(INSTALLATION, egress_addresses=sources)
    return of.model_copy(update={"status": decide(of, observed(of, working(of)), installation, NOW).status})


def told(status: dict[str, Any], changes: dict[str, Any] | None = None) -> DatabaseTunnel:
    return DatabaseTunnel.parse(manifest({f"spec.{path}": value for path, value in (changes or {}).items()}, status))


def test_the_text() -> None:
    assert handout_text(running(None, "198.51.100.0/24", "2001:db8::1"), PLAIN) == TEXT


def test_the_markdown() -> None:
    assert handout_markdown(running(None, "198.51.100.0/24", "2001:db8::1"), PLAIN) == MARKDOWN


def test_a_part_for_each_server_in_the_order_of_the_way() -> None:
    parts = parts_of(running(WAY, "198.51.100.7"))
    assert [(part.server, part.user) for part in parts] == [
        ("jump host jump.example.com:2222", "jumper"),
        ("bastion bastion.internal:22", "shop"),
        ("fallback bastion-2.internal:22", "shop"),
    ]
    facts = [dict(part.facts) for part in parts]
    behind = "the addresses of jump host jump.example.com:2222"
    assert [one["connects from"] for one in facts] == ["198.51.100.7", behind, behind]
    opened = "orders.internal:5432"
    assert [one["opens from there"] for one in facts] == ["bastion.internal:22, bastion-2.internal:22", opened, opened]
    assert facts[0]["to"] == "TCP port 2222"


def test_it_fits_the_terminal_but_for_what_is_pasted() -> None:
    text = handout_text(running(WAY), PLAIN)
    assert {line for line in text.splitlines() if len(line) > COLUMNS} == {
        line for part in parts_of(running(WAY)) for line in part.lines
    }


def test_both_lines_while_a_key_is_replaced() -> None:
    lines = f"{LINE}\n{LINE.replace('AAAAC3', 'AAAAD4')}"
    place = {"role": "Bastion", "host": "203.0.113.7", "port": 22, "authorizedKeysLine": lines}
    text = handout_text(told({"hops": [place]}), PLAIN)
    assert "one line for each key while the key is replaced" in " ".join(text.split())
    assert f"\n\n{lines}\n\n" in text
    assert text.count("public key  ") == 2


def test_without_a_key_it_says_so() -> None:
    for form in (handout_text, handout_markdown):
        text = form(tunnel(), PLAIN)
        assert NO_KEY in text
        assert "not declared" in text


def test_what_another_server_had_before_is_not_handed_out() -> None:
    place = {"role": "Bastion", "host": "203.0.113.6", "port": 22, "authorizedKeysLine": LINE}
    assert LINE not in handout_text(told({"hops": [place]}), PLAIN)


@pytest.mark.parametrize("user", ["*", "a,b", "!root", "a?", 'a"b', "a#b", "a\\b", "-o"])
def test_no_block_for_a_name_that_sshd_would_take_for_a_pattern(user: str) -> None:
    assert match_block(user) is None
    if user != "-o":  # no such name passes the schema
        text = handout_text(tunnel({"tunnel.user": user}), PLAIN)
        assert "Match User`" in text
        assert "Match User " not in text


@pytest.mark.parametrize("user", ["dbtunnel", "db-tunnel_2", "svc.tunnel@example.com", "machine$"])
def test_a_block_for_other_names(user: str) -> None:
    assert match_block(user) == "\n".join([f"Match User {user}", *(f"    {line}" for line in HARDENED)])


def test_nothing_in_a_status_forges_text_of_its_own() -> None:
    line = "restrict ssh-ed25519 AAAA \x1b[2J\u202eshop\r/orders\nMatch User root ``` x"
    place = {"role": "Bastion", "host": "203.0.113.7", "port": 22, "authorizedKeysLine": line}
    for form in (handout_text, handout_markdown):
        text = form(told({"hops": [place], "egressAddresses": ["1.2.3.4\n## x `a`"]}), PLAIN)
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert "\n## x" not in text
    assert "````\n" in text, "a fence that the text cannot end"


def test_public_keys() -> None:
    assert public_keys(running()) == ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 shop/orders"]
    keys = [{"key": "ssh-ed25519 A shop/orders"}, {"key": "", "use": "Next"}, {"key": "ssh-rsa B\n\x1b[1m"}]
    assert public_keys(told({"publicKeys": keys})) == ["ssh-ed25519 A shop/orders", "ssh-rsa B\\n\\x1b[1m"]
    assert public_keys(tunnel()) == []
