"""Keys that the operator generates. The private half goes into the Secret and nowhere else."""

from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from dbtunnel.api.spec import KeySecretRef, KeyType

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_GENERATORS: Mapping[KeyType, Callable[[], PrivateKey]] = {
    KeyType.ED25519: ed25519.Ed25519PrivateKey.generate,
    KeyType.ECDSA: lambda: ec.generate_private_key(ec.SECP256R1()),
    KeyType.RSA: lambda: rsa.generate_private_key(public_exponent=65537, key_size=3072),
}

PUBLIC_KEY = "ssh-publickey"
"""Key of the public half within the Secret."""


def generate_key(kind: KeyType, comment: str) -> dict[str, str]:
    """Data of the Secret with a new key pair, in OpenSSH's formats. Takes about a second for RSA."""
    private = _GENERATORS[kind]()
    encoded = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = private.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return {
        KeySecretRef.model_fields["key"].default: encoded.decode(),
        PUBLIC_KEY: f"{public.decode()} {comment}\n",
    }
