"""Names and labels, letter by letter: a change would orphan what runs."""

import pytest

from dbtunnel.domain import names
from tests.support.values import tunnel


def test_names_and_labels_never_change() -> None:
    orders = tunnel()
    assert names.service_name(orders) == "orders"
    assert names.workload_name(orders) == "orders-tunnel"
    assert names.key_secret_name(orders) == "orders-ssh"
    assert names.endpoint_host(orders) == "orders.shop.svc"
    assert names.key_comment(orders) == "shop/orders"
    assert names.selector_labels(orders) == {
        "app.kubernetes.io/name": "dbtunnel-forwarder",
        "dbtunnel.dev/tunnel": "orders",
    }
    assert names.child_labels(orders) == {
        "app.kubernetes.io/name": "dbtunnel-forwarder",
        "app.kubernetes.io/managed-by": "dbtunnel-operator",
        "dbtunnel.dev/tunnel": "orders",
    }
    assert names.CHILD_SELECTOR == "app.kubernetes.io/managed-by=dbtunnel-operator,dbtunnel.dev/tunnel"
    assert names.REVISION_LABEL == "dbtunnel.dev/revision"
    assert names.DESIRED_ANNOTATION == "dbtunnel.dev/desired"
    assert names.GENERATION_ANNOTATION == "dbtunnel.dev/generation"
    assert names.REFRESH_ANNOTATION == "dbtunnel.dev/mount-refresh"


def test_given_names_are_used() -> None:
    given = tunnel({"service.name": "orders-db", "tunnel.keySecretRef.name": "bastion-key"})
    assert names.service_name(given) == "orders-db"
    assert names.endpoint_host(given) == "orders-db.shop.svc"
    assert names.key_secret_name(given) == "bastion-key"
    assert names.workload_name(given) == "orders-tunnel"


@pytest.mark.parametrize("length", [1, 63])
def test_a_name_that_the_api_takes_makes_names_that_it_takes(length: int) -> None:
    one = tunnel().model_copy(update={"metadata": tunnel().metadata.model_copy(update={"name": "a" * length})})
    assert len(names.service_name(one)) <= 63
    assert all(len(value) <= 63 for value in names.child_labels(one).values())
    assert len(names.workload_name(one)) <= 253
