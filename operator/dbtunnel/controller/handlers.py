"""What Kopf calls: handlers that store and enqueue, and its settings. They write nothing to any object."""

import os
from collections.abc import Awaitable, Callable

import kopf

from dbtunnel.controller.client import CHILDREN, POD, TUNNEL, Kind
from dbtunnel.controller.queue import WorkQueue
from dbtunnel.controller.store import Store
from dbtunnel.domain.names import CHILD_SELECTOR

WATCHED = (TUNNEL, *CHILDREN, POD)
"""Kinds that are listed and watched. Secrets are not among them and never will be."""


class StuckError(Exception):
    """Tunnels wait and none is reconciled: the operator should be restarted."""


def build_registry(
    store: Store, queue: WorkQueue, health: Callable[[], dict[str, float]], close: Callable[[], Awaitable[None]]
) -> kopf.OperatorRegistry:
    """The handlers. `health` raises where the operator should be restarted; `close` ends tasks before Kopf waits."""
    registry = kopf.OperatorRegistry()
    for kind in WATCHED:
        on = kopf.on.event(kind.group_version, kind.plural, registry=registry, id=kind.plural)
        on(_watcher(kind, store, queue))
    kopf.on.startup(registry=registry, id="settings")(configure)
    kopf.on.login(registry=registry, id="login")(log_in)

    async def probe(**_: object) -> dict[str, float]:
        return health()

    async def clean_up(**_: object) -> None:
        await close()

    kopf.on.cleanup(registry=registry, id="forwarders")(clean_up)
    kopf.on.probe(registry=registry, id="reconcile")(probe)
    return registry


def _watcher(kind: Kind, store: Store, queue: WorkQueue) -> Callable[..., object]:
    async def seen(event: kopf.RawEvent, **_: object) -> None:
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
