"""What waits for its turn when the installer changes what the tunnels' pods are, and what does not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from dbtunnel.controller.queue import TunnelKey
from dbtunnel.domain.children import build_deployment
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.settings import Installation
from tests.support.values import INSTALLATION, changed
from tests.support.world import ORDERS, World, settled

NEXT = replace(INSTALLATION, forwarder_image="example.com/next")
CONTAINER = "spec.template.spec.containers"


async def while_another_rolls(changes: Mapping[str, Any], installation: Installation) -> World:
    """A tunnel after the installer has changed something, while it is not the tunnel's turn."""
    world = await settled()
    deployment = world.store.get("Deployment", "shop", "orders-tunnel") or {}
    world.cluster.put("Deployment", changed(deployment, changes))
    world.rollouts.installation_for(TunnelKey("shop", "other"), deployment, NEXT)
    world.reconciler = world.reconciler_with(installation)
    assert await world.reconcile(10) in (5, None)
    return world


def forwarder_of(world: World) -> Mapping[str, Any]:
    written = world.store.get("Deployment", "shop", "orders-tunnel") or {}
    container: Mapping[str, Any] = written["spec"]["template"]["spec"]["containers"][0]
    return container


async def image_while_another_rolls(changes: Mapping[str, Any]) -> str:
    return str(forwarder_of(await while_another_rolls(changes, NEXT))["image"])


def containers_of(installation: Installation) -> list[Mapping[str, Any]]:
    built = build_deployment(ORDERS, installation)
    containers: list[Mapping[str, Any]] = built["spec"]["template"]["spec"]["containers"]
    return containers


async def test_a_tunnel_keeps_its_image_until_it_is_its_turn() -> None:
    assert await image_while_another_rolls({}) == INSTALLATION.forwarder_image


async def test_an_image_that_somebody_else_set_is_not_kept_until_then() -> None:
    edited = build_deployment(ORDERS, replace(INSTALLATION, forwarder_image="example.com/edited"))
    containers = edited["spec"]["template"]["spec"]["containers"]
    edit = {CONTAINER: containers, "metadata.managedFields": ["kubectl-edit"]}
    assert await image_while_another_rolls(edit) == NEXT.forwarder_image


CHANGES = [
    replace(INSTALLATION, forwarder_log_level="DEBUG"),
    replace(NEXT, forwarder_log_level="DEBUG"),
    replace(NEXT, defaults=replace(INSTALLATION.defaults, keepalive_count_max=9)),
]


@pytest.mark.parametrize("installation", CHANGES)
async def test_whatever_else_the_installer_changes_waits_for_its_turn_too(installation: Installation) -> None:
    before = forwarder_of(await settled())
    world = await while_another_rolls({}, installation)
    assert forwarder_of(world) == before
    assert {target.uid for target in world.forwarders.targets} == {"pod-1"}
    config_hash = forwarder_config(ORDERS, INSTALLATION.defaults).digest()
    assert {target.config_hash for target in world.forwarders.targets} == {config_hash}
    assert world.condition("Ready") == ("True", "Succeeded"), "what runs is told of, not what will"
    world.rollouts.installation_for(TunnelKey("shop", "other"), None, installation)
    await world.reconcile(15)
    assert forwarder_of(world) == containers_of(installation)[0]


async def test_a_deployment_that_does_not_say_what_it_was_written_for_waits() -> None:
    world = await while_another_rolls({"metadata.annotations": {}}, CHANGES[0])
    assert forwarder_of(world)["args"] == ["forward"]


@pytest.mark.parametrize("edit", [{"spec.template.metadata.labels": {}}, {CONTAINER: [{"name": "other"}]}])
async def test_a_template_that_is_not_the_operators_does_not_wait(edit: Mapping[str, Any]) -> None:
    world = await while_another_rolls(edit, CHANGES[0])
    assert "--log-level=debug" in forwarder_of(world)["args"]


async def test_what_the_tunnels_owner_changes_does_not_wait() -> None:
    world = await while_another_rolls({"metadata.annotations": {"dbtunnel.dev/generation": "2"}}, CHANGES[0])
    assert "--log-level=debug" in forwarder_of(world)["args"]
