"""What is known of objects when news comes late, twice, by several ways, or not at all."""

from typing import Any

from dbtunnel.controller.queue import TunnelKey
from dbtunnel.controller.store import Store, foreign_managers, trimmed, version
from dbtunnel.domain.children import Manifest

ORDERS, OTHER = TunnelKey("shop", "orders"), TunnelKey("shop", "other")


def pod(at: int, name: str = "pod", uid: str = "pod-uid", tunnel: str = "orders", namespace: str = "shop") -> Manifest:
    labels = {"dbtunnel.dev/tunnel": tunnel}
    metadata = {"namespace": namespace, "name": name, "uid": uid, "resourceVersion": str(at), "labels": labels}
    return {"metadata": metadata, "spec": {"containers": []}, "status": {"at": at}}


def tunnel(at: int, name: str = "orders", uid: str = "tunnel-uid") -> Manifest:
    return {"metadata": {"namespace": "shop", "name": name, "uid": uid, "resourceVersion": str(at)}}


def known(store: Store, name: str = "pod", namespace: str = "shop") -> int | None:
    """The version that is known of a pod."""
    live = store.get("Pod", namespace, name)
    return version(live) if live else None


def of_orders(store: Store) -> list[str]:
    return [key.name for key, _ in store.of_tunnel(ORDERS, "Pod")]


# --- news -------------------------------------------------------------------------------------------------------------


def test_news_is_of_the_tunnel_whose_label_the_object_bears() -> None:
    store = Store()
    assert store.put("Pod", pod(1)) == {ORDERS}
    assert store.put("DatabaseTunnel", tunnel(2)) == {ORDERS}
    assert store.tunnel(ORDERS) is not None
    assert of_orders(store) == ["pod"]


def test_what_is_heard_twice_or_late_is_no_news() -> None:
    store = Store()
    store.put("Pod", pod(5))
    assert store.put("Pod", pod(5)) == set()
    assert store.put("Pod", pod(4)) == set()
    assert known(store) == 5
    assert store.put("Pod", pod(6)) == {ORDERS}
    assert known(store) == 6


def test_versions_are_compared_as_numbers() -> None:
    store = Store()
    store.put("Pod", pod(9))
    assert store.put("Pod", pod(10)) == {ORDERS}


def test_objects_of_one_name_in_different_namespaces_and_kinds_are_different() -> None:
    store = Store()
    store.put("Pod", pod(5))
    assert store.put("Pod", pod(4, namespace="billing")) == {TunnelKey("billing", "orders")}
    assert store.put("Service", pod(3)) == {ORDERS}
    assert [key.kind for key, _ in store.of_tunnel(ORDERS, "Pod", "Service")] == ["Pod", "Service"]
    assert of_orders(store) == ["pod"]


def test_an_object_that_gets_another_tunnels_label_is_news_of_both() -> None:
    store = Store()
    store.put("Pod", pod(1))
    assert store.put("Pod", pod(2, tunnel="other")) == {ORDERS, OTHER}
    assert of_orders(store) == []
    assert [key.name for key, _ in store.of_tunnel(OTHER, "Pod")] == ["pod"]


def test_an_object_without_labels_belongs_to_no_tunnel() -> None:
    store = Store()
    bare = pod(1)
    bare["metadata"]["labels"] = None
    assert store.put("Pod", bare) == {TunnelKey("shop", "")}


# --- deletions --------------------------------------------------------------------------------------------------------


def test_a_deleted_object_is_forgotten_and_older_news_does_not_bring_it_back() -> None:
    store = Store()
    store.put("Pod", pod(5))
    assert store.remove("Pod", pod(6)) == {ORDERS}
    assert (known(store), of_orders(store)) == (None, [])
    assert store.put("Pod", pod(5)) == set()
    assert store.put("Pod", pod(6)) == set()
    assert known(store) is None


def test_a_deletion_that_is_heard_twice_or_of_an_unknown_object_is_no_news() -> None:
    store = Store()
    assert store.remove("Pod", pod(6)) == set()
    assert store.put("Pod", pod(5)) == set(), "the answer to a write came after the watch told of the deletion"


def test_an_object_that_comes_back_under_its_name_is_news() -> None:
    store = Store()
    store.put("Pod", pod(5))
    store.remove("Pod", pod(6))
    assert store.put("Pod", pod(7, uid="second")) == {ORDERS}
    assert store.remove("Pod", pod(6)) == set(), "the deletion was of the first one"
    assert known(store) == 7


def test_an_object_that_left_the_selector_and_returned_is_news() -> None:
    store = Store()
    store.put("Pod", pod(5))
    store.remove("Pod", pod(6))
    assert store.put("Pod", pod(8)) == {ORDERS}
    assert store.remove("Pod", pod(6)) == set(), "heard late, after it had returned"
    assert known(store) == 8


def test_what_is_remembered_of_deletions_is_bounded() -> None:
    store = Store()
    for number in range(10_001):
        store.remove("Pod", pod(6, uid=str(number)))
    assert store.put("Pod", pod(5, uid="0")) == {ORDERS}, "the first is forgotten"
    assert store.put("Pod", pod(5, "two", uid="10000")) == set(), "the last is not"


# --- lists ------------------------------------------------------------------------------------------------------------


def test_a_list_tells_of_what_was_missed() -> None:
    store = Store()
    for name, at in (("same", 1), ("changed", 2), ("gone", 3)):
        store.put("Pod", pod(at, name, uid=name, tunnel=name))
    listed = [
        pod(1, "same", uid="same", tunnel="same"),
        pod(9, "changed", uid="changed", tunnel="changed"),
        pod(8, "new", uid="new", tunnel="new"),
    ]
    assert store.replace("Pod", listed, at=10) == {TunnelKey("shop", name) for name in ("changed", "gone", "new")}
    assert store.get("Pod", "shop", "gone") is None


def test_what_became_known_after_the_list_was_made_stays() -> None:
    store = Store()
    store.put("Pod", pod(11))
    assert store.replace("Pod", [], at=10) == set()
    assert known(store) == 11


def test_an_old_list_does_not_undo_newer_news() -> None:
    store = Store()
    store.put("Pod", pod(11))
    assert store.replace("Pod", [pod(5)], at=10) == set()
    assert known(store) == 11


def test_what_a_list_no_longer_has_is_not_brought_back_by_older_news() -> None:
    store = Store()
    store.put("Pod", pod(5))
    store.replace("Pod", [], at=10)
    assert store.put("Pod", pod(6)) == set(), "the answer to a write that came late"
    store.remove("Pod", pod(7))
    assert store.put("Pod", pod(9)) == set(), "the watch's own word of the deletion is older than the list"
    assert store.put("Pod", pod(11)) == {ORDERS}


def test_a_list_says_nothing_of_other_kinds_and_namespaces() -> None:
    store = Store()
    store.put("Service", pod(1, "service"))
    store.put("Pod", pod(1, "elsewhere", namespace="billing"))
    assert store.replace("Pod", [], at=10, namespaces=["shop"]) == set()
    assert store.replace("Pod", [], at=10) == {TunnelKey("billing", "orders")}
    assert store.get("Service", "shop", "service") is not None


def test_a_list_that_shows_another_label_is_news_of_both_tunnels() -> None:
    store = Store()
    store.put("Pod", pod(1))
    assert store.replace("Pod", [pod(2, tunnel="other")], at=10) == {ORDERS, OTHER}


def test_everything_of_a_kind() -> None:
    store = Store()
    store.put("DatabaseTunnel", tunnel(1))
    store.put("DatabaseTunnel", tunnel(2, "other", "other-uid"))
    store.put("Pod", pod(3))
    assert [one["metadata"]["name"] for one in store.tunnels()] == ["orders", "other"]
    assert [one["metadata"]["name"] for one in store.of_kind("Pod")] == ["pod"]
    assert store.of_tunnel(TunnelKey("shop", "unknown"), "Pod") == []


# --- what is kept -----------------------------------------------------------------------------------------------------


def managed(manager: str, field: str = "f:spec") -> dict[str, Any]:
    return {"manager": manager, "fieldsV1": {field: {}}}


def test_who_else_wrote_to_a_spec_is_kept_and_nothing_else_of_managed_fields() -> None:
    entries = [
        managed("dbtunnel-operator"),
        managed("kubectl-edit"),
        managed("kube-controller-manager", "f:status"),
        {"manager": "bare"},
    ]
    document: Manifest = {"metadata": {"managedFields": entries}, "spec": {"a": 1}}
    assert foreign_managers(document) == ["kubectl-edit"]
    assert trimmed("Service", document) == {"metadata": {"managedFields": ["kubectl-edit"]}, "spec": {"a": 1}}
    assert document["metadata"]["managedFields"] is entries, "the watch's own object stays as it is"


def test_what_was_trimmed_once_can_be_trimmed_again() -> None:
    entry = {"manager": "kubectl-edit", "fieldsV1": {"f:spec": {}}}
    document = {**pod(1), "metadata": {**pod(1)["metadata"], "managedFields": [entry]}}
    assert trimmed("Service", trimmed("Service", document)) == trimmed("Service", document)
    assert trimmed("Service", document)["metadata"]["managedFields"] == ["kubectl-edit"]
    assert foreign_managers({"metadata": {}}) == []


def test_specifications_of_pods_are_not_kept() -> None:
    assert "spec" not in trimmed("Pod", pod(1))
    assert trimmed("Pod", pod(1))["status"] == {"at": 1}
