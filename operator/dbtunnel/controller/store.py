"""What the operator knows of the cluster's objects, from watches, lists and the answers to its own writes."""

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Mapping
from sys import intern
from typing import Any, NamedTuple

from dbtunnel.api.resource import KIND
from dbtunnel.controller.queue import TunnelKey
from dbtunnel.domain.children import Manifest
from dbtunnel.domain.names import MANAGER, TUNNEL_LABEL

_REMEMBERED_DELETIONS = 10_000

_WORD = 64
"""Characters up to which a value may well be in other documents too."""


class ObjectKey(NamedTuple):
    """Which object."""

    kind: str
    namespace: str
    name: str


class Store:
    """The latest version of each object, by resourceVersion: news may come late and twice, by several ways."""

    def __init__(self) -> None:
        self._objects: dict[ObjectKey, Manifest] = {}
        self._of_tunnel: dict[TunnelKey, set[ObjectKey]] = defaultdict(set)
        self._deleted: OrderedDict[str, int] = OrderedDict()
        """Version at which an object with this uid left, so that older news does not bring it back."""

    def put(self, kind: str, manifest: Mapping[str, Any]) -> set[TunnelKey]:
        """Takes a version of an object in. Returns its tunnel, none where the version is not news.

        Where the object bore another tunnel's label before, that tunnel as well: it has lost a child.
        """
        key, metadata = _key(kind, manifest), manifest["metadata"]
        known = self._objects.get(key)
        if version(manifest) <= self._deleted.get(metadata["uid"], 0):
            return set()
        if known and version(manifest) <= version(known):
            return set()
        concerned = {_tunnel_key(kind, manifest)}
        if known:
            concerned.add(self._drop(key))
        self._objects[key] = trimmed(kind, manifest)
        self._of_tunnel[_tunnel_key(kind, manifest)].add(key)
        return concerned

    def remove(self, kind: str, manifest: Mapping[str, Any]) -> set[TunnelKey]:
        """Forgets an object that was deleted, or left the selector. Returns its tunnel, none where it is no news."""
        key, uid = _key(kind, manifest), manifest["metadata"]["uid"]
        self._bury(uid, version(manifest))
        known = self._objects.get(key)
        if known is None or known["metadata"]["uid"] != uid or version(known) > version(manifest):
            return set()
        return {self._drop(key)}

    def replace(
        self, kind: str, manifests: Iterable[Mapping[str, Any]], at: int, namespaces: Collection[str] = ()
    ) -> set[TunnelKey]:
        """Takes a complete list in, made at version `at`. Returns the tunnels whose objects differ from what was known.

        What is known, not listed and not newer than the list has gone: a watch that begins anew does not say so.
        """
        listed = {_key(kind, manifest): manifest for manifest in manifests}
        changed = {tunnel for manifest in listed.values() for tunnel in self.put(kind, manifest)}
        for key, known in list(self._objects.items()):
            in_scope = key.kind == kind and (not namespaces or key.namespace in namespaces)
            if in_scope and key not in listed and version(known) <= at:
                self._bury(known["metadata"]["uid"], at)
                changed.add(self._drop(key))
        return changed

    def get(self, kind: str, namespace: str, name: str) -> Manifest | None:
        """An object, if known."""
        return self._objects.get(ObjectKey(kind, namespace, name))

    def tunnel(self, key: TunnelKey) -> Manifest | None:
        """The tunnel itself."""
        return self.get(KIND, *key)

    def of_tunnel(self, key: TunnelKey, *kinds: str) -> list[tuple[ObjectKey, Manifest]]:
        """Objects of these kinds that bear the tunnel's label, by name."""
        wanted = sorted(one for one in self._of_tunnel.get(key, ()) if one.kind in kinds)
        return [(one, self._objects[one]) for one in wanted]

    def tunnels(self) -> list[Manifest]:
        """Every tunnel."""
        return [manifest for key, manifest in self._objects.items() if key.kind == KIND]

    def of_kind(self, kind: str) -> list[Manifest]:
        """Every object of a kind."""
        return [manifest for key, manifest in self._objects.items() if key.kind == kind]

    def _bury(self, uid: str, at: int) -> None:
        self._deleted[uid] = max(at, self._deleted.get(uid, 0))
        while len(self._deleted) > _REMEMBERED_DELETIONS:
            self._deleted.popitem(last=False)

    def _drop(self, key: ObjectKey) -> TunnelKey:
        tunnel = _tunnel_key(key.kind, self._objects.pop(key))
        self._of_tunnel[tunnel].discard(key)
        if not self._of_tunnel[tunnel]:
            del self._of_tunnel[tunnel]
        return tunnel


def version(manifest: Mapping[str, Any]) -> int:
    """The resourceVersion; those of one kind are ordered as integers (KEP-5504, from Kubernetes 1.35 by contract)."""
    return int(manifest["metadata"].get("resourceVersion") or 0)


def trimmed(kind: str, manifest: Mapping[str, Any]) -> Manifest:
    """The part that decisions use; a thousand tunnels' managedFields and pod specifications are tens of megabytes."""
    metadata = {**manifest["metadata"], "managedFields": foreign_managers(manifest)}
    kept: Manifest = _shared({**manifest, "metadata": metadata})
    if kind == "Pod":
        kept.pop("spec", None)
    return kept


def _shared(value: Any) -> Any:
    """A copy whose words are the same objects wherever they stand: each parsed document has its own of every key."""
    if isinstance(value, dict):
        return {intern(key): _shared(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_shared(inner) for inner in value]
    return intern(value) if isinstance(value, str) and len(value) <= _WORD else value


def foreign_managers(manifest: Mapping[str, Any]) -> list[str]:
    """Who else than the operator set something in `spec`, by managedFields; names are of an earlier trimming."""
    entries = manifest["metadata"].get("managedFields") or ()
    return [entry if isinstance(entry, str) else entry["manager"] for entry in entries if _is_foreign(entry)]


def _is_foreign(entry: str | Mapping[str, Any]) -> bool:
    return isinstance(entry, str) or (entry.get("manager") != MANAGER and "f:spec" in entry.get("fieldsV1", {}))


def _key(kind: str, manifest: Mapping[str, Any]) -> ObjectKey:
    return ObjectKey(kind, manifest["metadata"]["namespace"], manifest["metadata"]["name"])


def _tunnel_key(kind: str, manifest: Mapping[str, Any]) -> TunnelKey:
    metadata = manifest["metadata"]
    name = metadata["name"] if kind == KIND else (metadata.get("labels") or {}).get(TUNNEL_LABEL, "")
    return TunnelKey(metadata["namespace"], name)
