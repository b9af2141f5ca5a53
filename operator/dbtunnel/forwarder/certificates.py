"""OpenSSH user certificates: what an authority says of a public key (OpenSSH's PROTOCOL.certkeys)."""

import hashlib
import time
from dataclasses import dataclass, field

import asyncssh
from asyncssh.public_key import CERT_TYPE_USER, SSHOpenSSHCertificate

from dbtunnel.domain.diagnosis import printable, quoted

_FOREVER = 253_402_300_799
"""The end of the year 9999, in Unix time. `ssh-keygen` writes 2^64 - 1 where a certificate does not expire."""

_PRINCIPALS_SHOWN = 4


class CertificateError(ValueError):
    """It cannot be used with the key. The text says why."""


@dataclass(frozen=True)
class Certificate:
    """A user certificate of a key."""

    signed: SSHOpenSSHCertificate = field(repr=False)
    key_id: str
    serial: int
    principals: tuple[str, ...]
    not_before: int
    """Unix time."""
    not_after: int
    """Unix time at which it is valid no more."""

    @property
    def name(self) -> str:
        """Tells it from others of the same key."""
        return hashlib.sha256(self.signed.public_data).hexdigest()

    @property
    def expires(self) -> str | None:
        """RFC 3339, UTC; None where it does not."""
        return _date(self.not_after) if self.not_after < _FOREVER else None

    def is_valid(self, now: float) -> bool:
        """Whether it is by its dates; `now` is Unix time."""
        return self.not_before <= now < self.not_after

    def __str__(self) -> str:
        shown = [printable(name, 32) for name in self.principals[:_PRINCIPALS_SHOWN]]
        if more := len(self.principals) - len(shown):
            shown.append(f"{more} more")
        since = f"from {_date(self.not_before)} " if self.not_before else ""
        valid = f"{since}until {self.expires}" if self.expires else f"{since}for ever"
        return (
            f"ID {quoted(self.key_id, 64)}, serial {self.serial}, for {', '.join(shown) or 'nobody by name'},"
            f" valid {valid}, signed by {self.signed.signing_key.get_fingerprint()}"
        )

    def refusal(self, user: str, now: float) -> str:
        """Why a server may not have let this user in with it, and what to do, in sentences."""
        told = f"Its certificate ({self})"
        if now >= self.not_after:
            return f"{told} has expired and was not offered: have it renewed, or authorize the key itself."
        if now < self.not_before:
            return f"{told} is not valid yet and was not offered: wait, correct the clock, or authorize the key itself."
        if user not in self.principals:
            return (
                f"{told} is not accepted either: it is not for the user {user}. Have it issued for that principal, or"
                " name one of its own in the server's AuthorizedPrincipalsFile, or authorize the key itself."
            )
        return (
            f"{told} is not accepted either: the server's log says why. Have it trust the authority"
            " (TrustedUserCAKeys), or authorize the key itself."
        )


def read_certificate(content: bytes, key: asyncssh.SSHKey) -> Certificate:
    """The certificate of a key, from the text of a file -cert.pub. Raises CertificateError."""
    try:
        signed = asyncssh.import_certificate(content)
    except Exception:  # a damaged one can make asyncssh raise anything, as with keys
        raise CertificateError("it cannot be read as a certificate that `ssh-keygen -s` wrote") from None
    if not isinstance(signed, SSHOpenSSHCertificate):
        raise CertificateError("it is an X.509 certificate, and not one that `ssh-keygen -s` wrote")
    # of these asyncssh tells nothing by public names; its version is pinned
    if signed._cert_type != CERT_TYPE_USER:
        raise CertificateError("it is a host certificate; one for a user is signed without the option -h")
    if signed.key.public_data != key.public_data:
        raise CertificateError(f"it is the certificate of another key, {signed.key.get_fingerprint()}")
    return Certificate(
        signed,
        key_id=signed._key_id,
        serial=signed._serial,
        principals=tuple(signed.principals),
        not_before=min(signed._valid_after, _FOREVER),
        not_after=min(signed._valid_before, _FOREVER),
    )


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
