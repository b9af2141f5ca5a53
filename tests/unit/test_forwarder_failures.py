"""From what went wrong to the layer and the reason, and from a reason to nothing that a server could forge."""

import asyncio
import errno
import re

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import Algorithms
from dbtunnel.api.reasons import REASONS, Reason
from dbtunnel.domain.diagnosis import SEEN_LIMIT
from dbtunnel.forwarder.algorithms import offered
from dbtunnel.forwarder.failures import Progress, channel_failure, connect_failure, loss_of, no_common_algorithm
from dbtunnel.forwarder.greeting import Greeting
from dbtunnel.forwarder.host_keys import Trust, kinds_to_try

TRANSPORT, AUTHENTICATED = ConditionType.TRANSPORT_READY, ConditionType.AUTHENTICATED


def heard(data: bytes) -> Greeting:
    """What a server said once there was a TCP connection."""
    greeting = Greeting(asyncio.Protocol())
    if data:
        greeting.data_received(data)
    return greeting


def failure(
    error: BaseException, greeting: Greeting | None = None, progress: Progress | None = None
) -> tuple[ConditionType, Reason, str]:
    found = connect_failure(error, progress or Progress(limit_seconds=10), greeting)
    return found.layer, found.reason, found.seen


@pytest.mark.parametrize(
    ("error", "loss"),
    [
        (None, "Disconnected"),
        (asyncssh.ConnectionLost("Connection lost"), "Lost"),
        (asyncssh.ConnectionLost("Server not responding to keepalive"), "KeepaliveUnanswered"),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "NetworkFailed"),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), "NetworkFailed"),
        (asyncssh.DisconnectError(2, "Too many authentication failures"), "Disconnected"),
        (asyncssh.ProtocolError("Unknown channel"), "ProtocolBroken"),
        (asyncssh.MACError("MAC verification failed"), "ProtocolBroken"),
        (KeyError("a bug"), "ProtocolBroken"),
    ],
)
def test_why_a_connection_was_lost_is_one_of_a_few_words(error: Exception | None, loss: str) -> None:
    assert loss_of(error) == loss


VERSION = b"SSH-2.0-OpenSSH_9.2\r\n"


# --- before the version line ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "reason", "seen"),
    [
        (b"Exceeded MaxStartups\r\n", Reason.BASTION_REFUSING, 'it says "Exceeded MaxStartups"'),
        (b"Not allowed at this time\r\n", Reason.BASTION_REFUSING, 'it says "Not allowed at this time"'),
        (b"HTTP/1.1 400 Bad Request\r\n", Reason.NOT_AN_SSH_SERVER, 'it says "HTTP/1.1 400 Bad Request'),
        (b"\x00\xff\x1b[2J", Reason.NOT_AN_SSH_SERVER, 'it says "\\x00\\xff\\x1b[2J"'),
        (b"", Reason.BASTION_REFUSING, "it closes the connection before its version line"),
    ],
)
def test_a_server_that_says_something_else(said: bytes, reason: Reason, seen: str) -> None:
    layer, found, text = failure(asyncssh.ConnectionLost("Connection lost"), heard(said))
    assert (layer, found) == (TRANSPORT, reason)
    assert text.startswith(seen)


def test_a_server_that_says_nothing_is_told_from_one_that_does_not_answer() -> None:
    assert failure(TimeoutError(), heard(b""))[1:] == (
        Reason.CONNECT_TIMEOUT,
        "TCP connects, and no SSH version line comes within 10 s",
    )
    assert failure(TimeoutError())[1:] == (Reason.CONNECT_TIMEOUT, "no TCP connection after 10 s")


@pytest.mark.parametrize("greeting", [None, heard(b"")], ids=["at once", "later"])
def test_a_reset_is_a_refusal_until_the_server_has_said_something(greeting: Greeting | None) -> None:
    reset = ConnectionResetError(errno.ECONNRESET, "reset by peer")
    seen = "it resets the connection before its version line, as a server that expects TLS does: check its port first"
    assert failure(reset, greeting) == (TRANSPORT, Reason.BASTION_REFUSING, seen)
    assert failure(reset, heard(b"HTTP/1.1"))[1] is Reason.NOT_AN_SSH_SERVER


@given(st.binary(min_size=1, max_size=2000))
def test_whatever_a_server_says_is_bounded_and_printable(said: bytes) -> None:
    layer, _, seen = failure(asyncssh.ProtocolError("x"), heard(said))
    assert layer is TRANSPORT
    assert seen.isascii()
    assert seen.isprintable()
    assert len(seen) < 250


@pytest.mark.parametrize("code", [1, 12])
@pytest.mark.parametrize("verified", [False, True])
def test_a_server_that_turns_away_with_a_message(code: int, verified: bool) -> None:
    """SSH_DISCONNECT_HOST_NOT_ALLOWED_TO_CONNECT and SSH_DISCONNECT_TOO_MANY_CONNECTIONS."""
    error = asyncssh.DisconnectError(code, "come\nlater")
    found = failure(error, heard(VERSION), Progress(host_key_verified=verified, limit_seconds=10))
    assert found == (TRANSPORT, Reason.BASTION_REFUSING, 'it says "come\\nlater"')


# --- key exchange -----------------------------------------------------------------------------------------------------


def test_what_both_sides_offer_is_told_where_they_have_nothing_in_common() -> None:
    error = asyncssh.KeyExchangeFailed("No matching key exchange algorithm found, sent a,b and received c,d\x1b")
    offers = r'the server offers "c, d\x1b"; the tunnel offers a, b'
    assert failure(error, heard(VERSION))[1:] == (
        Reason.NO_COMMON_ALGORITHM,
        f"key exchange (KexAlgorithms): {offers}",
    )


CA = asyncssh.generate_private_key("ssh-ed25519")
LEGACY: dict[str, tuple[str, ...]] = {
    "key exchange": offered(Algorithms.LEGACY, compression=True)["kex_algs"],
    "encryption": offered(Algorithms.LEGACY, compression=True)["encryption_algs"],
    "MAC": offered(Algorithms.LEGACY, compression=True)["mac_algs"],
    "server host key": sum(kinds_to_try(Trust(authorities=(CA,)), legacy=True), ()),
}
"""The longest lists that the tunnel offers."""


@pytest.mark.parametrize("kind", LEGACY)
def test_no_name_of_an_algorithm_is_cut(kind: str) -> None:
    theirs = [f"cipher-{number}@example.com" for number in range(1, 2000)]
    names = f"sent {','.join(LEGACY[kind])} and received {','.join(theirs)}"
    seen = failure(asyncssh.KeyExchangeFailed(f"No matching {kind} algorithm found, {names}"), heard(VERSION))[2]
    assert len(seen) <= SEEN_LIMIT
    assert seen.endswith(f"; the tunnel offers {', '.join(LEGACY[kind])}")
    found = re.search(r'the server offers "(.+)" and (\d+) more; ', seen)
    assert found
    shown = found[1].split(", ")
    assert len(shown) >= 4
    assert shown == theirs[: len(shown)]
    assert int(found[2]) == len(theirs) - len(shown)


@pytest.mark.parametrize("name", ["x" * 5000, '"' * 5000, "\x1b" * 5000])
def test_a_name_for_which_there_is_no_room_is_counted(name: str) -> None:
    seen = no_common_algorithm("MAC", "hmac-sha2-256", f"short,{name}").seen
    assert seen == 'MAC (MACs): the server offers "short" and 1 more; the tunnel offers hmac-sha2-256'


def test_a_name_of_the_server_s_cannot_pass_for_one_of_the_tunnel_s() -> None:
    theirs = " algorithm found and received d"
    error = asyncssh.KeyExchangeFailed(f"No matching MAC algorithm found, sent a,b and received {theirs}")
    assert failure(error, heard(VERSION))[2] == f'MAC (MACs): the server offers "{theirs}"; the tunnel offers a, b'


@pytest.mark.parametrize("kind", ["key exchange", "server host key", "encryption", "MAC", "compression"])
def test_sshd_has_an_option_for_each_kind_of_algorithm(kind: str) -> None:
    option = no_common_algorithm(kind, "a", "b").seen.partition("(")[2].partition(")")[0]
    assert option in ("KexAlgorithms", "HostKeyAlgorithms", "Ciphers", "MACs", "Compression")


@pytest.mark.parametrize(
    ("error", "reason", "seen"),
    [
        (asyncssh.KeyExchangeFailed("no matching cipher"), Reason.NO_COMMON_ALGORITHM, '"no matching cipher"'),
        (TimeoutError(), Reason.CONNECT_TIMEOUT, "the key exchange is not finished after 10 s"),
        (asyncssh.ConnectionLost("Connection lost"), Reason.CONNECTION_LOST, '"Connection lost"'),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), Reason.CONNECTION_LOST, "reset by peer"),
        (OSError(errno.EHOSTUNREACH, "No route to host"), Reason.NETWORK_UNREACHABLE, "No route to host"),
        (
            OSError(errno.ETIMEDOUT, "Connection timed out"),
            Reason.CONNECT_TIMEOUT,
            "the key exchange is not finished after 10 s",
        ),
        (
            UnicodeDecodeError("utf-8", b"secret", 0, 1, "invalid start byte"),
            Reason.CONNECTION_LOST,
            "a message that breaks the SSH protocol (UnicodeDecodeError)",
        ),
    ],
)
def test_a_key_exchange_that_fails(error: BaseException, reason: Reason, seen: str) -> None:
    assert failure(error, heard(VERSION)) == (TRANSPORT, reason, seen)


# --- authentication ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "asked", "accepted", "layer", "reason"),
    [
        (asyncssh.PermissionDenied("x"), True, False, AUTHENTICATED, Reason.KEY_REJECTED),
        (asyncssh.PermissionDenied("x"), True, True, AUTHENTICATED, Reason.SECOND_FACTOR_REQUIRED),
        (asyncssh.PermissionDenied("x"), False, False, AUTHENTICATED, Reason.METHOD_NOT_OFFERED),
        (
            asyncssh.DisconnectError(2, "Too many authentication failures"),
            True,
            False,
            AUTHENTICATED,
            Reason.TOO_MANY_AUTH_FAILURES,
        ),
        (TimeoutError(), True, False, TRANSPORT, Reason.CONNECT_TIMEOUT),
        (asyncssh.ConnectionLost("lost"), True, True, TRANSPORT, Reason.CONNECTION_LOST),
        (ConnectionResetError("reset"), False, False, TRANSPORT, Reason.CONNECTION_LOST),
    ],
)
def test_an_authentication_that_fails(
    error: BaseException, asked: bool, accepted: bool, layer: ConditionType, reason: Reason
) -> None:
    progress = Progress(host_key_verified=True, key_asked_for=asked, key_accepted=accepted, limit_seconds=10)
    assert failure(error, heard(VERSION), progress)[:2] == (layer, reason)


# --- channels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, Reason.FORWARDING_PROHIBITED),
        (asyncssh.OPEN_UNKNOWN_CHANNEL_TYPE, Reason.FORWARDING_PROHIBITED),
        (asyncssh.OPEN_CONNECT_FAILED, Reason.DATABASE_REFUSED),
    ],
)
def test_a_channel_that_is_refused(code: int, reason: Reason) -> None:
    found = channel_failure(asyncssh.ChannelOpenError(code, "open failed"), 10)
    assert (found.layer, found.reason, found.seen) == (ConditionType.DATABASE_REACHABLE, reason, '"open failed"')


@pytest.mark.parametrize(
    ("code", "text"),
    [(asyncssh.OPEN_RESOURCE_SHORTAGE, "no more"), (asyncssh.OPEN_CONNECT_FAILED, "Too many open files")],
)
def test_a_server_that_has_no_room_is_full(code: int, text: str) -> None:
    found = channel_failure(asyncssh.ChannelOpenError(code, text), 10)
    seen = f'the SSH server opens no more channels: "{text}"'
    assert (found.reason, found.seen) == (Reason.TOO_MANY_CONNECTIONS, seen)


def test_a_channel_that_does_not_open_in_time() -> None:
    found = channel_failure(TimeoutError(), 2.5)
    assert (found.reason, found.seen) == (
        Reason.DATABASE_TIMEOUT,
        "the SSH server opens no connection within 2.5 s",
    )


@pytest.mark.parametrize("text", ["CONNECTION REFUSED", "connect_to db: Connection refused by peer"])
def test_words_are_found_whatever_their_case_and_surroundings(text: str) -> None:
    error = asyncssh.ChannelOpenError(asyncssh.OPEN_CONNECT_FAILED, text)
    assert channel_failure(error, 10).reason is Reason.DATABASE_REFUSED


# --- the table --------------------------------------------------------------------------------------------------------

ERRORS: list[BaseException] = [
    TimeoutError(),
    OSError("x"),
    ConnectionRefusedError(errno.ECONNREFUSED, "refused"),
    asyncssh.PermissionDenied("x"),
    asyncssh.KeyExchangeFailed("x"),
    asyncssh.ConnectionLost("x"),
    asyncssh.ProtocolError("x"),
    asyncssh.DisconnectError(2, "too many authentication failures"),
    ValueError("x"),
]


@pytest.mark.parametrize("error", ERRORS, ids=repr)
@pytest.mark.parametrize("said", [None, b"", b"HTTP/1.1", b"Exceeded MaxStartups\r\n", VERSION])
@pytest.mark.parametrize("verified", [False, True])
def test_every_failure_is_told_at_the_layer_to_which_its_reason_belongs(
    error: BaseException, said: bytes | None, verified: bool
) -> None:
    greeting = None if said is None else heard(said)
    found = connect_failure(error, Progress(host_key_verified=verified, limit_seconds=1), greeting)
    assert REASONS[found.reason].type is found.layer
    assert channel_failure(error, 1).layer is ConditionType.DATABASE_REACHABLE
    assert REASONS[channel_failure(error, 1).reason].type is ConditionType.DATABASE_REACHABLE
