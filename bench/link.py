"""A long link: two network namespaces of our own, each packet between them delayed (`delay.c`).

TCP runs from end to end, so a forwarder measures the round trip as on a real network. Where the kernel has netem it
would do the same; this needs TUN alone, and gives the same everywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.programs import program
from tests.support.processes import Process, run, wait_until

NEAR, FAR = "198.18.0.1", "198.18.0.2"
"""The ends' addresses (RFC 2544: networks for tests)."""

_INTERFACE = "bench"
_BUFFERS = 64 * 1024 * 1024
"""Bytes that TCP may have on its way: the window of the SSH channel is to be the limit, as on a tuned server."""


@contextmanager
def link(directory: Path, round_trip_seconds: float) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """The commands that run another on the near and on the far side. Needs root."""
    holders = [Process(["unshare", "--net", "sleep", "infinity"], directory / "namespace.log").start() for _ in "nf"]
    try:
        near, far = (_entering(holder) for holder in holders)
        other = f"/proc/{holders[1].pid}/ns/net"
        command: list[str | Path] = [*near, program("delay"), other, _INTERFACE, str(round_trip_seconds / 2)]
        packets = Process(command, directory / "delay.log").start()
        holders.insert(0, packets)
        for enter, address in ((near, NEAR), (far, FAR)):
            packets.wait_until(lambda enter=enter: _has_interface(enter), "the link's end")  # type: ignore[misc]
            _configure(enter, address)
        yield near, far
    finally:
        for holder in holders:
            holder.kill()


def _entering(holder: Process) -> tuple[str, ...]:
    own, held = (Path(f"/proc/{name}/ns/net") for name in ("self", holder.pid))
    wait_until(lambda: held.readlink() != own.readlink(), "a network namespace of its own")
    return ("nsenter", f"--net={held}")


def _has_interface(enter: tuple[str, ...]) -> bool:
    return f"{_INTERFACE}:" in run([*enter, "cat", "/proc/net/dev"])


def _configure(enter: tuple[str, ...], address: str) -> None:
    run([*enter, "ip", "link", "set", "lo", "up"])
    run([*enter, "ip", "address", "add", f"{address}/30", "dev", _INTERFACE])
    run([*enter, "ip", "link", "set", _INTERFACE, "up"])
    for name, first in (("tcp_rmem", 131072), ("tcp_wmem", 16384)):
        path = f"/proc/sys/net/ipv4/{name}"
        run([*enter, "sh", "-c", f"echo 4096 {first} {_BUFFERS} > {path}"])
