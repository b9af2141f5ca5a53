"""At most a few tunnels roll at once when the installer changes their pods."""

from dataclasses import replace
from typing import Any

import pytest

from dbtunnel.controller.queue import TunnelKey
from dbtunnel.controller.rollouts import Rollouts
from dbtunnel.domain.children import Manifest
from tests.support.values import INSTALLATION, changed

OLD, NEW = "registry.example/dbtunnel:0", INSTALLATION.forwarder_image
KEYS = [TunnelKey("shop", str(number)) for number in range(4)]
LONGEST = 60


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def deployment(image: str = OLD, changes: dict[str, Any] | None = None) -> Manifest:
    """A Deployment of two replicas that is complete."""
    containers = [{"name": "injected", "image": "mesh"}, {"name": "forwarder", "image": image}]
    complete = {"observedGeneration": 4, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
    whole = {
        "metadata": {"namespace": "shop", "labels": {"dbtunnel.dev/tunnel": "0"}, "generation": 4},
        "spec": {"replicas": 2, "template": {"spec": {"containers": containers}}},
        "status": complete,
    }
    return changed(whole, changes or {})


def test_a_new_tunnel_gets_the_wanted_image_at_once() -> None:
    rollouts = Rollouts(0, Clock())
    assert rollouts.installation_for(KEYS[0], None, INSTALLATION) is INSTALLATION


def test_a_tunnel_with_the_wanted_image_gets_what_else_changed_at_once() -> None:
    rollouts = Rollouts(0, Clock())
    assert rollouts.installation_for(KEYS[0], deployment(NEW), INSTALLATION) is INSTALLATION


def test_only_so_many_tunnels_roll_at_once_and_the_others_keep_their_image() -> None:
    rollouts = Rollouts(2, Clock())
    images = [rollouts.installation_for(key, deployment(), INSTALLATION).forwarder_image for key in KEYS]
    assert images == [NEW, NEW, OLD, OLD]


def test_a_tunnel_that_waits_differs_in_nothing_but_the_image() -> None:
    given = Rollouts(0, Clock()).installation_for(KEYS[0], deployment(), INSTALLATION)
    assert given == replace(INSTALLATION, forwarder_image=OLD)


def test_a_tunnel_that_may_roll_may_go_on() -> None:
    rollouts = Rollouts(1, Clock())
    for _ in range(3):
        assert rollouts.installation_for(KEYS[0], deployment(), INSTALLATION) is INSTALLATION
    assert rollouts.installation_for(KEYS[1], deployment(), INSTALLATION) is not INSTALLATION


@pytest.mark.parametrize(
    "unfinished",
    [
        {"status.observedGeneration": 3},
        {"status.updatedReplicas": 1},
        {"status.availableReplicas": 1},
        {"status.replicas": 3},
        {"status": {}},
    ],
)
def test_the_next_one_rolls_when_the_one_before_is_complete(unfinished: dict[str, Any]) -> None:
    rollouts = Rollouts(1, Clock())
    rollouts.installation_for(KEYS[0], deployment(), INSTALLATION)
    rollouts.installation_for(KEYS[0], deployment(NEW, unfinished), INSTALLATION)
    assert rollouts.installation_for(KEYS[1], deployment(), INSTALLATION).forwarder_image == OLD
    rollouts.installation_for(KEYS[0], deployment(NEW), INSTALLATION)
    assert rollouts.installation_for(KEYS[1], deployment(), INSTALLATION).forwarder_image == NEW


@pytest.mark.parametrize(
    "half",
    [
        {"status": {"observedGeneration": 3, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}},
        {"status": {"observedGeneration": 4, "replicas": 2, "availableReplicas": 2}},
        {"status": {"observedGeneration": 4, "replicas": 3, "updatedReplicas": 1, "availableReplicas": 2}},
        {"status": {"observedGeneration": 4, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3}},
    ],
)
def test_what_an_earlier_operator_left_half_rolled_goes_first(half: dict[str, Any]) -> None:
    clock = Clock()
    left = [deployment(NEW, half)]
    rollouts = Rollouts(1, clock, lambda: left)
    assert rollouts.installation_for(KEYS[1], deployment(), INSTALLATION).forwarder_image == OLD
    clock.now += LONGEST - 1
    assert rollouts.installation_for(KEYS[1], deployment(), INSTALLATION).forwarder_image == OLD
    rollouts.installation_for(KEYS[0], deployment(NEW), INSTALLATION)
    assert rollouts.installation_for(KEYS[1], deployment(), INSTALLATION).forwarder_image == NEW


def test_what_an_earlier_operator_left_half_rolled_keeps_the_others_waiting_for_a_while_only() -> None:
    clock = Clock()
    rollouts = Rollouts(1, clock, lambda: [deployment(NEW, {"status.updatedReplicas": 1})])
    assert rollouts.installation_for(KEYS[1], deployment(), INSTALLATION).forwarder_image == OLD
    clock.now += LONGEST
    assert rollouts.installation_for(KEYS[1], deployment(), INSTALLATION).forwarder_image == NEW


@pytest.mark.parametrize(
    "other",
    [
        deployment(NEW),
        deployment(NEW, {"status.availableReplicas": 0}),
        deployment(NEW, {"status": {}}),
        deployment(OLD, {"status.updatedReplicas": 1}),
    ],
)
def test_what_is_new_or_does_not_work_or_rolls_for_its_owner_is_not_half_rolled(other: Manifest) -> None:
    rollouts = Rollouts(1, Clock(), lambda: [other])
    assert rollouts.installation_for(KEYS[1], deployment(), INSTALLATION) is INSTALLATION


def test_a_suspended_tunnel_is_complete_without_pods() -> None:
    rollouts = Rollouts(1, Clock())
    rollouts.installation_for(KEYS[0], deployment(), INSTALLATION)
    suspended = deployment(NEW, {"spec.replicas": 0, "status": {"observedGeneration": 4}})
    rollouts.installation_for(KEYS[0], suspended, INSTALLATION)
    assert rollouts.installation_for(KEYS[1], deployment(), INSTALLATION) is INSTALLATION


def test_a_tunnel_that_is_deleted_makes_way() -> None:
    rollouts = Rollouts(1, Clock())
    rollouts.installation_for(KEYS[0], deployment(), INSTALLATION)
    rollouts.installation_for(KEYS[0], None, INSTALLATION)
    assert rollouts.installation_for(KEYS[1], deployment(), INSTALLATION) is INSTALLATION


def test_a_tunnel_that_never_becomes_available_keeps_the_others_waiting_for_a_while_only() -> None:
    clock = Clock()
    rollouts = Rollouts(1, clock)
    rollouts.installation_for(KEYS[0], deployment(), INSTALLATION)
    stuck = deployment(NEW, {"status.availableReplicas": 1})
    clock.now += LONGEST - 1
    rollouts.installation_for(KEYS[0], stuck, INSTALLATION)
    assert rollouts.installation_for(KEYS[1], deployment(), INSTALLATION).forwarder_image == OLD
    clock.now += 1
    assert rollouts.installation_for(KEYS[1], deployment(), INSTALLATION).forwarder_image == NEW


def test_a_deployment_without_our_container_is_repaired_at_once() -> None:
    broken = deployment(changes={"spec.template.spec.containers": [{"name": "other", "image": "x"}]})
    empty = deployment(changes={"spec.template.spec.containers": None})
    for one in (broken, empty):
        assert Rollouts(0, Clock()).installation_for(KEYS[0], one, INSTALLATION) is INSTALLATION
