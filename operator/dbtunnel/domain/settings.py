"""What the installer chose: an argument of every decision that depends on it."""

from dataclasses import dataclass, field

from dbtunnel.api.forwarder import ProbeMode
from dbtunnel.api.pods import PodSecurity, PodTemplate, Resources

FORWARDER_RESOURCES = Resources(requests={"cpu": "10m", "memory": "64Mi"}, limits={"memory": "256Mi"})
"""What a forwarder gets where neither the tunnel nor the installer says anything."""


@dataclass(frozen=True)
class Defaults:
    """Values for what a tunnel leaves open. No schema defaults: stored defaults could not be told from choices."""

    replicas: int = 1
    keepalive_interval_seconds: int = 15
    keepalive_count_max: int = 3
    parking_max_seconds: int = 30
    parking_max_clients: int = 1000
    drain_min_seconds: int = 3
    drain_max_seconds: int = 30
    probe_mode: ProbeMode = ProbeMode.AUTO
    probe_interval_seconds: int = 60
    pod_template: PodTemplate = field(default_factory=lambda: PodTemplate(resources=FORWARDER_RESOURCES))
    """Each field counts where a tunnel leaves it open; labels and annotations go together with the tunnel's."""


@dataclass(frozen=True)
class Kept:
    """The template that pods have, whatever would be built now."""

    revision: str
    config_hash: str


@dataclass(frozen=True)
class Installation:
    """The operator's own surroundings, as far as decisions depend on them."""

    forwarder_image: str
    """Image of the forwarder's pods, a setting of its own so that an operator upgrade restarts no tunnel."""
    forwarder_image_pull_policy: str = "IfNotPresent"
    forwarder_log_level: str = "INFO"
    forwarder_log_format: str = "json"
    forwarder_packets: str = "own"
    """Whose code carries clients' data over SSH: own or asyncssh, as `dbtunnel forward --packets` has it."""
    forwarder_pod_security: PodSecurity = field(default_factory=PodSecurity)
    """What the pods' security context has beside what Pod Security `restricted` asks for."""
    operator_namespace: str = ""
    """Admitted to the forwarders' admin port. Empty: the operator runs outside the cluster."""
    scraper_namespaces: tuple[str, ...] = ()
    """Admitted there too: those that Prometheus runs in."""
    egress_addresses: tuple[str, ...] = ()
    """From where bastions see the cluster."""
    defaults: Defaults = field(default_factory=Defaults)
    unreachable_after_seconds: int = 20
    """How long the last known facts of a forwarder hold while its admin port does not answer."""
    most_forwarders: int | None = None
    """How many of the tunnel at hand may run until an SSH server has let one in; None: as many as are wanted."""
    kept: Kept | None = None
    """What the pods of the tunnel at hand keep until their turn to roll; its Deployment is left alone till then."""
