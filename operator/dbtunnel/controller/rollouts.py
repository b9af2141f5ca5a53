"""At most a few tunnels roll at once when the installer changes their pods."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from dbtunnel.controller.queue import TunnelKey
from dbtunnel.domain.children import Manifest
from dbtunnel.domain.names import TUNNEL_LABEL
from dbtunnel.domain.settings import Installation

_LONGEST_SECONDS = 60
"""How long a tunnel that does not become available keeps others waiting."""


class Rollouts:
    """Who may roll now."""

    def __init__(
        self, limit: int, clock: Callable[[], float], deployments: Callable[[], Iterable[Manifest]] = tuple
    ) -> None:
        """`clock`: seconds that only grow. `deployments`: those of all tunnels, of which an operator that ended before
        this one began may have left some half rolled.
        """
        self._limit = limit
        self._clock = clock
        self._deployments = deployments
        self._rolling: dict[TunnelKey, float] = {}
        self._has_looked = False

    def installation_for(self, key: TunnelKey, deployment: Manifest | None, wanted: Installation) -> Installation:
        """The installation as this tunnel gets it: with its present image until it is its turn."""
        present = _image(deployment)
        if deployment is None or present in (None, wanted.forwarder_image):
            if key in self._rolling and (deployment is None or _is_complete(deployment)):
                del self._rolling[key]
            return wanted
        if self.may_roll(key, wanted.forwarder_image):
            return wanted
        return replace(wanted, forwarder_image=str(present))

    def may_roll(self, key: TunnelKey, image: str) -> bool:
        """Whether it is this tunnel's turn; `image` is what its forwarders have then."""
        now = self._clock()
        if not self._has_looked:
            self._has_looked = True
            begun = [one for one in self._deployments() if _image(one) == image and _is_half_rolled(one)]
            self._rolling = dict.fromkeys(map(_tunnel_key, begun), now + _LONGEST_SECONDS)
        self._rolling = {key: end for key, end in self._rolling.items() if end > now}
        if key not in self._rolling and len(self._rolling) >= self._limit:
            return False
        self._rolling.setdefault(key, now + _LONGEST_SECONDS)
        return True


def _tunnel_key(deployment: Manifest) -> TunnelKey:
    metadata = deployment["metadata"]
    return TunnelKey(metadata["namespace"], (metadata.get("labels") or {}).get(TUNNEL_LABEL, ""))


def _image(deployment: Manifest | None) -> str | None:
    if deployment is None:
        return None
    containers = deployment["spec"]["template"]["spec"].get("containers") or [{}]
    named = [container.get("image") for container in containers if container.get("name") == "forwarder"]
    return named[0] if named else None


def _is_half_rolled(deployment: Manifest) -> bool:
    """Whether it has pods of an earlier template. One whose pods are all new, and do not work, does not roll."""
    status = deployment.get("status", {})
    are_old = not _is_seen(deployment) or status.get("replicas", 0) > status.get("updatedReplicas", 0)
    return bool(status.get("replicas", 0)) and are_old


def _is_complete(deployment: Manifest) -> bool:
    status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    counts = (status.get("updatedReplicas", 0), status.get("availableReplicas", 0), status.get("replicas", 0))
    return _is_seen(deployment) and all(count == wanted for count in counts)


def _is_seen(deployment: Manifest) -> bool:
    """Whether the status is of the present spec."""
    observed = deployment.get("status", {}).get("observedGeneration", 0)
    return bool(observed >= deployment["metadata"].get("generation", 0))
