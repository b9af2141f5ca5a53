"""A TCP relay between a client and a server that delays, stalls, resets, drops and damages on demand."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self

from tests.support.processes import family_of

_CHUNK_BYTES = 65536
_QUEUED_CHUNKS = 64
_MAX_CONNECTIONS = 1000


class Relay:
    """Relays from a port of its own to a target, in a thread with an event loop of its own.

    Use it as a context manager. The methods may be called from any thread and return once what they say is so.
    """

    def __init__(
        self,
        target_host: str,
        target_port: int,
        *,
        delay_seconds: float = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        source: str | None = None,
    ) -> None:
        """`delay_seconds`: in each direction, may be changed later. `source`: the address that the target sees."""
        self.target = (target_host, target_port)
        self.delay_seconds = delay_seconds
        self.damage: Callable[[bytes, bool], bytes] = lambda data, to_client: data
        """What becomes of bytes, on their way to a client or to the target."""
        self.accepted = 0
        """How many connections there have been."""
        self._source = (source, 0) if source else None
        self._listener = socket.create_server((host, port), family=family_of(host))
        self.host, self.port = self._listener.getsockname()[:2]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"relay {self.port}", daemon=True)
        self._writers: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._half_closed: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._server: asyncio.Server | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        self._call(self._serve())
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def connections(self) -> int:
        """How many connections there are now."""
        return len(self._writers)

    def stall(self) -> None:
        """From now on nothing is passed on and nothing is closed; new connections are taken and stall too."""
        self._call(self._set_flowing(False))

    def flow(self) -> None:
        """Ends the stall; what was held is passed on."""
        self._call(self._set_flowing(True))

    def reset(self) -> None:
        """Ends all connections with a reset on both sides."""
        self._call(self._end(reset=True))

    def drop(self) -> None:
        """Closes all connections on both sides."""
        self._call(self._end(reset=False))

    def half_close(self) -> None:
        """Tells all clients that the target will send no more; what clients send is still passed on."""
        self._call(self._half_close())

    def refuse(self) -> None:
        """Takes no new connections from now on: clients are refused. Connections that exist go on."""
        self._call(self._refuse())

    # --- in the loop's thread -------------------------------------------------------------------------------------

    def _call(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    async def _serve(self) -> None:
        self._flowing.set()
        self._server = await asyncio.start_server(self._accept, sock=self._listener)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self.accepted <= _MAX_CONNECTIONS:
                await self._relay(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # the target refuses, and the client sees its connection close; or the relay ends
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection(*self.target, local_addr=self._source)
        pair = (writer, target_writer)
        for each in pair:
            each.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._writers.add(pair)
        try:
            await asyncio.gather(
                self._pass_on(reader, target_writer, False), self._pass_on(target_reader, writer, True)
            )
        finally:
            self._writers.discard(pair)
            target_writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to_client: bool) -> None:
        """One direction. Reading goes on while chunks wait, so that a delay costs time and not throughput."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUED_CHUNKS)
        receiving = asyncio.create_task(self._receive(reader, queue))
        try:
            while True:
                received_at, data = await queue.get()
                await asyncio.sleep(received_at + self.delay_seconds - self._loop.time())
                await self._flowing.wait()
                if not data:
                    break
                if writer not in self._half_closed:
                    writer.write(self.damage(data, to_client))
                    await writer.drain()
            with contextlib.suppress(OSError):
                writer.write_eof()
        finally:
            receiving.cancel()

    async def _receive(self, reader: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        data = b"-"
        while data:
            try:
                data = await reader.read(_CHUNK_BYTES)
            except OSError:
                data = b""
            await queue.put((self._loop.time(), data))

    async def _set_flowing(self, flowing: bool) -> None:
        if flowing:
            self._flowing.set()
        else:
            self._flowing.clear()

    async def _half_close(self) -> None:
        for client, _ in self._writers:
            self._half_closed.add(client)
            client.write_eof()

    async def _refuse(self) -> None:
        if self._server:
            self._server.close()

    async def _end(self, *, reset: bool) -> None:
        for pair in list(self._writers):
            for writer in pair:
                if reset:
                    linger = writer.transport.get_extra_info("socket")
                    linger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    writer.transport.abort()
                else:
                    writer.close()
        await self._end_tasks()

    async def _finish(self) -> None:
        await self._refuse()
        await self._end_tasks()

    async def _end_tasks(self) -> None:
        """Ends what stalls too; asked by a thread outside, so none of the tasks waits for itself."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
