"""What a contender needs of memory: idle, and where nobody takes what it has read."""

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from bench.lane import Lane
from bench.loads import Figures, Sizes
from tests.support.processes import ProcessError

_SSL_REQUEST = bytes([0, 0, 0, 8, 4, 210, 22, 47])
"""PostgreSQL's; the server of `peer.c` answers N."""

_BUFFER = 64 * 1024
"""Bytes that the system may hold for a client, so that it is the forwarder that has to."""

_MOST_SENT = 2**20
"""Bytes that each client sends at most: 500 MiB in all for who takes everything."""

_LONGEST_SECONDS = 20
_SAMPLE_SECONDS = 0.05
_IS_STEADY = 1.01


def idle(lane: Lane, sizes: Sizes) -> Figures:
    """Connected, without clients."""
    with _fresh(lane):
        return {"idle": settled(lane, sizes.quiet)}


def open_channels(lane: Lane, sizes: Sizes) -> Figures:
    """Many clients that say nothing more."""
    with _fresh(lane), ExitStack() as stack:
        for _ in range(sizes.channels):
            stack.enter_context(_opened(lane))
        return {"channels": settled(lane, sizes.quiet)}


def stalled_readers(lane: Lane, sizes: Sizes) -> Figures:
    """Clients that asked for what has no end and do not read it."""
    with _fresh(lane), ExitStack() as stack:
        for _ in range(sizes.readers):
            stack.enter_context(_opened(lane)).sendall(b"D")
        return {"stalled": settled(lane, sizes.quiet)}


def uploads_to_a_frozen_bastion(lane: Lane, sizes: Sizes) -> Figures:
    """Clients that send while the bastion reads nothing and closes nothing."""
    bastion = lane.site.bastion
    return {"uploads": _uploads(lane, sizes, bastion.pause, bastion.resume)}


def uploads_into_a_black_hole(lane: Lane, sizes: Sizes) -> Figures:
    """Clients that send while all packets to the bastion and its server are dropped, and all from there."""
    cable = lane.site.cable
    assert cable, "the site has one"

    def cut() -> None:
        for port in (lane.site.bastion.port, lane.site.port):
            cable.cut(port)

    return {"uploads-dropped": _uploads(lane, sizes, cut, cable.mend)}


def _uploads(lane: Lane, sizes: Sizes, hang: Callable[[], None], go_on: Callable[[], None]) -> float:
    """The memory while clients send and nothing is taken at the far end."""
    with _fresh(lane), ExitStack() as stack:
        clients = [stack.enter_context(_opened(lane)) for _ in range(sizes.channels)]
        for client in clients:
            client.sendall(b"U")
        hang()
        stack.callback(go_on)
        stack.callback(lane.stop)  # before that: all that was sent would pass
        _send_all_that_is_taken(clients, sizes.quiet)
        return settled(lane, sizes.quiet)


def settled(lane: Lane, quiet_seconds: float) -> float:
    """The most that it had, in MiB, once that has not grown by a hundredth for a while. Raises ProcessError."""
    begun = since = time.monotonic()
    most = lane.resident_mib()
    while time.monotonic() < since + quiet_seconds:
        if time.monotonic() > begun + _LONGEST_SECONDS:
            raise ProcessError(f"its memory still grows after {_LONGEST_SECONDS} s: {most:.0f} MiB")
        time.sleep(_SAMPLE_SECONDS)
        now = lane.resident_mib()
        if now > most * _IS_STEADY:
            since = time.monotonic()
        most = max(most, now)
    return most


@contextlib.contextmanager
def _fresh(lane: Lane) -> Iterator[None]:
    """A process that has done nothing yet, and does nothing after."""
    lane.start()
    try:
        yield
    finally:
        lane.stop()


def _opened(lane: Lane) -> socket.socket:
    """A client whose channel is open: the server has answered."""
    client = socket.socket()
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        client.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
    client.settimeout(_LONGEST_SECONDS)
    client.connect(lane.address)
    client.sendall(_SSL_REQUEST)
    if client.recv(1) != b"N":
        raise ProcessError("the server behind the tunnel did not answer")
    return client


def _send_all_that_is_taken(clients: list[socket.socket], quiet_seconds: float) -> None:
    """Returns when nothing more has been taken for a while, or each has sent its most."""
    left = {client.fileno(): (client, _MOST_SENT) for client in clients}
    poll = select.poll()
    for number, (client, _) in left.items():
        client.setblocking(False)
        poll.register(number, select.POLLOUT)
    end = time.monotonic() + _LONGEST_SECONDS
    while left and time.monotonic() < end and (ready := poll.poll(quiet_seconds * 1000)):
        for number, _ in ready:
            client, rest = left[number]
            with contextlib.suppress(BlockingIOError):
                rest -= client.send(bytes(min(rest, _BUFFER)))
            left[number] = client, rest
            if not rest:
                del left[number]
                poll.unregister(number)
