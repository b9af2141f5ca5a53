"""What stands for Redshift: PostgreSQL behind a front that takes Redshift's connection parameters.

Redshift's own clients send parameters in the startup packet that PostgreSQL refuses, and cannot read its version; the
front ends TLS, drops the ones, says Redshift's version, and passes everything else on. `RedshiftServer` runs it.
"""

import argparse
import asyncio
import contextlib
import ssl
import struct
import sys
from pathlib import Path

from tests.support.certificates import ServerCertificate
from tests.support.databases import PostgresServer
from tests.support.processes import ROOT, Process, free_port, listens

PARAMETERS = frozenset({b"client_protocol_version", b"driver_version", b"os_version", b"driver_discovery_version"})
"""What redshift_connector says of itself, for Redshift alone."""

_SSL_REQUEST, _GSS_REQUEST, _PROTOCOL_3 = 80877103, 80877104, 196608
_VERSION = b"server_version\x008.0.2\0"

_LONGEST_STARTUP_BYTES = 10_000
"""As PostgreSQL's MAX_STARTUP_PACKET_LENGTH."""


class RedshiftServer(PostgresServer):
    """Redshift's port, TLS rule and password method (MD5), and what its clients send."""

    authentication = "md5"
    _front: Process | None = None

    def start(self) -> "RedshiftServer":
        inner = free_port(self.host)
        outer, self.port = self.port, inner
        super().start()
        self.port = outer
        self._front = start_front(self.host, outer, inner, self.tls, self.directory / "front.log", self._survives)
        return self

    @property
    def pids(self) -> tuple[int, ...]:
        assert self._front is not None, "not started"
        return (*super().pids, self._front.pid)

    def stop(self) -> None:
        if self._front:
            self._front.stop()
        super().stop()

    def _initialize(self, tls_required: bool) -> None:
        super()._initialize(False)  # the front ends TLS

    def _tls_settings(self) -> list[str]:
        return ["ssl=off"]


def start_front(
    host: str, port: int, postgres_port: int, tls: ServerCertificate | None, log: Path, survives: bool = False
) -> Process:
    """Runs a front of the PostgreSQL on another port of the host; returns once it listens."""
    command = [sys.executable, "-m", "tests.support.redshift", host, str(port), str(postgres_port)]
    if tls:
        command += ["--certificate", str(tls.certificate), "--key", str(tls.key)]
    front = Process(command, log, cwd=ROOT, survives=survives).start()
    front.wait_until(lambda: listens(host, port), "the front listens")
    return front


class Front:
    """Serves each client with a session of PostgreSQL's. With a certificate it demands TLS."""

    def __init__(self, host: str, postgres_port: int, tls: ssl.SSLContext | None) -> None:
        self._host, self._postgres_port, self._tls = host, postgres_port, tls

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client, until either side has gone."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            packet = await self._startup(reader, writer)
            if packet:
                await self._join(reader, writer, packet)
        writer.close()

    async def _startup(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
        """The packet with which a session begins, for PostgreSQL; empty where the client is turned away."""
        is_safe = self._tls is None
        while True:
            (length,) = struct.unpack("!I", await reader.readexactly(4))
            if not 8 <= length <= _LONGEST_STARTUP_BYTES:
                return b""
            body = await reader.readexactly(length - 4)
            (code,) = struct.unpack("!I", body[:4])
            if code == _SSL_REQUEST and self._tls:
                writer.write(b"S")
                await writer.start_tls(self._tls)
                is_safe = True
            elif code in (_SSL_REQUEST, _GSS_REQUEST):
                writer.write(b"N")
            elif not is_safe:
                writer.write(_error(b"SSL connection is required"))
                return b""
            else:
                return _without(body) if code == _PROTOCOL_3 else _framed(body)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, packet: bytes) -> None:
        database, to_database = await asyncio.open_connection(self._host, self._postgres_port)
        to_database.write(packet)
        ways = [_copy(reader, to_database), _answer(database, writer)]
        tasks = [asyncio.ensure_future(way) for way in ways]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        to_database.close()


def _without(body: bytes) -> bytes:
    """A startup packet without Redshift's parameters."""
    words = body[4:].rstrip(b"\0").split(b"\0")
    pairs = zip(words[::2], words[1::2], strict=False)
    kept = b"".join(name + b"\0" + value + b"\0" for name, value in pairs if name not in PARAMETERS)
    return _framed(body[:4] + kept + b"\0")


def _framed(body: bytes) -> bytes:
    return struct.pack("!I", len(body) + 4) + body


def _error(text: bytes) -> bytes:
    fields = b"SFATAL\0C28000\0M" + text + b"\0\0"
    return b"E" + struct.pack("!I", len(fields) + 4) + fields


async def _answer(database: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """What PostgreSQL says, with Redshift's version: its clients parse it and stumble over Debian's."""
    kind = b""
    while kind != b"Z":
        head = await database.readexactly(5)
        kind, body = head[:1], await database.readexactly(struct.unpack("!I", head[1:])[0] - 4)
        writer.write(kind + _framed(_VERSION if body.startswith(b"server_version\0") else body))
    await _copy(database, writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def _listen(host: str, port: int, front: Front) -> None:
    server = await asyncio.start_server(front.serve, host, port)
    await server.serve_forever()


def main() -> None:
    """Runs until it is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("postgres_port", type=int)
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    arguments = parser.parse_args()
    tls = None
    if arguments.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(arguments.certificate, arguments.key)
    with contextlib.suppress(KeyboardInterrupt):
        front = Front(arguments.host, arguments.postgres_port, tls)
        asyncio.run(_listen(arguments.host, arguments.port, front))


if __name__ == "__main__":
    main()
