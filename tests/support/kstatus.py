"""The verdicts of kstatus, by which Flux and Helm wait, and of a Kustomization's health check expressions.

Both come from Flux's own libraries, in a small program of their own (localcluster/kstatus).
"""

import json
import subprocess
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from typing import Any

from tests.support.binaries import binary


class Verdict(StrEnum):
    """What they say of an object, and what waits by it acts upon."""

    IN_PROGRESS = "InProgress"
    FAILED = "Failed"
    CURRENT = "Current"
    TERMINATING = "Terminating"


class ExpressionError(ValueError):
    """An expression cannot be evaluated on this object; Flux then goes on waiting."""


def verdict(manifest: Mapping[str, Any], expressions: Mapping[str, str] | None = None) -> Verdict:
    """Of kstatus; or, as Flux does with an entry of healthCheckExprs, of its expressions in kstatus's place.

    Raises ValueError where Reconciling and Stalled are both True, which the convention rules out and the library lets
    pass, and ExpressionError.
    """
    conditions = (manifest.get("status") or {}).get("conditions") or ()
    if {"Reconciling", "Stalled"} <= {one["type"] for one in conditions if one["status"] == "True"}:
        raise ValueError("Reconciling and Stalled are both True")
    given = {name: text for name, text in (expressions or {}).items() if name in ("current", "failed", "inProgress")}
    answer = _ask({"object": manifest, "expressions": given or None})
    if answer["error"]:
        raise ExpressionError(answer["error"])
    return Verdict(answer["status"])


def check_release(text: str) -> None:
    """Raises ValueError unless the YAML of a HelmRelease has known fields alone, each of its type."""
    answer = _ask({"release": text})
    if answer["error"]:
        raise ValueError(answer["error"])


def _ask(question: Mapping[str, Any]) -> dict[str, str]:
    program = _program()
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(json.dumps(question).encode() + b"\n")
    program.stdin.flush()
    answer: dict[str, str] = json.loads(program.stdout.readline())
    return answer


@cache
def _program() -> subprocess.Popen[bytes]:
    """One for the whole run: it ends with its input, and so with this process."""
    return subprocess.Popen([binary("kstatus")], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
