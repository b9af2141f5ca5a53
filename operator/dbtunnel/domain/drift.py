"""Whether an object is as wanted, and the document that makes it so.

An object is written whole, by PUT with the uid and resourceVersion that were read. Server-side apply would need a PUT
beside it: fields that the creating POST set stay when a later apply no longer has them, and a forced apply keeps the
containers, volumes and service accounts that others added.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from dbtunnel.api.base import ApiModel
from dbtunnel.api.status import Condition, DatabaseTunnelStatus, Hop, PublicKey, is_known
from dbtunnel.domain.children import Manifest, digest
from dbtunnel.domain.names import DESIRED_ANNOTATION, MANAGER

_ASSIGNED = ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy")
"""Fields of a Service's `spec` that the API server chose and that cannot be taken back."""


def signed(wanted: Manifest) -> Manifest:
    """`wanted` with the hash of itself, so that a restarted operator knows what it wrote."""
    metadata = wanted["metadata"]
    annotations = {**metadata["annotations"], DESIRED_ANNOTATION: digest(wanted)}
    return {**wanted, "metadata": {**metadata, "annotations": annotations}}


def is_as_wanted(live: Manifest, wanted: Manifest, answer: str | None) -> bool:
    """Whether `live` needs no write. `wanted` is signed.

    `answer` is the essence of what the API server made of `wanted` when it was written: defaults, normal forms and
    admission change it, and only another essence is somebody's edit. None: not known, after a restart; then `live` must
    have all that is wanted, and nobody else may have set anything in its `spec`.
    """
    if desired_hash(live) != desired_hash(wanted) or controller_uid(live) != controller_uid(wanted):
        return False
    if answer is not None:
        return essence(live, wanted) == answer
    return covers(live, {**wanted, "metadata": _compared(wanted["metadata"])}) and not live["metadata"]["managedFields"]


def essence(live: Manifest, wanted: Manifest) -> str:
    """Hash of the part of `live` that is the operator's to say: `spec`, and the labels and annotations it sets."""
    compared = {
        field: {key: (live["metadata"].get(field) or {}).get(key) for key in wanted["metadata"][field]}
        for field in ("labels", "annotations")
    }
    return digest({"spec": live.get("spec"), **compared})


def covers(live: Any, wanted: Any) -> bool:
    """Whether `live` has all that `wanted` has; mappings may have more, lists may not."""
    if isinstance(wanted, Mapping):
        return isinstance(live or {}, Mapping) and all(
            covers((live or {}).get(key), value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        given = live or []
        return isinstance(given, list) and len(given) == len(wanted) and all(map(covers, given, wanted))
    return bool(live == wanted) or (live is not None and not isinstance(wanted, bool) and str(live) == str(wanted))


def replacement(live: Manifest, wanted: Manifest) -> Manifest:
    """`live` made as wanted: `spec` exactly; labels, annotations and owners of others are kept."""
    metadata = live["metadata"]
    owners = [owner for owner in metadata.get("ownerReferences") or () if not owner.get("controller")]
    merged = {
        **{key: value for key, value in metadata.items() if key != "managedFields"},
        "labels": _others(live, "labels") | wanted["metadata"]["labels"],
        "annotations": _others(live, "annotations") | wanted["metadata"]["annotations"],
        "ownerReferences": [*owners, *wanted["metadata"]["ownerReferences"]],
    }
    kept = {key: value for key, value in live.get("spec", {}).items() if key in _ASSIGNED}
    return {**wanted, "metadata": merged, "spec": {**kept, **wanted["spec"]}}


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> Manifest:
    """The JSON Merge Patch (RFC 7396) that makes `after` of `before`; empty where they are equal."""
    patch: Manifest = {key: None for key in before if key not in after}
    for key, value in after.items():
        known = before.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            inner = merge_patch(known, value)
            patch |= {key: inner} if inner else {}
        elif known != value:
            patch[key] = value
    return patch


_ENTRIES: Mapping[str, tuple[type[ApiModel], tuple[str, ...]]] = {
    "conditions": (Condition, ("type",)),
    "hops": (Hop, ("role", "host", "port")),
    "publicKeys": (PublicKey, ("fingerprint",)),
}
"""The lists of objects in a status, and the fields that tell which entry is which."""


def status_patch(
    raw: Mapping[str, Any] | None, after: Mapping[str, Any], most_conditions: int | None = None
) -> Manifest:
    """The JSON Merge Patch that makes `after` of a status, as it was read; empty where they are equal.

    What another version wrote stays: in fields that this one does not know, within entries of lists, too, and in
    conditions of other types, the last of which go where there are more than `most_conditions`.
    """
    found = raw or {}
    patch = merge_patch(DatabaseTunnelStatus.known(found).document(), after)
    for name in _ENTRIES:
        if patch.get(name):
            patch[name] = [_overlaid(name, found.get(name) or (), one) for one in patch[name]]
    if patch.get("conditions"):
        others = (one for one in found.get("conditions") or () if not is_known(one))
        patch["conditions"] = [*patch["conditions"], *others][:most_conditions]
    return patch


def _overlaid(name: str, raw: Iterable[Mapping[str, Any]], entry: Manifest) -> Manifest:
    """An entry with the fields of its earlier version that are not known here."""
    model, keys = _ENTRIES[name]
    known = {field.alias for field in model.model_fields.values()}
    before = next((one for one in raw if all(one.get(key) == entry.get(key) for key in keys)), {})
    return {**entry, **{field: value for field, value in before.items() if field not in known}}


def desired_hash(manifest: Manifest) -> str | None:
    """The hash that the operator wrote on a child."""
    annotation: str | None = (manifest["metadata"].get("annotations") or {}).get(DESIRED_ANNOTATION)
    return annotation


def controller_uid(manifest: Manifest) -> str | None:
    """The uid of the controlling owner; None for an orphan."""
    owners = manifest["metadata"].get("ownerReferences") or ()
    return next((str(owner["uid"]) for owner in owners if owner.get("controller")), None)


def _compared(metadata: Manifest) -> Manifest:
    return {"labels": metadata["labels"], "annotations": metadata["annotations"]}


def _others(live: Manifest, field: str) -> dict[str, str]:
    """Labels or annotations that the operator never set; what it set and no longer wants is not among them."""
    ours = _owned_keys(live, field)
    given: Mapping[str, str] = live["metadata"].get(field) or {}
    return {key: value for key, value in given.items() if key not in ours}


def _owned_keys(live: Manifest, field: str) -> set[str]:
    owned: set[str] = set()
    for entry in live["metadata"].get("managedFields") or ():
        if entry.get("manager") == MANAGER and not entry.get("subresource"):
            fields = entry.get("fieldsV1", {}).get("f:metadata", {}).get(f"f:{field}", {})
            owned |= {name.removeprefix("f:") for name in fields}
    return owned
