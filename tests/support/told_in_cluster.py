"""What a tunnel's status and Events tell in a cluster."""

import contextlib
import io
import os
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

from dbtunnel.api.conditions import CAUSAL_ORDER
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.cli.plugin import main as plugin
from dbtunnel.domain.failure import needs_person
from tests.support import produced
from tests.support.cluster import Cluster
from tests.support.installation import METRICS_SERVICE, NAMESPACE
from tests.support.kstatus import Verdict, verdict
from tests.support.processes import wait_until
from tests.support.tunnels import Manifest

ReadMetrics = Callable[[Cluster], str]
"""Reads /metrics of the operator at work."""


def of_the_chart(cluster: Cluster) -> str:
    """The metrics of the operator that the chart runs."""
    service = f"services/{METRICS_SERVICE}:metrics"
    return cluster.read(f"/api/v1/namespaces/{NAMESPACE}/{service}/proxy/metrics") or ""


def check_told(
    cluster: Cluster, found: Manifest, reason: Reason, words: Sequence[str], metrics: ReadMetrics = of_the_chart
) -> str:
    """The layer that fails is told, with what to do; those before it hold, and none after it is blamed. `metrics`: of
    the operator.

    Returns the message.
    """
    conditions = {one["type"]: one for one in found["status"]["conditions"]}
    kind = REASONS[reason].type
    failed, ready = conditions[kind], conditions["Ready"]
    assert (failed["status"], failed["reason"]) == ("False", reason)
    assert (ready["reason"], ready["message"]) == (reason, failed["message"])
    position = CAUSAL_ORDER.index(kind)
    assert {conditions[one]["status"] for one in CAUSAL_ORDER[:position]} <= {"True"}
    assert {conditions[one]["status"] for one in CAUSAL_ORDER[position + 1 :]} <= {"Unknown"}
    assert verdict(found) in (Verdict.IN_PROGRESS, Verdict.FAILED)
    message = str(failed["message"])
    for word in words:
        assert word in message
    last = found["status"]["lastFailure"]
    # the loss of the connection may have made Ready False a moment before
    assert last["time"] >= ready["lastTransitionTime"]
    assert last["reason"] == reason or not needs_person(reason)
    wait_until(lambda: reason in events(cluster, found), f"an Event {reason}", 10)
    check_counted(cluster, found, reason, metrics)
    check_plugin(cluster, found, reason)
    produced.note(reason, message)
    return message


def check_counted(cluster: Cluster, found: Manifest, reason: Reason, metrics: ReadMetrics = of_the_chart) -> None:
    """The operator's metric of the tunnel has the reason, as that of a tunnel that works if it is Succeeded."""
    of = f'namespace="{found["metadata"]["namespace"]}",tunnel="{found["metadata"]["name"]}",reason="{reason}"'
    line = f"dbtunnel_operator_tunnel_ready{{{of}}} {int(reason is Reason.SUCCEEDED)}"
    wait_until(lambda: line in metrics(cluster).splitlines(), line, 10)


def check_plugin(cluster: Cluster, found: Manifest, reason: Reason) -> None:
    """`kubectl dbtunnel check` ends with 1, and tells the reason; a container that keeps ending runs at times."""

    def is_told() -> bool:
        code, shown = run_check(cluster, found["metadata"])
        assert code == 1, shown
        return f"NOT READY: {reason}\n" in shown

    wait_until(is_told, f"check tells {reason}", 20, describe=lambda: run_check(cluster, found["metadata"])[1])


def run_check(cluster: Cluster, metadata: Manifest) -> tuple[int, str]:
    """The exit code and the output of `kubectl dbtunnel check` for a tunnel."""
    words = ["check", metadata["name"], "-n", metadata["namespace"], "--kubeconfig", str(cluster.kubeconfig)]
    shown = io.StringIO()
    with patch.dict(os.environ, cluster.environment(), clear=True), contextlib.redirect_stdout(shown):
        return plugin.main(words), shown.getvalue()


def events(cluster: Cluster, found: Manifest) -> list[str]:
    """Reasons of the Events about a tunnel."""
    return [one["reason"] for one in events_about(cluster, found)]


def events_about(cluster: Cluster, found: Manifest) -> list[dict[str, Any]]:
    """The Events about a tunnel."""
    metadata = found["metadata"]
    listed = cluster.request("GET", f"/apis/events.k8s.io/v1/namespaces/{metadata['namespace']}/events") or {}
    return [one for one in listed["items"] if one["regarding"]["uid"] == metadata["uid"]]
