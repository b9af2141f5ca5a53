"""What is read of a certificate, beside what a library reads, and whatever somebody sends in its place."""

from datetime import UTC, datetime
from functools import cache
from ipaddress import IPv4Address, IPv6Address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.domain.certificate import Certificate, read_certificate

KEY = ec.generate_private_key(ec.SECP256R1())

BEFORE = datetime(1950, 1, 1, tzinfo=UTC)

TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=16)
HOST = st.from_regex(r"(\*\.)?[a-z0-9]{1,20}(\.[a-z0-9-]{1,20}){0,4}", fullmatch=True)
IPS = st.ip_addresses()
END = st.datetimes(datetime(1950, 1, 2), datetime(9999, 12, 31)).map(lambda end: end.replace(microsecond=0, tzinfo=UTC))


def name(**attributes: str) -> x509.Name:
    kinds = {"cn": NameOID.COMMON_NAME, "o": NameOID.ORGANIZATION_NAME, "ou": NameOID.ORGANIZATIONAL_UNIT_NAME}
    return x509.Name([x509.NameAttribute(kinds[kind], value) for kind, value in attributes.items()])


def der(subject: x509.Name, issuer: x509.Name, end: datetime, *alternatives: x509.GeneralName) -> bytes:
    """A certificate as servers have it, with an extension before the one that matters."""
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(KEY.public_key())
    builder = builder.serial_number(2**150).not_valid_before(BEFORE).not_valid_after(end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


@cache
def usual() -> bytes:
    names = x509.DNSName("orders.internal"), x509.DNSName("*.db.internal"), x509.IPAddress(IPv4Address("10.0.0.5"))
    return der(
        name(cn="orders.internal"), name(o="Shop", cn="Shop CA"), datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC), *names
    )


def test_a_usual_certificate() -> None:
    assert read_certificate(usual()) == Certificate(
        ("orders.internal", "*.db.internal", "10.0.0.5"), "Shop CA", datetime(2027, 1, 2, 3, 4, 5, tzinfo=UTC)
    )


def test_the_common_name_counts_where_there_is_no_other() -> None:
    found = read_certificate(der(name(ou="x", cn="orders"), name(ou="x", o="Shop"), datetime(2060, 1, 1, tzinfo=UTC)))
    assert found == Certificate(("orders",), "Shop", datetime(2060, 1, 1, tzinfo=UTC))
    nobody = read_certificate(der(name(), name(), datetime(1999, 12, 31, tzinfo=UTC)))
    assert nobody == Certificate((), "", datetime(1999, 12, 31, tzinfo=UTC))


@given(TEXT, TEXT, END, st.lists(HOST, max_size=5), st.lists(IPS, max_size=3))
def test_it_is_read_as_the_library_reads_it(
    subject: str, issuer: str, end: datetime, hosts: list[str], ips: list[IPv4Address | IPv6Address]
) -> None:
    names = [*map(x509.DNSName, hosts), *map(x509.IPAddress, ips)]
    document = der(name(cn=subject), name(cn=issuer), end, *names)
    theirs = x509.load_der_x509_certificate(document)
    ours = read_certificate(document)
    assert ours is not None
    assert ours.not_after == theirs.not_valid_after_utc == end
    assert ours.issuer == theirs.issuer.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    assert list(ours.names) == ([*hosts, *map(str, ips)] or [subject])


@given(st.data())
def test_a_damaged_one_is_read_or_is_none(data: st.DataObject) -> None:
    document = bytearray(usual())
    for _ in range(data.draw(st.integers(1, 4))):
        document[data.draw(st.integers(0, len(document) - 1))] = data.draw(st.integers(0, 255))
    found = read_certificate(bytes(document[: data.draw(st.integers(0, len(document)))]))
    assert found is None or found.not_after.tzinfo is UTC


@given(st.binary(max_size=300))
def test_what_is_no_certificate_is_none(document: bytes) -> None:
    assert read_certificate(document) is None


@pytest.mark.parametrize(
    ("server_name", "is_borne"),
    [
        ("orders.internal", True),
        ("ORDERS.internal.", True),
        ("a.db.internal", True),
        ("10.0.0.5", True),
        ("db.internal", False),
        ("a.b.db.internal", False),
        ("internal", False),
        ("10.0.0.6", False),
        ("", False),
    ],
)
def test_names_that_clients_take(server_name: str, is_borne: bool) -> None:
    found = read_certificate(usual())
    assert found is not None
    assert found.bears(server_name) is is_borne


def test_an_address_has_many_forms_and_no_wildcard() -> None:
    certificate = Certificate(("2001:db8::1", "*.0.0.5"), "", BEFORE)
    assert certificate.bears("2001:DB8:0::1")
    assert not certificate.bears("10.0.0.5")
