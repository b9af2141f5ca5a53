"""Whether an object is as wanted, and the document that makes it so."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.api.conditions import ConditionType
from dbtunnel.domain.children import Manifest, build_deployment, build_service
from dbtunnel.domain.drift import (
    controller_uid,
    covers,
    desired_hash,
    essence,
    is_as_wanted,
    merge_patch,
    replacement,
    signed,
    status_patch,
)
from tests.support.values import INSTALLATION, changed, tunnel

WANTED = signed(build_service(tunnel({"service.labels": {"team": "shop"}, "service.annotations": {"note": "hand"}})))
OWNED = {
    "manager": "dbtunnel-operator",
    "fieldsV1": {
        "f:metadata": {
            "f:labels": {".": {}, "f:team": {}, "f:old": {}, "f:dbtunnel.dev/tunnel": {}},
            "f:annotations": {"f:note": {}, "f:old": {}},
        }
    },
}


def served(wanted: Manifest, changes: Mapping[str, Any] | None = None) -> Manifest:
    """`wanted` as the API server answers it: with what it assigns."""
    live = deepcopy(wanted)
    live["metadata"] |= {"uid": "child-uid", "resourceVersion": "5", "managedFields": []}
    if wanted["kind"] == "Service":
        live["spec"] |= {"clusterIP": "10.1.0.1", "clusterIPs": ["10.1.0.1"], "sessionAffinity": "None"}
    return changed(live, changes or {})


# --- the signature ----------------------------------------------------------------------------------------------------


def test_a_signature_adds_one_annotation_and_changes_nothing() -> None:
    plain = build_service(tunnel())
    before = deepcopy(plain)
    written = signed(plain)
    assert plain == before
    assert desired_hash(written) == written["metadata"]["annotations"]["dbtunnel.dev/desired"]
    del written["metadata"]["annotations"]["dbtunnel.dev/desired"]
    assert written == plain


def test_another_manifest_has_another_signature() -> None:
    assert desired_hash(signed(build_service(tunnel()))) != desired_hash(WANTED)
    assert desired_hash(signed(build_service(tunnel()))) == desired_hash(signed(build_service(tunnel())))


def test_a_given_annotation_cannot_forge_the_signature() -> None:
    forged = build_service(tunnel({"service.annotations": {"dbtunnel.dev/desired": "forged"}}))
    assert desired_hash(signed(forged)) != "forged"


@pytest.mark.parametrize("metadata", [{}, {"annotations": None}, {"annotations": {"a": "b"}}])
def test_an_object_of_others_has_no_signature(metadata: Manifest) -> None:
    assert desired_hash({"metadata": metadata}) is None


@pytest.mark.parametrize(
    ("owners", "uid"),
    [
        (None, None),
        ([], None),
        ([{"uid": "a"}], None),
        ([{"uid": "a", "controller": False}, {"uid": "b", "controller": True}], "b"),
    ],
)
def test_the_controlling_owner(owners: list[Manifest] | None, uid: str | None) -> None:
    assert controller_uid({"metadata": {"ownerReferences": owners}}) == uid


# --- is it as wanted? -------------------------------------------------------------------------------------------------


def test_what_was_answered_to_the_write_is_as_wanted() -> None:
    live = served(WANTED)
    assert is_as_wanted(live, WANTED, essence(live, WANTED))


EDITS: dict[str, Mapping[str, Any]] = {
    "a port": {"spec.ports": []},
    "a field that was added": {"spec.externalIPs": ["203.0.113.9"]},
    "a field that was taken away": {"spec.selector": None},
    "a label of ours": {"metadata.labels.team": "other"},
    "an annotation of ours": {"metadata.annotations.note": None},
    "all labels": {"metadata.labels": None},
    "the owner": {"metadata.ownerReferences": None},
    "the signature": {"metadata.annotations": {"dbtunnel.dev/desired": "other", "note": "hand"}},
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_seen(edit: str) -> None:
    answer = essence(served(WANTED), WANTED)
    assert not is_as_wanted(served(WANTED, EDITS[edit]), WANTED, answer)


@pytest.mark.parametrize(
    "changes",
    [
        {"metadata.labels.argocd": "app"},
        {"metadata.annotations.mesh": "injected"},
        {"metadata.resourceVersion": "6"},
        {"metadata.managedFields": ["kubectl-edit"]},
        {"status": {"loadBalancer": {}}},
    ],
)
def test_what_others_add_beside_ours_is_no_drift(changes: Mapping[str, Any]) -> None:
    assert is_as_wanted(served(WANTED, changes), WANTED, essence(served(WANTED), WANTED))


def test_after_a_restart_an_object_that_has_all_that_is_wanted_is_as_wanted() -> None:
    assert is_as_wanted(served(WANTED), WANTED, None)
    deployment = signed(build_deployment(tunnel(), INSTALLATION))
    assert is_as_wanted(served(deployment), deployment, None)


def test_after_a_restart_defaults_of_the_api_server_are_no_drift() -> None:
    deployment = signed(build_deployment(tunnel(), INSTALLATION))
    live = served(deployment, {"spec.progressDeadlineSeconds": 600, "spec.template.spec.restartPolicy": "Always"})
    assert is_as_wanted(live, deployment, None)


@pytest.mark.parametrize("edit", [edit for edit in EDITS if edit != "a field that was added"])
def test_after_a_restart_an_edit_is_seen(edit: str) -> None:
    assert not is_as_wanted(served(WANTED, EDITS[edit]), WANTED, None)


def test_after_a_restart_a_spec_that_others_wrote_to_is_drift() -> None:
    assert not is_as_wanted(served(WANTED, {"metadata.managedFields": ["kubectl-edit"]}), WANTED, None)


def test_after_a_restart_an_added_container_is_seen() -> None:
    deployment = signed(build_deployment(tunnel(), INSTALLATION))
    live = served(deployment)
    live["spec"]["template"]["spec"]["containers"].append({"name": "extra"})
    assert not is_as_wanted(live, deployment, None)


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        ({"a": 1, "b": 2}, {"a": 1}),
        (None, {}),
        (None, []),
        (None, None),
        ([{"a": 1, "b": 2}], [{"a": 1}]),
        ("1", 1),
        (1, "1"),
        (True, True),
    ],
)
def test_covers(live: Any, wanted: Any) -> None:
    assert covers(live, wanted)


@pytest.mark.parametrize(
    ("live", "wanted"),
    [
        ({}, {"a": 1}),
        (None, {"a": 1}),
        ("text", {"a": 1}),
        ([1, 2], [1]),
        ([], [1]),
        ([2, 1], [1, 2]),
        ({"a": 1}, [1]),
        (None, 0),
        (None, "None"),
        ("True", True),
        (None, False),
        (2, 1),
    ],
)
def test_does_not_cover(live: Any, wanted: Any) -> None:
    assert not covers(live, wanted)


# --- the write --------------------------------------------------------------------------------------------------------


def test_a_replacement_has_the_wanted_spec_and_what_the_api_server_assigned() -> None:
    live = served(WANTED, {"spec.externalIPs": ["203.0.113.9"], "spec.ports": []})
    assert replacement(live, WANTED)["spec"] == {
        **WANTED["spec"],
        "clusterIP": "10.1.0.1",
        "clusterIPs": ["10.1.0.1"],
    }


def test_a_replacement_is_of_the_very_object_that_was_read() -> None:
    written = replacement(served(WANTED), WANTED)["metadata"]
    assert (written["uid"], written["resourceVersion"]) == ("child-uid", "5")
    assert "managedFields" not in written


def test_a_replacement_keeps_what_others_set_and_drops_what_is_no_longer_wanted() -> None:
    live = served(WANTED, {"metadata.managedFields": [OWNED]})
    for field in ("labels", "annotations"):
        live["metadata"][field] |= {"old": "ours once", "theirs": "kept"}
    written = replacement(live, WANTED)["metadata"]
    assert written["labels"] == {**WANTED["metadata"]["labels"], "theirs": "kept"}
    assert written["annotations"] == {**WANTED["metadata"]["annotations"], "theirs": "kept"}


def test_what_was_set_through_a_subresource_is_not_ours() -> None:
    live = served(WANTED, {"metadata.managedFields": [{**OWNED, "subresource": "status"}], "metadata.labels.old": "x"})
    assert replacement(live, WANTED)["metadata"]["labels"]["old"] == "x"


def test_a_replacement_adopts_an_orphan_and_keeps_other_owners() -> None:
    other = {"uid": "other", "kind": "Application", "name": "shop", "apiVersion": "v1"}
    live = served(WANTED, {"metadata.ownerReferences": [other]})
    assert replacement(live, WANTED)["metadata"]["ownerReferences"] == [
        other,
        *WANTED["metadata"]["ownerReferences"],
    ]
    assert replacement(served(WANTED), WANTED)["metadata"]["ownerReferences"] == WANTED["metadata"]["ownerReferences"]


@pytest.mark.parametrize("edit", EDITS)
def test_a_replacement_undoes_an_edit(edit: str) -> None:
    written = replacement(served(WANTED, EDITS[edit]), WANTED)
    written["metadata"]["managedFields"] = []
    assert is_as_wanted(written, WANTED, None)
    assert "externalIPs" not in written["spec"]


# --- merge patches ----------------------------------------------------------------------------------------------------

scalars = st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
documents = st.dictionaries(st.sampled_from("abc"), values, max_size=3)
"""Documents as the API server has them: none has a null."""


def applied(patch: Any, target: Any) -> Any:
    """RFC 7396, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = applied(value, result.get(name))
    return result


@given(documents, documents)
def test_a_merge_patch_makes_after_of_before(before: Manifest, after: Manifest) -> None:
    kept = deepcopy((before, after))
    assert applied(merge_patch(before, after), before) == after
    assert (before, after) == kept


@given(documents, documents)
def test_a_merge_patch_is_empty_where_nothing_changes_and_only_there(before: Manifest, after: Manifest) -> None:
    assert merge_patch(before, deepcopy(before)) == {}
    assert (merge_patch(before, after) == {}) == (before == after)


def test_a_merge_patch_says_nothing_of_what_stays() -> None:
    before = {"a": {"b": 1, "c": 2}, "d": [1, 2], "e": "gone"}
    assert merge_patch(before, {"a": {"b": 1, "c": 3}, "d": [1, 2]}) == {"a": {"c": 3}, "e": None}


def test_a_list_is_replaced_as_a_whole() -> None:
    assert merge_patch({"a": [{"b": 1}]}, {"a": [{"b": 1}, {"b": 2}]}) == {"a": [{"b": 1}, {"b": 2}]}


# --- a status that another version wrote, too -------------------------------------------------------------------------


def condition(kind: str, **fields: str) -> dict[str, str]:
    known = {"status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    return {"type": kind, **known, **fields}


BASTION = {"role": "Bastion", "host": "bastion.example.com", "port": 22}
KEY = {"key": "ssh-ed25519 AAAA", "fingerprint": "SHA256:AAAA"}
OWN = [condition(kind) for kind in ConditionType]
STRANGE = {"zone": "a", "more": {"deep": [1]}}


def written(raw: Manifest, after: Manifest) -> Any:
    """The status once `after` is written onto it."""
    return applied(status_patch(deepcopy(raw), after), deepcopy(raw))


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("conditions", {**condition("Ready"), "observedGeneration": 1}, condition("Ready", reason="Suspended")),
        ("hops", {**BASTION, "cipher": "aes128-ctr"}, {**BASTION, "active": True}),
        ("publicKeys", {**KEY, "use": "Next", "accepted": True}, {**KEY, "use": "Current"}),
    ],
)
def test_in_entries_of_lists_unknown_fields_stay_and_known_ones_are_as_decided(
    name: str, before: Manifest, after: Manifest
) -> None:
    assert written({name: [{**before, **STRANGE}]}, {name: [after]}) == {name: [{**after, **STRANGE}]}


def test_an_entry_takes_over_what_was_its_own_and_no_other_s() -> None:
    fallback = {**BASTION, "role": "Fallback"}
    raw = {"hops": [{**fallback, "zone": "b"}, {**BASTION, "zone": "a"}, {**BASTION, "port": 2222, "zone": "c"}]}
    new = {**BASTION, "host": "other.example.com"}

    after = written(raw, {"hops": [BASTION, new, fallback]})

    assert after == {"hops": [{**BASTION, "zone": "a"}, new, {**fallback, "zone": "b"}]}


def test_conditions_of_other_types_stay_as_they_are_as_far_as_there_is_room() -> None:
    others = [{**condition(f"Future{number}", status="Perhaps"), **STRANGE} for number in range(20)]
    raw = {"conditions": [*others[:10], *OWN[:5], *others[10:]]}

    assert written(raw, {"conditions": OWN}) == {"conditions": [*OWN, *others]}
    assert status_patch(raw, {"conditions": OWN}, 16) == {"conditions": [*OWN, *others[:8]]}


def test_a_status_that_is_as_decided_is_not_written_whatever_else_is_in_it() -> None:
    after: dict[str, list[dict[str, Any]]] = {
        "conditions": OWN,
        "hops": [BASTION],
        "publicKeys": [{**KEY, "use": "Current"}],
    }
    raw = {name: [{**one, **STRANGE} for one in entries] for name, entries in after.items()}
    raw["conditions"].insert(0, condition("Future"))

    assert status_patch({**raw, "future": 1}, after) == {}
    assert status_patch(None, after) == after
