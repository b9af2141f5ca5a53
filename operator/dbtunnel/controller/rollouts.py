"""At most a few tunnels roll at once when the installer changes the forwarder's image."""

from collections.abc import Callable
from dataclasses import replace

from dbtunnel.controller.queue import TunnelKey
from dbtunnel.domain.children import Manifest
from dbtunnel.domain.settings import Installation

_LONGEST_SECONDS = 60
"""How long a tunnel that does not become available keeps others waiting."""


class Rollouts:
    """Who may roll now."""

    def __init__(self, limit: int, clock: Callable[[], float]) -> None:
        """`clock`: seconds that only grow."""
        self._limit = limit
        self._clock = clock
        self._rolling: dict[TunnelKey, float] = {}

    def installation_for(self, key: TunnelKey, deployment: Manifest | None, wanted: Installation) -> Installation:
        """The installation as this tunnel gets it: with its present image until it is its turn."""
        present = _image(deployment)
        if deployment is None or present in (None, wanted.forwarder_image):
            if key in self._rolling and (deployment is None or _is_complete(deployment)):
                del self._rolling[key]
            return wanted
        if self._may_roll(key):
            return wanted
        return replace(wanted, forwarder_image=str(present))

    def _may_roll(self, key: TunnelKey) -> bool:
        now = self._clock()
        self._rolling = {key: end for key, end in self._rolling.items() if end > now}
        if key not in self._rolling and len(self._rolling) >= self._limit:
            return False
        self._rolling.setdefault(key, now + _LONGEST_SECONDS)
        return True


def _image(deployment: Manifest | None) -> str | None:
    if deployment is None:
        return None
    containers = deployment["spec"]["template"]["spec"].get("containers") or [{}]
    named = [container.get("image") for container in containers if container.get("name") == "forwarder"]
    return named[0] if named else None


def _is_complete(deployment: Manifest) -> bool:
    status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    is_seen = status.get("observedGeneration", 0) >= deployment["metadata"].get("generation", 0)
    counts = (status.get("updatedReplicas", 0), status.get("availableReplicas", 0), status.get("replicas", 0))
    return is_seen and all(count == wanted for count in counts)
