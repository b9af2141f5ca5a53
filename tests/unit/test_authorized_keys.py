"""The line for authorized_keys; tests against a real sshd show that it permits what it says and nothing else."""

import pytest

from dbtunnel.domain.authorized_keys import authorized_keys_line, forward_target

KEY = "ssh-ed25519 AAAA"


def test_the_line() -> None:
    assert authorized_keys_line(KEY, "shop/orders", ("orders.internal", 5432)) == (
        'restrict,port-forwarding,permitopen="orders.internal:5432",permitlisten="localhost:1",command="/bin/false"'
        " ssh-ed25519 AAAA shop/orders"
    )


def test_where_the_key_may_come_from() -> None:
    line = authorized_keys_line(KEY, "shop/orders", ("db", 1), sources=["203.0.113.7", "2001:db8::/64"])
    assert line.startswith('from="203.0.113.7,2001:db8::/64",restrict,port-forwarding,permitopen="db:1",')


def test_a_jump_hosts_line_permits_all_that_comes_next() -> None:
    line = authorized_keys_line(KEY, "shop/orders", ("203.0.113.8", 22), ("2001:db8::8", 2222))
    assert line.startswith(
        'restrict,port-forwarding,permitopen="203.0.113.8:22",permitopen="[2001:db8::8]:2222",permitl'
    )


def test_without_sources_the_key_may_come_from_anywhere() -> None:
    assert "from=" not in authorized_keys_line(KEY, "shop/orders", ("db", 1), sources=())


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("orders.internal", "orders.internal:5432"),
        ("10.0.0.5", "10.0.0.5:5432"),
        ("2001:db8::5", "[2001:db8::5]:5432"),
        ("::1", "[::1]:5432"),
        # sshd compares the exact text, so nothing is put in order
        ("Orders.Internal.", "Orders.Internal.:5432"),
    ],
)
def test_the_target_as_sshd_compares_it(host: str, target: str) -> None:
    assert forward_target(host, 5432) == target
    assert f'permitopen="{target}"' in authorized_keys_line(KEY, "shop/orders", (host, 5432))
