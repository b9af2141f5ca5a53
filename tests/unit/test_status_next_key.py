"""What the status tells of a key that is to replace another, and which Events that deserves."""

from dataclasses import replace
from typing import Any

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import HopFact, LayerFact, LayerStatus, NextKeyFact, PublicKeyFact
from dbtunnel.api.reasons import Reason
from dbtunnel.api.status import DatabaseTunnelStatus
from dbtunnel.domain.diagnosis import NEXT_KEY_FAILS
from dbtunnel.domain.news import key_news
from dbtunnel.domain.status import decide
from tests.support.values import INSTALLATION, NOW, PUBLIC_KEY, observed, tunnel, working

NEXT = PublicKeyFact(key="ssh-ed25519 NEXTNEXT", fingerprint="SHA256:next")
ACCEPTED = LayerFact(status=LayerStatus.TRUE, reason=Reason.SUCCEEDED)
CURRENT = replace(PUBLIC_KEY, accepted=True)


def fails(reason: Reason, seen: str = "", hop: int = 0) -> LayerFact:
    return LayerFact(status=LayerStatus.FALSE, reason=reason, seen=seen, hop=hop)


def following(fact: LayerFact, *, accepted: bool | None = None, name: str = "ssh-privatekey-next") -> NextKeyFact:
    return NextKeyFact(name=name, public_key=replace(NEXT, accepted=accepted), fact=fact)


GARBAGE = NextKeyFact(name="ssh-privatekey-next", fact=fails(Reason.PRIVATE_KEY_INVALID, "it is empty"))


def status_of(*facts: NextKeyFact | None, spec: dict[str, Any] | None = None) -> DatabaseTunnelStatus:
    """The status where each replica tells this of its next key."""
    of = tunnel({"replicas": len(facts), **(spec or {})})
    seen = observed(of, *(working(of, public_key=CURRENT, next_key=fact) for fact in facts))
    return decide(of, seen, INSTALLATION, NOW).status


def message(status: DatabaseTunnelStatus, kind: ConditionType) -> str:
    (found,) = (one for one in status.conditions or () if one.type == kind)
    assert found.status == "True", "the tunnel works"
    return found.message


def keys(status: DatabaseTunnelStatus) -> list[tuple[str, str, bool | None]]:
    return [(key.use, key.fingerprint, key.accepted) for key in status.public_keys or ()]


# --- the keys ---------------------------------------------------------------------------------------------------------


def test_both_keys_are_shown_each_with_its_line() -> None:
    status = status_of(following(ACCEPTED, accepted=True))
    assert keys(status) == [("Current", PUBLIC_KEY.fingerprint, True), ("Next", "SHA256:next", True)]
    (hop,) = status.hops or ()
    first, second = (hop.authorized_keys_line or "").split("\n")
    assert PUBLIC_KEY.key in first
    assert NEXT.key in second
    assert first.replace(PUBLIC_KEY.key, NEXT.key) == second


@pytest.mark.parametrize(
    ("verdicts", "told"),
    [([True, True], True), ([True, None], None), ([True, False], False), ([None, None], None)],
)
def test_it_is_accepted_where_every_replica_says_so(verdicts: list[bool | None], told: bool | None) -> None:
    status = status_of(*(following(LayerFact(), accepted=verdict) for verdict in verdicts))
    assert keys(status)[1] == ("Next", "SHA256:next", told)


def test_a_replica_that_does_not_know_it_yet_has_not_accepted_it() -> None:
    assert keys(status_of(following(ACCEPTED, accepted=True), None))[1] == ("Next", "SHA256:next", None)


def test_one_that_cannot_be_read_is_shown_without_a_key() -> None:
    status = status_of(GARBAGE)
    assert keys(status) == [("Current", PUBLIC_KEY.fingerprint, True), ("Next", "", False)]
    assert "\n" not in ((status.hops or ())[0].authorized_keys_line or "")


def test_one_that_is_current_for_a_replica_already_is_not_shown_as_the_next() -> None:
    of = tunnel({"replicas": 2})
    moved = working(of, public_key=replace(NEXT, accepted=True))
    seen = observed(of, moved, working(of, public_key=CURRENT, next_key=following(ACCEPTED, accepted=True)))
    shown = keys(decide(of, seen, INSTALLATION, NOW).status)
    assert ("Current", "SHA256:next", True) in shown
    assert len(shown) == 2


# --- what is wrong with it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fact", "kind", "words"),
    [
        (fails(Reason.PRIVATE_KEY_INVALID, "it is empty"), ConditionType.KEY_READY, "key ssh-privatekey-next, is no"),
        (fails(Reason.PASSPHRASE_REQUIRED), ConditionType.KEY_READY, "under passphrase-next"),
        (fails(Reason.KEY_REJECTED), ConditionType.AUTHENTICATED, NEXT.key),
        (fails(Reason.SECOND_FACTOR_REQUIRED, "more"), ConditionType.AUTHENTICATED, "AuthenticationMethods"),
        (fails(Reason.FORWARDING_PROHIBITED, "open failed"), ConditionType.DATABASE_REACHABLE, "orders.internal:5432"),
    ],
    ids=lambda value: value.reason if isinstance(value, LayerFact) else "",
)
def test_the_condition_that_works_says_what_is_wrong_with_the_next_key(
    fact: LayerFact, kind: ConditionType, words: str
) -> None:
    told = message(status_of(following(fact)), kind)
    assert told.startswith(NEXT_KEY_FAILS)
    assert words in told
    assert PUBLIC_KEY.key not in told


def test_a_changed_key_is_named_by_its_own_name() -> None:
    told = message(status_of(following(fails(Reason.PASSPHRASE_WRONG), name="ssh-privatekey")), ConditionType.KEY_READY)
    assert "key ssh-privatekey: the passphrase under passphrase does" in told


def test_one_replica_with_which_it_fails_is_enough() -> None:
    status = status_of(following(ACCEPTED, accepted=True), following(fails(Reason.KEY_REJECTED), accepted=False))
    assert message(status, ConditionType.AUTHENTICATED).startswith(NEXT_KEY_FAILS)


def test_the_next_key_of_a_jump_host() -> None:
    jump = {"host": "jump.example", "keySecretRef": {"name": "jump-ssh"}}
    of = tunnel({"tunnel.jumpHosts": [jump]})
    fact = HopFact(active=True, public_key=CURRENT, next_key=following(fails(Reason.KEY_REJECTED, hop=1)))
    status = decide(of, observed(of, working(of, hops=(HopFact(active=True), fact))), INSTALLATION, NOW).status
    told = message(status, ConditionType.AUTHENTICATED)
    assert "jump host jump.example:22" in told
    assert NEXT.key in told
    assert [line.count("\n") for line in ((hop.authorized_keys_line or "") for hop in status.hops or ())] == [0, 1]


def test_a_reason_of_a_later_version_is_told_as_well() -> None:
    fact = LayerFact(status=LayerStatus.FALSE, reason="KeyTooOld", seen="since 2031")
    assert "since 2031" in message(status_of(following(fact)), ConditionType.AUTHENTICATED)


# --- several connections ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("up", "told"), [((4, 4), ""), ((4, 3), "7 of 8 SSH connections stand"), ((1, 1), "2 of 8")])
def test_connections_that_are_missing_are_told_and_ready_it_is(up: tuple[int, int], told: str) -> None:
    of = tunnel({"replicas": 2, "tunnel.connections": 4})
    status = decide(of, observed(of, *(working(of, connections=count) for count in up)), INSTALLATION, NOW).status
    assert message(status, ConditionType.TRANSPORT_READY).startswith(told)
    assert told in message(status, ConditionType.READY)


# --- Events -----------------------------------------------------------------------------------------------------------


def test_each_way_in_which_it_fails_is_an_event_once() -> None:
    well, garbage, rejected = status_of(None), status_of(GARBAGE), status_of(following(fails(Reason.KEY_REJECTED)))
    assert key_news(well.document(), well) is None
    for before, after in ((well, garbage), (garbage, rejected)):
        news = key_news(before.document(), after)
        assert news
        assert news[:2] == ("Warning", "NextKeyFailed")
        assert key_news(after.document(), after) is None


def test_its_acceptance_is_an_event_once_and_its_move_into_place_none() -> None:
    tried, accepted = status_of(following(LayerFact())), status_of(following(ACCEPTED, accepted=True))
    news = key_news(tried.document(), accepted)
    assert news
    assert news[:2] == ("Normal", "NextKeyAccepted")
    assert key_news(accepted.document(), accepted) is None
    assert key_news(accepted.document(), status_of(None)) is None
