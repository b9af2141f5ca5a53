"""The formats of fields as the command line checks them; the API server's own judgement is tested in a cluster."""

import re
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from dbtunnel.api import rules
from dbtunnel.api.base import CEL_KEY, Rule
from dbtunnel.api.pods import HostAlias
from dbtunnel.api.spec import Access, Drain, HostKey
from tests.support.values import tunnel

FINGERPRINT = "SHA256:" + "A" * 42 + "/"
LABEL = "a" * 63

GOOD: dict[str, tuple[Any, list[str]]] = {
    "Host": (
        rules.Host,
        [
            "orders",
            "orders.internal",
            "Orders.Internal.",
            "orders_db.internal",
            "_srv.example",
            "a" * 63,
            f"{LABEL}.{LABEL}",
            "1a.example",
            "198.51.100.1",
            "2001:db8::7",
            "::1",
            "a",
        ],
    ),
    "ObjectName": (rules.ObjectName, ["orders-ssh", "orders.ssh", "0", "a" * 253]),
    "ServiceName": (rules.ServiceName, ["orders", "a", "a-1", LABEL]),
    "DataKey": (rules.DataKey, ["ssh-privatekey", "id_ed25519", "A.b-C_1"]),
    "Fingerprint": (rules.Fingerprint, [FINGERPRINT]),
    "User": (rules.User, ["dbtunnel", "CORP\\svc@example.com", "a", "a-b", "~"]),
    "Quantity": (rules.Quantity, ["100m", "64Mi", "0.5", "1", "1e3", ".5", "2."]),
    "Cidr": (rules.Cidr, ["10.0.0.0/8", "10.0.0.1/8", "0.0.0.0/0", "203.0.113.7/32", "2001:db8::/32", "::1/128"]),
}

BAD: dict[str, tuple[Any, list[str], str]] = {
    "Host": (
        rules.Host,
        [
            "orders:5432",
            "ssh://bastion",
            "[2001:db8::7]",
            "198.51.100.256",
            "198.51.100",
            "1234",
            "orders..internal",
            ".orders",
            "-orders",
            "orders-",
            "a b",
            "orders\n",
            "orders\0",
            'orders"',
            "é",
            "a" * 64,
            "fe80::1%eth0",
            "::ffff:198.51.100.1",
            "010.0.0.1",
        ],
        "write a host name or an IPv4 or IPv6 address alone: no scheme, no port, no brackets",
    ),
    "ObjectName": (rules.ObjectName, ["Orders", "a_b", "-a", "a-", "a..b", "a/b", "a\n"], "write an object's name"),
    "ServiceName": (rules.ServiceName, ["1a", "a.b", "A", "a-", "a\n"], "write at most 63 lower-case letters"),
    "DataKey": (rules.DataKey, ["a/b", "../x", "a b", "é", "a\n"], "write a key of the object's data"),
    "Fingerprint": (
        rules.Fingerprint,
        [FINGERPRINT[:-1], FINGERPRINT[:-1] + "=", "MD5:16:27:ac", f"{FINGERPRINT[:-1]}\n", "A" * 43],
        "write SHA256: and 43 characters, as `ssh-keygen -lf` prints it",
    ),
    "User": (rules.User, ["-oProxyCommand=x", "a b", "a\n", "é", "\x7f"], "write the login name on the SSH server"),
    "Cidr": (
        rules.Cidr,
        [
            "10.0.0.0",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.0/08",
            "10.0.0.0/+8",
            "10.0.0.0/8/8",
            "10.0.0.0/8\n",
            "10.0.0.0/255.0.0.0",
            "10.0.0/8",
            "::/129",
            "::ffff:10.0.0.0/104",
            "fe80::%eth0/64",
            "a/8",
        ],
        "write a range of addresses such as 10.0.0.0/8",
    ),
    "Quantity": (rules.Quantity, ["100 m", "Mi", "64MB", "", "1,5", "1\n", "--1"], "write a quantity such as 100m"),
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, (_, texts) in GOOD.items() for text in texts])
def test_what_a_format_takes(kind: str, text: str) -> None:
    assert TypeAdapter(GOOD[kind][0]).validate_python(text) == text


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, (_, texts, _) in BAD.items() for text in texts])
def test_what_a_format_refuses_and_what_it_says_to_write(kind: str, text: str) -> None:
    wanted, _, message = BAD[kind]
    with pytest.raises(ValidationError) as refusal:
        TypeAdapter(wanted).validate_python(text)
    (problem,) = refusal.value.errors()
    assert message in problem["msg"]


@pytest.mark.parametrize(
    ("kind", "text"),
    [("Host", ""), ("Host", "a." * 127), ("ObjectName", "a" * 254), ("ServiceName", "a" * 64), ("User", "a" * 129)],
)
def test_lengths_are_bounded(kind: str, text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(GOOD[kind][0]).validate_python(text)


def test_the_message_shows_what_was_found_bounded() -> None:
    with pytest.raises(ValidationError) as refusal:
        TypeAdapter(rules.User).validate_python("x\x1b y" * 30)
    (problem,) = refusal.value.errors()
    found, _, rest = problem["msg"].partition(": write the login name")
    assert found.startswith(r"'x\x1b y")
    assert len(found) <= 100
    assert rest


@given(st.text(max_size=40) | st.from_regex(r"[a-z0-9.:-]{1,20}"))
def test_no_host_can_break_out_of_its_place(text: str) -> None:
    """Hosts stand in authorized_keys options, in URLs and in messages."""
    try:
        TypeAdapter(rules.Host).validate_python(text)
    except ValidationError:
        return
    assert re.fullmatch(r"[A-Za-z0-9_.:-]+", text)


# --- rules over several fields ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "value", "message"),
    [
        (
            HostKey,
            {"fingerprints": [FINGERPRINT], "knownHosts": "a b c"},
            "give one of fingerprints, knownHosts and knownHostsRef",
        ),
        (HostKey, {"knownHosts": "a b c", "knownHostsRef": {"name": "a"}}, "not several"),
        (Access, {"policy": "Selected"}, "give `from` with policy Selected, and only with it"),
        (Access, {"policy": "SameNamespace", "from": [{"podSelector": {}}]}, "only with it"),
        (Access, {"from": [{"podSelector": {}}]}, "only with it"),
        (Access, {"policy": "Selected", "from": []}, "at least 1 item"),
        (Drain, {"minSeconds": 2, "maxSeconds": 1}, "minSeconds must not be more than maxSeconds"),
        (HostAlias, {"ip": "bastion", "hostnames": ["a"]}, "write an IPv4 or IPv6 address"),
    ],
)
def test_fields_that_do_not_go_together(model: Any, value: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refusal:
        model.model_validate(value)
    (problem,) = refusal.value.errors()
    assert message in problem["msg"]


@pytest.mark.parametrize(
    ("model", "value"),
    [
        (HostKey, {}),
        (HostKey, {"alias": "bastion"}),
        (HostKey, {"knownHosts": "x", "alias": "bastion"}),
        (Access, {}),
        (Access, {"policy": "Selected", "from": [{"podSelector": {}}]}),
        (Access, {"policy": "Unrestricted"}),
        (Drain, {}),
        (Drain, {"minSeconds": 5}),
        (Drain, {"maxSeconds": 0}),
        (Drain, {"minSeconds": 1, "maxSeconds": 1}),
    ],
)
def test_fields_that_go_together(model: Any, value: dict[str, Any]) -> None:
    assert model.model_validate(value).document().items() >= value.items()


@pytest.mark.parametrize("name", ["Orders", "orders.v2", "1orders", "a" * 64, "orders-", ""])
def test_a_tunnels_name_must_be_one_for_a_service(name: str) -> None:
    with pytest.raises(ValidationError, match=r"metadata\.name: write at most 63 lower-case letters"):
        tunnel().model_validate({**tunnel().model_dump(), "metadata": {"name": name}})


# --- the rule itself --------------------------------------------------------------------------------------------------


def test_a_rule_is_told_once_for_both_judges() -> None:
    even = Rule("self % 2 == 0", lambda value: value % 2 == 0, "write an even number")
    adapter: TypeAdapter[int] = TypeAdapter(Annotated[int, even])
    assert adapter.json_schema()[CEL_KEY] == [{"rule": "self % 2 == 0", "message": "write an even number"}]
    assert adapter.validate_python(2) == 2
    with pytest.raises(ValidationError, match="3: write an even number"):
        adapter.validate_python(3)
