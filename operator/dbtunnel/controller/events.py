"""Events about tunnels: one for each transition; those that are equal are folded into one that counts."""

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

import aiohttp

from dbtunnel.api.resource import API_VERSION, KIND
from dbtunnel.controller.client import EVENT, LEASE_LOST, TUNNEL, ApiError, Client
from dbtunnel.controller.forwarders import describe
from dbtunnel.controller.logs import event
from dbtunnel.controller.queue import TunnelKey
from dbtunnel.domain import names
from dbtunnel.domain.children import Manifest

FOLD_SECONDS = 600.0
"""How long after an Event an equal one is counted there."""

NOTE_LIMIT = 1024
"""Bytes of an Event's note that the API takes (events.k8s.io/v1)."""

_CUT = " ... (whole in the tunnel's status)"

KEPT_SECONDS = 3600.0
"""How long an Event that cannot be posted is kept: as long as the API server keeps one (--event-ttl)."""

KEPT_EVENTS = 8
"""How many of a tunnel are; the latest."""

RETRY_SECONDS = 5.0
"""When one is tried again at first; then each time after as long as it has been waiting."""

logger = logging.getLogger(__name__)

_Text = tuple[str, str, str, str]
"""The tunnel's uid, and the Event's type, reason and note."""


@dataclass(frozen=True)
class _News:
    text: _Text
    document: Manifest
    """Of one name in every attempt: where an answer was lost, the next finds the Event there."""
    at: datetime


@dataclass
class _Posted:
    name: str
    count: int
    last: datetime


class Events:
    """Posts Events. The status that they tell of is written by then, so that one that is lost would be told by none."""

    def __init__(self, client: Client, clock: Callable[[], datetime]) -> None:
        self._client, self._clock = client, clock
        self._recent: dict[_Text, _Posted] = {}
        self._kept: dict[TunnelKey, deque[_News]] = {}
        """Those to be posted, in their order."""

    def add(self, manifest: Manifest, kind: str, reason: str, note: str) -> None:
        """One to be posted about a tunnel; `kind` is Normal or Warning."""
        now, metadata = self._clock(), manifest["metadata"]
        text = metadata["uid"], kind, reason, _bounded(note)
        kept = self._kept.setdefault(TunnelKey(metadata["namespace"], metadata["name"]), deque(maxlen=KEPT_EVENTS))
        kept.append(_News(text, _document(manifest, text, now), now))

    def forget(self, key: TunnelKey) -> None:
        """Of a tunnel that goes nothing is told any more."""
        self._kept.pop(key, None)

    async def post(self, key: TunnelKey) -> float | None:
        """Posts those about a tunnel. Returns the seconds after which to try again, where the API server is away."""
        kept, now = self._kept.get(key, deque[_News]()), self._clock()
        self._recent = {known: one for known, one in self._recent.items() if now - one.last < _FOLDED}
        while kept:
            waited = (now - kept[0].at).total_seconds()
            try:
                await self._post(key.namespace, kept[0])
            except (aiohttp.ClientError, OSError, ApiError) as error:
                if _may_pass(error) and waited < KEPT_SECONDS:
                    event(logger, "event waits", level=logging.WARNING, error=describe(error))
                    return max(RETRY_SECONDS, waited)
                event(logger, "event not posted", level=logging.WARNING, error=describe(error))
            kept.popleft()
        self._kept.pop(key, None)
        return None

    async def _post(self, namespace: str, news: _News) -> None:
        if await self._fold(namespace, news):
            return
        try:
            await self._client.create(EVENT, news.document)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
        self._recent[news.text] = _Posted(news.document["metadata"]["name"], 1, news.at)

    async def _fold(self, namespace: str, news: _News) -> bool:
        """Counts it in an equal one; returns whether there is one still."""
        known = self._recent.get(news.text)
        if known is None:
            return False
        series = {"count": known.count + 1, "lastObservedTime": _stamp(news.at)}
        try:
            await self._client.patch(EVENT, namespace, known.name, {"series": series})
        except ApiError as error:
            if error.status != 404:
                raise
            del self._recent[news.text]
            return False
        self._recent[news.text] = _Posted(known.name, known.count + 1, news.at)
        return True


def _may_pass(error: Exception) -> bool:
    """Whether the API server did not answer, or has too much to do, or something behind it fails, or none was asked:
    who wakes up leads again in a moment, or is ended.
    """
    return not isinstance(error, ApiError) or error.status == 429 or error.status >= 500 or error.reason == LEASE_LOST


_FOLDED = timedelta(seconds=FOLD_SECONDS)


def _bounded(note: str) -> str:
    """The note as far as the API takes it. It ends with a whole word, so that half of a key is never pasted."""
    if len(note.encode()) <= NOTE_LIMIT:
        return note
    shown = note.encode()[: NOTE_LIMIT - len(_CUT) + 1].decode(errors="ignore")
    words, space, _ = shown.rpartition(" ")
    return (words if space else shown[:-1]).rstrip() + _CUT


def _document(manifest: Manifest, text: _Text, now: datetime) -> Manifest:
    metadata, (uid, kind, reason, note) = manifest["metadata"], text
    return {
        "apiVersion": EVENT.group_version,
        "kind": EVENT.name,
        "metadata": {"name": f"{metadata['name']}.{uuid4().hex[:16]}", "namespace": metadata["namespace"]},
        "eventTime": _stamp(now),
        "type": kind,
        "reason": reason,
        "action": "Reconcile",
        "note": note,
        "regarding": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "namespace": metadata["namespace"],
            "name": metadata["name"],
            "uid": uid,
        },
        "reportingController": f"{TUNNEL.group}/operator",
        "reportingInstance": names.MANAGER,
    }


def _stamp(now: datetime) -> str:
    """As metav1.MicroTime is written."""
    return now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
