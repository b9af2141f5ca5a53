"""The operator's process without a cluster, against a server whose answers a test chooses."""

import http.server
import json
import os
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.processes import Process, free_port

Answer = Callable[[str], tuple[int, dict[str, Any]]]


@contextmanager
def api_server(answer: Answer) -> Iterator[int]:
    """A server whose answers depend on the path, and that refuses whatever would change something; its port."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(*answer(self.path))

        def _refuse(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self._answer(*refusal(403, "read only"))

        do_POST = do_PUT = do_PATCH = do_DELETE = _refuse

        def _answer(self, status: int, document: dict[str, Any]) -> None:
            body = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class LoneOperator:
    """`dbtunnel operator` against a port of this machine."""

    def __init__(self, directory: Path, port: int, *flags: str) -> None:
        kubeconfig = {
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
            "current-context": "x",
        }
        (directory / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
        self.liveness_port, self.metrics_port = free_port(), free_port()
        command = [sys.executable, "-m", "dbtunnel.cli.main", "operator", "--forwarder-image=image", *flags]
        command += [f"--liveness-port={self.liveness_port}", f"--metrics-port={self.metrics_port}"]
        kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
        environment = {**kept, "KUBECONFIG": str(directory / "kubeconfig")}
        self.process = Process([*command, "--listen-address=127.0.0.1"], directory / "log", env=environment)

    def events(self) -> list[dict[str, Any]]:
        log = self.process.log
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def liveness(self) -> int:
        return _status(f"http://127.0.0.1:{self.liveness_port}/healthz")

    def readiness(self) -> int:
        return _status(f"http://127.0.0.1:{self.metrics_port}/readyz")


def _status(url: str) -> int:
    """The status of an answer; 0 where there is none."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def refusal(status: int, message: str) -> tuple[int, dict[str, Any]]:
    """An answer that is an error."""
    return status, {"kind": "Status", "reason": "Refused", "message": message}
