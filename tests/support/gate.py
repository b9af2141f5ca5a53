"""Stands between an operator and the API server, and lets it be ended at a certain write."""

import base64
import http.client
import http.server
import ssl
import threading
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit

import yaml

from tests.support.cluster import Cluster

_WRITES = ("POST", "PUT", "PATCH", "DELETE")
_HOP_BY_HOP = ("connection", "transfer-encoding", "content-length", "host")
_SILENCE_SECONDS = 600


class Gate:
    """Passes requests on. Use it as a context manager.

    The write number `stop_at` to `namespace` is not answered, and `stop` is called: before the API server gets it, or,
    with `after`, once it has done it. Later requests are passed on as before.
    """

    def __init__(
        self, cluster: Cluster, namespace: str, stop_at: int, stop: Callable[[], None], *, after: bool
    ) -> None:
        config = yaml.safe_load(cluster.kubeconfig.read_text())["clusters"][0]["cluster"]
        self._server = urlsplit(config["server"])
        data = base64.b64decode(config.get("certificate-authority-data", "")).decode()
        self._tls = ssl.create_default_context(cafile=config.get("certificate-authority"), cadata=data or None)
        self._namespace, self._stop_at, self._stop, self._after = namespace, stop_at, stop, after
        self._parts: set[str] = set()
        self._holds = False
        self.writes = 0
        """How many there were to the namespace."""
        self._lock = threading.Lock()
        gate = self

        class Handler(_Handler):
            def pass_on(self) -> None:
                gate.serve(self)

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        """The API server, for a kubeconfig."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.socket.close()

    def hold_next(self, *parts: str) -> None:
        """`stop` is called for each part at the next write whose path has it; that is passed on once it returns."""
        with self._lock:
            self._parts, self._holds = set(parts), True

    def serve(self, request: "_Handler") -> None:
        """One request of the operator."""
        stops = self._stops_here(request)
        if stops and not self._after:
            self._stop()
            if not self._holds:
                return
        upstream = http.client.HTTPSConnection(
            self._server.hostname or "", self._server.port, context=self._tls, timeout=_SILENCE_SECONDS
        )
        body = request.rfile.read(int(request.headers.get("content-length") or 0))
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_BY_HOP}
        upstream.request(request.command, request.path, body, headers)
        answer = upstream.getresponse()
        if stops:
            self._stop()
            return
        request.answer(answer)

    def _stops_here(self, request: "_Handler") -> bool:
        if request.command not in _WRITES or f"/namespaces/{self._namespace}/" not in request.path:
            return False
        with self._lock:
            self.writes += 1
            found = {part for part in self._parts if part in request.path}
            self._parts -= found
            return bool(found) or self.writes == self._stop_at


class _Handler(http.server.BaseHTTPRequestHandler):
    """Speaks HTTP/1.1 and passes bodies on as they come, since watches never end."""

    protocol_version = "HTTP/1.1"

    def pass_on(self) -> None:
        """What is done with a request."""
        raise NotImplementedError

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self.pass_on
        raise AttributeError(name)

    def answer(self, answer: http.client.HTTPResponse) -> None:
        """Passes the API server's answer on."""
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        while chunk := answer.read1(65536):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *arguments: object) -> None:
        """Says nothing."""
