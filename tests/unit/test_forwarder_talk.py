"""Whether something is under way in a session, by how the database's last word ends."""

import pytest

from dbtunnel.api.engines import WireProtocol
from dbtunnel.forwarder.talk import Talk

POSTGRESQL, MYSQL = WireProtocol.POSTGRESQL, WireProtocol.MYSQL
SERVER_HELLO = bytes.fromhex("160303007a0200007603")


def is_over(protocol: WireProtocol, last: bytes, unanswered: int = 0, *, begin: bytes = b"") -> bool:
    talk = Talk()
    talk.begins(begin)
    talk.heard([memoryview(b"before"), memoryview(last)], 100)
    return talk.is_over(protocol, 100 + unanswered)


def packet(payload: bytes, number: int = 1) -> bytes:
    return len(payload).to_bytes(3, "little") + bytes([number]) + payload


def ok(status: int, text: bytes = b"", *, affected: bytes = b"\0") -> bytes:
    return packet(b"\0" + affected + b"\0" + status.to_bytes(2, "little") + b"\0\0" + text)


def end(status: int, *, head: bytes = b"\xfe\0\0") -> bytes:
    return packet(head + status.to_bytes(2, "little"))


@pytest.mark.parametrize(
    ("last", "over"),
    {
        "ready": (b"C\0\0\0\rSELECT 1\0Z\0\0\0\x05I", True),
        "in a transaction": (b"Z\0\0\0\x05T", False),
        "in one that has failed": (b"Z\0\0\0\x05E", False),
        "within COPY out": (b"d\0\0\0\x061\n", False),
        "COPY in may begin": (b"G\0\0\0\x07\0\0\1\0\0", False),
        "a row": (b"D\0\0\0\x0b\0\1\0\0\0\x011", False),
        "a password is asked for": (b"R\0\0\0\x08\0\0\0\3", False),
        "nothing yet": (b"", False),
    }.values(),
)
def test_postgresql(last: bytes, over: bool) -> None:
    assert is_over(POSTGRESQL, last) is over


ROW = packet(b"\x01a" * 3)
LONG = b"Rows matched: 1000000  Changed: 1000000  Warnings: 0"


@pytest.mark.parametrize(
    ("last", "over"),
    {
        "done": (ok(2), True),
        "done, with many rows and a text": (ok(2, LONG, affected=b"\xfd\x40\x42\x0f"), True),
        "done, in a transaction": (ok(3), False),
        "done, in a transaction, with a text": (ok(3, LONG, affected=b"\xfc\x40\x42"), False),
        "a result": (ROW + end(2), True),
        "a result of 1 KiB": (packet(b"x" * 1024) + end(0x22), True),
        "a result in a transaction": (ROW + end(3), False),
        "a result, and another to come": (ROW + end(0x0A), False),
        "a cursor": (ROW + end(0x42), False),
        "a result that ends as the newer protocol has it": (ROW + packet(b"\xfe\0\0\2\0\0\0"), True),
        "the same in a transaction": (ROW + packet(b"\xfe\0\0\3\0\0\0"), False),
        "within a result": (end(2) + ROW, False),
        "an error, perhaps in a transaction": (packet(b"\xff\x48\x04#23000Duplicate entry"), False),
        "a greeting": (packet(b"\x0a8.0.40\0" + bytes(66), 0), False),
        "too little": (ok(2)[:-1], False),
        "numbers that do not end": (packet(b"\0\xfe\0\0\0\0\0"), False),
        "nothing yet": (b"", False),
    }.values(),
)
def test_mysql(last: bytes, over: bool) -> None:
    assert is_over(MYSQL, last) is over


@pytest.mark.parametrize(("protocol", "last"), [(POSTGRESQL, b"Z\0\0\0\x05I"), (MYSQL, ok(2))])
def test_who_spoke_last_waits_for_the_answer(protocol: WireProtocol, last: bytes) -> None:
    assert not is_over(protocol, last, 30)


@pytest.mark.parametrize(
    ("protocol", "begin", "unanswered", "over"),
    [
        (POSTGRESQL, SERVER_HELLO, 0, True),
        (POSTGRESQL, SERVER_HELLO, 31, False),
        (POSTGRESQL, b"G", 0, True),
        (POSTGRESQL, b"S", 0, False),
        (MYSQL, SERVER_HELLO, 0, True),
        (MYSQL, SERVER_HELLO, 31, True),
        (MYSQL, SERVER_HELLO, 9, False),
        (MYSQL, b"", 0, False),
    ],
)
def test_of_tls_it_is_seen_who_spoke_last(protocol: WireProtocol, begin: bytes, unanswered: int, over: bool) -> None:
    assert is_over(protocol, b"\x17\x03\x03\0\x05abcde", unanswered, begin=begin) is over


def test_a_statement_of_mysql_that_is_closed_needs_no_answer() -> None:
    assert is_over(MYSQL, ok(2), 9)
    assert not is_over(MYSQL, ok(2), 18)
    assert not is_over(POSTGRESQL, b"Z\0\0\0\x05I", 9)
