"""From a reason and what was seen to the sentence that a person reads."""

import json
import re
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.api.conditions import CAUSAL_ORDER, ConditionType
from dbtunnel.api.engines import Engine
from dbtunnel.api.forwarder import ForwarderConfig, HopFact, HostKeyFact, PublicKeyFact
from dbtunnel.api.reasons import REASONS, SUPPLY_GRACE, Reason
from dbtunnel.domain.diagnosis import (
    MESSAGE_LIMIT,
    SEEN_LIMIT,
    Subject,
    explain,
    key_lines,
    pin_patch,
    printable,
)
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.hops import hop_name
from dbtunnel.domain.settings import Defaults
from tests.support.values import PUBLIC_KEY, tunnel

HOST_KEYS = (
    HostKeyFact(algorithm="ssh-ed25519", fingerprint="SHA256:" + "e" * 43),
    HostKeyFact(algorithm="rsa-sha2-256", fingerprint="SHA256:" + "r" * 43),
)

HOSTILE = '\x1b[2Jgone\r\nReady True {tunnel} {0} {seen!r} %s \x00 \x7f \u202eabc é "; kubectl delete' + "x" * 5000
"""What a server may send to be shown: escapes, line ends, templates, marks that turn the text around, sheer length."""


def config(**changes: Any) -> ForwarderConfig:
    return forwarder_config(tunnel(changes), Defaults())


SUBJECT = Subject(config(), ("203.0.113.1", "203.0.113.2"), PUBLIC_KEY, (HopFact(host_keys=HOST_KEYS),))
BARE = Subject(config())
"""Before anything is known of either end."""


# --- every reason -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", [SUBJECT, BARE], ids=["known", "unknown"])
@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_makes_a_whole_sentence(reason: Reason, subject: Subject) -> None:
    message = explain(reason, "what was seen", subject)
    without_pin = message.replace(pin_patch(subject.config, 0, subject.hop(0).host_keys), "")
    assert not set("{}") & set(without_pin), "a brace that was not filled in"
    assert "None" not in message
    assert message.isprintable()
    assert "  " not in message
    assert message == message.strip()


@pytest.mark.parametrize("reason", REASONS)
def test_what_was_seen_is_told_where_there_is_something_to_see(reason: Reason) -> None:
    names = {name for _, name, _, _ in string.Formatter().parse(REASONS[reason].message) if name}
    assert ("what was seen" in explain(reason, "what was seen", SUBJECT)) == bool({"seen", "also"} & names)
    assert ("no details" in explain(reason, "", SUBJECT)) == ("seen" in names)


@pytest.mark.parametrize("reason", REASONS)
def test_every_message_about_an_ssh_server_names_it(reason: Reason) -> None:
    if REASONS[reason].type in ("TransportReady", "Authenticated") or reason is Reason.FORWARDING_PROHIBITED:
        assert explain(reason, "", SUBJECT).startswith("bastion 203.0.113.7:22: ")


@pytest.mark.parametrize("reason", [reason for reason, info in REASONS.items() if info.type == "KeyReady"])
def test_every_message_about_the_key_names_the_secret(reason: Reason) -> None:
    assert "Secret orders-ssh" in explain(reason, "", SUBJECT)


def test_a_reason_of_a_newer_forwarder_is_told_as_it_is() -> None:
    assert explain("Quantum", "an unheard-of thing", SUBJECT) == "bastion 203.0.113.7:22: an unheard-of thing"


# --- what messages are made of ----------------------------------------------------------------------------------------


def test_a_rejected_key_is_followed_by_the_line_to_add() -> None:
    line = key_lines(SUBJECT)
    assert line is not None
    assert line.startswith('from="203.0.113.1,203.0.113.2",restrict,')
    assert line.endswith(f"{PUBLIC_KEY.key} shop/orders")
    message = explain(Reason.KEY_REJECTED, "", SUBJECT)
    assert message.endswith(f" is set): {line}")
    assert "allow ssh-ed25519 where PubkeyAcceptedAlgorithms is set" in message
    old = replace(SUBJECT, public_key=PublicKeyFact(key="ssh-rsa AAAA", fingerprint="SHA256:r"))
    assert "allow rsa-sha2-512 or rsa-sha2-256 where" in explain(Reason.KEY_REJECTED, "", old)


def test_without_a_key_there_is_no_line_and_the_message_says_where_it_will_be() -> None:
    assert key_lines(BARE) is None
    assert explain(Reason.KEY_REJECTED, "", BARE).endswith("(shown in status.hops once the key is there)")


def test_unknown_host_keys_are_followed_by_what_pins_them() -> None:
    message = explain(Reason.HOST_KEY_UNKNOWN, "ssh-ed25519 SHA256:eee", SUBJECT)
    patch = message[message.index("{") :]
    pinned = {"spec": {"tunnel": {"hostKey": {"fingerprints": [key.fingerprint for key in HOST_KEYS]}}}}
    assert json.loads(patch) == pinned, "a merge patch"
    assert yaml.safe_load(patch) == pinned, "and YAML"
    assert tunnel({"tunnel.hostKey": pinned["spec"]["tunnel"]["hostKey"]})


@pytest.mark.parametrize(
    "source",
    [{"fingerprints": ["SHA256:" + "o" * 43]}, {"knownHosts": "bastion ssh-ed25519 AAAA\n"},
     {"knownHostsRef": {"kind": "ConfigMap", "name": "known", "key": "known_hosts"}}],
    ids=["fingerprints", "text", "reference"],
)  # fmt: skip
def test_what_pins_them_leaves_no_other_source_behind(source: dict[str, Any]) -> None:
    """The schema takes one; an alias stays."""
    other = {"host": "jump", "hostKey": {**source, "alias": "old"}}
    of = tunnel({"tunnel.hostKey": {**source, "alias": "old"}, "tunnel.jumpHosts": [other]})
    known = forwarder_config(of, Defaults())
    merge = json.loads(pin_patch(known, 0, HOST_KEYS))["spec"]["tunnel"]["hostKey"]
    left = {name: value for name, value in ({**source, "alias": "old"} | merge).items() if value is not None}
    (operation,) = json.loads(pin_patch(known, 1, HOST_KEYS))
    assert left == operation["value"] == {"alias": "old", "fingerprints": [key.fingerprint for key in HOST_KEYS]}
    assert set(merge) - set(source) <= {"fingerprints"}, "nothing is taken away that is not there"


def test_egress_addresses_are_told_where_a_firewall_may_need_them() -> None:
    assert "addresses (203.0.113.1, 203.0.113.2)." in explain(Reason.CONNECT_TIMEOUT, "10 s", SUBJECT)
    assert explain(Reason.CONNECT_TIMEOUT, "10 s", BARE).endswith("egress addresses.")


def test_addresses_with_colons_stand_in_brackets() -> None:
    subject = Subject(config(**{"tunnel.host": "2001:db8::7", "database.host": "fd00::5"}))
    assert hop_name(subject.config) == "bastion [2001:db8::7]:22"
    assert "PermitOpen any or [fd00::5]:5432;" in explain(Reason.FORWARDING_PROHIBITED, "", subject)


@pytest.mark.parametrize(("engine", "protocol"), [("AlloyDB", "PostgreSQL"), ("MySQL", "MySQL")])
def test_the_protocol_is_named_and_not_the_product(engine: Engine, protocol: str) -> None:
    message = explain(Reason.UNEXPECTED_PROTOCOL, "SSH-2.0", Subject(config(engine=engine)))
    assert f"does not speak the protocol of {protocol}: SSH-2.0." in message


# --- hostile text -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [*REASONS, "Quantum"])
def test_hostile_text_forges_nothing(reason: str) -> None:
    message = explain(reason, HOSTILE, SUBJECT)
    assert message.isascii()
    assert message.isprintable(), "one line, no control character"
    assert len(message) <= MESSAGE_LIMIT
    harmless = explain(reason, "y", SUBJECT)
    assert len(message) <= len(harmless) + SEEN_LIMIT
    # what stands in braces is shown and not filled in
    if "gone" in message:
        assert "{tunnel} {0} {seen!r} %s" in message


@given(st.text(max_size=2 * SEEN_LIMIT), st.sampled_from([*REASONS, "Quantum"]))
def test_whatever_is_seen_the_message_is_one_bounded_line(seen: str, reason: str) -> None:
    message = explain(reason, seen, SUBJECT)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) <= MESSAGE_LIMIT


@given(st.text(), st.integers(1, 50))
def test_printable(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert len(shown) <= limit
    assert all(" " <= char <= "~" for char in shown)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=SEEN_LIMIT))
def test_printable_text_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_what_is_not_printable_is_shown_as_an_escape() -> None:
    assert printable("a\tb\nc\x1b[0m\x7f é \u202e \ud800") == r"a\tb\nc\x1b[0m\x7f \xe9 \u202e \ud800"


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_reason_has_a_row_and_the_documentation_names_it() -> None:
    assert set(REASONS) == set(Reason) - {Reason.SUCCEEDED}
    page = (Path(__file__).parents[2] / "docs/conditions.md").read_text()
    for reason, info in REASONS.items():
        assert f"| `{reason}` | {info.meaning} |" in page
        assert f"\n`{reason}`. {info.cause}\n> " in page


def test_every_condition_can_fail_and_no_summary_has_reasons_of_its_own() -> None:
    assert {info.type for info in REASONS.values()} == set(CAUSAL_ORDER)
    for kind in ConditionType:
        assert (kind in CAUSAL_ORDER) != (kind in ("Ready", "Reconciling", "Stalled"))


def test_reasons_are_words_as_the_api_takes_them() -> None:
    for reason in Reason:
        assert re.fullmatch("[A-Z][A-Za-z]{2,30}", reason)


def test_what_a_person_may_still_supply_has_a_grace_period() -> None:
    for reason in (Reason.SECRET_NOT_FOUND, Reason.SECRET_KEY_MISSING, Reason.KEY_REJECTED, Reason.HOST_KEY_UNKNOWN):
        assert REASONS[reason].grace_seconds == SUPPLY_GRACE


def test_what_sshd_or_the_database_penalises_is_tried_again_slowly() -> None:
    slow = {reason for reason, info in REASONS.items() if info.retry_seconds >= 60}
    assert slow >= {
        Reason.KEY_REJECTED,
        Reason.HOST_KEY_UNKNOWN,
        Reason.HOST_KEY_MISMATCH,
        Reason.HOST_KEY_REVOKED,
        Reason.HOST_BLOCKED,
    }
    assert slow.isdisjoint({Reason.CONNECTION_LOST, Reason.CONNECTION_REFUSED, Reason.DATABASE_REFUSED})
    # sshd drops such a connection before anything counts it, so that coming back soon costs nobody anything
    assert Reason.BASTION_REFUSING not in slow
