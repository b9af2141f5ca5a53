"""What the plugin makes of an API server, or of a pod behind it, that answers what it should not."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dbtunnel.cli.plugin.cluster import Cluster, ClusterError, DeniedError, open_cluster
from dbtunnel.cli.plugin.replicas import read_replicas
from tests.support.values import manifest

Answer = tuple[int, bytes, dict[str, str]]


def status(code: int, message: str) -> Answer:
    document = {"kind": "Status", "code": code, "message": message}
    return code, json.dumps(document).encode(), {"Content-Type": "application/json"}


def document(content: Any) -> Answer:
    return 200, json.dumps(content).encode(), {"Content-Type": "application/json"}


@contextmanager
def answering(directory: Path, answer: Callable[[str], Answer], *contexts: dict[str, Any]) -> Iterator[Path]:
    """A kubeconfig that leads to a server which answers by path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            code, body, headers = answer(self.path)
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        context = {"name": "first", "context": {"cluster": "c", "user": "u", "namespace": "shop"}}
        config = {
            "current-context": "first",
            "contexts": [context, *contexts],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "users": [{"name": "u", "user": {"token": "t"}}],
        }
        (directory / "kubeconfig").write_text(json.dumps(config))
        try:
            yield directory / "kubeconfig"
        finally:
            server.shutdown()
            thread.join()


def opened(path: Path) -> Cluster:
    return open_cluster(str(path), None, None)


def test_the_namespace_is_that_of_the_context_unless_given(tmp_path: Path) -> None:
    second = {"name": "second", "context": {"cluster": "c", "user": "u"}}
    with answering(tmp_path, lambda path: document(manifest({"metadata.name": path.split("/")[5]})), second) as path:
        for context, namespace, expected in (
            (None, None, "shop"),
            (None, "other", "other"),
            ("second", None, "default"),
            ("second", "shop", "shop"),
        ):
            cluster = open_cluster(str(path), context, namespace)
            assert cluster.namespace == expected
            assert cluster.tunnel("orders").metadata.name == expected, "it is asked for there"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status(404, "not found"), "there is no DatabaseTunnel orders in namespace shop"),
        (status(401, "Unauthorized"), "log in again"),
        (status(500, "boom \x1b[2J"), r"answers 500: boom \\x1b\[2J"),
        ((503, b"<html>\x1b", {}), r"answers 503: <html>\\x1b"),
        ((302, b"", {"Location": "http://127.0.0.1:1/"}), "answers 302"),
        (document(manifest({"spec": {"engine": "Oracle\x1b"}})), "cannot read the tunnel"),
    ],
)
def test_an_answer_that_is_of_no_use(tmp_path: Path, answer: Answer, words: str) -> None:
    with answering(tmp_path, lambda _: answer) as path, pytest.raises(ClusterError, match=words) as raised:
        opened(path).tunnel("orders")
    assert "\x1b" not in str(raised.value)


def test_a_server_that_is_not_there_or_speaks_no_tls(tmp_path: Path) -> None:
    with answering(tmp_path, lambda _: document({})) as path:
        cluster = opened(path)
        path.write_text(path.read_text().replace("http:", "https:"))
        with pytest.raises(ClusterError, match="does not answer: SSLError"):
            opened(path).tunnel("orders")
    with pytest.raises(ClusterError, match=r"does not answer: .*refused"):
        cluster.tunnel("orders")


def test_a_refusal_counts_if_the_api_server_wrote_it(tmp_path: Path) -> None:
    with answering(tmp_path, lambda _: (403, b"go away", {})) as path, pytest.raises(ClusterError) as raised:
        opened(path).pods("orders")
    assert not isinstance(raised.value, DeniedError)
    with (
        answering(tmp_path, lambda _: status(403, "no")) as path,
        pytest.raises(DeniedError, match="may not list pods"),
    ):
        opened(path).pods("orders")


POD = {
    "metadata": {"name": "p", "uid": "u", "labels": {}, "creationTimestamp": "2026-11-05T12:00:00Z"},
    "status": {"containerStatuses": [{"state": {"running": {"startedAt": "2026-11-05T12:00:00Z"}}}]},
}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((200, b"x" * 300_000, {}), "more than"),
        ((200, b"{}", {}), "no status document"),
        ((200, b'{"sequence": 1, "configHash": "a", "podUid": "another"}', {}), "another pod"),
        ((302, b"", {"Location": "/api/v1/namespaces/shop/secrets"}), "answers 302"),
        (status(503, "no endpoints"), "answers 503: no endpoints"),
    ],
)
def test_a_pod_that_answers_what_it_should_not(tmp_path: Path, answer: Answer, words: str) -> None:
    """It is told of this pod, and nothing it says is followed."""
    asked = []

    def by_path(path: str) -> Answer:
        asked.append(path)
        return answer if "proxy" in path else document({"items": [POD]})

    with answering(tmp_path, by_path) as path:
        (replica,) = read_replicas(opened(path), "orders")
    assert words in replica.problem
    assert replica.status is None
    assert "/api/v1/namespaces/shop/secrets" not in asked


@pytest.mark.parametrize(("fresh", "path"), [(True, "status?fresh=1"), (False, "status")])
def test_a_fresh_look_is_asked_for(tmp_path: Path, path: str, *, fresh: bool) -> None:
    asked = []

    def by_path(path: str) -> Answer:
        asked.append(path)
        return document({"items": [POD]})

    with answering(tmp_path, by_path) as kubeconfig:
        read_replicas(opened(kubeconfig), "orders", fresh=fresh)
    assert asked[1] == f"/api/v1/namespaces/shop/pods/p:8080/proxy/{path}"
