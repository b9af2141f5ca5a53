"""kstatus's verdict on a custom resource, by the rules of its documentation (cli-utils, pkg/kstatus)."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """What `kstatus` says, and what waits by it act upon."""

    IN_PROGRESS = "InProgress"
    FAILED = "Failed"
    CURRENT = "Current"
    TERMINATING = "Terminating"


def verdict(manifest: Mapping[str, Any]) -> Verdict:
    """Deletion first, then a generation that was not observed, then Reconciling, Stalled and Ready.

    Raises ValueError where Reconciling and Stalled are both True, which the convention rules out.
    """
    metadata, status = manifest["metadata"], manifest.get("status") or {}
    if "deletionTimestamp" in metadata:
        return Verdict.TERMINATING
    if "observedGeneration" in status and status["observedGeneration"] != metadata.get("generation"):
        return Verdict.IN_PROGRESS
    conditions = {one["type"]: one["status"] for one in status.get("conditions") or ()}
    reconciling, stalled = (conditions.get(kind) == "True" for kind in ("Reconciling", "Stalled"))
    if reconciling and stalled:
        raise ValueError("Reconciling and Stalled are both True")
    if reconciling:
        return Verdict.IN_PROGRESS
    if stalled:
        return Verdict.FAILED
    return Verdict.CURRENT if conditions.get("Ready", "True") == "True" else Verdict.IN_PROGRESS
