"""The admin port: /livez, /readyz, /status, /metrics, over a small HTTP/1.1 of our own.

A web framework would double the forwarder's memory and its time to start.
"""

import asyncio
import contextlib
import socket
from dataclasses import dataclass, replace
from datetime import datetime
from http import HTTPStatus
from typing import cast
from urllib.parse import parse_qs

from dbtunnel.api.documents import written
from dbtunnel.api.forwarder import ForwarderConfig, LayerStatus
from dbtunnel.domain.hops import hop_name
from dbtunnel.domain.metrics import Labels
from dbtunnel.forwarder.connection import Connector
from dbtunnel.forwarder.listener import Listener
from dbtunnel.forwarder.metrics import (
    HOP_ACTIVE,
    HOST_KEYS_ANNOUNCED,
    KEY_CERTIFICATE_EXPIRY,
    LAYER,
    NEXT_KEY_FAILS,
    SSH_CONNECTS,
    Metrics,
)
from dbtunnel.forwarder.probes import Prober
from dbtunnel.forwarder.state import State

_REQUEST_LIMIT = 8192
"""Bytes of a request's head."""

_IDLE_SECONDS = 75
"""How long a connection may wait for its next request."""

_WRITE_SECONDS = 10
"""How long an answer may wait for its reader."""

_LONGEST_POLL_SECONDS = 60

MOST_CONNECTIONS = 32
"""One more ends the oldest: whoever opens them without end takes no descriptor from the tunnel, and the kubelet, whose
answer takes a moment, is served all the same."""

_ENDS = (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError)
"""How a connection ends: by its peer, a time-out, a request that is too long, or since there are too many."""

_TEXT = "text/plain; charset=utf-8"
_JSON = "application/json"


@dataclass(frozen=True)
class _Answer:
    status: HTTPStatus
    body: str
    type: str = _TEXT


class Admin:
    """Answers the kubelet, the operator and Prometheus."""

    def __init__(
        self,
        config: ForwarderConfig,
        state: State,
        listener: Listener,
        connector: Connector,
        prober: Prober,
        metrics: Metrics,
    ) -> None:
        self._config, self._state, self._connector, self._metrics = config, state, connector, metrics
        self._prober, self._listener = prober, listener
        metrics.look_up(KEY_CERTIFICATE_EXPIRY, self._certificates)
        self._server: asyncio.Server | None = None
        self._connections: list[asyncio.Task[None]] = []
        """In the order of their arrival."""

    async def start(self, bound: socket.socket) -> None:
        """Answers on a listening socket."""
        self._server = await asyncio.start_server(self._serve, sock=bound, limit=_REQUEST_LIMIT)

    def stop(self) -> None:
        """Ends it with its connections."""
        if self._server:
            self._server.close()
        for task in self._connections:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        if len(self._connections) >= MOST_CONNECTIONS:
            self._connections.pop(0).cancel()
        self._connections.append(task)
        try:
            with contextlib.suppress(*_ENDS):
                await self._converse(reader, writer)
                writer.close()
                async with asyncio.timeout(_WRITE_SECONDS):
                    await writer.wait_closed()
        finally:
            if task in self._connections:
                self._connections.remove(task)
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request after the other. Raises TimeoutError."""
        goes_on = True
        while goes_on:
            async with asyncio.timeout(_IDLE_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            answer = await self._answer(head)
            # after an answer that is not good it is closed, since a body that was not read might follow
            goes_on = answer.status is HTTPStatus.OK and not _asks_to_close(head)
            writer.write(_encoded(answer, "keep-alive" if goes_on else "close"))
            async with asyncio.timeout(_WRITE_SECONDS):
                await writer.drain()

    async def _answer(self, head: bytes) -> _Answer:
        words = head.split(b"\r\n", 1)[0].decode("latin-1").split()
        if len(words) != 3 or words[0] != "GET":
            return _Answer(HTTPStatus.METHOD_NOT_ALLOWED, "only GET\n")
        path, _, query = words[1].partition("?")
        if path == "/livez":
            return _Answer(HTTPStatus.OK, "ok\n")
        if path == "/readyz":
            return self._readiness()
        if path == "/metrics":
            return _Answer(HTTPStatus.OK, self._metrics_text(), "text/plain; version=0.0.4; charset=utf-8")
        if path == "/status":
            return await self._status(query)
        return _Answer(HTTPStatus.NOT_FOUND, "paths: /livez /readyz /status /metrics\n")

    def _readiness(self) -> _Answer:
        """Good while clients are served, or wait in good hope: not before the first connection, so that a rollout
        keeps the old pods until the new ones work, not after clients have waited in vain, and not once a drain has
        closed the port: a container that is ended alone, and not its pod, is still led to."""
        if not self._listener.is_open:
            return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, "takes no clients\n")
        down_since = self._connector.down_since
        if down_since is None:
            return _Answer(HTTPStatus.OK, "ok\n")
        seconds = asyncio.get_running_loop().time() - down_since
        if self._metrics.get(SSH_CONNECTS) and seconds <= self._config.seconds.parking_max:
            return _Answer(HTTPStatus.OK, f"reconnecting for {seconds:.0f} s\n")
        return _Answer(HTTPStatus.SERVICE_UNAVAILABLE, f"no SSH connection for {seconds:.0f} s\n")

    def _metrics_text(self) -> str:
        for layer, fact in self._state.layers():
            self._metrics.set(LAYER, fact.status == LayerStatus.TRUE, layer)
        for number, hop in enumerate(self._state.status.hops):
            name = hop_name(self._config, number)
            self._metrics.set(HOP_ACTIVE, hop.active, name)
            self._metrics.set(HOST_KEYS_ANNOUNCED, sum(key.announced for key in hop.host_keys), name)
        status = self._state.status
        following = [status.next_key, *(hop.next_key for hop in status.hops)]
        self._metrics.set(NEXT_KEY_FAILS, any(key and key.fact.status == LayerStatus.FALSE for key in following))
        return self._metrics.text()

    def _certificates(self) -> dict[Labels, float]:
        """When they expire, by the fingerprint of their key."""
        status = self._state.status
        following = (one.public_key for one in (status.next_key, *(hop.next_key for hop in status.hops)) if one)
        keys = (status.public_key, *(hop.public_key for hop in status.hops), *following)
        ends = {key.fingerprint: key.certificate_not_after for key in keys if key}
        return {name: datetime.fromisoformat(end).timestamp() for name, end in ends.items() if end}

    async def _status(self, query: str) -> _Answer:
        fields = parse_qs(query)
        try:
            after = int(fields.get("after", ["-1"])[0])
            seconds = int(fields.get("timeoutSeconds", ["0"])[0])
        except ValueError:
            return _Answer(HTTPStatus.BAD_REQUEST, "after and timeoutSeconds are whole numbers\n")
        if "fresh" in fields:
            await self._prober.refresh()
        facts = await self._state.after(after, min(max(seconds, 0), _LONGEST_POLL_SECONDS))
        status = replace(facts, sessions=self._connector.sessions())
        return _Answer(HTTPStatus.OK, written(status), _JSON)


def _asks_to_close(head: bytes) -> bool:
    line, _, fields = head.lower().partition(b"\r\n")
    return line.endswith(b"http/1.0") or any(
        name.strip() == b"connection" and b"close" in value
        for name, _, value in (field.partition(b":") for field in fields.split(b"\r\n"))
    )


def _encoded(answer: _Answer, connection: str) -> bytes:
    body = answer.body.encode()
    head = (
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}\r\n"
        f"Content-Type: {answer.type}\r\nContent-Length: {len(body)}\r\nX-Content-Type-Options: nosniff\r\n"
        f"Connection: {connection}\r\n\r\n"
    )
    return head.encode("latin-1") + body
