"""Who may send what beyond the limit: a cancel in each form in which clients say it, and no login in any."""

import ssl
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.api.engines import WireProtocol
from dbtunnel.forwarder.reserve import Visitor, reserve_of
from tests.support.certificates import ServerCertificate, server_certificate

CANCEL = b"\0\0\0\x10\x04\xd2\x16\x2e" + b"pid!" + b"secr"
LONG_CANCEL = b"\0\0\0\x2c\x04\xd2\x16\x2e" + b"pid!" + b"s" * 32
"""Of protocol 3.2, PostgreSQL 18."""
SSL_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x2f"
GSS_REQUEST = b"\0\0\0\x08\x04\xd2\x16\x30"
STARTUP = b"\0\0\0\x13\0\x03\0\0user\0app\0\0"


def visitor(protocol: WireProtocol = WireProtocol.POSTGRESQL) -> Visitor:
    return Visitor(protocol)


@pytest.mark.parametrize("said", [[CANCEL], [LONG_CANCEL], [CANCEL[:3], CANCEL[3:]], [SSL_REQUEST, CANCEL]], ids=str)
def test_a_cancel_in_the_clear(said: list[bytes]) -> None:
    guest = visitor()
    for data in said:
        assert guest.may_send(data)
        guest.received()


@pytest.mark.parametrize(
    "said",
    [[STARTUP], [STARTUP[:7], STARTUP[7:]], [SSL_REQUEST, STARTUP], [SSL_REQUEST + STARTUP], [GSS_REQUEST, b"g" * 99]],
    ids=str,
)
def test_a_login_in_the_clear(said: list[bytes]) -> None:
    guest = visitor()
    verdicts = []
    for data in said:
        verdicts.append(guest.may_send(data))
        guest.received()
    assert verdicts[-1] is False


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_nothing_that_is_said_breaks_it(said: list[bytes]) -> None:
    guest = visitor()
    for data in said:
        assert guest.may_send(data) in (True, False)
        guest.received()


def test_mysql_may_say_anything() -> None:
    guest = visitor(WireProtocol.MYSQL)
    for _ in range(5):
        assert guest.may_send(STARTUP)
        guest.received()


def test_there_is_always_room_to_cancel_and_never_much() -> None:
    assert [reserve_of(most) for most in (1, 100, 299, 300, 500, 100_000)] == [2, 2, 2, 3, 5, 10]


# --- under TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ServerCertificate:
    return server_certificate(tmp_path_factory.mktemp("tls"), ["orders.internal"])


class Tls:
    """Both ends of a TLS connection, in memory; what the client sends goes by the visitor's judge."""

    def __init__(
        self,
        certificate: ServerCertificate,
        version: ssl.TLSVersion,
        size: int,
        *,
        direct: bool = False,
        tickets: int = 0,
    ) -> None:
        """`size`: of the pieces. `direct`: TLS is not asked for first."""
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        server.load_cert_chain(certificate.certificate, certificate.key)
        server.num_tickets = tickets
        client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
        client.minimum_version = client.maximum_version = version
        self._in, self._out, self._back, self._forth = (ssl.MemoryBIO() for _ in range(4))
        self.client = client.wrap_bio(self._in, self._out)
        self.server = server.wrap_bio(self._back, self._forth, server_side=True)
        self.guest, self._size = visitor(), size
        self.is_refused = False
        if not direct:
            self.is_refused = not self.guest.may_send(SSL_REQUEST)
            self.guest.received()

    def exchange(self) -> None:
        """Passes on what there is, both ways, in pieces."""
        while data := self._out.read(self._size):
            self.is_refused = self.is_refused or not self.guest.may_send(data)
            self._back.write(data)
        if data := self._forth.read():
            self.guest.received()
            self._in.write(data)

    def until(self, step: Callable[[], object]) -> object:
        """What it returns, once both ends have said what it takes."""
        for _ in range(10):
            try:
                return step()
            except ssl.SSLWantReadError:
                self.exchange()
        raise AssertionError("it hangs")

    def shake_hands(self) -> None:
        for _ in range(10):
            done = 0
            for end in (self.client, self.server):
                try:
                    end.do_handshake()
                    done += 1
                except ssl.SSLWantReadError:
                    pass
                if end is self.client and done:
                    continue
                self.exchange()
            if done == 2:
                return
        raise AssertionError("it hangs")


TLS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
PIECES = pytest.mark.parametrize("size", [1, 100, 100_000])


@TLS
@PIECES
@pytest.mark.parametrize("direct", [False, True])
def test_a_cancel_under_tls(certificate: ServerCertificate, version: ssl.TLSVersion, size: int, direct: bool) -> None:
    tls = Tls(certificate, version, size, direct=direct)
    tls.shake_hands()
    tls.client.write(CANCEL)
    assert tls.until(lambda: tls.server.read(100)) == CANCEL
    assert not tls.is_refused
    tls.server.write(b"an answer")
    tls.until(lambda: tls.client.read(100))
    with pytest.raises(ssl.SSLWantReadError):
        tls.client.unwrap()
    tls.until(tls.server.unwrap)
    assert not tls.is_refused, "it may take its leave"


@TLS
@PIECES
@pytest.mark.parametrize("direct", [False, True])
def test_a_login_under_tls(certificate: ServerCertificate, version: ssl.TLSVersion, size: int, direct: bool) -> None:
    """It is refused with its password on the way, whatever the server asks for."""
    tls = Tls(certificate, version, size, direct=direct)
    tls.shake_hands()
    tls.client.write(STARTUP)
    assert tls.until(lambda: tls.server.read(100)) == STARTUP
    assert not tls.is_refused
    tls.server.write(b"R\0\0\0\x17\0\0\0\nSCRAM-SHA-256\0\0")
    tls.until(lambda: tls.client.read(100))
    tls.client.write(b"p\0\0\0\x10the password")
    tls.exchange()
    assert tls.is_refused


def test_the_tickets_of_a_session_are_no_answer_to_a_cancel_that_was_said_before(
    certificate: ServerCertificate,
) -> None:
    """Servers that send tickets do so after the client's Finished, with which a client says its cancel."""
    tls = Tls(certificate, ssl.TLSVersion.TLSv1_3, 100_000, tickets=2)
    tls.exchange()
    for _ in range(3):
        try:
            tls.client.do_handshake()
            break
        except ssl.SSLWantReadError:
            tls.exchange()
            try:
                tls.server.do_handshake()
            except ssl.SSLWantReadError:
                tls.exchange()
    tls.client.write(CANCEL)
    assert tls.until(lambda: tls.server.read(100)) == CANCEL
    assert not tls.is_refused
