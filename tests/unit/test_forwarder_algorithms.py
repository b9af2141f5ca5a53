"""Which algorithms a forwarder offers, and which it prefers."""

import os
import re
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from dbtunnel.api.forwarder import Algorithms
from dbtunnel.forwarder import algorithms
from dbtunnel.forwarder.algorithms import offered


@pytest.mark.parametrize(
    ("faster", "first"), [(AESGCM, "aes128-gcm@openssh.com"), (ChaCha20Poly1305, "chacha20-poly1305@openssh.com")]
)
def test_the_fastest_cipher_is_preferred(monkeypatch: pytest.MonkeyPatch, faster: type, first: str) -> None:
    monkeypatch.setattr(algorithms, "_seconds", lambda cipher, _packet: 1 if isinstance(cipher, faster) else 2)
    assert algorithms.ciphers.__wrapped__()[0] == first


def test_without_instructions_for_aes_another_cipher_is_preferred() -> None:
    program = "from dbtunnel.forwarder.algorithms import ciphers; print(ciphers()[0])"
    none = {"OPENSSL_ia32cap": "~0x200000200000000", "OPENSSL_armcap": "0"}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **none}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "chacha20-poly1305@openssh.com"


@pytest.mark.parametrize("choice", Algorithms)
def test_what_is_offered_is_something_and_each_once(choice: Algorithms) -> None:
    for names in offered(choice, compression=False).values():
        assert names
        assert len(set(names)) == len(names)


def test_legacy_adds_to_what_is_offered_and_takes_nothing_away() -> None:
    usual, old = (offered(choice, compression=False) for choice in (Algorithms.DEFAULT, Algorithms.LEGACY))
    for kind, names in usual.items():
        assert old[kind][: len(names)] == names, "what is current stays preferred"


def test_nothing_weak_is_offered_unless_asked_for() -> None:
    names = {name for group in offered(Algorithms.DEFAULT, compression=True).values() for name in group}
    assert not [name for name in names if re.search(r"sha1|md5|cbc|arcfour|3des|ssh-rsa|ssh-dss|group1-", name)]


def test_compression_is_offered_when_asked_for() -> None:
    assert offered(Algorithms.DEFAULT, compression=False)["compression_algs"] == ("none",)
    assert offered(Algorithms.DEFAULT, compression=True)["compression_algs"] == ("zlib@openssh.com", "none")
