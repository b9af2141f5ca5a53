"""The forwarder's data path in a thread of this process: to look into it, and to ask what a configuration cannot."""

import asyncio
import socket
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Self, cast

import asyncssh

from dbtunnel.api.engines import Engine
from dbtunnel.api.forwarder import Algorithms, ForwarderConfig, ForwarderHop, ForwarderKey
from dbtunnel.forwarder.algorithms import offered
from dbtunnel.forwarder.link import End, Link
from dbtunnel.forwarder.listener import Listener, listening_socket
from dbtunnel.forwarder.login import link_over
from dbtunnel.forwarder.metrics import Metrics
from dbtunnel.forwarder.transport import Dialer
from dbtunnel.forwarder.watch import hot_loop
from tests.support.forwarder import seconds


class DataPath:
    """One SSH connection, which is not made again, and the listener before it. Use it as a context manager."""

    def __init__(
        self,
        hop: ForwarderHop,
        database_port: int,
        *,
        key: str = "",
        database_host: str = "127.0.0.1",
        engine: Engine = Engine.MYSQL,
        host: str = "127.0.0.1",
        own: bool = True,
        hot: bool = True,
        **options: Any,
    ) -> None:
        """`host`: where clients come. `own`: False for asyncssh's packets; `hot`: False for asyncio's selector;
        `options` go to asyncssh.
        """
        self._own, self._options = own, options
        self._hop, self._key, self._host = hop, key, host
        self._config = ForwarderConfig(
            namespace="shop",
            name="orders",
            engine=engine,
            database_host=database_host,
            database_port=database_port,
            database_server_name="orders.internal",
            bastion=hop,
            key=ForwarderKey(secret="orders-ssh", key="key", passphrase_key="passphrase"),
            seconds=seconds(connect_timeout=2),
        )
        self.metrics = Metrics()
        self.key_exchanges = 0
        """How many there have been after the first."""
        self.lost = threading.Event()
        self._loop = hot_loop(asyncio.SelectorEventLoop) if hot else asyncio.SelectorEventLoop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="data path", daemon=True)
        self.link: Link = cast(Any, None)
        self.listener: Listener = cast(Any, None)
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self._begin)
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._end)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def run(self, what: Callable[[], Any], limit_seconds: float = 20) -> Any:
        """What a function, or a coroutine's, returns in the thread."""

        async def run() -> Any:
            result = what()
            return await result if asyncio.iscoroutine(result) else result

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(limit_seconds)

    def connect(self) -> socket.socket:
        """A client of it."""
        return socket.create_connection(("127.0.0.1", self.port), 20)

    @property
    def connection(self) -> Any:
        """asyncssh's."""
        return self.link.connection

    async def _begin(self) -> None:
        dialer, end = Dialer(), End()
        end.on_end = self._lose
        follower = SimpleNamespace(connection_made=lambda _: None, connection_lost=lambda exc: end.happen(str(exc)))
        for name in ("auth_completed", "begin_auth", "debug_msg_received", "validate_host_ca_key"):
            setattr(follower, name, lambda *_: None)
        key = asyncssh.import_private_key(self._key) if self._key else asyncssh.generate_private_key("ssh-ed25519")
        options = {**offered(Algorithms.DEFAULT, compression=False), "keepalive_interval": 1, **self._options}
        connection = await asyncssh.connect(
            self._hop.host,
            self._hop.port,
            tunnel=dialer,
            client_factory=lambda: cast(Any, follower),
            username=self._hop.user,
            client_keys=[key],
            known_hosts=None,
            config=None,
            agent_path=None,
            **options,
        )
        self._count_key_exchanges(connection)
        self.link = link_over(connection, dialer, end, own_packets=self._own)
        connector = SimpleNamespace(
            least_used=lambda: None if self.link.is_closing() else self.link, is_cut_off=lambda _: False
        )
        prober = SimpleNamespace(failed=lambda *_: None, saw=lambda *_: None, left=lambda *_: None)
        self.listener = Listener(self._config, cast(Any, connector), cast(Any, prober), self.metrics)
        bound = listening_socket(self._host, 0)
        self.port = int(bound.getsockname()[1])
        self.listener.start(bound)

    def _count_key_exchanges(self, connection: Any) -> None:
        send_newkeys = connection.send_newkeys

        def counted(k: bytes, h: bytes) -> None:
            self.key_exchanges += 1
            send_newkeys(k, h)

        connection.send_newkeys = counted

    def _lose(self) -> None:
        self.lost.set()

    async def _end(self) -> None:
        self.listener.refuse_new()
        self.listener.cut()
        self.connection.abort()
        await self.connection.wait_closed()
        await asyncio.sleep(0)
