"""Requests of the operator to a server that is not a well-behaved API server."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import yaml
from aiohttp import web
from kubernetes.aio.client import ApiClient

from dbtunnel.controller.client import DEPLOYMENT, TUNNEL, ApiError, Client, load_configuration
from dbtunnel.controller.metrics import Metrics


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unused_tcp_port: int) -> int:
    """A kubeconfig that leads to a port of this machine."""
    cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{unused_tcp_port}"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    user = {"name": "u", "user": {"token": "secret"}}
    document = {"clusters": [cluster], "contexts": [context], "users": [user], "current-context": "x"}
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(document))
    # the client reads the variable when it is imported
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    return unused_tcp_port


@asynccontextmanager
async def client(
    port: int,
    handle: Callable[[web.Request], Awaitable[web.StreamResponse]],
    write_seconds: Callable[[], float] = lambda: 30,
) -> AsyncIterator[Client]:
    """A client of a server that answers with `handle`."""
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(application, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        async with ApiClient(await load_configuration()) as api:
            yield Client(api, Metrics(), write_seconds)
    finally:
        await runner.cleanup()


async def test_listed_objects_say_what_they_are(configured: int) -> None:
    async def handle(request: web.Request) -> web.Response:
        is_last = "continue" in request.query
        metadata = {"resourceVersion": "7", "continue": "" if is_last else "next"}
        managers = [{"manager": "kubectl-edit", "fieldsV1": {"f:spec": {}}}]
        item = {"metadata": {"name": "second" if is_last else "first", "managedFields": managers}}
        return web.json_response({"kind": "DeploymentList", "items": [item], "metadata": metadata})

    async with client(configured, handle) as api:
        items, at = await api.list(DEPLOYMENT)

    assert at == 7
    assert [item["metadata"]["name"] for item in items] == ["first", "second"]
    assert {(item["apiVersion"], item["kind"]) for item in items} == {("apps/v1", "Deployment")}
    assert {tuple(item["metadata"]["managedFields"]) for item in items} == {("kubectl-edit",)}


async def test_a_pods_endless_answer_is_read_up_to_a_limit(configured: int) -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"x" * 65536)

    async with client(configured, handle) as api:
        body = await asyncio.wait_for(api.proxy("shop", "pod", 8080, "status", 60, 1000), 5)

    assert len(body) == 1001


async def test_no_redirect_is_followed(configured: int) -> None:
    asked: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(request.path)
        return web.Response(status=302, headers={"Location": "/elsewhere"})

    async with client(configured, handle) as api:
        with pytest.raises(aiohttp.ClientError, match="redirect"):
            await api.proxy("shop", "pod", 8080, "status", 5, 1000)

    assert asked == ["/api/v1/namespaces/shop/pods/pod:8080/proxy/status"]


async def test_long_polls_of_many_forwarders_keep_no_write_waiting(configured: int) -> None:
    news = asyncio.Event()

    async def handle(request: web.Request) -> web.Response:
        if "proxy" in request.path:
            await news.wait()
        return web.json_response({"metadata": {"resourceVersion": "8"}})

    async with client(configured, handle) as api:
        polls = [asyncio.create_task(api.proxy("shop", "pod", 8080, "status", 60, 1000)) for _ in range(150)]
        await asyncio.sleep(0)
        await asyncio.wait_for(api.patch(TUNNEL, "shop", "orders", {}, "status"), 10)
        assert not any(poll.done() for poll in polls)
        news.set()
        await asyncio.gather(*polls)


@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"[]", b"null", b'{"details": {"causes": [null]}}', b""])
async def test_a_refusal_may_have_any_form(configured: int, body: bytes) -> None:
    async def handle(_: web.Request) -> web.Response:
        return web.Response(status=502, body=body)

    async with client(configured, handle) as api:
        with pytest.raises(ApiError) as refusal:
            await api.get(DEPLOYMENT, "shop", "orders")

    assert refusal.value.status == 502


async def test_who_may_not_write_still_reads(configured: int) -> None:
    asked: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(request.method)
        return web.json_response({})

    async with client(configured, handle, lambda: 0) as api:
        assert await api.get(DEPLOYMENT, "shop", "orders") == {}
        metadata = {"namespace": "shop", "name": "orders", "uid": "u", "resourceVersion": "7"}
        for write in (
            api.create(DEPLOYMENT, {"metadata": metadata}),
            api.replace(DEPLOYMENT, {"metadata": metadata}),
            api.patch(TUNNEL, "shop", "orders", {}, "status"),
            api.delete(DEPLOYMENT, {"metadata": metadata}),
        ):
            with pytest.raises(ApiError, match="409 LeaseLost"):
                await write

    assert asked == ["GET"]


async def test_a_write_is_given_up_after_as_long_as_it_may_take(configured: int) -> None:
    over = asyncio.Event()

    async def handle(_: web.Request) -> web.Response:
        await over.wait()
        return web.json_response({})

    async with client(configured, handle, lambda: 0.1) as api:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5) as far_longer:
                await api.patch(TUNNEL, "shop", "orders", {}, "status")
        over.set()

    assert not far_longer.expired()


async def test_a_write_whose_connection_broke_is_not_sent_again(configured: int) -> None:
    asked: list[str] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(request.method)
        if len(asked) % 2 == 0 and request.transport:
            request.transport.abort()
        return web.json_response({})

    manifest = {"metadata": {"namespace": "shop", "name": "orders", "uid": "u", "resourceVersion": "7"}}
    async with client(configured, handle) as api:
        for write in (api.replace, api.delete):
            await api.get(DEPLOYMENT, "shop", "orders")
            with pytest.raises(aiohttp.ClientConnectionError):
                await write(DEPLOYMENT, manifest)

    assert asked == ["GET", "PUT", "GET", "DELETE"]
