"""`kubectl dbtunnel check`: the running forwarders are asked now. The operator's word counts for what only it knows:
that an object cannot be made, and how many forwarders the installer wants.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import LayerStatus
from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.status import DatabaseTunnelStatus
from dbtunnel.cli.plugin.options import add_view_arguments, cluster_of, view_of
from dbtunnel.cli.plugin.replicas import Replica, read_replicas
from dbtunnel.cli.plugin.status_text import conditions_of, is_ready, status_text
from dbtunnel.domain.children import build_deployment, current_revision
from dbtunnel.domain.observed import Observation, Report
from dbtunnel.domain.settings import Defaults, Installation
from dbtunnel.domain.status import decide

EXAMPLE = "  kubectl dbtunnel check orders -n shop && echo it works"

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)

_OF_CHILDREN = frozenset({Reason.NAME_CONFLICT, Reason.REJECTED, Reason.QUOTA_EXCEEDED, Reason.PROGRESSING})
"""Why Ready is False where the operator cannot make what the tunnel needs: neither pods nor forwarders know of it."""

_TAKEN_OVER = frozenset(
    {ConditionType.WORKLOAD_READY, ConditionType.READY, ConditionType.RECONCILING, ConditionType.STALLED}
)
"""What follows from such a reason: WorkloadReady is the first of the causal order."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How much to show."""
    add_view_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """0 where clients are served, 1 where a layer failed."""
    cluster, view = cluster_of(arguments), view_of(arguments)
    tunnel = cluster.tunnel(arguments.name)
    replicas = read_replicas(cluster, arguments.name, fresh=True)
    seen = as_forwarders_see_it(tunnel, replicas, view.now)
    print(status_text(seen, replicas, view), end="")
    return 0 if is_ready(seen) else 1


def as_forwarders_see_it(tunnel: DatabaseTunnel, replicas: Sequence[Replica], now: datetime) -> DatabaseTunnel:
    """The tunnel with the status that the operator would write now; times of what has not changed are kept."""
    installation = Installation(
        forwarder_image="none",
        egress_addresses=tuple(tunnel.status.egress_addresses or ()),
        unreachable_after_seconds=0,
        defaults=Defaults(replicas=tunnel.status.replicas or 1),
    )
    # of pods that roll the newest are those to come
    newest = replicas[-1].pod.revision if replicas else ""
    current = [replica for replica in replicas if replica.pod.revision == newest]
    revision = current_revision(build_deployment(tunnel, installation))
    observation = Observation(
        pods=tuple(replace(replica.pod, revision=revision) for replica in current),
        reports={replica.pod.uid: _report(replica) for replica in current},
        cluster_ip=tunnel.status.endpoint.cluster_ip if tunnel.status.endpoint else None,
    )
    status = decide(tunnel, observation, installation, now).status
    return tunnel.model_copy(update={"status": _with_word_of_children(tunnel, status)})


def _with_word_of_children(tunnel: DatabaseTunnel, seen: DatabaseTunnelStatus) -> DatabaseTunnelStatus:
    """What forwarders tell, but where the operator says of this generation that its objects cannot be made."""
    written = conditions_of(tunnel)
    ready = written.get(ConditionType.READY)
    if ready is None or ready.observed_generation != tunnel.metadata.generation:
        return seen
    if ready.status != LayerStatus.FALSE or ready.reason not in _OF_CHILDREN:
        return seen
    taken = {kind: one for kind, one in written.items() if kind in _TAKEN_OVER}
    conditions = tuple(taken.get(one.type, one) for one in seen.conditions or ())
    return seen.model_copy(update={"conditions": conditions, "last_failure": tunnel.status.last_failure})


def _report(replica: Replica) -> Report:
    if replica.status is not None:
        return Report(replica.status)
    return Report(failing_since=_LONG_AGO, failure=replica.problem)
