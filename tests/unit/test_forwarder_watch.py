"""Sockets that are served from within the selector, and by asyncio's own means where there is no epoll."""

import asyncio
import functools
import os
import resource
import selectors
import socket
import struct
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.settings import Defaults
from dbtunnel.forwarder.client import Client
from dbtunnel.forwarder.listener import Listener, listening_socket
from dbtunnel.forwarder.metrics import CLIENTS_TOTAL, Metrics
from dbtunnel.forwarder.watch import READ, WRITE, HotSelector, LoopWatcher, hot_loop, watcher
from tests.support.stuck_ssh import until
from tests.support.values import tunnel

HOT = pytest.mark.asyncio(loop_factories=["hot"])


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets that are connected, of which the first is watched."""
    bound = listening_socket("127.0.0.1", 0)
    other = socket.create_connection(bound.getsockname())
    ours, _ = bound.accept()
    ours.setblocking(False)
    bound.close()
    yield ours, other
    ours.close()
    other.close()


async def passes() -> None:
    """Lets the loop look at its sockets many times."""
    for _ in range(50):
        await asyncio.sleep(0)


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


async def test_a_loop_has_its_watcher() -> None:
    assert watcher() is watcher()
    assert isinstance(watcher(), HotSelector | LoopWatcher)


async def test_a_socket_is_told_of_what_it_is_watched_for(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, other = pair
    told: list[int] = []
    watching = watcher()
    watching.watch(ours.fileno(), 0, told.append, lambda: None)
    other.send(b"x")
    await passes()
    assert told == []
    watching.change(ours.fileno(), READ)
    await until(lambda: told)
    watching.change(ours.fileno(), WRITE)
    await until(lambda: WRITE in told)
    watching.change(ours.fileno(), READ | WRITE)
    watching.change(ours.fileno(), 0)
    told.clear()
    await passes()
    assert told == []
    watching.forget(ours.fileno())
    watching.forget(ours.fileno())


async def test_a_bug_in_a_handler_ends_its_socket_and_is_not_repeated(
    pair: tuple[socket.socket, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    ours, other = pair
    ended: list[bool] = []

    def broken(_: int) -> None:
        raise RuntimeError("a bug")

    def end() -> None:
        ended.append(True)
        raise RuntimeError("another")

    watcher().watch(ours.fileno(), READ, broken, end)
    other.send(b"x")
    await until(lambda: ended)
    await passes()
    assert ended == [True]
    assert [record.message for record in caplog.records] == ["serving a socket failed", "ending it failed"]
    watcher().forget(ours.fileno())


async def test_a_bug_at_the_end_of_a_pass_leaves_the_loop_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    told: list[bool] = []

    def broken() -> None:
        raise RuntimeError("a bug")

    watcher().at_end_of_pass(broken)
    watcher().at_end_of_pass(lambda: told.append(True))
    await until(lambda: told)
    assert "a bug" in caplog.text


async def test_what_the_end_of_a_pass_gives_the_loop_to_do_is_done_at_once() -> None:
    """And not when the next timer is due."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    watcher().at_end_of_pass(lambda: cast(Any, loop.call_soon(done.set)))
    began = time.monotonic()
    async with asyncio.timeout(5):
        await done.wait()
    assert time.monotonic() - began < 1


@HOT
async def test_a_socket_that_failed_is_told_of_while_it_is_watched_for_nothing_else(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, other = pair
    told: list[int] = []
    watcher().watch(ours.fileno(), READ, told.append, lambda: None)
    watcher().change(ours.fileno(), 8)
    reset(other)
    await until(lambda: told)
    watcher().change(ours.fileno(), 0)  # or it would be told of without an end
    told.clear()
    await passes()
    assert told == []
    watcher().forget(ours.fileno())


@HOT
async def test_a_descriptor_that_is_used_again_within_a_pass_is_not_mistaken(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """The first that is served closes the second, and something else gets its number: it is told of what it has not."""
    ours, other = pair
    bound = listening_socket("127.0.0.1", 0)
    ends = [socket.create_connection(bound.getsockname()) for _ in range(2)]
    accepted = [bound.accept()[0] for _ in ends]
    host = SimpleNamespace(told=[])
    for name in ("wants_channel", "gone"):
        setattr(host, name, lambda *_, name=name: host.told.append(name))
    taken: list[Client] = []

    def replace(served: socket.socket, _: int) -> None:
        (closed,) = (each for each in accepted if each is not served)
        for each in accepted:
            watcher().forget(each.fileno())
        number = closed.detach()
        os.dup2(ours.fileno(), number)
        taken.append(Client(socket.socket(fileno=number), ("127.0.0.1", 1), cast(Any, host)))

    for each, end in zip(accepted, ends, strict=True):
        each.setblocking(False)
        watcher().watch(each.fileno(), READ, functools.partial(replace, each), lambda: None)
        reset(end)
    await until(lambda: taken)
    await passes()
    assert host.told == []
    assert not taken[0].is_gone
    other.send(b"x")
    await until(lambda: host.told == ["wants_channel"])
    taken[0].refuse()
    bound.close()
    for each in accepted:
        each.close()


def events_of(client: Client, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What a client is told of from now on."""
    told: list[int] = []
    happened = client._happened
    selector = cast(HotSelector, watcher())

    def tell(events: int) -> None:
        told.append(events)
        happened(events)

    monkeypatch.setitem(selector._handlers, client._fd, tell)
    return told


@HOT
@pytest.mark.parametrize("end", [lambda peer: peer.shutdown(socket.SHUT_WR), socket.socket.close])
async def test_a_client_that_has_ended_costs_nothing_while_the_database_sends_on(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch, end: Any
) -> None:
    """epoll tells of both ends of a connection again and again, whatever it is asked for."""
    ours, other = pair
    host = SimpleNamespace(**{name: lambda *_, **__: None for name in ("wants_channel", "joined", "gone", "moved")})
    client = Client(ours, ("127.0.0.1", 1), cast(Any, host))
    channel = SimpleNamespace(may_send_bytes=2**20, largest_data=2**15, end_sending=lambda: None, close=lambda: None)
    client.link = cast(Any, SimpleNamespace(congestion=SimpleNamespace(holds=lambda _: False, forget=lambda _: None)))
    client.opened(cast(Any, channel))
    told = events_of(client, monkeypatch)
    end(other)
    await until(lambda: client._client_ended)
    ours.shutdown(socket.SHUT_WR)  # the other end of it, though nobody has said so
    await passes()
    assert len(told) <= 3
    client.refuse()


@HOT
async def test_a_listening_socket_rests_while_there_are_no_descriptors(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It could be read all the while, and goes on by itself."""
    monkeypatch.setattr("dbtunnel.forwarder.listener._REST_SECONDS", 0.05)
    config = forwarder_config(tunnel(), Defaults())
    metrics = Metrics()
    listener = Listener(config, cast(Any, SimpleNamespace(link=None)), cast(Any, None), metrics)
    bound = listening_socket("127.0.0.1", 0)
    listener.start(bound)
    with socket.create_connection(bound.getsockname()):
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            await until(lambda: caplog.records)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await until(lambda: metrics.get(CLIENTS_TOTAL) == 1)
        assert len(caplog.records) < 40
    listener.refuse_new()
    listener.cut()


def test_a_loop_that_ends_closes_its_selector() -> None:
    loop = hot_loop(asyncio.SelectorEventLoop)
    selector = cast(HotSelector, cast(Any, loop)._selector)
    assert isinstance(selector, selectors.BaseSelector)
    loop.close()
    assert selector._epoll.closed
