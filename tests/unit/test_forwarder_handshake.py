"""How far MySQL's clients come: with real TLS over memory, and packets as real servers and clients send them."""

import contextlib
import ssl
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.forwarder.handshake import Handshake
from tests.support.certificates import ServerCertificate, server_certificate

SSL_REQUEST = b"\x20\0\0\x01\x0d\xa8\x3e\0" + bytes(28)
LOGIN = b"\x30\0\0\x01\x0d\xa2\x3e\0" + bytes(44)


def packet(content: bytes, number: int = 2) -> bytes:
    return len(content).to_bytes(3, "little") + bytes([number]) + content


GREETING = packet(b"\x0a8.0.40\0" + bytes(66), 0)
OK = packet(b"\0\0\0\2\0\0\0")
SWITCH, FAST, KEY = packet(b"\xfecaching_sha2_password\0" + b"x" * 20), packet(b"\1\3", 4), packet(b"\1" + b"k" * 451)


def error(code: int) -> bytes:
    return packet(b"\xff" + code.to_bytes(2, "little") + b"#08S01in words")


def goes(*turns: bytes) -> list[bool]:
    """Whether it is over after each of the server's turns, which alternate with the client's and come first."""
    handshake, over = Handshake(), []
    for number, data in enumerate(turns):
        if number % 2:
            handshake.said(data)
        else:
            over.append(handshake.heard(data))
    return over


@pytest.mark.parametrize(
    ("turns", "over"),
    [
        ([GREETING, LOGIN, OK], [False, True]),
        ([GREETING, LOGIN, SWITCH, b"\x14\0\0\x03" + bytes(20), OK], [False, False, True]),
        ([GREETING, LOGIN, FAST + OK], [False, True]),
        ([GREETING, LOGIN, KEY[:99], b"", KEY[99:], b"\0\1\0\5" + bytes(256), OK], [False, False, False, True]),
        ([GREETING, LOGIN, error(1045)], [False, True]),
        ([GREETING, LOGIN, error(1043)], [False, False]),
        ([GREETING, b"GET / HTTP/1.0\r\n\r\n", error(1156)], [False, False]),
        ([error(1129)], [True]),
        ([b"SSH-2.0-OpenSSH_9.2\r\n" + bytes(2**15)], [True]),
        ([b"\xff\xff\xff\0" + bytes(2**15)], [True]),
    ],
    ids=str,
)
def test_in_the_clear(turns: Sequence[bytes], over: Sequence[bool]) -> None:
    assert goes(*turns) == over


@given(st.integers(1, 200))
def test_however_it_comes_in_pieces(size: int) -> None:
    handshake, server = Handshake(), GREETING + SWITCH + OK
    handshake.said(LOGIN)
    over = [handshake.heard(server[begin : begin + size]) for begin in range(0, len(server), size)]
    assert over == [False] * (len(over) - 1) + [True]


# --- under TLS --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> ServerCertificate:
    return server_certificate(tmp_path_factory.mktemp("tls"), ["orders.internal"])


class Tls:
    """Both ends of a TLS connection, in memory, and what is seen of it on the way."""

    def __init__(self, certificate: ServerCertificate, version: ssl.TLSVersion, *, trusts: bool) -> None:
        server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        server.load_cert_chain(certificate.certificate, certificate.key)
        if trusts:
            client.load_verify_locations(certificate.authority)
        client.minimum_version = client.maximum_version = version
        self._in, self._out, self._back, self._forth = (ssl.MemoryBIO() for _ in range(4))
        self.client = client.wrap_bio(self._in, self._out, server_hostname="orders.internal")
        self.server = server.wrap_bio(self._back, self._forth, server_side=True)
        self._seen = Handshake()
        self.is_over = self._seen.heard(GREETING)
        self._seen.said(SSL_REQUEST)

    def pass_on(self) -> None:
        """What the client said, and what the server answers once it has read it."""
        data = self._out.read()
        self._seen.said(data)
        self._back.write(data)
        with contextlib.suppress(ssl.SSLError):
            self.server.do_handshake()
            if self.server.read() == LOGIN:
                self.server.write(OK)
        if answer := self._forth.read():
            self.is_over = self._seen.heard(answer)
            self._in.write(answer)

    def shake_hands(self) -> None:
        for _ in range(3):
            with contextlib.suppress(ssl.SSLWantReadError):
                self.client.do_handshake()
            self.pass_on()


TLS = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])


@TLS
def test_who_logs_in_under_tls_has_come_through(certificate: ServerCertificate, version: ssl.TLSVersion) -> None:
    tls = Tls(certificate, version, trusts=True)
    tls.shake_hands()
    assert tls.client.version()
    assert not tls.is_over, "tickets are no answer to a login"
    tls.client.write(LOGIN)
    tls.pass_on()
    assert tls.client.read() == OK
    assert tls.is_over


@TLS
def test_who_gives_up_its_handshake_has_not(certificate: ServerCertificate, version: ssl.TLSVersion) -> None:
    tls = Tls(certificate, version, trusts=False)
    with pytest.raises(ssl.SSLCertVerificationError):
        tls.shake_hands()
    tls.pass_on()
    assert not tls.is_over
