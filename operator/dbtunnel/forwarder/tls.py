"""A database's certificate, by a TLS handshake that is finished and ended as it should be.

Imported by the first probe that needs it: TLS takes 2 MiB, which a forwarder to a database without it spares.
"""

import contextlib
import ssl

from dbtunnel.forwarder.stream import Stream


async def certificate_of(stream: Stream, server_name: str) -> bytes | None:
    """What the server shows to a client that asks for this name, in DER; None where the handshake fails.

    Nothing is verified: no byte of anybody goes this way.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = _any_tls().wrap_bio(incoming, outgoing, server_hostname=server_name.rstrip(".") or None)
    try:
        while not _handshaken(tls):
            stream.write(outgoing.read())
            data = await stream.read()
            if not data:
                return None
            incoming.write(data)
    except ssl.SSLError:
        stream.write(outgoing.read())  # an alert says why
        return None
    # without close_notify PostgreSQL logs an error each time
    with contextlib.suppress(ssl.SSLError):
        tls.unwrap()
    stream.write(outgoing.read())
    return tls.getpeercert(binary_form=True) or b""


def _any_tls() -> ssl.SSLContext:
    """Takes what the oldest servers have: a handshake that fails would be an error in the database's log each time."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:!aNULL:@SECLEVEL=0")
    return context


def _handshaken(tls: ssl.SSLObject) -> bool:
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
