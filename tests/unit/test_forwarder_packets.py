"""Packets of our own: how they look, and when they are not taken."""

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import asyncssh
import pytest
from asyncssh.encryption import ChachaEncryption, GCMEncryption
from asyncssh.packet import SSHPacket

from dbtunnel.forwarder import boxes, packets
from dbtunnel.forwarder.boxes import TAG, Box, boxed, what_differs
from dbtunnel.forwarder.packets import ASYNCSSH, LARGEST_DATA, SLOTS, OwnPackets, Packets, packets_over, why_never
from dbtunnel.forwarder.transport import Congestion
from tests.support.generated import ROOT

KEY, IV = bytes(range(16)), bytes(range(12))
SMALL_AND_LARGE = [*range(40), LARGEST_DATA - 1, LARGEST_DATA]

IGNORE, ADJUST, DATA = 2, 93, 94
"""SSH_MSG_IGNORE, SSH_MSG_CHANNEL_WINDOW_ADJUST, SSH_MSG_CHANNEL_DATA."""


def gcm(key: bytes = KEY) -> GCMEncryption:
    return GCMEncryption.new("aes128-gcm", key, IV)


class FakeConnection(SimpleNamespace):
    """What of asyncssh's connection is looked at; what it is given to send is in `sent`."""

    def __init__(self) -> None:
        super().__init__(**dict.fromkeys(packets._ATTRIBUTES))
        self._finish_recv_packet: Any = lambda *_: None
        self._recv_encryption: Any = gcm()
        self._send_encryption: Any = gcm()
        self._kex_complete, self._transport = True, object()
        self._rekey_bytes, self._send_seq = 2**30, 2**32 - 1
        self._deferred_packets: list[Any] = []
        self.sent: list[tuple[int, bytes]] = []
        self.lost: list[Exception] = []

    def send_packet(self, kind: int, *arguments: bytes) -> None:
        self.sent.append((kind, b"".join(arguments)))
        if self._rekey_bytes_sent is not None:
            self._kex_complete = False

    def connection_lost(self, error: Exception) -> None:
        self.lost.append(error)


class FakeWire(SimpleNamespace):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__(written=[])

    def room(self, size: int) -> memoryview:
        self.written.append(bytearray(size))
        return memoryview(self.written[-1])


@pytest.fixture
def connection() -> FakeConnection:
    return FakeConnection()


@pytest.fixture
def wire() -> FakeWire:
    return FakeWire()


def over(connection: FakeConnection, wire: FakeWire | None, *, own: bool = True) -> tuple[Packets, Congestion]:
    congestion = Congestion()
    return packets_over(cast(Any, connection), cast(Any, wire), congestion, own=own), congestion


def opened(wire: FakeWire, stock: GCMEncryption) -> Iterator[SSHPacket]:
    """The packets as asyncssh reads them, checked for what RFC 4253 (section 6) asks for."""
    for each in map(bytes, wire.written):
        length = int.from_bytes(each[:4], "big")
        assert len(each) == 4 + length + TAG
        assert length % 16 == 0
        plain = stock.decrypt_packet(0, each[:16], each[16:-TAG], 4, each[-TAG:])
        assert plain
        assert 4 <= plain[0] < length
        yield SSHPacket(plain[1 : -plain[0]])


# --- how they look ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SMALL_AND_LARGE)
def test_data_looks_as_asyncssh_reads_it(connection: FakeConnection, wire: FakeWire, size: int) -> None:
    ours, _ = over(connection, wire)
    assert isinstance(ours, OwnPackets)
    SLOTS[1].data[:size] = content = bytes(index % 251 for index in range(size))
    ours.send_data(7, SLOTS[1], size)
    (packet,) = opened(wire, gcm())
    assert (packet.get_byte(), packet.get_uint32(), packet.get_string()) == (DATA, 7, content)
    packet.check_end()
    assert connection._send_seq == 0, "the sequence number has 32 bits"
    assert connection.sent == []


def test_an_adjustment_looks_as_asyncssh_reads_it(connection: FakeConnection, wire: FakeWire) -> None:
    ours, _ = over(connection, wire)
    ours.send_adjust(2**32 - 1, 2**25)
    (packet,) = opened(wire, gcm())
    assert (packet.get_byte(), packet.get_uint32(), packet.get_uint32()) == (ADJUST, 2**32 - 1, 2**25)
    packet.check_end()


def test_both_ways_of_packets_share_a_counter(connection: FakeConnection, wire: FakeWire) -> None:
    ours, _ = over(connection, wire)
    ours.send_adjust(1, 1)
    head, tag = connection._send_encryption.encrypt_packet(0, b"\0\0\0\x10", b"\x0a\x02\0\0\0\1x".ljust(16))
    wire.written.append(head + tag)
    ours.send_adjust(1, 2)
    assert [packet.get_byte() for packet in opened(wire, gcm())] == [ADJUST, IGNORE, ADJUST]


def test_nonces_go_on_after_a_carry_and_from_the_start() -> None:
    """RFC 5647, section 7.1: the counter is eight bytes, and wraps."""
    first = GCMEncryption.new("aes128-gcm", KEY, b"\1\2\3\4" + b"\xff" * 8)
    box = Box(first)
    assert box.nonce() == b"\1\2\3\4" + b"\xff" * 8
    assert box.nonce() == b"\1\2\3\4" + bytes(8)
    box.again()
    assert box.nonce() == b"\1\2\3\4" + bytes(8)


# --- when asyncssh carries them ---------------------------------------------------------------------------------------


def test_while_keys_are_exchanged_asyncssh_keeps_data_and_clients_are_held(
    connection: FakeConnection, wire: FakeWire
) -> None:
    for own in (True, False):
        ours, congestion = over(connection, wire, own=own)
        connection._kex_complete = False
        SLOTS[0].data[:3] = b"abc"
        ours.send_data(5, SLOTS[0], 3)
        ours.send_adjust(5, 9)
        assert connection.sent == [(DATA, b"\0\0\0\5\0\0\0\3abc"), (ADJUST, b"\0\0\0\5\0\0\0\x09")]
        assert congestion.is_on
        connection._kex_complete = True
        connection._finish_recv_packet(30, 1)
        assert not congestion.is_on
        connection.sent.clear()
    assert wire.written == []


def test_a_key_exchange_begins_after_so_many_bytes(connection: FakeConnection, wire: FakeWire) -> None:
    connection._rekey_bytes = 3 * (LARGEST_DATA + 16)
    ours, _ = over(connection, wire)
    for _ in range(4):
        ours.send_data(0, SLOTS[0], LARGEST_DATA)
    assert len(wire.written) == 2
    assert [kind for kind, _ in connection.sent] == [IGNORE, DATA, DATA]
    assert connection._rekey_bytes_sent == connection._rekey_bytes
    connection._kex_complete, connection._send_encryption = True, gcm(KEY[::-1])
    connection._rekey_bytes_sent = None
    connection._finish_recv_packet(30, 1)
    for _ in range(2):
        ours.send_data(0, SLOTS[0], LARGEST_DATA)
    assert len(wire.written) == 4
    del wire.written[:2]
    assert len(list(opened(wire, gcm(KEY[::-1])))) == 2, "with the new key, from its first nonce"


def test_a_new_key_is_not_passed_by_before_it_is_followed(connection: FakeConnection, wire: FakeWire) -> None:
    ours, _ = over(connection, wire)
    connection._send_encryption = gcm()
    ours.send_adjust(1, 1)
    assert wire.written == []
    assert connection.sent


@pytest.mark.parametrize("change", ["cipher", "compression"])
def test_what_a_later_key_exchange_agrees_on_ends_our_own_way(
    connection: FakeConnection, wire: FakeWire, change: str
) -> None:
    ours, _ = over(connection, wire)
    connection._send_encryption = gcm() if change == "compression" else ChachaEncryption.new("c", bytes(64), b"")
    connection._compressor = object() if change == "compression" else None
    connection._finish_recv_packet(30, 1)
    ours.send_adjust(1, 1)
    assert wire.written == []
    assert connection.sent


def test_what_is_kept_while_keys_are_exchanged_is_bounded(connection: FakeConnection, wire: FakeWire) -> None:
    over(connection, wire)
    connection._kex_complete = False
    connection._deferred_packets = [()] * 65536
    connection._finish_recv_packet(80, 1)
    assert not connection.lost
    connection._deferred_packets.append(())
    connection._finish_recv_packet(80, 1)
    assert isinstance(connection.lost[0], asyncssh.ConnectionLost)


def test_a_connection_that_asyncssh_has_given_up_is_over(connection: FakeConnection, wire: FakeWire) -> None:
    ours, _ = over(connection, wire)
    assert not ours.is_over
    connection._transport = None
    assert ours.is_over
    ours.send_adjust(1, 1)
    assert wire.written == []


# --- what speaks against our own way ----------------------------------------------------------------------------------


def test_the_pinned_asyncssh_is_the_one_whose_private_parts_are_used() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert [one for one in dependencies if one.startswith("asyncssh")] == [f"asyncssh[bcrypt]=={ASYNCSSH}"]
    assert f"\nasyncssh=={ASYNCSSH} " in (ROOT / "requirements.txt").read_text()
    assert asyncssh.__version__ == ASYNCSSH


def private_parts(path: Path) -> list[str]:
    """What a module uses that another object keeps for itself."""
    used = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    private = [node for node in used if node.attr.startswith("_") and not node.attr.startswith("__")]
    return [ast.unparse(node) for node in private if ast.unparse(node.value) not in ("self", "super()")]


def test_the_modules_that_use_private_parts_are_those_that_the_pin_is_said_to_be_for() -> None:
    users = {path.name for path in (ROOT / "operator/dbtunnel/forwarder").glob("*.py") if private_parts(path)}
    before, _, _ = (ROOT / "pyproject.toml").read_text().partition('\n  "asyncssh[')
    assert set(re.findall(r"\w+\.py", before.splitlines()[-1])) == users
    _, _, told = (ROOT / "docs/architecture.md").read_text().partition("**Bytes**")
    sentence = " ".join(told.split()).partition("hence the exact version")[0].rpartition(". ")[2]
    assert set(re.findall(r"\w+\.py", sentence)) == users


def test_nothing_speaks_against_it_here() -> None:
    assert why_never(own=True) == what_differs() == ""
    assert boxed(box := Box(gcm())) is box


CAUSES: dict[str, tuple[Any, str]] = {
    "version": (lambda _: setattr(asyncssh, "__version__", "9.9"), f"asyncssh is 9.9 and not {ASYNCSSH}"),
    "parts": (lambda connection: delattr(connection, "_inpbuf"), "asyncssh has no _inpbuf"),
    "compression": (lambda connection: setattr(connection, "_compressor", object()), "packets are compressed"),
    "decompression": (lambda connection: setattr(connection, "_decompressor", object()), "packets are compressed"),
    "cipher": (lambda connection: setattr(connection, "_recv_encryption", object()), "the cipher is not AES-GCM"),
    "self-check": (lambda _: setattr(packets, "what_differs", lambda: "it differs"), "it differs"),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_asyncssh_carries_the_data_where_something_speaks_against_our_own_way(
    connection: FakeConnection, wire: FakeWire, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    monkeypatch.setattr(asyncssh, "__version__", asyncssh.__version__)
    monkeypatch.setattr(packets, "what_differs", what_differs)
    bring_about, why = CAUSES[cause]
    bring_about(connection)
    ours, _ = over(connection, wire)
    assert ours.why_not == why
    ours.send_adjust(1, 2)
    assert connection.sent == [(ADJUST, b"\0\0\0\1\0\0\0\2")]
    assert not ours.is_over
    assert wire.written == []


def test_asyncssh_carries_the_data_where_it_is_told_to_or_has_no_socket_of_ours(
    connection: FakeConnection, wire: FakeWire
) -> None:
    assert over(connection, wire, own=False)[0].why_not == "--packets=asyncssh"
    assert over(connection, None)[0].why_not == "the connection has no socket of its own"


class Flipping(GCMEncryption):
    """An asyncssh that seals, or opens, in another way than it does now."""

    flips = ""

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        sealed, tag = super().encrypt_packet(seq, header, packet)
        return (sealed, tag[::-1]) if self.flips == "seals" else (sealed, tag)

    def decrypt_packet(self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes) -> bytes | None:
        plain = super().decrypt_packet(seq, first, rest, header_len, mac)
        return plain[::-1] if plain and self.flips == "opens" else plain


@pytest.mark.parametrize(
    ("flips", "told"), [("seals", "asyncssh seals packets otherwise"), ("opens", "asyncssh opens packets otherwise")]
)
def test_the_self_check_finds_what_differs(monkeypatch: pytest.MonkeyPatch, flips: str, told: str) -> None:
    monkeypatch.setattr(boxes, "GCMEncryption", Flipping)
    monkeypatch.setattr(Flipping, "flips", flips)
    assert what_differs.__wrapped__() == told


def test_the_self_check_finds_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boxes, "GCMEncryption", SimpleNamespace(new=lambda *_: object()))
    assert what_differs.__wrapped__().startswith("the self-check failed: AttributeError")
