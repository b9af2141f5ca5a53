"""Channels, their windows and their openings, where no SSH server is needed to show them."""

import functools
from collections.abc import Callable
from typing import cast

import asyncssh
import pytest
from asyncssh.packet import SSHPacket

from dbtunnel.forwarder.channel import LARGEST_WINDOW, STREAM_WINDOW, Channel, _Nobody
from dbtunnel.forwarder.link import ABANDONED_AT_MOST, OPENING_AT_ONCE, Link
from dbtunnel.forwarder.transport import Congestion
from dbtunnel.forwarder.windows import FIRST_BYTES, FIRST_WINDOW, SMALLEST_WINDOW, WIDEST_BYTES
from tests.support.stuck_ssh import CLOSE, DATA, StuckConnection, Waiting, ask, link_over, opened, until

ADJUST, EXTENDED_DATA, EOF, REQUEST, SUCCESS = 93, 95, 96, 98, 99
"""SSH_MSG_CHANNEL_WINDOW_ADJUST and others (RFC 4254, section 9)."""


def several_links(round_trip_seconds: float = 0) -> list[Link]:
    """Connections of one process."""
    links = [link_over(StuckConnection(), round_trip_seconds) for _ in range(8)]
    for link in links:
        link.windows = links[0].windows
    return links


async def abandon(link: Link, count: int) -> None:
    waiting = ask(link, count, 0.02)
    await until(lambda: all(isinstance(one.outcome, TimeoutError) for one in waiting))


async def test_openings_that_nobody_waits_for_hold_nobody_up() -> None:
    """A database that dropped packets is back: those who try now need not wait until the bastion has given up."""
    connection = StuckConnection()
    link = link_over(connection)
    await abandon(link, OPENING_AT_ONCE)
    (one,) = ask(link, 1)
    connection.answer()
    assert isinstance(one.outcome, Channel)
    assert connection.sent.count(CLOSE) == OPENING_AT_ONCE, "what comes too late is closed"


async def test_openings_on_the_bastion_are_bounded() -> None:
    connection = StuckConnection()
    link = link_over(connection)
    for _ in range(6):
        await abandon(link, OPENING_AT_ONCE)
    assert connection.asked == OPENING_AT_ONCE + ABANDONED_AT_MOST
    connection.answer()
    waiting = ask(link, 2 * OPENING_AT_ONCE)
    connection.answer()
    connection.answer()
    assert all(isinstance(one.outcome, Channel) for one in waiting)


async def test_a_link_is_unused_when_its_last_channel_is_gone() -> None:
    connection, unused = StuckConnection(), []
    link = link_over(connection)
    link.on_unused = lambda: unused.append(True)
    waiting = ask(link, 2)
    connection.answer()
    for number, channel in list(connection.channels.items()):
        assert not unused
        channel.close()
        channel.process_packet(CLOSE, number, SSHPacket(b""))
    assert unused == [True]
    assert len(waiting) == 2


async def test_first_windows_are_cut_from_one_piece() -> None:
    """One has what it can use; thousands that are not read fill no memory, however many connections they are on."""
    links = several_links()
    windows = [Channel(links[number % len(links)], _Nobody()).first_window for number in range(5000)]
    assert windows[:32] == [FIRST_WINDOW] * 32
    assert windows[500:] == [SMALLEST_WINDOW] * 4500
    assert sum(windows[:500]) <= FIRST_BYTES + 250 * SMALLEST_WINDOW
    assert sum(windows) == links[0].windows.begun
    assert sum(windows) + WIDEST_BYTES < 190 * 2**20, "as the architecture has it"


async def test_a_bug_in_serving_one_client_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """An exception that reaches asyncssh would end the connection of all."""
    connection = StuckConnection()
    link = link_over(connection)
    channel = opened(link, connection)

    class Broken(_Nobody):
        def received(self, pieces: list[memoryview]) -> None:
            raise RuntimeError("a bug")

    channel.end = Broken()
    assert channel.process_packet(DATA, 0, SSHPacket(b"\0\0\0\1x"))
    assert "serving a channel failed" in caplog.text
    assert connection.sent[-1] == CLOSE


async def test_a_server_may_send_no_more_than_its_window() -> None:
    connection = StuckConnection()
    channel = opened(link_over(connection), connection)
    assert channel.receive(memoryview(bytes(channel.first_window)))
    assert not channel.receive(memoryview(b"x"))
    with pytest.raises(asyncssh.ProtocolError):
        channel.process_packet(DATA, 0, SSHPacket(b"\0\0\0\1x"))


async def test_openings_that_fail_at_once_are_told_one_by_one() -> None:
    """The connection ends while very many wait for their turn; each that fails makes room for the next."""
    connection = StuckConnection()
    link = link_over(connection)
    waiting = ask(link, OPENING_AT_ONCE + 3000)
    connection.is_gone = True
    connection.channels[1].process_connection_close(None)
    assert sum(isinstance(one.outcome, asyncssh.ChannelOpenError) for one in waiting) == 3001
    for number in range(2, OPENING_AT_ONCE + 1):
        connection.channels[number].process_connection_close(None)
    assert all(isinstance(one.outcome, asyncssh.ChannelOpenError) for one in waiting)
    assert link.uses == 0


async def test_what_is_opened_late_does_not_keep_a_link() -> None:
    """A replaced connection ends with its last session, whatever the server still has to answer."""
    connection, unused = StuckConnection(), []
    link = link_over(connection)
    link.on_unused = lambda: unused.append(True)
    await abandon(link, 1)
    assert unused == [True]
    connection.answer()
    assert connection.sent[-1] == CLOSE
    connection.channels[1].process_packet(CLOSE, 0, SSHPacket(b""))
    assert unused == [True, True]


# --- what a server may not do -----------------------------------------------------------------------------------------


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


async def test_nothing_is_taken_for_a_channel_that_is_not_open() -> None:
    connection = StuckConnection()
    link = link_over(connection)
    ask(link, 1)
    assert not link.packets.channels
    with pytest.raises(asyncssh.ProtocolError):
        connection.channels[1].process_packet(DATA, 0, SSHPacket(number(1) + b"x"))


async def test_a_channel_is_opened_once() -> None:
    connection = StuckConnection()
    channel = opened(link_over(connection), connection)
    with pytest.raises(asyncssh.ProtocolError):
        channel.process_open_confirmation(1, 1, 1, SSHPacket(b""))
    with pytest.raises(asyncssh.ProtocolError):
        channel.process_open_failure(1, "", "")


async def test_a_window_has_32_bits() -> None:
    connection = StuckConnection()
    channel = opened(link_over(connection), connection)
    assert not channel.widen(2**32 - channel.may_send_bytes)
    with pytest.raises(asyncssh.ProtocolError):
        channel.process_packet(ADJUST, 0, SSHPacket(number(2**32 - 1)))
    assert channel.widen(2**32 - 1 - channel.may_send_bytes)


async def test_there_is_no_data_after_the_end_of_data() -> None:
    connection = StuckConnection()
    channel = opened(link_over(connection), connection)
    assert channel.process_packet(EOF, 0, SSHPacket(b""))
    assert not channel.receive(memoryview(b"x"))


async def test_empty_data_is_nothing() -> None:
    told: list[int] = []

    class Listening(_Nobody):
        def received(self, pieces: list[memoryview]) -> None:
            told.append(len(pieces))

    connection = StuckConnection()
    channel = opened(link_over(connection), connection)
    channel.end = Listening()
    assert channel.receive(memoryview(b""))
    channel.deliver()
    assert told == []


async def test_answers_that_nobody_asked_for_end_the_connection() -> None:
    connection = StuckConnection()
    with pytest.raises(asyncssh.ProtocolError):
        opened(link_over(connection), connection).process_packet(SUCCESS, 0, SSHPacket(b""))


async def test_a_request_is_refused_and_an_unknown_message_left_to_asyncssh() -> None:
    connection = StuckConnection()
    channel = opened(link_over(connection), connection)
    assert channel.process_packet(REQUEST, 0, SSHPacket(number(4) + b"exit" + b"\1"))
    assert connection.sent[-1] == 100
    assert not channel.process_packet(101, 0, SSHPacket(b""))


async def test_extended_data_is_dropped_and_counts_against_the_window() -> None:
    connection = StuckConnection()
    link = link_over(connection)
    channel = opened(link, connection)
    half = channel.first_window // 2
    assert channel.process_packet(EXTENDED_DATA, 0, SSHPacket(number(1) + number(half) + bytes(half)))
    assert vars(link.packets)["adjusted"] == [half]
    with pytest.raises(asyncssh.ProtocolError):
        channel.process_packet(EXTENDED_DATA, 0, SSHPacket(number(1) + number(2 * half + 1) + bytes(2 * half + 1)))


async def test_a_bug_at_the_end_of_a_channel_ends_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """asyncssh would not tell of the end of the connection any more."""

    class Broken(_Nobody):
        def closed(self, *, whole: bool) -> None:
            raise RuntimeError("a bug")

    connection = StuckConnection()
    channel = opened(link_over(connection), connection)
    channel.end = Broken()
    channel.process_connection_close(None)
    assert "ending a channel failed" in caplog.text


async def test_the_last_channel_of_a_replaced_connection_ends_whole() -> None:
    ends: list[bool] = []

    class Listening(_Nobody):
        def closed(self, *, whole: bool) -> None:
            ends.append(whole)

    connection = StuckConnection()
    link = link_over(connection)
    channel = opened(link, connection)
    channel.end = Listening()
    link.on_unused = lambda: setattr(connection, "is_gone", True)
    channel.process_packet(CLOSE, 0, SSHPacket(b""))
    assert connection.is_gone
    assert ends == [True]


# --- windows ----------------------------------------------------------------------------------------------------------


class Clock:
    """Of the channels: it goes on by `step` seconds at each look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: float) -> None:
        self._now, self._step = 0.0, step
        monkeypatch.setattr("dbtunnel.forwarder.channel.time.monotonic", self._look)

    def _look(self) -> float:
        self._now += self._step
        return self._now


def stream(channel: Channel, adjustments: int) -> list[int]:
    """The server sends, and the client takes, all that the window has; how wide it is after each time."""
    widths = []
    for _ in range(adjustments):
        size = channel._full_window // 2
        assert channel.receive(memoryview(bytes(size)))
        channel._pieces.clear()
        channel.taken(size)
        widths.append(channel._full_window)
    return widths


async def test_a_window_grows_to_that_of_a_stream_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near by, the round trip limits nothing."""
    Clock(monkeypatch, 1)
    connection = StuckConnection()
    channel = opened(link_over(connection, 0.001), connection)
    widths = stream(channel, 64)
    assert widths[14:16] == [FIRST_WINDOW, 2 * FIRST_WINDOW]
    assert widths[-1] == STREAM_WINDOW


async def test_a_window_grows_at_once_where_the_round_trip_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, 0.05)
    connection = StuckConnection()
    link = link_over(connection, 0.1)
    channel = opened(link, connection)
    widths = stream(channel, 8)
    assert widths[:6] == [2**exponent * FIRST_WINDOW for exponent in range(1, 7)]
    assert widths[-1] == LARGEST_WINDOW
    growth = [after - before for before, after in zip([FIRST_WINDOW, *widths], widths, strict=False)]
    half = [before // 2 for before in [FIRST_WINDOW, *widths[:-1]]]
    adjusted = [size + more for size, more in zip(half, growth, strict=True)]
    assert vars(link.packets)["adjusted"] == adjusted, "the server is told of what is taken and of the growth"


async def test_windows_of_all_connections_grow_by_so_much_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that readers which have stalled may leave here, after each was a stream for a while."""
    Clock(monkeypatch, 0)
    links = several_links(0.1)
    streams = [opened(link, cast(StuckConnection, link.connection)) for link in links for _ in range(25)]
    for channel in streams:
        stream(channel, 8)
    windows = links[0].windows
    assert WIDEST_BYTES - LARGEST_WINDOW < windows.grown <= WIDEST_BYTES
    assert sum(channel._full_window for channel in streams) == windows.begun + windows.grown
    assert windows.begun + windows.grown <= FIRST_BYTES + WIDEST_BYTES
    for channel in streams:
        channel.process_packet(CLOSE, 0, SSHPacket(b""))
    assert (windows.begun, windows.grown) == (0, 0)


# --- congestion -------------------------------------------------------------------------------------------------------


def test_clients_are_held_while_there_is_any_cause() -> None:
    congestion, relieved = Congestion(), Waiting()
    congestion.end("output")
    congestion.begin("output")
    congestion.begin("key exchange")
    assert congestion.holds(lambda: setattr(relieved, "outcome", True))
    congestion.end("output")
    assert relieved.outcome is None
    congestion.end("key exchange")
    assert relieved.outcome
    assert not congestion.holds(lambda: None)


def test_who_has_waited_longest_is_read_first() -> None:
    """Else the same few would have the connection for themselves."""
    congestion = Congestion()
    read: list[int] = []

    def client(name: int) -> None:
        """Is told that it may be read, which fills the connection."""
        if not congestion.holds(clients[name]):
            read.append(name)
            congestion.begin("output")

    clients: list[Callable[[], None]] = [functools.partial(client, name) for name in range(20)]
    for _ in range(3):
        for told in clients:
            told()
        while congestion.is_on:
            congestion.end("output")
    assert read == 3 * list(range(20))


def test_who_is_gone_is_not_relieved() -> None:
    congestion = Congestion()
    congestion.begin("output")
    told: list[int] = []
    first, second = (lambda: told.append(1)), (lambda: told.append(2))
    assert congestion.holds(first)
    assert congestion.holds(second)
    congestion.forget(first)
    congestion.forget(first)
    congestion.end("output")
    assert told == [2]


def test_a_bug_in_reading_one_client_again_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """asyncssh, which has just exchanged keys, would end the connection of all."""
    congestion, told = Congestion(), Waiting()

    def broken() -> None:
        raise RuntimeError("a bug")

    congestion.begin("key exchange")
    assert congestion.holds(broken)
    assert congestion.holds(lambda: setattr(told, "outcome", True))
    congestion.end("key exchange")
    assert told.outcome
    assert "a bug" in caplog.text
