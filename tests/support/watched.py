"""Every version of an object that the API server tells of, from before it exists to its end."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.support.binaries import binary
from tests.support.cluster import Cluster
from tests.support.processes import Process
from tests.support.tunnels import Manifest


class Watch:
    """`kubectl get --watch` of a namespace's tunnels, while the context lasts."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, log: Path) -> None:
        self._name = name
        command = [str(binary("kubectl")), "get", "databasetunnels", "-n", namespace, "--watch", "-o", "json"]
        self._process = Process(command, log, env=cluster.environment())

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop()

    @property
    def versions(self) -> list[Manifest]:
        """Those of the named tunnel so far; one that is being written is left out."""
        return [one for one in self._documents() if one["metadata"].get("name") == self._name]

    def _documents(self) -> Iterator[Manifest]:
        text = self._process.log.read_text()
        while text := text.lstrip():
            try:
                document, end = json.JSONDecoder().raw_decode(text)
            except ValueError:
                return
            yield document
            text = text[end:]
