"""Events about tunnels: one for each transition; those that are equal are folded into one that counts."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import uuid4

from dbtunnel.api.resource import API_VERSION, KIND
from dbtunnel.controller.client import EVENT, TUNNEL, ApiError, Client
from dbtunnel.controller.logs import event
from dbtunnel.domain import names
from dbtunnel.domain.children import Manifest

FOLD_SECONDS = 600.0
"""How long after an Event an equal one is counted there."""

NOTE_LIMIT = 1024
"""Bytes of an Event's note that the API takes (events.k8s.io/v1)."""

_CUT = " ... (whole in the tunnel's status)"

logger = logging.getLogger(__name__)

_Text = tuple[str, str, str, str]
"""The tunnel's uid, and the Event's type, reason and note."""


@dataclass
class _Posted:
    name: str
    count: int
    last: datetime


class Events:
    """Posts Events. One that cannot be posted is not missed."""

    def __init__(self, client: Client, clock: Callable[[], datetime]) -> None:
        self._client, self._clock = client, clock
        self._recent: dict[_Text, _Posted] = {}

    async def post(self, manifest: Manifest, kind: str, reason: str, note: str) -> None:
        """Tells of a tunnel; `kind` is Normal or Warning."""
        now, metadata = self._clock(), manifest["metadata"]
        text = metadata["uid"], kind, reason, _bounded(note)
        self._recent = {known: one for known, one in self._recent.items() if now - one.last < _FOLDED}
        try:
            if not await self._fold(metadata["namespace"], text, now):
                document = _document(manifest, text, now)
                await self._client.create(EVENT, document)
                self._recent[text] = _Posted(document["metadata"]["name"], 1, now)
        except ApiError as error:
            event(logger, "event not posted", level=logging.WARNING, status=error.status, reason=error.reason)

    async def _fold(self, namespace: str, text: _Text, now: datetime) -> bool:
        """Counts it in an equal one; returns whether there is one still."""
        known = self._recent.pop(text, None)
        if known is None:
            return False
        series = {"count": known.count + 1, "lastObservedTime": _stamp(now)}
        try:
            await self._client.patch(EVENT, namespace, known.name, {"series": series})
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        self._recent[text] = _Posted(known.name, known.count + 1, now)
        return True


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
