"""Our own way for SSH packets past asyncssh's: AES-GCM alone, and of the messages the data of channels alone.

asyncssh builds a cipher object for every packet, slices its input twice and sends an ignored packet before each. Here
a packet is read, decrypted and handed over in place. asyncssh keeps all that is not data: key exchange, requests,
opening and closing of channels. Both use the same two boxes, so that any packet may go either way, and when keys are
exchanged anew the boxes are too. It reads private attributes of asyncssh, so the version is pinned, and `why_not` says
what speaks against it; then every packet takes asyncssh's way, which is slower and no different.
"""

import functools
import struct
from os import urandom
from typing import Any, Protocol

import asyncssh
from asyncssh.encryption import Encryption, GCMEncryption
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from dbtunnel.forwarder.transport import AnyWire, Congestion

ASYNCSSH = "2.24.1"
"""The version whose private attributes these are."""

_ATTRIBUTES = (
    "_channels",
    "_compressor",
    "_decompressor",
    "_finish_recv_packet",
    "_inpbuf",
    "_keepalive_count",
    "_kex_complete",
    "_max_recv_pktlen",
    "_packet",
    "_recv_data",
    "_recv_encryption",
    "_recv_handler",
    "_recv_packet",
    "_recv_pkthdr",
    "_recv_seq",
    "_rekey_bytes",
    "_rekey_bytes_sent",
    "_send_encryption",
    "_send_seq",
    "_transport",
)

_IGNORE, _ADJUST, _DATA = 2, 93, 94
"""SSH_MSG_IGNORE, SSH_MSG_CHANNEL_WINDOW_ADJUST, SSH_MSG_CHANNEL_DATA (RFC 4253, section 12; RFC 4254, section 9)."""

_TAG = 16
"""Bytes of AES-GCM's tag (RFC 5647, section 6.3)."""

_HEAD = struct.Struct(">IBBII")
"""A packet's length, its padding's, the message's number, the channel, and the data's length or the window's growth."""

_BEFORE_DATA = _HEAD.size
_ADJUST_LENGTH = 1 + 9 + 6
"""The length field of a window adjustment's packet: with its padding a whole block."""

LARGEST_DATA = 32768
"""Bytes of data in a packet; sshd takes no more."""

_PADDINGS = tuple(urandom(size) for size in range(20))
"""Random bytes (RFC 4253, section 6), by their number; within AES-GCM nothing depends on them."""

_SLOTS = 8

_SMALL = 4096
"""A shorter packet is decrypted into new bytes, which costs less than a place of its own."""


class Slot:
    """Room for a packet that is read into: its data has the packet's head before it."""

    def __init__(self) -> None:
        self.packet = memoryview(bytearray(_BEFORE_DATA + LARGEST_DATA + 32))
        self.data = self.packet[_BEFORE_DATA : _BEFORE_DATA + LARGEST_DATA]


SLOTS = tuple(Slot() for _ in range(_SLOTS))
"""Used by one client after the other: what is read is encrypted before the next is read."""


class Receiver(Protocol):
    """A channel, as those see it who bring its packets."""

    def receive(self, data: memoryview) -> bool:
        """Takes data until `deliver`; False where the server may not send it."""

    def deliver(self) -> None:
        """Passes on what it was given: its place is used again."""

    def widen(self, growth: int) -> bool:
        """The server takes so many bytes more; False where it may not say so."""


class _Box(Encryption):
    """AES-GCM in one direction, with one key (RFC 5647). asyncssh's packets go through it too."""

    def __init__(self, stock: GCMEncryption) -> None:
        cipher: Any = stock._cipher
        self.aead = AESGCM(cipher._key)
        self._fixed = cipher._iv[:4]
        self._count = int.from_bytes(cipher._iv[4:], "big")
        self.opened: bytes | None = None
        """The packet that asyncssh is given, where it is decrypted already."""

    def nonce(self) -> bytes:
        """That of the next packet."""
        count = self._count
        self._count = (count + 1) & 0xFFFFFFFFFFFFFFFF
        return self._fixed + count.to_bytes(8, "big")  # type: ignore[no-any-return]

    def again(self) -> None:
        """The last nonce is the next one's, too: asyncssh opens the same packet."""
        self._count = (self._count - 1) & 0xFFFFFFFFFFFFFFFF

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:  # noqa: ARG002
        """As asyncssh asks for it."""
        sealed = self.aead.encrypt(self.nonce(), packet, header)
        return header + sealed[:-_TAG], sealed[-_TAG:]

    def decrypt_header(self, seq: int, first_block: bytes, header_len: int) -> tuple[bytes, bytes]:  # noqa: ARG002
        """As asyncssh asks for it; the length is in the clear."""
        return first_block, first_block[:header_len]

    def decrypt_packet(self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes) -> bytes | None:  # noqa: ARG002
        """As asyncssh asks for it."""
        if self.opened is not None:
            opened, self.opened = self.opened, None
            return opened
        try:
            return self.aead.decrypt(self.nonce(), first[header_len:] + rest + mac, first[:header_len])
        except InvalidTag:
            return None


class Packets:
    """The packets of one connection. `wire` is None where its transport is not a socket of ours."""

    def __init__(self, connection: asyncssh.SSHClientConnection, wire: AnyWire | None, congestion: Congestion) -> None:
        self._connection: Any = connection
        self._wire, self._congestion = wire, congestion
        self.channels: dict[int, Receiver] = {}
        """Our own channels, by our numbers of them."""
        self.why_not = why_not(connection, wire)
        """What speaks against our own way; empty where it is taken."""
        self._incoming: _Box | None = None
        self._outgoing: _Box | None = None
        self._left = 0
        """Bytes until keys are exchanged anew."""
        self._places = memoryview(bytearray(0))
        if not self.why_not:
            self._take_over()

    def _take_over(self) -> None:
        connection = self._connection
        finish = connection._finish_recv_packet

        def finished(*arguments: Any, **named: Any) -> None:
            finish(*arguments, **named)
            self._follow()

        connection._finish_recv_packet = functools.wraps(finish)(finished)
        self._places = memoryview(bytearray(_SLOTS * (LARGEST_DATA + 1024)))
        assert self._wire is not None
        self._wire.consume = self._consume
        self._follow()

    def _follow(self) -> None:
        """Has the boxes that asyncssh uses now, and holds clients back while keys are exchanged."""
        connection = self._connection
        if connection._recv_encryption is not self._incoming:
            self._incoming = _boxed(connection._recv_encryption)
            connection._recv_encryption = self._incoming or connection._recv_encryption
        if connection._send_encryption is not self._outgoing:
            self._outgoing = _boxed(connection._send_encryption)
            connection._send_encryption = self._outgoing or connection._send_encryption
            self._left = connection._rekey_bytes
        if connection._kex_complete:
            self._congestion.end("key exchange")

    # --- sending --------------------------------------------------------------------------------------------------

    def send_data(self, number: int, slot: Slot, size: int) -> None:
        """SSH_MSG_CHANNEL_DATA with the first bytes of a slot's data."""
        length = 10 + size + _padding(10 + size)
        outgoing = self._outgoing
        if outgoing is None or not self._may_send(length):
            data = size.to_bytes(4, "big") + bytes(slot.data[:size])
            self._connection.send_packet(_DATA, number.to_bytes(4, "big"), data)
            return
        packet = slot.packet
        _HEAD.pack_into(packet, 0, length, length - 10 - size, _DATA, number, size)
        packet[_BEFORE_DATA + size : 4 + length] = _PADDINGS[length - 10 - size]
        self._seal(outgoing, packet, length)

    def send_adjust(self, number: int, growth: int) -> None:
        """SSH_MSG_CHANNEL_WINDOW_ADJUST."""
        outgoing = self._outgoing
        if outgoing is None or not self._may_send(_ADJUST_LENGTH):
            self._connection.send_packet(_ADJUST, number.to_bytes(4, "big"), growth.to_bytes(4, "big"))
            return
        packet = _HEAD.pack(_ADJUST_LENGTH, 6, _ADJUST, number, growth) + _PADDINGS[6]
        self._seal(outgoing, memoryview(packet), _ADJUST_LENGTH)

    def _seal(self, box: _Box, packet: memoryview, length: int) -> None:
        assert self._wire is not None
        room = self._wire.room(4 + length + _TAG)
        head = packet[:4]
        room[:4] = head
        box.aead.encrypt_into(box.nonce(), packet[4 : 4 + length], head, room[4:])
        connection = self._connection
        connection._send_seq = (connection._send_seq + 1) & 0xFFFFFFFF

    def _may_send(self, length: int) -> bool:
        """Whether a packet may take our way; begins a key exchange where one is due (RFC 4253, section 9)."""
        connection = self._connection
        self._left -= length
        if self._left <= 0 and connection._kex_complete:
            connection._rekey_bytes_sent = connection._rekey_bytes
            connection.send_packet(_IGNORE, b"\0\0\0\0")  # which begins it
        if not connection._kex_complete:
            # asyncssh keeps what it is given meanwhile, without a bound
            self._congestion.begin("key exchange")
            return False
        return connection._transport is not None

    # --- receiving ------------------------------------------------------------------------------------------------

    def _consume(self, filled: int) -> int:
        """Takes the whole packets among what was received."""
        assert self._wire is not None
        connection, received = self._connection, self._wire.received
        connection._keepalive_count = 0
        at = place = 0
        touched: dict[Receiver, None] = {}
        if not self._is_between_packets():
            return self._leave_to_asyncssh(at, filled)
        while filled - at > 4:
            length = int.from_bytes(received[at : at + 4], "big")
            end = at + 4 + length + _TAG
            if length > connection._max_recv_pktlen:
                return self._leave_to_asyncssh(at, filled)
            if end > filled:
                break
            plain = self._open(received, at, length, place)
            if plain is None:
                return self._leave_to_asyncssh(at, filled)
            receiver = self._received(plain, length)
            if receiver is None:
                deliver(touched)
                self._give_to_asyncssh(received[at:end], plain)
                if not self._is_between_packets():
                    return self._leave_to_asyncssh(end, filled)
            elif length > _SMALL:
                touched[receiver] = None
                place = (place + 1) % _SLOTS
                if not place:
                    deliver(touched)
            else:
                touched[receiver] = None
            at = end
        deliver(touched)
        rest = filled - at
        if at and rest:
            received[:rest] = bytes(received[at:filled])
        return rest

    def _is_between_packets(self) -> bool:
        """Whether asyncssh has nothing under way: of a packet that it handles in a task it keeps what follows."""
        connection = self._connection
        return (
            self._incoming is not None
            and connection._transport is not None
            and not connection._inpbuf
            and connection._recv_handler == connection._recv_pkthdr
        )

    def _open(self, received: memoryview, at: int, length: int, place: int) -> memoryview | None:
        """A packet decrypted; None where its tag is wrong."""
        incoming = self._incoming
        assert incoming is not None
        head, sealed = received[at : at + 4], received[at + 4 : at + 4 + length + _TAG]
        try:
            if _SMALL < length <= LARGEST_DATA + 1024:
                start = place * (LARGEST_DATA + 1024)
                plain = self._places[start : start + length]
                incoming.aead.decrypt_into(incoming.nonce(), sealed, head, plain)
                return plain
            return memoryview(incoming.aead.decrypt(incoming.nonce(), sealed, head))
        except (InvalidTag, ValueError):  # the latter: shorter than a tag
            incoming.again()
            return None

    def _received(self, plain: memoryview, length: int) -> Receiver | None:
        """Who has taken a packet; None where it is asyncssh's."""
        if length < _BEFORE_DATA - 4 or plain[1] not in (_DATA, _ADJUST):
            return None
        padding, kind, number, value = struct.unpack_from(">BBII", plain)
        receiver = self.channels.get(number)
        size = value if kind == _DATA else 0
        if receiver is None or 10 + size + padding != length:
            return None
        taken = receiver.receive(plain[10 : 10 + size]) if kind == _DATA else receiver.widen(value)
        if not taken:
            return None
        connection = self._connection
        connection._recv_seq = (connection._recv_seq + 1) & 0xFFFFFFFF
        return receiver

    def _give_to_asyncssh(self, packet: memoryview, plain: memoryview) -> None:
        assert self._incoming is not None
        self._incoming.opened = bytes(plain)
        self._connection._inpbuf = bytes(packet)
        self._connection._recv_data()

    def _leave_to_asyncssh(self, at: int, filled: int) -> int:
        """Has asyncssh take everything, as far as it comes; what it has no use for yet is kept here again."""
        assert self._wire is not None
        connection, received = self._connection, self._wire.received
        connection.data_received(bytes(received[at:filled]))
        rest = connection._packet + connection._inpbuf
        is_under_way = connection._recv_handler not in (connection._recv_pkthdr, connection._recv_packet)
        if self._incoming is None or connection._transport is None or is_under_way or len(rest) > len(received) // 2:
            return 0
        connection._packet = connection._inpbuf = b""
        connection._recv_handler = connection._recv_pkthdr
        received[: len(rest)] = rest
        return len(rest)


def deliver(touched: dict[Receiver, None]) -> None:
    """Has receivers pass on what they were given."""
    for receiver in touched:
        receiver.deliver()
    touched.clear()


def why_not(connection: Any, wire: AnyWire | None) -> str:
    """What speaks against our own way for a connection's packets; empty where nothing does."""
    if wire is None:
        return "the connection has no socket of its own"
    if asyncssh.__version__ != ASYNCSSH:
        return f"asyncssh is {asyncssh.__version__} and not {ASYNCSSH}"
    missing = [name for name in _ATTRIBUTES if not hasattr(connection, name)]
    if missing:
        return f"asyncssh has no {', '.join(missing)}"
    if connection._compressor or connection._decompressor:
        return "packets are compressed"
    ciphers = connection._send_encryption, connection._recv_encryption
    if not all(isinstance(cipher, GCMEncryption) for cipher in ciphers):
        return "the cipher is not AES-GCM"
    return _what_differs()


@functools.cache
def _what_differs() -> str:
    """Whether what one way seals the other opens; empty if so."""
    key, iv = urandom(16), bytes(11) + b"\xff"
    ours, theirs = (_Box(GCMEncryption.new("aes128-gcm", key, iv)) for _ in range(2))
    stock = GCMEncryption.new("aes128-gcm", key, iv), GCMEncryption.new("aes128-gcm", key, iv)
    for text in (b"one", b"after the carry", b"three"):
        sealed, tag = ours.encrypt_packet(0, b"\0\0\0\x20", text)
        if (sealed, tag) != stock[0].encrypt_packet(0, b"\0\0\0\x20", text):
            return "asyncssh seals packets otherwise"
        if theirs.decrypt_packet(0, sealed[:4], sealed[4:], 4, tag) != text:
            return "packets do not open"
        if stock[1].decrypt_packet(0, sealed[:4], sealed[4:], 4, tag) != text:
            return "asyncssh opens packets otherwise"
    return ""


def _boxed(encryption: object) -> _Box | None:
    if isinstance(encryption, _Box):
        return encryption
    return _Box(encryption) if isinstance(encryption, GCMEncryption) else None


def _padding(length: int) -> int:
    """Bytes of padding for so many: to a whole block, at least four (RFC 4253, section 6)."""
    return 4 + (12 - length) % 16
