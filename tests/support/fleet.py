"""Many tunnels at once: made, waited for, used by clients, and watched while they roll."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.support.clients import Endpoint
from tests.support.cluster import Cluster
from tests.support.processes import Repeating, wait_until
from tests.support.traffic import Program, target_of
from tests.support.tunnels import Manifest, apply, example

LITTLE = {"requests": {"cpu": "1m", "memory": "16Mi"}, "limits": {"memory": "256Mi"}}
"""So that a small node takes all of them."""


def start_tunnels(cluster: Cluster, namespace: str, names: Sequence[str], **spec: Any) -> list[Endpoint]:
    """Tunnels as the example `orders`, `spec` beside its own, once all are Ready; their endpoints."""
    manifests = [example(namespace, "orders") for _ in names]
    for name, manifest in zip(names, manifests, strict=True):
        manifest["metadata"]["name"] = name
        manifest["spec"] |= {"podTemplate": {"resources": LITTLE}, **spec}
    apply(cluster, *manifests)
    path = f"/apis/dbtunnel.dev/v1alpha1/namespaces/{namespace}/databasetunnels"

    def found() -> list[Manifest]:
        tunnels: list[Manifest] = (cluster.request("GET", path) or {})["items"]
        return [one for one in tunnels if one["metadata"]["name"] in names]

    wait_until(lambda: all(map(_is_ready, found())), "all tunnels", 120, interval_seconds=0.5)
    return [Endpoint.of(one) for one in found()]


def _is_ready(tunnel: Manifest) -> bool:
    conditions = tunnel.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)


# --- clients ----------------------------------------------------------------------------------------------------------

_CLIENTS = """
import asyncio, psycopg
targets, pause = json.loads(sys.argv[3]), float(sys.argv[4])
served, failed, cut, held = 0, [], [], set()
async def connected(target):
    try:
        return await psycopg.AsyncConnection.connect(target, connect_timeout=20)
    except psycopg.Error as error:
        failed.append(target + ": " + str(error)[:200])
async def hold(target):
    while not is_over():
        session = await connected(target)
        if session is None:
            await asyncio.sleep(0.1)
            continue
        held.add(target)
        try:
            while not is_over():
                await session.execute("select 1")
                await asyncio.sleep(pause)
        except psycopg.Error as error:
            cut.append(target + ": " + str(error)[:200])
        await session.close()
async def arrive(number, target):
    global served
    await asyncio.sleep(pause * number / len(targets))
    while not is_over():
        session = await connected(target)
        if session is not None:
            try:
                await session.execute("select 1")
                served += 1
            except psycopg.Error as error:
                failed.append(target + ": " + str(error)[:200])
            await session.close()
        await asyncio.sleep(pause)
async def all_of_them():
    tasks = [asyncio.ensure_future(hold(target)) for target in targets]
    while len(held) < len(targets) and not is_over():
        await asyncio.sleep(0.05)
    failed.clear()  # nodes learn of an endpoint a moment after the API, by which a tunnel is Ready
    tasks += [asyncio.ensure_future(arrive(*one)) for one in enumerate(targets)]
    begun()
    await asyncio.gather(*tasks)
asyncio.run(all_of_them())
print(json.dumps({"served": served, "failed": failed, "held": len(held), "cut": cut}))
"""

_PAUSE_SECONDS = 1.0
"""Of each client between two queries, and between two connections."""


@dataclass(frozen=True)
class FleetOutcome:
    """What became of the clients of all tunnels."""

    served: int
    """New connections that had their answer."""
    failed: list[str]
    """What became of the others."""
    held: int
    """Tunnels with a session that stayed."""
    cut: list[str]
    """What ended those sessions before their time."""


class FleetClients(Program):
    """For each tunnel a session that stays, and others that come and go."""

    def __init__(self, cluster: Cluster, namespace: str, endpoints: Sequence[Endpoint]) -> None:
        targets = [target_of(one).replace(f"host={one.host}", f"host={one.address}") for one in endpoints]
        super().__init__(cluster, namespace, _CLIENTS, json.dumps(targets), _PAUSE_SECONDS)

    @property
    def outcome(self) -> FleetOutcome:
        """What became of them, once the context has been left."""
        return FleetOutcome(**self.printed)


# --- rolls ------------------------------------------------------------------------------------------------------------


class Rolling(Repeating):
    """Looks, while the context lasts, how many Deployments of a namespace are on their way to another template."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        super().__init__(self._look, 0.3)
        self._cluster, self._path = cluster, f"/apis/apps/v1/namespaces/{namespace}/deployments"
        self.counts: list[int] = []
        """How many there were, at each look."""

    def wait_for_image(self, image: str, count: int) -> None:
        """Returns once so many of them run it."""

        def done() -> int:
            ready = [one for one in self._deployments() if not _is_rolling(one)]
            return sum(one["spec"]["template"]["spec"]["containers"][0]["image"] == image for one in ready)

        wait_until(lambda: done() >= count, f"{count} with {image}", 240, interval_seconds=0.5, describe=done)

    def _look(self) -> None:
        self.counts.append(sum(map(_is_rolling, self._deployments())))

    def _deployments(self) -> list[Manifest]:
        found: list[Manifest] = (self._cluster.request("GET", self._path) or {})["items"]
        return found


def _is_rolling(deployment: Manifest) -> bool:
    status = deployment.get("status", {})
    counts = (status.get("updatedReplicas", 0), status.get("availableReplicas", 0), status.get("replicas", 0))
    is_seen = status.get("observedGeneration", 0) >= deployment["metadata"]["generation"]
    return not is_seen or any(count != deployment["spec"]["replicas"] for count in counts)
