"""Errors of the SSH library that a server leads to: each has its reason, and none escapes."""

import asyncio
import logging
import struct
from collections.abc import Callable, Mapping
from typing import Any

import asyncssh
import pytest

from dbtunnel.api.forwarder import ForwarderHop
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.keys import MountedFile
from tests.forwarder.test_login_faults import Tunnel, escaped, login_to
from tests.support import faults
from tests.support.bastion import USER
from tests.support.databases import PostgresServer
from tests.support.keys import KeyPair
from tests.support.odd_ssh import OddSshServer, say_before
from tests.unit.test_forwarder_connect import CONFIG

__all__ = ["escaped"]

LOST, NO_SSH = Reason.CONNECTION_LOST, Reason.NOT_AN_SSH_SERVER


async def failure_at(hop: ForwarderHop, key: KeyPair) -> Failure:
    with pytest.raises(Failure) as failed:
        await login_to(hop, key).connect(MountedFile())
    assert REASONS[failed.value.reason].type is failed.value.layer
    return failed.value


# --- the version line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "reason", "seen"),
    [
        (b"SSH-1.5-OpenSSH_1.2\r\n", NO_SSH, 'it says "SSH-1.5-OpenSSH_1.2"'),
        (b"SSH-3.0-Future\r\n", NO_SSH, 'it says "SSH-3.0-Future"'),
        (b"line\r\n" * 2000, NO_SSH, 'it says "line'),
        (b"x" * 20_000, NO_SSH, 'it says "xxx'),
        (b"SSH-1.99-Old\r\n", LOST, '"Connection lost"'),
        (b"SSH-2.0-" + b"x" * 300 + b"\r\n", LOST, '"Version too long'),
        (b"SSH-2.0-\xff\xfe\r\n", LOST, "a message that breaks the SSH protocol (UnicodeDecodeError)"),
    ],
    ids=["ssh 1", "ssh 3", "many lines", "long line", "both", "long version", "no ascii"],
)
async def test_a_version_line(
    said: bytes, reason: Reason, seen: str, client_key: KeyPair, escaped: list[logging.LogRecord]
) -> None:
    with faults.says(said) as server:
        hop = ForwarderHop(host=server.host, port=server.port, user=USER, host_key=CONFIG.bastion.host_key)
        failure = await failure_at(hop, client_key)
    assert failure.reason is reason
    assert failure.seen.startswith(seen)
    assert [record.getMessage() for record in escaped] == []


# --- algorithms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "seen"),
    [
        ({"kex_algs": ["diffie-hellman-group1-sha1"]}, "key exchange"),
        ({"encryption_algs": ["3des-cbc"]}, "encryption"),
        ({"encryption_algs": ["aes128-ctr"], "mac_algs": ["hmac-md5"]}, "MAC"),
        ({"compression_algs": ["zlib"]}, "compression"),
    ],
    ids=["key exchange", "cipher", "mac", "compression"],
)
async def test_nothing_in_common(
    options: dict[str, Any], seen: str, client_key: KeyPair, escaped: list[logging.LogRecord]
) -> None:
    with OddSshServer(**options) as server:
        failure = await failure_at(server.hop, client_key)
    assert failure.reason is Reason.NO_COMMON_ALGORITHM
    assert seen in failure.seen
    assert [record.getMessage() for record in escaped] == []


# --- extensions -------------------------------------------------------------------------------------------------------

EXT_INFO, SERVICE_ACCEPT, SUCCESS = 7, 6, 52


def ext_info(extensions: Mapping[bytes, bytes]) -> bytes:
    """The body of SSH_MSG_EXT_INFO (RFC 8308, section 2.3)."""
    words = [word for extension in extensions.items() for word in extension]
    return struct.pack(">I", len(extensions)) + b"".join(struct.pack(">I", len(word)) + word for word in words)


@pytest.mark.parametrize("message", [SERVICE_ACCEPT, SUCCESS], ids=["before the login", "right before its success"])
async def test_extensions_that_are_told_again(
    message: int, postgres: PostgresServer, client_key: KeyPair, escaped: list[logging.LogRecord]
) -> None:
    """A server tells them with its keys, and may once more right before the login succeeds (RFC 8308, section 2.4)."""
    body = ext_info({b"no-flow-control": b"p", b"server-sig-algs": b"x", b"of-the-future@example.com": b"\xff\0"})
    said: list[int] = []

    def on_connection(connection: Any) -> None:
        send_packet = connection.send_packet

        def send(kind: int, *parts: bytes, **more: Any) -> None:
            said.append(kind)
            send_packet(kind, *parts, **more)

        connection.send_packet = send
        say_before(message, EXT_INFO, body)(connection)

    with OddSshServer(on_connection) as server:
        tunnel = Tunnel(server, postgres, client_key)
        async with tunnel.running():
            await tunnel.ready()
        assert len(server.connections) == 1
    first, second = (number for number, kind in enumerate(said) if kind == EXT_INFO)
    assert first < second < said.index(message)
    assert [record.getMessage() for record in escaped] == []


# --- new keys ---------------------------------------------------------------------------------------------------------


def offer_nothing_known(connection: Any) -> None:
    connection._kex_algs = [b"diffie-hellman-group1-sha1"]


def show_another_host_key(connection: Any) -> None:
    pair = asyncssh.load_keypairs([asyncssh.generate_private_key("ssh-ed25519")])[0]
    connection._server_host_keys = {pair.algorithm: pair}


@pytest.mark.parametrize("change", [offer_nothing_known, show_another_host_key])
async def test_a_key_exchange_that_fails_after_the_login(
    change: Callable[[Any], None], postgres: PostgresServer, client_key: KeyPair, escaped: list[logging.LogRecord]
) -> None:
    """A server that is another by then is left at once."""

    def exchange(connection: Any) -> None:
        change(connection)
        connection._send_kexinit()
        connection._kexinit_sent = True

    with OddSshServer() as server:
        tunnel = Tunnel(server, postgres, client_key)
        async with tunnel.running():
            await tunnel.ready()
            await asyncio.to_thread(server.call, lambda: exchange(server.connections[0]))
            assert await tunnel.first_failure() is LOST
            tunnel.touch()
            await tunnel.ready()
            assert len(server.connections) == 2
    assert [record.getMessage() for record in escaped] == []


# --- channels ---------------------------------------------------------------------------------------------------------


REFUSALS = [
    (1, "open failed", Reason.FORWARDING_PROHIBITED),
    (2, "Connection refused", Reason.DATABASE_REFUSED),
    (2, "Connection timed out", Reason.DATABASE_TIMEOUT),
    (2, "No route to host", Reason.DATABASE_UNREACHABLE),
    (2, "Temporary failure in name resolution", Reason.DATABASE_UNRESOLVABLE),
    (2, "\x1b[2J\r\nno words that anybody knows\N{SNOWMAN}", Reason.DATABASE_REFUSED),
    (3, "unknown channel type", Reason.FORWARDING_PROHIBITED),
    (4, "resource shortage", Reason.TOO_MANY_CONNECTIONS),
    (0, "", Reason.FORWARDING_PROHIBITED),
    (2**32 - 1, "x" * 20_000, Reason.FORWARDING_PROHIBITED),
]
"""SSH_MSG_CHANNEL_OPEN_FAILURE: its code (RFC 4254, section 5.1) and text, and what is told."""


async def refuse_and_mend(code: int, text: str, postgres: PostgresServer, key: KeyPair) -> Reason:
    """What is told; returns once channels open, over the same connection."""
    with OddSshServer() as server:
        server.refusal = asyncssh.ChannelOpenError(code, text)
        tunnel = Tunnel(server, postgres, key)
        async with tunnel.running():
            told = await tunnel.first_failure()
            seen = tunnel.state.status.database.seen
            assert seen.isascii()
            assert len(seen) <= 1000
            server.refusal = None
            await tunnel.look_anew()  # a server without room is asked no sooner than after a minute
            await tunnel.ready()
            assert len(server.connections) == 1
    return told


async def test_a_channel_that_is_refused(
    postgres: PostgresServer, client_key: KeyPair, escaped: list[logging.LogRecord]
) -> None:
    told = await asyncio.gather(*(refuse_and_mend(code, text, postgres, client_key) for code, text, _ in REFUSALS))
    assert told == [reason for _, _, reason in REFUSALS]
    assert [record.getMessage() for record in escaped] == []
