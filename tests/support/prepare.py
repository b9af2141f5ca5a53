"""`python -m tests.support.prepare unit|forwarder|cluster`: gets what tests need before they start, saying what.

Within a test the same would happen in silence, and a build of minutes would look like a test that hangs.
"""

import sys
from collections.abc import Callable, Mapping

from bench.programs import PACKAGES as BENCH_PACKAGES
from tests.support import newer_sshd
from tests.support.applications.runtimes import runtimes
from tests.support.argocd import PACKAGES as ARGOCD_PACKAGES
from tests.support.bastion import PACKAGES as BASTION_PACKAGES
from tests.support.binaries import BinaryError, binary
from tests.support.cable import PACKAGES as CABLE_PACKAGES
from tests.support.cluster import ClusterError, cluster_of
from tests.support.databases import MariaDBServer, PostgresServer
from tests.support.debian import MissingPackageError, ensure_packages
from tests.support.dropbear import PACKAGES as DROPBEAR_PACKAGES
from tests.support.flux import PROGRAMS as FLUX
from tests.support.images import CLIENT, OPERATOR, ImageError
from tests.support.installation import image_reference
from tests.support.key_tools import PACKAGES as KEY_PACKAGES
from tests.support.monitoring import CRDS as MONITORING_CRDS
from tests.support.prometheus import PACKAGES as PROMETHEUS_PACKAGES
from tests.support.registry import PACKAGES as REGISTRY_PACKAGES
from tests.support.zsh import PACKAGES as ZSH_PACKAGES


def prepare_unit() -> None:
    """The chart is rendered by the real helm and goes to a real registry, its alert rules are tried by Prometheus' own
    tool, statuses by Flux's library, workflows by actionlint, completion by zsh, a cluster's configuration by kind.
    """
    for name in ("helm", "kstatus", "actionlint", "kind"):
        binary(name)
    ensure_packages({**PROMETHEUS_PACKAGES, **REGISTRY_PACKAGES, **ZSH_PACKAGES})


def prepare_forwarder() -> None:
    """A real sshd, real databases and their clients, a real Prometheus, key tools, a compiler for the benchmark's
    programs."""
    servers = {**BASTION_PACKAGES, **PostgresServer.packages, **MariaDBServer.packages}
    others = {**DROPBEAR_PACKAGES, **KEY_PACKAGES, **CABLE_PACKAGES, **BENCH_PACKAGES, **PROMETHEUS_PACKAGES}
    ensure_packages({**servers, **others})
    newer_sshd.prepare()
    runtimes()


def prepare_cluster() -> None:
    """A Kubernetes, helm, Argo CD, Flux, the images, and what lies behind a bastion."""
    prepare_unit()
    prepare_forwarder()
    ensure_packages(ARGOCD_PACKAGES)
    cluster_of("test").prepare()
    for name in (*MONITORING_CRDS, "kustomize", "argocd", "argocd-crds.yaml", *FLUX):
        binary(name)
    for recipe in (OPERATOR, CLIENT):
        image_reference(recipe)


TARGETS: Mapping[str, Callable[[], None]] = {
    "unit": prepare_unit,
    "forwarder": prepare_forwarder,
    "cluster": prepare_cluster,
}


def main() -> int:
    """Runs the command line; 1 where something cannot be had."""
    for name in sys.argv[1:]:
        try:
            TARGETS[name]()
        except (BinaryError, ClusterError, ImageError, MissingPackageError) as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
