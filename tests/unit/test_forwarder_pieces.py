"""Bytes in several pieces, and the room where bytes are put."""

import contextlib
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.forwarder import pieces
from dbtunnel.forwarder.pieces import after, room_for
from tests.support.processes import wait_until

MIB = 2**20


def private_mib() -> float:
    """Memory of this process that is in no file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Anonymous:"))


@given(st.lists(st.binary(max_size=5)), st.integers(0, 30))
def test_what_is_left_is_what_was_not_sent(parts: list[bytes], sent: int) -> None:
    left = after([memoryview(part) for part in parts], sent)
    assert b"".join(left) == b"".join(parts)[sent:]


def test_room_takes_memory_once_it_is_used() -> None:
    before = private_mib()
    room = room_for(64 * MIB)
    assert (len(room), room.readonly, bytes(room[-4:])) == (64 * MIB, False, bytes(4))
    assert private_mib() - before < 8
    room[: 32 * MIB] = bytes(32 * MIB)
    assert private_mib() - before > 24
    del room
    assert private_mib() - before < 8, "it is given back"


def test_who_has_only_stopped_to_read_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel asks again and again, ever later, and is answered each time."""
    monkeypatch.setattr(pieces, "LOST_SECONDS", 0)
    with socket.create_server(("127.0.0.1", 0)) as bound, socket.create_connection(bound.getsockname()) as reader:
        connected, _ = bound.accept()
        with connected:
            connected.setblocking(False)
            assert not pieces.is_lost(connected)
            with contextlib.suppress(BlockingIOError):
                while connected.send(bytes(MIB)):
                    pass
            wait_until(lambda: backoff(connected) >= 3, "the kernel to have asked three times")
            assert not pieces.is_lost(connected)
            assert reader.recv(1)


def backoff(connected: socket.socket) -> int:
    """How often the kernel has doubled the time after which it asks."""
    return connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 8)[4]
