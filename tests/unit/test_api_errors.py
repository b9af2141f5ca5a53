"""What is made of an answer that is no success, whoever wrote it: the API server, a proxy in between, a pod."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.controller.client import DEPLOYMENT, NETWORK_POLICY, POD, SERVICE, TUNNEL, ApiError, Kind


def error(body: Any, status: int = 409) -> tuple[str, str, list[str]]:
    found = ApiError.of(status, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert found.status == status
    return found.reason, found.message, list(found.causes)


def test_a_status_of_the_api_server() -> None:
    details = {"causes": [{"reason": "FieldValueInvalid", "message": "x"}, {"reason": "NamespaceTerminating"}]}
    status = {"kind": "Status", "reason": "AlreadyExists", "message": 'services "orders" exists', "details": details}
    assert error(status) == (
        "AlreadyExists",
        'services "orders" exists',
        ["FieldValueInvalid", "NamespaceTerminating"],
    )
    assert str(ApiError.of(409, json.dumps(status).encode())) == '409 AlreadyExists: services "orders" exists'


@pytest.mark.parametrize("details", [None, {}, {"causes": None}, {"causes": []}])
def test_a_status_without_causes(details: Any) -> None:
    assert error({"reason": "Conflict", "message": "m", "details": details}) == ("Conflict", "m", [])


def test_a_status_without_a_reason() -> None:
    assert error({"kind": "Status", "message": "failed to create typed object"}, 500) == (
        "",
        "failed to create typed object",
        [],
    )


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"502 Bad Gateway",
        b"<html>",
        b"null",
        b"[]",
        b"1",
        b"{}",
        b'{"message": null}',
        b'{"message": 7}',
        b'{"error": "unavailable"}',
        b'{"reason": "Conflict"}',
        b'{"message": "m", "details": "text"}',
        b'{"message": "m", "details": {"causes": 7}}',
        b'{"message": "m", "details": {"causes": [1]}}',
        b"[" * 100_000,
    ],
)
def test_an_answer_of_somebody_else_is_its_own_message(body: bytes) -> None:
    assert error(body, 502) == ("", body[:1000].decode(), [])


def test_a_message_is_bounded_and_need_not_be_text() -> None:
    assert error(b"\xff\xfe") == ("", "��", [])
    assert len(error({"reason": "x", "message": "y" * 10_000})[1]) == 1000
    assert len(error(b"z" * 10_000)[1]) == 1000


@given(st.recursive(st.none() | st.booleans() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=2)))
def test_no_causes_break_it(causes: Any) -> None:
    reason, message, _ = error({"reason": "Conflict", "message": "m", "details": {"causes": causes}})
    assert (reason, message) == ("Conflict", "m") or (reason == "" and message.startswith("{"))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (TUNNEL.path(), "/apis/dbtunnel.dev/v1alpha1/databasetunnels"),
        (
            TUNNEL.path("shop", "orders", "status"),
            "/apis/dbtunnel.dev/v1alpha1/namespaces/shop/databasetunnels/orders/status",
        ),
        (SERVICE.path("shop"), "/api/v1/namespaces/shop/services"),
        (DEPLOYMENT.path("shop", "orders"), "/apis/apps/v1/namespaces/shop/deployments/orders"),
        (
            POD.path("shop", "a:8080", "proxy/status?after=1"),
            "/api/v1/namespaces/shop/pods/a:8080/proxy/status?after=1",
        ),
    ],
)
def test_where_objects_are(path: str, expected: str) -> None:
    assert path == expected


def test_groups() -> None:
    groups = {kind: kind.group for kind in (TUNNEL, SERVICE, NETWORK_POLICY)}
    assert groups == {TUNNEL: "dbtunnel.dev", SERVICE: "", NETWORK_POLICY: "networking.k8s.io"}
    assert Kind("X", "a.b/v1", "xs").group == "a.b"
