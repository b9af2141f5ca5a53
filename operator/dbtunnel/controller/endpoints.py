"""The small HTTP servers of the operator: liveness while Kopf does not serve it yet, readiness, metrics."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

from aiohttp import web

Answer = Callable[[], web.Response]


@asynccontextmanager
async def serving(address: tuple[str, int], answers: Mapping[str, Answer]) -> AsyncIterator[None]:
    """Answers at these paths while the context lasts."""
    application = web.Application()
    for path, answer in answers.items():
        application.router.add_get(path, _handler(answer))
    runner = web.AppRunner(application, handle_signals=False, access_log=None, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, *address).start()
        yield
    finally:
        await runner.cleanup()


def _handler(answer: Answer) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(_: web.Request) -> web.Response:
        return answer()

    return handle
