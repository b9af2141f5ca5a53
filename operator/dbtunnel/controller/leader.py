"""Leader election by a Lease: one operator works, others stand by."""

import asyncio
import logging
import socket
from typing import Any
from uuid import uuid4

import aiohttp
from kubernetes.aio.client import ApiClient
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from dbtunnel.controller.logs import event

logger = logging.getLogger(__name__)

LEASE = "dbtunnel-operator"
"""Name of the Lease, in the operator's namespace."""

LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS = 15, 10, 2
"""As in client-go: how long a lease holds, how long its holder tries to renew it, and how often all try."""


class LeaseLostError(RuntimeError):
    """The Lease is another's, or could not be renewed in time: nobody may go on working."""


class _PatientLock(LeaseLock):
    """A lock for which an API server that does not answer is a failed attempt, not an exception."""

    async def get(self, name: str, namespace: str) -> Any:
        try:
            return await super().get(name, namespace)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            return False, ApiException(status=0, reason=type(error).__name__)

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        try:
            return bool(await super().create(name, namespace, election_record))
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        try:
            return bool(await super().update(name, namespace, updated_record))
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False


async def hold_lease(api: ApiClient, namespace: str, elected: asyncio.Event) -> None:
    """Takes the Lease, sets `elected`, and renews it. Raises LeaseLostError in the end."""
    identity = f"{socket.gethostname()}_{uuid4()}"

    async def started() -> None:
        event(logger, "elected", identity=identity)
        elected.set()

    async def stopped() -> None:
        raise LeaseLostError(f"the Lease {namespace}/{LEASE} is lost")

    lock = _PatientLock(LEASE, namespace, identity, api)
    await LeaderElection(Config(lock, LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS, started, stopped)).run()
