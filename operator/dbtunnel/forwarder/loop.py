"""The event loop of a forwarder: what may hang in the C library does not hold up the end of the process."""

import asyncio
import contextlib
import functools
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class ForwarderLoop(asyncio.SelectorEventLoop):
    """Looks names up in threads that need not end.

    The threads of asyncio's own executor are waited for at the end of the process, and a resolver that gets no answer
    takes minutes: search list times servers times attempts, of 5 s each.
    """

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """As asyncio asks for it. Raises OSError."""
        return await in_daemon_thread(lambda: socket.getaddrinfo(host, port, family, type, proto, flags))


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """What the function returns or raises, from a thread that ends with the process at the latest."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        settle: Callable[[], None]
        try:
            settle = functools.partial(done.set_result, function())
        except Exception as error:
            settle = functools.partial(done.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: None if done.done() else settle())

    threading.Thread(target=run, daemon=True, name="dbtunnel").start()
    return await done
