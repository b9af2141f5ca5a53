"""Reads the forwarders' /status, a long-poll for each pod, so that a change shows at once."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

import aiohttp

from dbtunnel.api.documents import DocumentError, read
from dbtunnel.api.forwarder import ADMIN_PORT, ForwarderStatus
from dbtunnel.controller.client import ApiError, Client, read_bounded
from dbtunnel.controller.logs import event
from dbtunnel.controller.queue import TunnelKey
from dbtunnel.domain.observed import Report

BODY_LIMIT = 64 * 1024
"""Bytes of a status document; one with every field filled has a tenth of it."""

POLL_SECONDS = 30
"""How long a forwarder may hold a request while nothing changes."""

_ANSWER_SECONDS = 10
"""How much longer an answer may take before the forwarder counts as silent."""

_PAUSE_SECONDS = 0.1
"""Between two requests, so that a forwarder that always answers at once keeps nobody busy."""

_LOST_SECONDS = 10
"""After how long a quiet connection is asked for a sign of life, and how long that may take. On a network that has
begun to drop it, a poll would otherwise wait for its time limit, and the next one too."""

_RETRY_FIRST_SECONDS, _RETRY_FACTOR, _RETRY_LIMIT_SECONDS = 0.1, 1.3, 5.0


class UnbelievableError(Exception):
    """An answer that is not the status of the pod that was asked."""


@dataclass(frozen=True)
class Target:
    """A forwarder's pod, and what its answer must say to be believed."""

    namespace: str
    pod: str
    uid: str
    address: str
    config_hash: str


Read = Callable[[Target, str, float], Awaitable[bytes]]
"""Gets the document at a path and query; the number is the time limit in seconds."""

_FAILURES = (aiohttp.ClientError, OSError, TimeoutError, ApiError, DocumentError, UnbelievableError)

logger = logging.getLogger(__name__)


class Forwarders:
    """The last report of each followed pod."""

    def __init__(self, read: Read, changed: Callable[[TunnelKey], None], clock: Callable[[], datetime]) -> None:
        self._read = read
        self._changed = changed
        self._clock = clock
        self._tasks: dict[TunnelKey, dict[Target, asyncio.Task[None]]] = {}
        self._reports: dict[TunnelKey, dict[str, Report]] = {}
        self._is_closed = False

    def follow(self, key: TunnelKey, targets: set[Target]) -> None:
        """Follows exactly these pods for a tunnel from now on."""
        targets = set() if self._is_closed else targets
        tasks = self._tasks.setdefault(key, {})
        for gone in set(tasks) - targets:
            tasks.pop(gone).cancel()
        for new in targets - set(tasks):
            tasks[new] = asyncio.create_task(self._follow(key, new), name=f"follow {key.namespace}/{new.pod}")
        uids = {target.uid for target in targets}
        self._reports[key] = {uid: report for uid, report in self.reports(key).items() if uid in uids}
        if not targets:
            del self._tasks[key], self._reports[key]

    def reports(self, key: TunnelKey) -> Mapping[str, Report]:
        """What is known of a tunnel's pods, by uid."""
        return self._reports.get(key, {})

    async def close(self) -> None:
        """Stops following, for good."""
        self._is_closed = True
        tasks = [task for of_tunnel in self._tasks.values() for task in of_tunnel.values()]
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _follow(self, key: TunnelKey, target: Target) -> None:
        after: int | None = None
        retry = _RETRY_FIRST_SECONDS
        while True:
            try:
                status = await self._ask(target, after)
            except Exception as error:
                # whatever an answer brings about, the pod must be asked again
                if not isinstance(error, _FAILURES):
                    event(logger, "forwarder not read", level=logging.ERROR, pod=target.pod, error=repr(error))
                self._note_failure(key, target, error)
                after = None
                await asyncio.sleep(retry)
                retry = min(retry * _RETRY_FACTOR, _RETRY_LIMIT_SECONDS)
                continue
            after, retry = status.sequence, _RETRY_FIRST_SECONDS
            self._note(key, target, self._known(key, target).heard(status, self._clock()))
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _ask(self, target: Target, after: int | None) -> ForwarderStatus:
        query = "" if after is None else f"?after={after}&timeoutSeconds={POLL_SECONDS}"
        body = await self._read(target, f"status{query}", _ANSWER_SECONDS + (0 if after is None else POLL_SECONDS))
        status = read(ForwarderStatus, body)
        if status.pod_uid != target.uid:
            raise UnbelievableError("another pod answers at the address")
        if status.config_hash != target.config_hash:
            raise UnbelievableError("the forwarder runs with another configuration")
        return status

    def _note_failure(self, key: TunnelKey, target: Target, error: Exception) -> None:
        self._note(key, target, self._known(key, target).unheard(describe(error), self._clock()))

    def _known(self, key: TunnelKey, target: Target) -> Report:
        return self.reports(key).get(target.uid, Report())

    def _note(self, key: TunnelKey, target: Target, report: Report) -> None:
        known = self._reports.setdefault(key, {}).get(target.uid)
        self._reports[key][target.uid] = report
        if known is None or _unnumbered(report) != _unnumbered(known):
            self._changed(key)


def _unnumbered(report: Report) -> Report:
    """The facts alone: a number that grows while nothing changes is no news."""
    return replace(report, status=report.status and replace(report.status, sequence=0))


def describe(error: Exception) -> str:
    """A failure in a few words."""
    if isinstance(error, DocumentError):
        return "the answer is not a status document"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return f"{type(error).__name__}: {error}"[:300]


def direct_reader(session: aiohttp.ClientSession) -> Read:
    """Reads from the pod's own address."""

    async def read(target: Target, path: str, limit_seconds: float) -> bytes:
        host = f"[{target.address}]" if ":" in target.address else target.address
        url = f"http://{host}:{ADMIN_PORT}/{path}"
        timeout = aiohttp.ClientTimeout(total=limit_seconds, sock_connect=_ANSWER_SECONDS / 2)
        async with session.get(url, allow_redirects=False, timeout=timeout) as response:
            if response.status != 200:
                raise UnbelievableError(f"HTTP status {response.status}")
            return _believable(await read_bounded(response.content, BODY_LIMIT))

    return read


def open_session() -> aiohttp.ClientSession:
    """A session that no proxy variable, cookie or compressed body can turn."""
    connector = aiohttp.TCPConnector(limit=0, force_close=False, socket_factory=_watched_socket)
    return aiohttp.ClientSession(
        connector=connector, trust_env=False, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
    )


def _watched_socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """One whose connection ends once the peer acknowledges nothing any more (tcp(7))."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, _LOST_SECONDS),
        (socket.TCP_KEEPINTVL, _LOST_SECONDS // 2),
        (socket.TCP_USER_TIMEOUT, _LOST_SECONDS * 1000),
    ):
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def proxy_reader(client: Client) -> Read:
    """Reads through the API server, for an operator outside the cluster."""

    async def read(target: Target, path: str, limit_seconds: float) -> bytes:
        return _believable(
            await client.proxy(target.namespace, target.pod, ADMIN_PORT, path, limit_seconds, BODY_LIMIT)
        )

    return read


def _believable(body: bytes) -> bytes:
    if len(body) > BODY_LIMIT:
        raise UnbelievableError(f"the answer has more than {BODY_LIMIT} bytes")
    return body
