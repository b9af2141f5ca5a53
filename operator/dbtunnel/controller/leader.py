"""Leader election by a Lease: one operator works, others stand by."""

import asyncio
import logging
import socket
from collections.abc import Coroutine
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

LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS = 15, 7, 2
"""How long a lease holds, how long its holder tries to renew it, and how often all try."""

_ANSWER_SECONDS = 2.5
"""How long a request may take. Two of them, begun at the last moment, are over before the lease is."""


class LeaseLostError(RuntimeError):
    """The Lease is another's, or could not be renewed in time: nobody may go on working."""


class _PatientLock(LeaseLock):
    """A lock for which an API server that does not answer, or not in time, is a failed attempt and not an exception."""

    async def get(self, name: str, namespace: str) -> Any:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await super().get(name, namespace)
        except _SILENCES as error:
            return False, ApiException(status=0, reason=type(error).__name__)

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        return await self._attempt(super().create(name, namespace, election_record))

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        return await self._attempt(super().update(name, namespace, updated_record))

    async def release(self) -> None:
        """Gives the lease up where it is still ours, so that another need not wait for its end."""
        _, record = await self.get(self.name, self.namespace)
        lease = self.lease_reference
        is_ours = getattr(record, "holder_identity", None) == self.identity
        if is_ours and lease is not None and lease.spec is not None:
            lease.spec.holder_identity = None
            await self._attempt(self._replace(lease))

    async def _replace(self, lease: Any) -> bool:
        try:
            await self.api_instance.replace_namespaced_lease(self.name, self.namespace, lease)
        except ApiException:
            return False
        return True

    @staticmethod
    async def _attempt(request: Coroutine[Any, Any, bool]) -> bool:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await request
        except _SILENCES:
            return False


_SILENCES = (aiohttp.ClientError, OSError, TimeoutError)


async def hold_lease(api: ApiClient, namespace: str, elected: asyncio.Event) -> None:
    """Takes the Lease, sets `elected`, and renews it until cancelled. Raises LeaseLostError where it cannot."""
    identity = f"{socket.gethostname()}_{uuid4()}"

    async def started() -> None:
        event(logger, "elected", identity=identity)
        elected.set()

    async def stopped() -> None:
        raise LeaseLostError(f"the Lease {namespace}/{LEASE} is lost")

    lock = _PatientLock(LEASE, namespace, identity, api)
    try:
        await LeaderElection(Config(lock, LEASE_SECONDS, RENEW_SECONDS, RETRY_SECONDS, started, stopped)).run()
    finally:
        await lock.release()
