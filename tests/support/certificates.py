"""A certificate authority for the databases of the tests."""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class ServerCertificate:
    """Files of a server's certificate and of the authority that signed it."""

    certificate: Path
    key: Path
    authority: Path
    not_after: datetime.datetime


def server_certificate(
    directory: Path, names: Sequence[str], days: int = 30, issuer_name: str = "test authority"
) -> ServerCertificate:
    """A certificate for the names, signed by a new authority; with negative `days` it has expired."""
    directory.mkdir(parents=True, exist_ok=True)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    not_after = datetime.datetime.now(datetime.UTC).replace(microsecond=0) + datetime.timedelta(days=days)
    issuer = _name(issuer_name)
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    year = datetime.timedelta(days=365)
    authority = _builder(issuer, issuer, authority_key, not_after + year).add_extension(constraints, critical=True)
    alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    leaf = _builder(_name(names[0]), issuer, key, not_after).add_extension(alternatives, critical=False)
    paths = directory / "server.crt", directory / "server.key", directory / "ca.crt"
    paths[0].write_bytes(leaf.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    paths[1].chmod(0o600)
    paths[2].write_bytes(authority.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return ServerCertificate(*paths, not_after)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, not_after: datetime.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(datetime.datetime.now(datetime.UTC), not_after) - datetime.timedelta(hours=1))
        .not_valid_after(not_after)
    )
