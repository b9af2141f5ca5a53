"""What a database that answers shows of itself, as the message of DatabaseReachable tells it."""

from datetime import datetime

from dbtunnel.api.forwarder import DatabaseFact
from dbtunnel.domain.certificate import Certificate
from dbtunnel.domain.diagnosis import quoted, unquoted

_MOST_NAMES = 3
"""How many of a certificate's names are told, so that a warning after them is never cut off."""

_NAME_LIMIT = 64

_WRONG_NAME = (
    'It does not bear the name "{name}", so clients that verify names refuse it. Set spec.database.tls.serverName to a'
    " name that it bears, or have it issued for this one."
)
_NO_HANDSHAKE = "The last probe's TLS handshake failed: clients that use TLS may fare alike."
_EXPIRED = "Clients that verify it refuse it. Have it renewed."

_CLIENTS_LEAVE = "Clients leave before their login"

_LEAVERS = (
    _CLIENTS_LEAVE + ", as {leaver} did. MySQL counts them against the SSH server's address, and after"
    " max_connect_errors of them (100 by default) with no login between it refuses everybody behind it (error 1129)."
    " Keep health checks and port scans off this port, or raise max_connect_errors."
)


def told(
    fact: DatabaseFact,
    certificate: Certificate | None,
    server_name: str,
    now: datetime,
    *,
    handshake_fails: bool = False,
    leaver: str = "",
) -> str:
    """The sentences for people.

    `server_name`: what clients are told to verify (spec.database.tls.serverName). `handshake_fails`: that of
    the last probe did. `leaver`: the address of one of MySQL's clients that leave before their login.
    """
    sentences = [_answer(fact), *([_NO_HANDSHAKE] if handshake_fails else [])]
    sentences += [_LEAVERS.format(leaver=leaver)] if leaver else []
    if certificate:
        has_expired = certificate.not_after <= now
        sentences.append(_certificate(certificate, "expired" if has_expired else "expires"))
        sentences += [_EXPIRED] if has_expired else []
        sentences += [] if certificate.bears(server_name) else [_WRONG_NAME.format(name=server_name)]
    return " ".join(sentences)


def leavers(message: str) -> str:
    """What a message of these says of clients that leave before their login; nothing where it does not, whatever the
    database says of itself."""
    begin = unquoted(message).find(_CLIENTS_LEAVE)
    return message[begin:] if begin >= 0 else ""


def _answer(fact: DatabaseFact) -> str:
    details = [f"version {quoted(fact.server_version, _NAME_LIMIT)}"] if fact.server_version else []
    if fact.tls_offered is not None:
        details.append("TLS offered" if fact.tls_offered else "no TLS offered")
    details += [f"login by {quoted(fact.auth_plugin, _NAME_LIMIT)}"] if fact.auth_plugin else []
    return f"{fact.protocol} answers{': ' if details else ''}{', '.join(details)}."


def _certificate(certificate: Certificate, expires: str) -> str:
    shown = [quoted(name, _NAME_LIMIT) for name in certificate.names[:_MOST_NAMES]]
    more = len(certificate.names) - len(shown)
    names = ", ".join(shown) + (f" and {more} more" if more else "") or "no name"
    issuer = quoted(certificate.issuer, _NAME_LIMIT)
    return f"Its certificate is for {names}, issued by {issuer}, and {expires} at {stamp(certificate)}."


def stamp(certificate: Certificate) -> str:
    """When it expires, RFC 3339."""
    return certificate.not_after.isoformat().replace("+00:00", "Z")
