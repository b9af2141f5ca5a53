"""Somebody between the forwarder and the bastion who adds or takes messages around the key exchange, as in the Terrapin
attack: strict key exchange (OpenSSH's PROTOCOL) ends the connection before anybody logs in.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import pytest

from dbtunnel.api.forwarder import ForwarderConfig, ForwarderHop
from dbtunnel.api.reasons import Reason
from tests.forwarder.test_packets_way import packets_told
from tests.support.bastion import Bastion
from tests.support.databases import PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config
from tests.support.keys import KeyPair
from tests.support.odd_ssh import OddSshServer
from tests.support.processes import wait_until
from tests.support.relay import Relay
from tests.support.told import check_told

VERSION, IGNORE, KEXINIT, NEWKEYS, SEALED = 0, 2, 20, 21, 256
"""What a side says before the first sealed packet: its version line, and messages by their number (RFC 4253)."""

TAG = 16
"""Bytes after a packet that AES-GCM has sealed."""

IGNORED = struct.pack(">IBBI", 12, 6, IGNORE, 0) + bytes(6)
"""SSH_MSG_IGNORE in the clear, with nothing in it."""

Change = Callable[[int, bytes], bytes]
"""What becomes of something that a side says, told by its kind."""


def unchanged(kind: int, whole: bytes) -> bytes:
    """Leaves all as it is."""
    return whole


def after(kind: int) -> Change:
    """Adds a message after another."""
    return lambda said, whole: whole + IGNORED if said == kind else whole


def without(kind: int) -> Change:
    """Takes one away."""
    return lambda said, whole: b"" if said == kind else whole


@dataclass(frozen=True)
class Fault:
    """What somebody does, and who says what of it."""

    to_client: Change = unchanged
    to_server: Change = unchanged
    forwarder_says: str = ""
    sshd_says: str = ""


FAULTS = (
    Fault(to_client=after(VERSION), forwarder_says="KEXINIT was not the first packet"),
    Fault(to_client=after(KEXINIT), forwarder_says="Strict key exchange violation: unexpected packet type 2 received"),
    Fault(to_server=after(VERSION), sshd_says="strict KEX violation: KEXINIT was not the first packet"),
    Fault(to_server=after(KEXINIT), sshd_says="strict KEX violation: unexpected packet type 2"),
    Fault(to_client=without(SEALED), forwarder_says="MAC verification failed"),
    # as Terrapin does: what is added would have the numbers right again after what is taken
    Fault(
        to_client=lambda kind, whole: without(SEALED)(kind, after(KEXINIT)(kind, whole)),
        forwarder_says="Strict key exchange violation: unexpected packet type 2 received",
    ),
)


class Way:
    """What one side says, up to its first sealed packet."""

    def __init__(self) -> None:
        self._unread = b""
        self.heard: dict[int, bytes] = {}

    def pass_on(self, data: bytes, change: Change) -> bytes:
        """Bytes that came, changed as far as they are whole."""
        self._unread += data
        passed = b""
        while SEALED not in self.heard and (end := self._end()):
            whole, self._unread = self._unread[:end], self._unread[end:]
            kind = self._kind(whole)
            self.heard[kind] = whole
            passed += change(kind, whole)
        if SEALED in self.heard:
            passed, self._unread = passed + self._unread, b""
        return passed

    def _end(self) -> int:
        """Where what is said next ends; 0 while it is not whole."""
        if VERSION not in self.heard:
            return self._unread.find(b"\n") + 1
        size = 4 + int.from_bytes(self._unread[:4], "big") + (TAG if NEWKEYS in self.heard else 0)
        return size if 4 < size <= len(self._unread) else 0

    def _kind(self, whole: bytes) -> int:
        if VERSION not in self.heard:
            return VERSION
        return SEALED if NEWKEYS in self.heard else whole[5]


class Meddler:
    """Reads what a relay passes on, one connection at a time, and changes what the two sides say."""

    def __init__(self) -> None:
        self._ways = {True: Way(), False: Way()}
        self.fault = Fault()

    def __call__(self, data: bytes, to_client: bool) -> bytes:
        if data.startswith(b"SSH-2.0-"):
            self._ways[to_client] = Way()
        return self._ways[to_client].pass_on(data, self.fault.to_client if to_client else self.fault.to_server)

    def offers(self, to_client: bool, name: bytes) -> bool:
        """Whether a side's lists have a name."""
        return name in self._ways[to_client].heard.get(KEXINIT, b"")


class Meddled:
    """A forwarder, and somebody between it and its SSH server. Use it as a context manager."""

    def __init__(self, directory: Path, hop: ForwarderHop, config: ForwarderConfig, key: str, packets: str) -> None:
        self.meddler = Meddler()
        self.relay = Relay(hop.host, hop.port)
        self.relay.damage = self.meddler
        through = replace(hop, host=self.relay.host, port=self.relay.port)
        self.forwarder = Forwarder(directory / "meddled", replace(config, bastion=through), {KEY: key})
        self._packets = packets

    def __enter__(self) -> Self:
        self.relay.__enter__()
        self.forwarder.start(arguments=[f"--packets={self._packets}"])
        return self

    def __exit__(self, *_: object) -> None:
        self.forwarder.stop()
        self.relay.__exit__()

    def connects_in_vain(self, fault: Fault, bastion: Bastion) -> None:
        """The connection ends, and the next one does not come to be, for a reason that is said."""
        told = bastion.log_text().count(fault.sshd_says)
        self.meddler.fault = fault
        self.relay.reset()
        says = fault.forwarder_says
        self.forwarder.wait(
            lambda status: status.transport.reason == "ConnectionLost" and says in status.transport.seen, str(fault)
        )
        wait_until(lambda: not fault.sshd_says or bastion.log_text().count(fault.sshd_says) > told, "sshd to tell it")


@pytest.mark.parametrize("packets", ["own", "asyncssh"])
def test_what_is_added_to_the_key_exchange_or_taken_ends_the_connection(
    tmp_path: Path, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair, packets: str
) -> None:
    config = forwarder_config(bastion, postgres.port)
    with Meddled(tmp_path, config.bastion, config, client_key.private, packets) as meddled:
        forwarder = meddled.forwarder
        forwarder.wait_for("database", "Succeeded")
        assert packets_told(forwarder)[0] == packets
        assert meddled.meddler.offers(to_client=True, name=b"kex-strict-s-v00@openssh.com")
        assert meddled.meddler.offers(to_client=False, name=b"kex-strict-c-v00@openssh.com")
        for fault in FAULTS:
            meddled.connects_in_vain(fault, bastion)
        check_told(forwarder, Reason.CONNECTION_LOST, FAULTS[-1].forwarder_says)
        assert bastion.log_text().count("Accepted publickey") == 1
        meddled.meddler.fault = Fault()
        forwarder.wait_for("database", "Succeeded")
        assert bastion.log_text().count("Accepted publickey") == 2


def test_without_strict_key_exchange_a_message_more_would_not_be_noticed(
    tmp_path: Path, bastion: Bastion, client_key: KeyPair
) -> None:
    """It is the server that does not offer it; with AES-GCM it does not help the one who adds it, either."""

    def is_lax(connection: Any) -> None:
        connection._get_extra_kex_algs = lambda: [b"ext-info-s"]

    with OddSshServer(is_lax) as server:
        config = forwarder_config(bastion, 1, probe_mode="Disabled")
        with Meddled(tmp_path, server.hop, config, client_key.private, "own") as meddled:
            meddled.meddler.fault = Fault(to_client=after(KEXINIT))
            meddled.relay.reset()
            meddled.forwarder.wait_for("authentication", "Succeeded")
            assert not meddled.meddler.offers(to_client=True, name=b"kex-strict-s-v00@openssh.com")
