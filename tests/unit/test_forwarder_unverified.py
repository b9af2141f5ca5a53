"""Which key a message names where a host key is revoked, or a certificate's authority is not pinned."""

import asyncssh
import pytest

from dbtunnel.forwarder.failures import Progress
from dbtunnel.forwarder.host_keys import Trust
from dbtunnel.forwarder.login import Attempt, _unverified, _Watcher

PINNED, OTHER, THIRD = (asyncssh.generate_private_key("ssh-ed25519").convert_to_public() for _ in range(3))


def seen(trust: Trust, verdict: str, authority: asyncssh.SSHKey | None = None) -> tuple[str, str]:
    watcher = _Watcher(0, trust, Attempt(()), Progress(), None, legacy=False)
    if authority:
        assert not watcher.validate_host_ca_key("bastion", "", 22, authority)
    failure = _unverified(watcher, asyncssh.HostKeyNotVerifiable(f"{verdict} for host bastion"))
    assert failure is not None
    return failure.reason, failure.seen


def name(key: asyncssh.SSHKey) -> str:
    return f"ssh-ed25519 {key.get_fingerprint()}"


@pytest.mark.parametrize("verdict", ["Host key is revoked", "Host CA key is revoked"])
def test_a_revoked_key_is_named(verdict: str) -> None:
    assert seen(Trust(keys=(PINNED,), revoked=(OTHER,)), verdict) == ("HostKeyRevoked", f"{verdict}: {name(OTHER)}")
    two = Trust(keys=(PINNED,), revoked=(OTHER, THIRD))
    assert seen(two, verdict)[1] == f"{verdict}: {name(OTHER)} or {name(THIRD)}"
    many = Trust(keys=(PINNED,), revoked=(OTHER,) * 100)
    assert len(seen(many, verdict)[1]) < 400


def test_an_authority_that_is_not_pinned_is_named() -> None:
    trust = Trust(authorities=(PINNED,), revoked=(THIRD,))
    verdict = "Host CA key is not trusted"
    assert seen(trust, verdict, OTHER) == ("HostCertificateInvalid", f"{verdict}: {name(OTHER)}")


def test_what_a_certificate_lacks_otherwise_names_no_key() -> None:
    trust = Trust(authorities=(PINNED,), revoked=(THIRD,))
    assert seen(trust, "Certificate expired") == ("HostCertificateInvalid", "Certificate expired")
