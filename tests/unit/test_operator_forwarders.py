"""How forwarders' reports are read: what is believed, what a silence means, how often is asked."""

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest

from dbtunnel.api.documents import written
from dbtunnel.api.forwarder import ForwarderStatus
from dbtunnel.controller.client import ApiError, Client
from dbtunnel.controller.forwarders import (
    BODY_LIMIT,
    Forwarders,
    Target,
    UnbelievableError,
    describe,
    direct_reader,
    open_session,
    proxy_reader,
)
from dbtunnel.controller.queue import TunnelKey
from dbtunnel.domain.observed import Report
from tests.support.virtual_time import now, run

KEY = TunnelKey("shop", "orders")
TARGET = Target("shop", "orders-tunnel-abc", "pod-uid", "10.0.0.1", "hash")
EPOCH = datetime(2026, 11, 5, tzinfo=UTC)


def status(sequence: int = 1, **facts: Any) -> ForwarderStatus:
    return ForwarderStatus(**{"sequence": sequence, "pod_uid": "pod-uid", "config_hash": "hash", **facts})


def body(sequence: int = 1, **facts: Any) -> bytes:
    return written(status(sequence, **facts)).encode()


class Pod:
    """Answers as a forwarder does: each of `answers` after a while, the last one held for ever."""

    def __init__(self, *answers: bytes | Exception, each_seconds: float = 0) -> None:
        self.answers = list(answers)
        self.each_seconds = each_seconds
        self.asked: list[tuple[float, str, float]] = []

    async def __call__(self, _: Target, path: str, limit_seconds: float) -> bytes:
        self.asked.append((round(now(), 3), path, limit_seconds))
        if not self.answers:
            await asyncio.Event().wait()
        await asyncio.sleep(self.each_seconds)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Operator:
    """The forwarders of one tunnel as they are followed, and what is heard of them."""

    def __init__(self, read: Callable[[Target, str, float], Awaitable[bytes]]) -> None:
        self.changes: list[float] = []
        self.forwarders = Forwarders(read, self._changed, lambda: EPOCH + timedelta(seconds=now()))

    def _changed(self, key: TunnelKey) -> None:
        assert key == KEY
        self.changes.append(round(now(), 3))

    @property
    def report(self) -> Report:
        return self.forwarders.reports(KEY).get("pod-uid", Report())


def followed(read: Pod, then: Callable[[Operator], Coroutine[Any, Any, None]]) -> Operator:
    """Follows the target while `then` runs."""

    async def main() -> Operator:
        operator = Operator(read)
        operator.forwarders.follow(KEY, {TARGET})
        await then(operator)
        await operator.forwarders.close()
        return operator

    return run(main())


async def a_while(_: Operator) -> None:
    await asyncio.sleep(100)


# --- asking -----------------------------------------------------------------------------------------------------------


def test_a_change_is_waited_for_at_the_forwarder() -> None:
    pod = Pod(body(7), body(9))
    followed(pod, a_while)
    assert [(path, limit) for _, path, limit in pod.asked] == [
        ("status", 10),
        ("status?after=7&timeoutSeconds=30", 40),
        ("status?after=9&timeoutSeconds=30", 40),
    ]


def test_a_forwarder_that_always_answers_at_once_is_not_asked_all_the_time() -> None:
    pod = Pod(*[body(number) for number in range(20)])
    followed(pod, a_while)
    times = [time for time, *_ in pod.asked]
    assert all(later - earlier >= 0.099 for earlier, later in itertools.pairwise(times))


def test_a_forwarder_that_does_not_answer_is_asked_more_and_more_rarely() -> None:
    pod = Pod(*[TimeoutError()] * 40)
    followed(pod, a_while)
    times = [time for time, *_ in pod.asked]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert waits[:3] == pytest.approx([0.1, 0.13, 0.169], abs=0.002)
    assert waits[-1] == pytest.approx(5, abs=0.002)
    assert waits == sorted(waits)


def test_after_a_failure_the_whole_document_is_asked_for_and_soon_again() -> None:
    pod = Pod(*[OSError()] * 10, body(7), OSError(), body(1))
    followed(pod, a_while)
    assert [path for _, path, _ in pod.asked[10:]] == [
        "status",
        "status?after=7&timeoutSeconds=30",
        "status",
        "status?after=1&timeoutSeconds=30",
    ]
    assert pod.asked[12][0] - pod.asked[11][0] == pytest.approx(0.1, abs=0.002), "the backoff begins anew"


# --- believing --------------------------------------------------------------------------------------------------------


def test_a_report_is_believed_and_told_once() -> None:
    operator = followed(Pod(body(7), body(7), body(7), each_seconds=1), a_while)
    assert operator.report == Report(status(7))
    assert operator.changes == [1]


def test_every_change_is_told() -> None:
    operator = followed(Pod(body(7), body(8, draining=True), each_seconds=1), a_while)
    assert operator.report == Report(status(8, draining=True))
    assert len(operator.changes) == 2


def test_a_number_that_grows_while_the_facts_stay_is_no_news() -> None:
    operator = followed(Pod(*[body(number) for number in range(50)]), a_while)
    assert operator.report == Report(status(49))
    assert len(operator.changes) == 1


def test_an_answer_that_nobody_thought_of_is_a_failure_like_others_and_told_in_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    operator = followed(Pod(RuntimeError("unheard of"), body(7)), a_while)
    assert operator.report == Report(status(7))
    assert [record.getMessage() for record in caplog.records] == ["forwarder not read"]


UNBELIEVABLE: dict[str, tuple[bytes | Exception, str]] = {
    "another pod": (body(pod_uid="other"), "UnbelievableError: another pod answers at the address"),
    "another configuration": (
        body(config_hash="other"),
        "UnbelievableError: the forwarder runs with another configuration",
    ),
    "something else": (b"<html>\x1b[2J</html>", "the answer is not a status document"),
    "nothing": (b"", "the answer is not a status document"),
    "a deep document": (b"[" * 60_000, "the answer is not a status document"),
    "a document of another kind": (b'{"sequence": "many"}', "the answer is not a status document"),
    "silence": (TimeoutError(), "no answer in time"),
    "a refusal": (ConnectionRefusedError(111, "refused"), "ConnectionRefusedError: [Errno 111] refused"),
    "a broken answer": (aiohttp.ServerDisconnectedError(), "ServerDisconnectedError: Server disconnected"),
    "a refusal of the API server": (ApiError(502, "", "no route"), "ApiError: 502 : no route"),
}


@pytest.mark.parametrize("kind", UNBELIEVABLE)
def test_what_is_not_believed(kind: str) -> None:
    answer, failure = UNBELIEVABLE[kind]
    operator = followed(Pod(answer), a_while)
    assert operator.report == Report(None, failing_since=EPOCH, failure=failure)


def test_a_silence_is_dated_from_its_beginning_and_keeps_what_was_known() -> None:
    pod = Pod(body(7), TimeoutError(), OSError("later"), OSError("later still"), each_seconds=1)
    operator = followed(pod, a_while)
    assert operator.report == Report(
        status(7), failing_since=EPOCH + timedelta(seconds=2.1), failure="no answer in time"
    )
    assert operator.changes == [1, 2.1], "one more failure is no news"


def test_an_answer_ends_a_silence() -> None:
    operator = followed(Pod(TimeoutError(), body(7)), a_while)
    assert operator.report == Report(status(7))
    assert operator.changes == [0, 0.1]


def test_a_failure_is_told_in_a_few_words() -> None:
    assert len(describe(OSError("x" * 10_000))) == 300


# --- following --------------------------------------------------------------------------------------------------------


def test_a_pod_that_is_no_longer_followed_is_forgotten_and_not_asked_again() -> None:
    pod = Pod(*[body(number) for number in range(1000)], each_seconds=1)

    async def then(operator: Operator) -> None:
        await asyncio.sleep(5)
        operator.forwarders.follow(KEY, set())
        asked = len(pod.asked)
        await asyncio.sleep(50)
        assert len(pod.asked) == asked
        assert operator.forwarders.reports(KEY) == {}

    followed(pod, then)


def test_a_pod_that_is_followed_already_is_asked_by_one_only() -> None:
    pod = Pod(body(7))

    async def then(operator: Operator) -> None:
        for _ in range(3):
            operator.forwarders.follow(KEY, {TARGET})
            await asyncio.sleep(5)

    followed(pod, then)
    assert len(pod.asked) == 2


def test_a_pod_that_gets_another_address_is_asked_there_and_what_is_known_of_it_stays() -> None:
    pod = Pod(body(7))
    moved = Target("shop", "orders-tunnel-abc", "pod-uid", "10.0.0.2", "hash")

    async def then(operator: Operator) -> None:
        await asyncio.sleep(5)
        operator.forwarders.follow(KEY, {moved})
        assert operator.report == Report(status(7))
        await asyncio.sleep(5)

    followed(pod, then)
    assert [path for _, path, _ in pod.asked] == ["status", "status?after=7&timeoutSeconds=30", "status"]


def test_a_late_answer_of_a_pod_that_has_gone_is_not_heard() -> None:
    pod = Pod(body(7), each_seconds=10)

    async def then(operator: Operator) -> None:
        await asyncio.sleep(5)
        operator.forwarders.follow(KEY, set())
        await asyncio.sleep(50)
        assert operator.changes == []
        assert operator.forwarders.reports(KEY) == {}

    followed(pod, then)


def test_nothing_is_followed_any_more_after_the_end() -> None:
    pod = Pod(body(7))

    async def then(operator: Operator) -> None:
        await operator.forwarders.close()
        asked = len(pod.asked)
        operator.forwarders.follow(KEY, {TARGET})
        await asyncio.sleep(50)
        assert len(pod.asked) == asked

    followed(pod, then)


# --- reading ----------------------------------------------------------------------------------------------------------


class Session:
    """An HTTP session that answers with one status and one body."""

    def __init__(self, status: int, content: bytes) -> None:
        self.status, self.content = status, content
        self.asked: list[tuple[str, dict[str, Any]]] = []

    @asynccontextmanager
    async def get(self, url: str, **options: Any) -> AsyncIterator[Any]:
        self.asked.append((url, options))
        stream = asyncio.StreamReader()
        stream.feed_data(self.content)
        stream.feed_eof()
        yield SimpleNamespace(status=self.status, content=stream)


async def answer(session: Session, target: Target = TARGET) -> bytes:
    return await direct_reader(cast(aiohttp.ClientSession, session))(target, "status?after=1", 40)


async def test_a_connection_through_which_nothing_comes_any_more_ends() -> None:
    """While an answer is awaited, too: what that does on a network is in tests/cluster/test_access.py."""

    async def half_an_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{")

    server = await asyncio.start_server(half_an_answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with open_session() as session, session.get(url) as response:
        assert response.connection
        assert response.connection.transport
        used = response.connection.transport.get_extra_info("socket")
        assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT)
        assert [used.getsockopt(socket.IPPROTO_TCP, name) for name in names] == [10, 5, 10_000]
    server.close()


async def test_a_pod_is_read_at_its_own_address() -> None:
    session = Session(200, b"{}")
    assert await answer(session) == b"{}"
    await answer(session, Target("shop", "a", "b", "2001:db8::1", "c"))
    assert [url for url, _ in session.asked] == [
        "http://10.0.0.1:8080/status?after=1",
        "http://[2001:db8::1]:8080/status?after=1",
    ]
    options = session.asked[0][1]
    assert options["allow_redirects"] is False
    assert options["timeout"].total == 40


@pytest.mark.parametrize("code", [301, 302, 307, 404, 503, 204])
async def test_no_other_answer_is_read_and_no_redirect_followed(code: int) -> None:
    with pytest.raises(UnbelievableError, match=f"HTTP status {code}"):
        await answer(Session(code, b"{}"))


async def test_no_more_is_read_than_a_document_has() -> None:
    assert len(await answer(Session(200, b"x" * BODY_LIMIT))) == BODY_LIMIT
    with pytest.raises(UnbelievableError, match="more than 65536 bytes"):
        await answer(Session(200, b"x" * (BODY_LIMIT + 1)))


async def test_outside_the_cluster_the_api_server_is_asked() -> None:
    asked: list[tuple[Any, ...]] = []

    async def proxy(*arguments: Any) -> bytes:
        asked.append(arguments)
        return b"{}"

    read = proxy_reader(cast(Client, SimpleNamespace(proxy=proxy)))
    assert await read(TARGET, "status", 10) == b"{}"
    assert asked == [("shop", "orders-tunnel-abc", 8080, "status", 10, BODY_LIMIT)]


async def test_no_more_is_taken_from_the_api_servers_proxy_than_a_document_has() -> None:
    async def proxy(*_: Any) -> bytes:
        return b"x" * (BODY_LIMIT + 1)

    with pytest.raises(UnbelievableError, match="more than 65536 bytes"):
        await proxy_reader(cast(Client, SimpleNamespace(proxy=proxy)))(TARGET, "status", 10)
