"""SSH packets that carry the data of channels, past asyncssh, whose private parts are used here and in `boxes.py`.

asyncssh keeps all else: key exchange, login, requests, the opening and closing of channels. For a packet of data it
makes a cipher, slices its input twice, makes an object, and sends an ignored packet before each of its own; here a
packet is opened and handed over where it lies. Only AES-GCM without compression is taken over, only
SSH_MSG_CHANNEL_DATA and SSH_MSG_CHANNEL_WINDOW_ADJUST, and only those of our own channels. So
`spec.tunnel.compression`, where the server takes it up, turns all of this off.

How the two get along:

- **One counter.** In place of asyncssh's cipher objects stand boxes (`boxes.py`), which both use. So any packet may go
  either way, in any order; a new key puts a new cipher object there, which `_follow` replaces by a box again.
- **Sending.** A packet of ours is written where asyncssh writes its own, after all that it has written. While keys are
  exchanged (`_kex_complete`) no data may be sent (RFC 4253, section 7.1): what comes nevertheless, a few packets, goes
  to asyncssh, which keeps it in order until then, and clients are not read any more.
- **Receiving.** What comes from the socket is ours while asyncssh is between two packets. A whole packet is opened; if
  it is not for us, asyncssh is given it as it came, and the box has its content ready. Part of a packet stays with us.
  While asyncssh handles a packet in a task (it does so with SSH_MSG_KEXINIT) it must see nothing of what follows; then
  everything is left to it until it is between packets again.
- **What is wrong** (a tag, a length, a window) is left to asyncssh, which tells the server and ends the connection.
- Sequence numbers (`_send_seq`, `_recv_seq`) are counted on for it; strict key exchange sets them to 0.

`why_not` tells what speaks against all this, before anything is touched: another version of asyncssh, another cipher, a
self-check that fails. Then every packet takes asyncssh's way, which is slower and no different. What is known without a
connection (`why_never`) is told as the process starts. `--packets=asyncssh` has it so by choice: it switches what is in
this module and `boxes.py`, and nothing else. Our own channels (`channel.py`), sockets (`transport.py`, `client.py`) and
selector (`watch.py`) stay.

To take a newer asyncssh: read what changed in its connection.py where the names of `_ATTRIBUTES` stand, and in its
encryption.py and crypto/cipher.py of what `boxes.py` uses; change ASYNCSSH and the pin in pyproject.toml, `make lock`,
`make test-forwarder`, `make soak`.
"""

import functools
import struct
from os import urandom
from typing import Any, Protocol

import asyncssh
from asyncssh.encryption import GCMEncryption
from cryptography.exceptions import InvalidTag

from dbtunnel.forwarder.boxes import TAG, Box, boxed, what_differs
from dbtunnel.forwarder.pieces import room_for
from dbtunnel.forwarder.transport import AnyWire, Congestion

ASYNCSSH = "2.24.1"
"""The version whose private parts these are."""

_ATTRIBUTES = (
    "_compressor",
    "_decompressor",
    "_deferred_packets",
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

_PLACE = LARGEST_DATA + 1024
"""Room for a packet of the largest data, with its head and padding."""

_MOST_DEFERRED = 2**16
"""Packets that asyncssh may keep while keys are exchanged. Those of clients are far fewer; the others answer what the
server asks, and it may ask without an end."""


class Slot:
    """Room for a packet that is read into: its data has the packet's head before it."""

    def __init__(self) -> None:
        self.packet = room_for(_BEFORE_DATA + LARGEST_DATA + 32)
        self.data = self.packet[_BEFORE_DATA : _BEFORE_DATA + LARGEST_DATA]


SLOTS = tuple(Slot() for _ in range(_SLOTS))
"""Used by one client after the other: what is read is encrypted before the next is read."""


class Receiver(Protocol):
    """A channel, as those see it who bring its packets."""

    def receive(self, data: memoryview) -> bool:
        """Takes data until `deliver`; False, and nothing is changed, where the server may not send it."""

    def deliver(self) -> None:
        """Passes on what it was given: its place is used again."""

    def widen(self, growth: int) -> bool:
        """The server takes so many bytes more; False, and nothing is changed, where it may not say so."""


class Packets:
    """The packets of a connection's channels, by asyncssh's means."""

    def __init__(self, connection: asyncssh.SSHClientConnection, congestion: Congestion, reason: str = "") -> None:
        self._connection: Any = connection
        self._congestion = congestion
        self.channels: dict[int, Receiver] = {}
        """Our own channels that are open, by our numbers of them."""
        self.why_not = reason
        """What speaks against our own way; empty where it is taken."""
        self._is_known = not _missing(connection)
        if self._is_known:
            self._hear_of_packets()

    def _hear_of_packets(self) -> None:
        finish = self._connection._finish_recv_packet

        @functools.wraps(finish)
        def finished(*arguments: Any, **named: Any) -> None:
            finish(*arguments, **named)
            self._follow()

        self._connection._finish_recv_packet = finished

    def _follow(self) -> None:
        """asyncssh has handled a packet."""
        connection = self._connection
        if connection._kex_complete:
            self._congestion.end("key exchange")
        elif len(connection._deferred_packets) > _MOST_DEFERRED:
            connection.connection_lost(asyncssh.ConnectionLost("it asks for more while keys are exchanged"))

    @property
    def is_over(self) -> bool:
        """Whether asyncssh has done with the connection; its socket and its channels hear of it a moment later."""
        return self._is_known and self._connection._transport is None

    def send_data(self, number: int, slot: Slot, size: int) -> None:
        """SSH_MSG_CHANNEL_DATA with the first bytes of a slot's data."""
        self._send(_DATA, number, size.to_bytes(4, "big") + bytes(slot.data[:size]))

    def send_adjust(self, number: int, growth: int) -> None:
        """SSH_MSG_CHANNEL_WINDOW_ADJUST."""
        self._send(_ADJUST, number, growth.to_bytes(4, "big"))

    def _send(self, kind: int, number: int, rest: bytes) -> None:
        connection = self._connection
        connection.send_packet(kind, number.to_bytes(4, "big"), rest)
        if self._is_known and not connection._kex_complete:
            # asyncssh keeps what it is given meanwhile, without a bound
            self._congestion.begin("key exchange")


class OwnPackets(Packets):
    """The packets of a connection's channels, our own way; by asyncssh's means where a packet cannot take it."""

    def __init__(self, connection: asyncssh.SSHClientConnection, congestion: Congestion, wire: AnyWire) -> None:
        super().__init__(connection, congestion)
        self._wire = wire
        self._incoming: Box | None = None
        self._outgoing: Box | None = None
        self._left = 0
        """Bytes until keys are exchanged anew."""
        self._places = room_for(_SLOTS * _PLACE)
        self._follow()
        wire.consume = self._consume

    def _follow(self) -> None:
        """Has the boxes that asyncssh uses now; none where it compresses or does not use AES-GCM any more."""
        connection = self._connection
        if connection._recv_encryption is not self._incoming:
            self._incoming = None if connection._decompressor else boxed(connection._recv_encryption)
            connection._recv_encryption = self._incoming or connection._recv_encryption
        if connection._send_encryption is not self._outgoing:
            self._outgoing = None if connection._compressor else boxed(connection._send_encryption)
            connection._send_encryption = self._outgoing or connection._send_encryption
            self._left = connection._rekey_bytes
        super()._follow()

    # --- sending --------------------------------------------------------------------------------------------------

    def send_data(self, number: int, slot: Slot, size: int) -> None:
        """As Packets."""
        padding = 4 + (2 - size) % 16
        length = 10 + size + padding
        box = self._box_to_send(length)
        if box is None:
            super().send_data(number, slot, size)
            return
        packet = slot.packet
        _HEAD.pack_into(packet, 0, length, padding, _DATA, number, size)
        packet[_BEFORE_DATA + size : 4 + length] = _PADDINGS[padding]
        self._seal(box, packet, length)

    def send_adjust(self, number: int, growth: int) -> None:
        """As Packets."""
        box = self._box_to_send(_ADJUST_LENGTH)
        if box is None:
            super().send_adjust(number, growth)
            return
        packet = _HEAD.pack(_ADJUST_LENGTH, 6, _ADJUST, number, growth) + _PADDINGS[6]
        self._seal(box, memoryview(packet), _ADJUST_LENGTH)

    def _seal(self, box: Box, packet: memoryview, length: int) -> None:
        room = self._wire.room(4 + length + TAG)
        head = packet[:4]
        room[:4] = head
        box.aead.encrypt_into(box.nonce(), packet[4 : 4 + length], head, room[4:])
        connection = self._connection
        connection._send_seq = (connection._send_seq + 1) & 0xFFFFFFFF

    def _box_to_send(self, length: int) -> Box | None:
        """The box for a packet; None while it must go through asyncssh.

        Begins a key exchange where one is due by bytes (RFC 4253, section 9). By time it is due often enough with
        asyncssh's own packets: it asks for a sign of life every few seconds.
        """
        connection = self._connection
        self._left -= length
        if self._left <= 0 and connection._kex_complete:
            connection._rekey_bytes_sent = connection._rekey_bytes
            connection.send_packet(_IGNORE, b"\0\0\0\0")  # which begins it
        is_ours = (
            connection._kex_complete
            and connection._send_encryption is self._outgoing  # else there is a new key, not followed yet
            and connection._transport is not None
        )
        return self._outgoing if is_ours else None

    # --- receiving ------------------------------------------------------------------------------------------------

    def _consume(self, filled: int) -> int:
        """Takes what was received; returns how many bytes, of part of a packet, are left at the start."""
        self._connection._keepalive_count = 0
        at, is_ours = self._take_packets(filled)
        if not is_ours:
            return self._leave_to_asyncssh(at, filled)
        rest = filled - at
        if at and rest:
            received = self._wire.received
            received[:rest] = bytes(received[at:filled])
        return rest

    def _take_packets(self, filled: int) -> tuple[int, bool]:
        """Takes the whole packets; returns where it has come to, and whether what follows is ours to take as well."""
        received, longest = self._wire.received, 4 + self._connection._max_recv_pktlen + TAG
        box = self._box_between_packets()
        touched: dict[Receiver, None] = {}
        at = place = 0
        while box is not None and filled - at > 4:
            end = at + 4 + int.from_bytes(received[at : at + 4], "big") + TAG
            if end > filled and end - at <= longest:
                break
            plain = self._open(box, received[at:end], place) if end - at <= longest else None
            if plain is None:
                box = None  # asyncssh will find it wrong, too
                break
            receiver = self._receiver(plain)
            if receiver is None:
                deliver(touched)
                self._give_to_asyncssh(box, received[at:end], plain)
                box = self._box_between_packets()
            else:
                touched[receiver] = None
                if len(plain) > _SMALL:
                    place = (place + 1) % _SLOTS
                    if not place:
                        deliver(touched)
            at = end
        deliver(touched)
        return at, box is not None

    def _box_between_packets(self) -> Box | None:
        """The box for the next packet, where it is ours to open: asyncssh has no other one under way."""
        connection = self._connection
        is_ours = (
            connection._recv_encryption is self._incoming
            and connection._transport is not None
            and not connection._inpbuf
            and connection._recv_handler == connection._recv_pkthdr
        )
        return self._incoming if is_ours else None

    def _open(self, box: Box, packet: memoryview, place: int) -> memoryview | None:
        """A packet decrypted; None where its tag is wrong."""
        head, sealed = packet[:4], packet[4:]
        length = len(sealed) - TAG
        try:
            if _SMALL < length <= _PLACE:
                plain = self._places[place * _PLACE : place * _PLACE + length]
                box.aead.decrypt_into(box.nonce(), sealed, head, plain)
                return plain
            return memoryview(box.aead.decrypt(box.nonce(), sealed, head))
        except InvalidTag:
            box.again()
            return None

    def _receiver(self, plain: memoryview) -> Receiver | None:
        """Who has taken a packet; None where it is asyncssh's."""
        if len(plain) < _BEFORE_DATA - 4 or plain[1] not in (_DATA, _ADJUST):
            return None
        padding, kind, number, value = struct.unpack_from(">BBII", plain)
        receiver = self.channels.get(number)
        size = value if kind == _DATA else 0
        if receiver is None or padding < 4 or 10 + size + padding != len(plain):
            return None
        taken = receiver.receive(plain[10 : 10 + size]) if kind == _DATA else receiver.widen(value)
        if not taken:
            return None
        connection = self._connection
        connection._recv_seq = (connection._recv_seq + 1) & 0xFFFFFFFF
        return receiver

    def _give_to_asyncssh(self, box: Box, packet: memoryview, plain: memoryview) -> None:
        box.opened = bytes(plain)
        self._connection._inpbuf = bytes(packet)
        self._connection._recv_data()

    def _leave_to_asyncssh(self, at: int, filled: int) -> int:
        """Has asyncssh take everything, as far as it comes; part of a packet that it has left is kept here again."""
        connection, received = self._connection, self._wire.received
        if connection._transport is None:
            return 0  # nothing that comes after its end is looked at
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


def packets_over(
    connection: asyncssh.SSHClientConnection, wire: AnyWire | None, congestion: Congestion, *, own: bool = True
) -> Packets:
    """Those of a connection that is logged in. `own`: by the switch `--packets`."""
    reason = why_never(own=own) or why_not(connection)
    if wire is None or reason:
        return Packets(connection, congestion, reason or "the connection has no socket of its own")
    return OwnPackets(connection, congestion, wire)


def why_never(*, own: bool) -> str:
    """What speaks against our own way in this process, whatever the connection; empty where nothing does."""
    if not own:
        return "--packets=asyncssh"
    if asyncssh.__version__ != ASYNCSSH:
        return f"asyncssh is {asyncssh.__version__} and not {ASYNCSSH}"
    return what_differs()


def why_not(connection: Any) -> str:
    """What speaks against it for a connection's packets."""
    if missing := _missing(connection):
        return f"asyncssh has no {', '.join(missing)}"
    if connection._compressor or connection._decompressor:
        return "packets are compressed"
    ciphers = connection._send_encryption, connection._recv_encryption
    if not all(isinstance(cipher, GCMEncryption) for cipher in ciphers):
        return "the cipher is not AES-GCM"
    return ""


def _missing(connection: Any) -> list[str]:
    return [name for name in _ATTRIBUTES if not hasattr(connection, name)]
