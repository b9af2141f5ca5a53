"""What the connection layers say without a network: the greeting, host key lines, failures, pace."""

import asyncio
import contextlib
import socket
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.engines import Engine
from dbtunnel.api.forwarder import (
    Algorithms,
    ForwarderConfig,
    ForwarderHop,
    ForwarderKey,
    HostKeyRule,
    LayerStatus,
)
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.forwarder.algorithms import offered
from dbtunnel.forwarder.failures import Failure, Progress, channel_failure, connect_failure
from dbtunnel.forwarder.greeting import Greeting
from dbtunnel.forwarder.host_keys import KnownHostsError, kinds_left, kinds_to_try, trust_of
from dbtunnel.forwarder.keys import Key, MountedFile, MountedKeys, parse_key
from dbtunnel.forwarder.pace import pause_seconds
from dbtunnel.forwarder.state import State
from tests.support.keys import key_pair

CONFIG = ForwarderConfig(
    namespace="shop",
    name="orders",
    engine=Engine.POSTGRESQL,
    database_host="orders.internal",
    database_port=5432,
    database_server_name="orders.internal",
    bastion=ForwarderHop(host="bastion", port=22, user="dbtunnel"),
    key=ForwarderKey(secret="orders-ssh", key="ssh-privatekey", passphrase_key="passphrase"),
)


# --- the greeting -----------------------------------------------------------------------------------------------------


def kexinit(*name_lists: str) -> bytes:
    """SSH_MSG_KEXINIT in a packet (RFC 4253, sections 6 and 7.1)."""
    lists = b"".join(len(names).to_bytes(4, "big") + names.encode() for names in name_lists)
    payload = b"\x14" + b"c" * 16 + lists + b"\0" * 5
    return (1 + len(payload) + 4).to_bytes(4, "big") + b"\x04" + payload + b"pppp"


def heard(*pieces: bytes) -> Greeting:
    greeting = Greeting(asyncio.Protocol())
    for piece in pieces:
        greeting.data_received(piece)
    return greeting


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_the_servers_offer_is_read_whatever_the_pieces(size: int) -> None:
    text = b"Welcome\r\nSSH-2.0-x\r\n" + kexinit("curve25519-sha256", "ssh-ed25519,rsa-sha2-256", "aes128-ctr")
    greeting = heard(*(text[start : start + size] for start in range(0, len(text), size)))
    assert greeting.has_version
    assert greeting.host_key_algorithms() == {"ssh-ed25519", "rsa-sha2-256"}
    assert greeting.text_before_version() == b"Welcome"


@given(st.binary(max_size=400), st.booleans())
def test_a_hostile_greeting_breaks_nothing(data: bytes, version: bool) -> None:
    greeting = heard(b"SSH-2.0-x\n" * version + data)
    assert isinstance(greeting.host_key_algorithms(), frozenset)
    assert greeting.has_version or not version


def test_an_endless_greeting_is_not_kept() -> None:
    assert len(heard(*[b"x" * 65536] * 10).heard) <= 16384


# --- host keys --------------------------------------------------------------------------------------------------------


def parsed_key(algorithm: str = "ssh-ed25519") -> asyncssh.SSHKey:
    return asyncssh.import_public_key(key_pair(algorithm, bits=2048).public)


def test_the_pinned_kind_is_offered_first_and_the_others_after_it() -> None:
    rsa = key_pair("ssh-rsa", bits=2048)
    rule = HostKeyRule(known_hosts=f"bastion {rsa.public}\n")
    kinds = kinds_to_try(trust_of(rule, MountedFile(), "bastion", 22), legacy=False)
    assert kinds[0] == ("rsa-sha2-256", "rsa-sha2-512")
    assert len(kinds) == 5
    assert not any(name == "ssh-rsa" or "cert" in name for kind in kinds for name in kind)


def test_only_kinds_that_the_server_has_and_has_not_shown_are_tried_again() -> None:
    kinds = kinds_to_try(trust_of(HostKeyRule(), MountedFile(), "bastion", 22), legacy=False)
    offer = frozenset({"ssh-ed25519", "rsa-sha2-512", "rsa-sha2-256"})
    assert kinds_left(kinds, parsed_key(), offer) == [("rsa-sha2-256", "rsa-sha2-512")]
    assert kinds_left(kinds_left(kinds, parsed_key(), offer), parsed_key("ssh-rsa"), offer) == []


@given(st.text(max_size=200))
def test_no_known_hosts_text_is_taken_for_permission(text: str) -> None:
    with contextlib.suppress(KnownHostsError):
        assert trust_of(HostKeyRule(known_hosts=text), MountedFile(), "bastion", 22).is_empty


def test_sha1_is_offered_with_legacy_alone() -> None:
    for algorithms, expected in ((Algorithms.DEFAULT, False), (Algorithms.LEGACY, True)):
        names = [name for group in offered(algorithms, compression=False).values() for name in group]
        assert any(name == "ssh-rsa" or name.endswith("-sha1") for name in names) is expected
        assert names[0] == "aes128-gcm@openssh.com"


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Connection refused", Reason.DATABASE_REFUSED),
        ("Name or service not known", Reason.DATABASE_UNRESOLVABLE),
        ("Temporary failure in name resolution", Reason.DATABASE_UNRESOLVABLE),
        ("No address associated with hostname", Reason.DATABASE_UNRESOLVABLE),
        ("No route to host", Reason.DATABASE_UNREACHABLE),
        ("Network is unreachable", Reason.DATABASE_UNREACHABLE),
        ("Connection timed out", Reason.DATABASE_TIMEOUT),
        ("SSH connection closed", Reason.DATABASE_REFUSED),
        ("something new", Reason.DATABASE_REFUSED),
    ],
)
def test_what_an_ssh_server_says_of_the_database(text: str, reason: Reason) -> None:
    failure = channel_failure(asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, text), 10)
    assert (failure.layer, failure.reason, failure.seen) == (ConditionType.DATABASE_REACHABLE, reason, f'"{text}"')


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), Reason.HOST_UNRESOLVABLE),
        (ConnectionRefusedError(111, "Connection refused"), Reason.CONNECTION_REFUSED),
        (OSError(101, "Network is unreachable"), Reason.NETWORK_UNREACHABLE),
        (OSError(113, "No route to host"), Reason.NETWORK_UNREACHABLE),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed, [Errno 111] x"), Reason.CONNECTION_REFUSED),
        (OSError("Multiple exceptions: [Errno 101] Network is unreachable, [Errno 113] x"), Reason.NETWORK_UNREACHABLE),
        (TimeoutError(), Reason.CONNECT_TIMEOUT),
    ],
)
def test_why_there_is_no_tcp_connection(error: Exception, reason: Reason) -> None:
    failure = connect_failure(error, Progress(limit_seconds=10), None)
    assert (failure.layer, failure.reason) == (ConditionType.TRANSPORT_READY, reason)


# --- pace -------------------------------------------------------------------------------------------------------------


def failure(reason: Reason, *, may_pass: bool = False) -> Failure:
    return Failure(REASONS[reason].type, reason, may_pass=may_pass)


@pytest.mark.parametrize(
    "usual", [failure(Reason.CONNECTION_REFUSED), failure(Reason.BASTION_REFUSING, may_pass=True)], ids=str
)
def test_attempts_become_rare(usual: Failure) -> None:
    waits = [pause_seconds(usual, attempts, 1) for attempts in range(40)]
    assert 0.1 <= waits[0] <= 0.2
    assert 15 <= waits[-1] <= 30


@pytest.mark.parametrize(
    ("reason", "least"),
    [
        (Reason.KEY_REJECTED, 60),
        (Reason.HOST_KEY_MISMATCH, 60),
        (Reason.HOST_KEY_UNKNOWN, 60),
        (Reason.BASTION_REFUSING, 15),
    ],
)
def test_what_sshd_penalises_is_slow_and_slower_with_neighbours(reason: Reason, least: float) -> None:
    waits = {pause_seconds(failure(reason), attempts, 1) for attempts in range(50)}
    assert all(least <= wait <= 1.5 * least for wait in waits)
    assert len(waits) > 40, "no two come at the same time"
    assert 1.5 * least <= pause_seconds(failure(reason), 0, 2) <= 2.25 * least


# --- state ------------------------------------------------------------------------------------------------------------


def test_layers_after_the_first_that_fails_are_not_known() -> None:
    state = State(CONFIG, "pod-1")
    for layer in (ConditionType.KEY_READY, ConditionType.TRANSPORT_READY, ConditionType.AUTHENTICATED):
        state.succeeded(layer)
    state.succeeded(ConditionType.DATABASE_REACHABLE)
    state.failed(Failure(ConditionType.TRANSPORT_READY, Reason.CONNECTION_LOST, "gone\x1b[2J"))
    assert [fact.status for _, fact in state.layers()] == [
        LayerStatus.TRUE,
        LayerStatus.FALSE,
        LayerStatus.UNKNOWN,
        LayerStatus.UNKNOWN,
    ]
    assert state.status.transport.seen == "gone\\x1b[2J"
    sequence = state.status.sequence
    state.succeeded(ConditionType.DATABASE_REACHABLE)  # found over a connection that has ended meanwhile
    assert state.status.sequence == sequence


# --- keys -------------------------------------------------------------------------------------------------------------


def test_no_text_of_a_key_shows_it(tmp_path: Path) -> None:
    directory = tmp_path
    pair = key_pair()
    (directory / "ssh-privatekey").write_text(pair.private)
    files = MountedKeys(directory, CONFIG.key).read()
    key = parse_key(files)
    assert isinstance(key, Key)
    assert key.public.key == pair.public
    for text in (repr(files), repr(key), str(files), str(key)):
        assert "PRIVATE" not in text
        assert pair.private.splitlines()[1] not in text
