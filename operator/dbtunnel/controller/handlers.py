"""What Kopf calls: handlers that store and enqueue, and its settings. They write nothing to any object."""

import itertools
import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import kopf

from dbtunnel.controller.client import CHILDREN, POD, TUNNEL, Kind
from dbtunnel.controller.queue import WorkQueue
from dbtunnel.controller.store import Store
from dbtunnel.domain.names import CHILD_SELECTOR

WATCHED = (TUNNEL, *CHILDREN, POD)
"""Kinds that are listed and watched. Secrets are not among them and never will be."""


class StuckError(kopf.PermanentError):
    """Tunnels wait and none is reconciled: the operator should be restarted."""


class Backoffs:
    """Seconds between attempts to reach the API server, without an end: an outage is nothing that a restart mends.

    A watch that ends for good, since the kind is no longer served, ends the operator all the same.
    """

    def __iter__(self) -> Iterator[float]:
        return itertools.chain((1, 1, 2, 3, 5, 8), itertools.repeat(15))


class NoDifferences(kopf.DiffBaseStorage):
    """Spares Kopf a copy of each object to compare with the one before: handlers of events ask for no differences."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Nothing is compared."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        """Nothing was stored."""

    def store(self, **_: Any) -> None:
        """Nothing is stored."""


def build_registry(
    store: Store,
    queue: WorkQueue,
    health: Callable[[], dict[str, float]],
    listed: Callable[[], None],
    close: Callable[[], Awaitable[None]],
) -> kopf.OperatorRegistry:
    """The handlers. `health` raises where the operator should be restarted, `listed` hears of each object of a list,
    `close` ends tasks before Kopf waits for them."""
    registry = kopf.OperatorRegistry()
    for kind in WATCHED:
        on = kopf.on.event(kind.group_version, kind.plural, registry=registry, id=kind.plural)
        on(_watcher(kind, store, queue, listed))
    kopf.on.startup(registry=registry, id="settings")(configure)
    kopf.on.login(registry=registry, id="login")(log_in)

    async def probe(**_: object) -> dict[str, float]:
        return health()

    async def clean_up(**_: object) -> None:
        await close()

    kopf.on.cleanup(registry=registry, id="forwarders")(clean_up)
    kopf.on.probe(registry=registry, id="reconcile")(probe)
    return registry


def _watcher(kind: Kind, store: Store, queue: WorkQueue, listed: Callable[[], None]) -> Callable[..., object]:
    async def seen(event: kopf.RawEvent, **_: object) -> None:
        if event["type"] is None:
            listed()
        take = store.remove if event["type"] == "DELETED" else store.put
        for key in take(kind.name, event["object"]):
            queue.add(key)

    return seen


async def configure(settings: kopf.OperatorSettings, **_: object) -> None:
    """Kopf's settings."""
    # without list on namespaces and CRDs the first events would come a minute late
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = NoDifferences()
    settings.networking.error_backoffs = Backoffs()
    # an API server that drops packets
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    # a thousand Deployments at once are 100 MB
    settings.watching.chunk_size = 250
    # handlers only store, so that objects need no workers that linger
    settings.queueing.idle_timeout = 1
    for kind in (*CHILDREN, POD):
        group, _slash, version = kind.group_version.rpartition("/")
        settings.watching.label_selectors[group, version, kind.plural] = CHILD_SELECTOR


async def log_in(**arguments: object) -> kopf.ConnectionInfo | None:
    """The pod's service account, else the kubeconfig, as the operator's own client has it."""
    in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ
    log_in_with = kopf.login_with_service_account if in_cluster else kopf.login_with_kubeconfig
    return log_in_with(**arguments)  # type: ignore[arg-type]
