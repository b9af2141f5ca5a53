"""Bytes in several pieces, and the room where bytes are put."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.forwarder.pieces import after, room_for

MIB = 2**20


def private_mib() -> float:
    """Memory of this process that is in no file."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("Anonymous:"))


@given(st.lists(st.binary(max_size=5)), st.integers(0, 30))
def test_what_is_left_is_what_was_not_sent(pieces: list[bytes], sent: int) -> None:
    left = after([memoryview(piece) for piece in pieces], sent)
    assert b"".join(left) == b"".join(pieces)[sent:]


def test_room_takes_memory_once_it_is_used() -> None:
    before = private_mib()
    room = room_for(64 * MIB)
    assert (len(room), room.readonly, bytes(room[-4:])) == (64 * MIB, False, bytes(4))
    assert private_mib() - before < 8
    room[: 32 * MIB] = bytes(32 * MIB)
    assert private_mib() - before > 24
    del room
    assert private_mib() - before < 8, "it is given back"
