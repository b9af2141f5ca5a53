"""`kubectl dbtunnel check`: the running forwarders are asked now, so that no word of the operator's is needed."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.cli.plugin.options import add_view_arguments, cluster_of, view_of
from dbtunnel.cli.plugin.replicas import Replica, read_replicas
from dbtunnel.cli.plugin.status_text import is_ready, status_text
from dbtunnel.domain.children import build_deployment, current_revision
from dbtunnel.domain.observed import Observation, Report
from dbtunnel.domain.settings import Installation
from dbtunnel.domain.status import decide

EXAMPLE = "  kubectl dbtunnel check orders -n shop && echo it works"

_LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)


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
    return tunnel.model_copy(update={"status": decide(tunnel, observation, installation, now).status})


def _report(replica: Replica) -> Report:
    if replica.status is not None:
        return Report(replica.status)
    return Report(failing_since=_LONG_AGO, failure=replica.problem)
