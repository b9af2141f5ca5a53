"""Every version of an object that the API server tells of, from before it exists to its end."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from dbtunnel.api.resource import API_VERSION, PLURAL
from tests.support.binaries import binary
from tests.support.cluster import Cluster
from tests.support.processes import Process
from tests.support.tunnels import Manifest

_QUERY = "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
"""A watch that says when it has begun: by a bookmark, after what is there already."""


class Watch:
    """A watch of a namespace's tunnels, while the context lasts."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, log: Path) -> None:
        self._name = name
        path = f"/apis/{API_VERSION}/namespaces/{namespace}/{PLURAL}?{_QUERY}"
        self._process = Process([str(binary("kubectl")), "get", "--raw", path], log, env=cluster.environment())

    def __enter__(self) -> Self:
        self._process.start()
        self._process.wait_until(lambda: any(kind == "BOOKMARK" for kind, _ in self._events()), "the watch")
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()

    @property
    def versions(self) -> list[Manifest]:
        """Those of the named tunnel so far; one that is being written is left out."""
        told = (one for kind, one in self._events() if kind != "BOOKMARK")
        return [one for one in told if one["metadata"].get("name") == self._name]

    def _events(self) -> Iterator[tuple[str, Manifest]]:
        for line in self._process.log.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                event = json.loads(line)
                yield event["type"], event["object"]
