"""The Secrets that the operator makes: what is in a binding, when it is made, and that nothing is asked for twice."""

import re
from typing import Any

import pytest

from dbtunnel.api.engines import Engine
from dbtunnel.api.reasons import Reason
from dbtunnel.domain.observed import Problem
from dbtunnel.domain.secrets import build_binding
from tests.support.generated import ROOT
from tests.support.values import tunnel
from tests.support.world import World, settled

ENABLED = {"spec.serviceBinding": "Enabled"}


def binding(changes: dict[str, Any] | None = None) -> dict[str, Any]:
    made = build_binding(tunnel({"serviceBinding": "Enabled", **(changes or {})}))
    assert made
    return made


@pytest.mark.parametrize(
    ("engine", "kind", "port"),
    [
        (Engine.POSTGRESQL, "postgresql", "5432"),
        (Engine.ALLOYDB, "postgresql", "5432"),
        (Engine.REDSHIFT, "redshift", "5439"),
        (Engine.MYSQL, "mysql", "3306"),
    ],
)
def test_a_binding_says_where_the_database_is_and_nothing_secret(engine: Engine, kind: str, port: str) -> None:
    secret = binding({"engine": engine.value})
    assert secret["stringData"] == {
        "type": kind,
        "provider": "dbtunnel",
        "host": "orders.shop.svc",
        "port": port,
        "tls-server-name": "orders.internal",
    }
    assert secret["type"] == f"servicebinding.io/{kind}"


def test_a_binding_goes_with_its_tunnel_and_cannot_be_edited() -> None:
    secret = binding()
    assert [owner["uid"] for owner in secret["metadata"]["ownerReferences"]] == ["tunnel-uid"]
    assert secret["immutable"] is True


def test_its_name_follows_what_is_in_it_and_whose_it_is() -> None:
    name = binding()["metadata"]["name"]
    assert name.startswith("orders-binding-")
    assert name == binding({"replicas": 3, "tunnel.port": 2222})["metadata"]["name"]
    others: list[dict[str, Any]] = [
        {"service": {"name": "orders-db"}},
        {"service": {"port": 6543}},
        {"engine": "Redshift"},
    ]
    assert len({name, *(binding(changes)["metadata"]["name"] for changes in others)}) == 4
    again = tunnel({"serviceBinding": "Enabled"})
    again = again.model_copy(update={"metadata": again.metadata.model_copy(update={"uid": "another"})})
    assert (build_binding(again) or {})["metadata"]["name"] != name


def test_the_page_tells_every_key_of_it() -> None:
    text = (ROOT / "docs/existing-connections.md").read_text()
    told = dict(re.findall(r"^\| `([\w-]+)` \| `([^`]+)` \|", text, re.MULTILINE))
    assert told == binding()["stringData"]


def made(world: World) -> list[str]:
    return [done for done in world.cluster.done if "binding" in done]


async def test_nothing_is_made_and_told_where_it_is_not_asked_for() -> None:
    world = await settled()
    assert [secret["metadata"]["name"] for secret in world.cluster.secrets] == ["orders-ssh"]
    assert "binding" not in world.status


async def test_it_is_made_before_the_status_names_it_and_not_again_at_once() -> None:
    world = await settled(ENABLED)
    name = world.cluster.secrets[1]["metadata"]["name"]
    assert world.status["binding"] == {"name": name}
    for seconds in (1, 599):
        await world.reconcile(seconds)
        assert made(world) == []
    await world.reconcile(601)
    assert made(world) == [f"create {name}"]
    assert "status" not in world.cluster.done


async def test_one_that_is_refused_is_told_and_not_named() -> None:
    world = World({**ENABLED, "spec.tunnel.keySecretRef": {"name": "bastion-key"}})
    world.cluster.secret_problem = Problem(Reason.QUOTA_EXCEEDED, "Secret: exceeded quota")
    await world.reconcile()
    assert world.condition("Ready") == ("False", "QuotaExceeded")
    assert "binding" not in world.status
    world.cluster.secret_problem = None
    await world.reconcile(1)
    assert len(made(world)) == 1
    assert world.status["binding"]["name"] == world.cluster.secrets[-1]["metadata"]["name"]
