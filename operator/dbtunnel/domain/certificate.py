"""Whom a certificate is for, who issued it and when it expires: as much of X.509 (RFC 5280) as people are told.

A library's module for it would take 1.3 MiB of each forwarder, and hold its event loop while it is imported. Nothing is
verified here, so nothing may rest on it: whoever answers can show any certificate.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address

_UTC_TIME, _VERSION, _EXTENSIONS = 0x17, 0xA0, 0xA3
_DNS_NAME, _IP_ADDRESS = 0x82, 0x87
"""Tags of DER (X.690): a time with two digits for the year, fields of a certificate, kinds of a GeneralName."""

_ENCODINGS = {0x0C: "utf-8", 0x1E: "utf-16-be"}
"""Of UTF8String and BMPString; of others a byte is a character."""

_COMMON_NAME, _ORGANIZATION = b"\x55\x04\x03", b"\x55\x04\x0a"
_SUBJECT_ALTERNATIVE_NAME = b"\x55\x1d\x11"
"""Object identifiers 2.5.4.3, 2.5.4.10, 2.5.29.17."""


@dataclass(frozen=True)
class Certificate:
    """What it says of itself: text that somebody else wrote."""

    names: tuple[str, ...]
    """Those by which clients know its server: alternative names, else the common name."""
    issuer: str
    """Common name, else organization, of who signed it; empty where it has neither."""
    not_after: datetime

    def bears(self, server_name: str) -> bool:
        """Whether clients that verify this name take it: letter by letter, `*` for the whole first label."""
        wanted = server_name.lower().removesuffix(".")
        address = _address(wanted)
        taken = {address} if address else {wanted, "*." + wanted.partition(".")[2]}
        return any(name.lower() in taken for name in self.names)


def read_certificate(der: bytes) -> Certificate | None:
    """What a certificate in DER says; None for what is none."""
    try:
        return _read(der)
    except (ValueError, LookupError):
        return None


def _read(der: bytes) -> Certificate:
    ((_, certificate),) = _items(der)
    (_, signed), *_ = _items(certificate)
    fields = list(_items(signed))
    if fields[0][0] == _VERSION:
        del fields[0]
    _, _, (_, issuer), (_, validity), (_, subject), *rest = fields
    _, (kind, end) = _items(validity)
    named, signer = _attributes(subject), _attributes(issuer)
    common_name = (named[_COMMON_NAME],) if _COMMON_NAME in named else ()
    return Certificate(
        names=tuple(_alternative_names(rest)) or common_name,
        issuer=signer.get(_COMMON_NAME) or signer.get(_ORGANIZATION, ""),
        not_after=_time(kind, end),
    )


def _items(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The values that stand one after the other: tag and content of each. Raises ValueError, LookupError."""
    at = 0
    while at < len(data):
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(data[at : at + size], "big"), at + size
        content = data[at : at + length]
        if len(content) < length:
            raise ValueError("it is cut off")
        yield tag, content
        at += length


def _attributes(name: bytes) -> dict[bytes, str]:
    """The first attribute of each kind of a distinguished name, by object identifier."""
    found: dict[bytes, str] = {}
    for _, together in _items(name):
        for _, attribute in _items(together):
            (_, kind), (tag, value) = _items(attribute)
            found.setdefault(kind, value.decode(_ENCODINGS.get(tag, "latin-1"), "replace"))
    return found


def _time(kind: int, value: bytes) -> datetime:
    text = value.decode("ascii")
    if kind == _UTC_TIME:
        text = ("19" if text >= "50" else "20") + text
    if not text.endswith("Z"):
        raise ValueError("not a time of X.509")
    return datetime.fromisoformat(f"{text[:8]}T{text[8:]}").astimezone(UTC)


def _alternative_names(fields: list[tuple[int, bytes]]) -> Iterator[str]:
    for _, extension in _extensions(fields):
        (_, kind), *_, (_, value) = _items(extension)
        if kind != _SUBJECT_ALTERNATIVE_NAME:
            continue
        ((_, names),) = _items(value)
        for tag, name in _items(names):
            if tag == _DNS_NAME:
                yield name.decode("latin-1")
            elif tag == _IP_ADDRESS:
                yield str(ip_address(name))


def _extensions(fields: list[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    for tag, content in fields:
        if tag == _EXTENSIONS:
            ((_, extensions),) = _items(content)
            yield from _items(extensions)


def _address(name: str) -> str:
    """An address in its usual form; nothing for a name."""
    try:
        return str(ip_address(name))
    except ValueError:
        return ""
