"""helm upgrades the chart and rolls it back under twenty tunnels at work."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.clients import Endpoint
from tests.support.cluster import Cluster
from tests.support.fleet import FleetClients, FleetOutcome, Rolling, start_tunnels
from tests.support.images import OPERATOR
from tests.support.installation import (
    image_reference,
    install_operator,
    provide_next_image,
    roll_back_operator,
)
from tests.support.pages import follow

TUNNELS = tuple(f"fleet-{number:02}" for number in range(20))

AT_ONCE = 4
"""`settings.rollouts` by default."""

LAG_SECONDS = 10
"""Of endpoints after pods, at most. The default of `drain.minSeconds` is too little for a busy machine on which 40 pods
are replaced in a minute."""

POLICIES = "admissionPolicies.operator.enabled=true"


@dataclass(frozen=True)
class Fleet:
    """Tunnels at work, whose forwarders' image is pinned, and the images of two versions."""

    cluster: Cluster
    namespace: str
    endpoints: list[Endpoint]
    image: str
    next_image: str

    def install(self, image: str, forwarder: str) -> None:
        """Upgrades the release."""
        tag = forwarder.rpartition(":")[2]
        install_operator(self.cluster, image, f"forwarder.image.tag={tag}", POLICIES)

    def pods(self) -> dict[str, str]:
        """uid of each pod that is not ending, by name."""
        listed = self.cluster.get("pods", "-n", self.namespace, "-l", "dbtunnel.dev/tunnel")["items"]
        found = [one["metadata"] for one in listed if "deletionTimestamp" not in one["metadata"]]
        return {one["name"]: one["uid"] for one in found}

    def failures(self) -> set[str]:
        """The reasons for which tunnels were not Ready for a while."""
        listed = self.cluster.get("databasetunnels", "-n", self.namespace)["items"]
        return {one["status"].get("lastFailure", {}).get("reason", "none") for one in listed}

    def clients(self) -> FleetClients:
        return FleetClients(self.cluster, self.namespace, self.endpoints)


@pytest.fixture(scope="module")
def fleet(installed: Cluster, shop: str) -> Iterator[Fleet]:
    """The operator is bound by its admission policies, too."""
    image = image_reference(OPERATOR)
    next_image = provide_next_image(installed)
    try:
        Fleet(installed, shop, [], image, next_image).install(image, image)
        endpoints = start_tunnels(installed, shop, TUNNELS, drain={"minSeconds": LAG_SECONDS})
        yield Fleet(installed, shop, endpoints, image, next_image)
    finally:
        install_operator(installed, image)


def told(what: str, outcome: FleetOutcome, seconds: float) -> str:
    return (
        f"\n{what}, {len(TUNNELS)} tunnels, {seconds:.1f} s: {outcome.served} new connections served, "
        f"{len(outcome.failed)} failed; of {outcome.held} sessions {len(outcome.cut)} ended"
    )


def test_an_upgrade_of_the_operator_and_back_cuts_no_session(fleet: Fleet, tmp_path: Path) -> None:
    before, began = fleet.pods(), time.monotonic()

    with fleet.clients() as clients:
        tag = fleet.next_image.rpartition(":")[2]
        printed = follow("installation", fleet.cluster, "", tmp_path, "rollback", TAG=tag)

    assert "has been upgraded" in printed
    assert "Rollback was a success" in printed
    outcome = clients.outcome
    print(told("operator upgraded and rolled back", outcome, time.monotonic() - began))
    assert fleet.pods() == before
    assert (outcome.failed, outcome.cut) == ([], [])
    assert outcome.held == len(TUNNELS)
    assert outcome.served > len(TUNNELS)


def test_another_forwarder_image_rolls_a_few_tunnels_at_a_time_and_fails_nobody(fleet: Fleet) -> None:
    before, began = fleet.pods(), time.monotonic()

    with fleet.clients() as clients, Rolling(fleet.cluster, fleet.namespace) as rolling:
        fleet.install(fleet.image, forwarder=fleet.next_image)
        rolling.wait_for_image(fleet.next_image, len(TUNNELS))
        upgraded = time.monotonic() - began
        roll_back_operator(fleet.cluster)
        rolling.wait_for_image(fleet.image, len(TUNNELS))

    outcome = clients.outcome
    print(told(f"forwarders upgraded in {upgraded:.1f} s, and rolled back", outcome, time.monotonic() - began))
    print(f"at most {max(rolling.counts)} tunnels rolled at a time")
    assert outcome.failed == []
    assert "Rejected" not in fleet.failures(), "the policies let it pass"
    assert outcome.served > len(TUNNELS)
    assert max(rolling.counts) <= AT_ONCE
    assert not set(before.values()) & set(fleet.pods().values()), "all had rolled"
