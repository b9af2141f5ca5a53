"""Host keys: nothing is sent to a server that is not known, and nothing but the configuration makes one known."""

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dbtunnel.api.forwarder import HostKeyRule
from dbtunnel.api.reasons import Reason
from tests.support.bastion import HOST_KEY_TYPES, Bastion
from tests.support.databases import PostgresServer
from tests.support.forwarder import KEY, Forwarder, forwarder_config
from tests.support.keys import KeyPair, key_pair
from tests.support.processes import run
from tests.support.produced import produces
from tests.support.told import check_told

StartForwarder = Callable[..., Forwarder]

ALGORITHMS = {"ed25519": "ssh-ed25519", "ecdsa": "ecdsa-sha2-nistp256", "rsa": "ssh-rsa"}


def start(start_forwarder: StartForwarder, bastion: Bastion, port: int, rule: HostKeyRule) -> Forwarder:
    """A forwarder that trusts what the rule says."""
    hop = replace(forwarder_config(bastion, port).bastion, host_key=rule)
    return start_forwarder(port, bastion=hop)


def check_known(forwarder: Forwarder) -> None:
    assert forwarder.wait_for("authentication", "Succeeded").status == "True"


def check_refused(forwarder: Forwarder, bastion: Bastion, reason: str, seen: str = "") -> None:
    """The reason shows, and the server has seen neither a user nor a key of ours."""
    status = forwarder.wait(
        lambda status: status.transport.reason == reason and seen in status.transport.seen, f"{reason}: {seen}"
    )
    assert status.transport.status == "False"
    assert "Accepted publickey" not in bastion.log_text()
    assert "user dbtunnel" not in bastion.log_text()
    check_told(forwarder, Reason(reason), f"bastion 127.0.0.1:{bastion.port}: ")


def shown(forwarder: Forwarder) -> dict[str, str]:
    return {key.algorithm: key.fingerprint for key in forwarder.status().hops[0].host_keys}


# --- nothing pinned ---------------------------------------------------------------------------------------------------


@produces(Reason.HOST_KEY_UNKNOWN)
def test_with_no_pin_every_key_is_shown_and_pinning_one_mends_it(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start(start_forwarder, bastion, postgres.port, HostKeyRule())
    check_refused(forwarder, bastion, "HostKeyUnknown", "ssh-ed25519 SHA256:")
    assert shown(forwarder) == {ALGORITHMS[name]: pin for name, pin in bastion.fingerprints.items()}
    assert bastion.log_text().count("Connection from") == 3
    pin = json.dumps({"spec": {"tunnel": {"hostKey": {"fingerprints": list(shown(forwarder).values())}}}})
    assert check_told(forwarder, Reason.HOST_KEY_UNKNOWN).endswith(f"then pin it: {pin}")
    check_known(
        start(start_forwarder, bastion, postgres.port, HostKeyRule(fingerprints=tuple(shown(forwarder).values())))
    )


def test_of_one_key_one_connection_is_enough(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    bastion.replace_host_keys(["rsa"])
    forwarder = start(start_forwarder, bastion, postgres.port, HostKeyRule())
    check_refused(forwarder, bastion, "HostKeyUnknown")
    assert shown(forwarder) == {"ssh-rsa": bastion.fingerprints["rsa"]}
    assert bastion.log_text().count("Connection from") == 1


def test_known_hosts_of_the_home_folder_count_for_nothing(
    start_forwarder: StartForwarder, tmp_path: Path, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair
) -> None:
    """A hostile home: it trusts the server, sends everything elsewhere, and offers a key of its own."""
    ssh = tmp_path / "home" / ".ssh"
    ssh.mkdir(parents=True)
    (ssh / "known_hosts").write_text(bastion.known_hosts())
    (ssh / "config").write_text(
        "Host *\n  Hostname 192.0.2.1\n  StrictHostKeyChecking no\n  ProxyCommand touch stolen\n"
    )
    (ssh / "id_ed25519").write_text(client_key.private)
    hop = replace(forwarder_config(bastion, 1).bastion, host_key=HostKeyRule())
    forwarder = Forwarder(
        tmp_path / "fwd", forwarder_config(bastion, postgres.port, bastion=hop), {KEY: client_key.private}
    )
    environment = {"HOME": str(tmp_path / "home"), "USER": "root", "SSH_AUTH_SOCK": str(tmp_path / "agent")}
    forwarder.start(environment=environment)
    try:
        check_refused(forwarder, bastion, "HostKeyUnknown")
    finally:
        forwarder.stop()


# --- fingerprints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOST_KEY_TYPES)
def test_one_pin_of_any_kind_is_enough(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, name: str
) -> None:
    rule = HostKeyRule(fingerprints=(bastion.fingerprints[name],))
    forwarder = start(start_forwarder, bastion, postgres.port, rule)
    check_known(forwarder)
    assert forwarder.status().hops[0].host_keys[0].fingerprint == bastion.fingerprints[name], "the one in use"


@produces(Reason.HOST_KEY_MISMATCH)
def test_a_server_with_other_keys_is_refused(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    pins = tuple(bastion.fingerprints.values())
    bastion.replace_host_keys()
    forwarder = start(start_forwarder, bastion, postgres.port, HostKeyRule(fingerprints=pins))
    check_refused(forwarder, bastion, "HostKeyMismatch", bastion.fingerprints["ed25519"])
    assert set(shown(forwarder).values()) == set(bastion.fingerprints.values())
    pin = json.dumps({"spec": {"tunnel": {"hostKey": {"fingerprints": list(shown(forwarder).values())}}}})
    assert check_told(forwarder, Reason.HOST_KEY_MISMATCH).endswith(f"pin it: {pin}")


def test_a_plain_pin_holds_for_a_server_with_a_certificate(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    bastion.certify_host_key("ed25519", key_pair(), "127.0.0.1")
    rule = HostKeyRule(fingerprints=(bastion.fingerprints["ed25519"],))
    check_known(start(start_forwarder, bastion, postgres.port, rule))


# --- known_hosts ------------------------------------------------------------------------------------------------------


def hashed(name: str, key: str) -> str:
    """A line as `ssh-keygen -H` writes it."""
    salt = os.urandom(20)
    digest = hmac.new(salt, name.encode(), hashlib.sha1).digest()
    return f"|1|{base64.b64encode(salt).decode()}|{base64.b64encode(digest).decode()} {key}"


@pytest.mark.parametrize(
    ("name", "form"),
    [*((name, "plain") for name in HOST_KEY_TYPES), ("ed25519", "hashed"), ("rsa", "hashed"), ("ecdsa", "alias")],
)
def test_a_known_hosts_line(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, name: str, form: str
) -> None:
    key, host = bastion.host_keys[name].public, bastion.known_hosts_name()
    line = {"plain": f"{host},other {key} comment", "hashed": hashed(host, key), "alias": f"orders-bastion {key}"}[form]
    text = f"# the bastion\n\n{line}\nelsewhere {key_pair().public}\n"
    rule = HostKeyRule(known_hosts=text, alias="orders-bastion" if form == "alias" else None)
    check_known(start(start_forwarder, bastion, postgres.port, rule))


_ALIAS = "bastion.shop.internal"

_NAMES = {
    "wildcard": ("*.internal", True),
    "one letter": ("bastion.sho?.internal", True),
    "several": ("elsewhere,*.shop.*,192.0.2.1", True),
    "negated, another": ("*.internal,!other.internal", True),
    "port": ("[127.0.0.1]:{port}", None),
    "wildcard with port": ("[127.0.*]:{port}", None),
    "wildcard of another domain": ("*.example", False),
    "wildcard for less": ("*.shop", False),
    "negated": ("*.internal,!bastion.*", False),
    "negated before": ("!bastion.shop.internal,*", False),
}
"""What stands before a key, and whether it holds for the alias; None: for the address and port, with no alias."""


@pytest.mark.parametrize("marker", ["", "@cert-authority "], ids=["key", "authority"])
@pytest.mark.parametrize(("names", "holds"), _NAMES.values(), ids=_NAMES)
def test_patterns_of_known_hosts(
    start_forwarder: StartForwarder,
    bastion: Bastion,
    postgres: PostgresServer,
    names: str,
    holds: bool | None,
    marker: str,
) -> None:
    key, alias = bastion.host_keys["ed25519"].public, _ALIAS if holds is not None else None
    if marker:
        authority = key_pair()
        bastion.certify_host_key("ed25519", authority, alias or "127.0.0.1")
        key = authority.public
    line = f"{marker}{names.format(port=bastion.port)} {key}\n"
    forwarder = start(start_forwarder, bastion, postgres.port, HostKeyRule(known_hosts=line, alias=alias))
    if holds is False:
        check_refused(forwarder, bastion, "HostKeyUnknown")
    else:
        check_known(forwarder)


@pytest.mark.parametrize("marker", ["", "@cert-authority ", "@revoked "], ids=["key", "authority", "revoked"])
def test_a_file_that_ssh_keygen_has_hashed(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, tmp_path: Path, marker: str
) -> None:
    """It leaves lines with a marker as they are, and hashes those without."""
    authority = key_pair()
    bastion.certify_host_key("ed25519", authority, "127.0.0.1")
    host = bastion.known_hosts_name()
    key = authority.public if marker == "@cert-authority " else bastion.host_keys["ed25519"].public
    file = tmp_path / "known_hosts"
    file.write_text(f"elsewhere {key_pair().public}\n{marker}{host} {key}\n")
    run(["ssh-keygen", "-q", "-H", "-f", file])
    text = file.read_text()
    if marker == "@revoked ":
        text = text.replace(f"{marker}{host}", f"{marker}{hashed(host, '').strip()}") + bastion.known_hosts()
    assert "elsewhere" not in text
    assert (host in text) == (marker != "")
    forwarder = start(start_forwarder, bastion, postgres.port, HostKeyRule(known_hosts=text))
    if marker == "@revoked ":
        check_refused(forwarder, bastion, "HostKeyRevoked")
    else:
        check_known(forwarder)


def test_known_hosts_without_this_server(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    text = bastion.known_hosts("elsewhere.internal")
    forwarder = start(start_forwarder, bastion, postgres.port, HostKeyRule(known_hosts=text))
    check_refused(forwarder, bastion, "HostKeyUnknown", bastion.fingerprints["ed25519"])


def test_a_key_of_another_kind_than_the_known_one(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    text = f"{bastion.known_hosts_name()} {bastion.host_keys['ed25519'].public}\n"
    bastion.replace_host_keys(["rsa"])
    forwarder = start(start_forwarder, bastion, postgres.port, HostKeyRule(known_hosts=text))
    check_refused(forwarder, bastion, "HostKeyMismatch", bastion.fingerprints["rsa"])


@produces(Reason.KNOWN_HOSTS_INVALID)
@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", "it has no line"),
        ("# nothing\n\n", "it has no line"),
        ("GOOD\n[127.0.0.1]:22 ssh-ed25519 AAAAnonsense\n", "line 2: its key, of type ssh-ed25519, cannot be read"),
        ("GOOD\n@revoke 127.0.0.1 ssh-ed25519 AAAA\n", "line 2: its marker is another than @cert-auth"),
        ("GOOD\n127.0.0.1 ssh-ed25519\n", "line 2: it needs host names, a key type and a key; it has 2 parts"),
        ("SHA256:ohD8VZEXGWo6Ez8GSEJQ9WpafgLFsOfLOtGGQCQo6Og", "line 1: it needs host names"),
    ],
)
def test_a_line_that_cannot_be_read_is_never_skipped(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, text: str, seen: str
) -> None:
    content = text.replace("GOOD\n", bastion.known_hosts().splitlines()[0] + "\n")
    forwarder = start(start_forwarder, bastion, postgres.port, HostKeyRule(known_hosts=content))
    check_refused(forwarder, bastion, "KnownHostsInvalid", seen)
    assert "Connection from" not in bastion.log_text()


def test_a_known_hosts_file_may_come_late_and_change(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    forwarder = start(start_forwarder, bastion, postgres.port, HostKeyRule(known_hosts_file="known_hosts"))
    check_refused(forwarder, bastion, "KnownHostsInvalid", "there is no file known_hosts")
    forwarder.write_known_hosts("nonsense\n")
    check_refused(forwarder, bastion, "KnownHostsInvalid", "line 1")
    forwarder.write_known_hosts(bastion.known_hosts())
    check_known(forwarder)
    forwarder.write_known_hosts(bastion.known_hosts("elsewhere.internal"))
    forwarder.wait_for("transport", "HostKeyUnknown")


@produces(Reason.HOST_KEY_REVOKED)
def test_a_revoked_key(start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer) -> None:
    revoked = f"@revoked * {bastion.host_keys['ed25519'].public}\n"
    rule = HostKeyRule(known_hosts=bastion.known_hosts().splitlines()[0] + "\n" + revoked)
    check_refused(start(start_forwarder, bastion, postgres.port, rule), bastion, "HostKeyRevoked", "revoked")
    trusted = f"{bastion.known_hosts_name()} {bastion.host_keys['rsa'].public}\n"
    check_known(start(start_forwarder, bastion, postgres.port, HostKeyRule(known_hosts=trusted + revoked)))


# --- certificates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOST_KEY_TYPES)
def test_a_host_certificate(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer, name: str
) -> None:
    authority = key_pair()
    bastion.certify_host_key(name, authority, "127.0.0.1")
    rule = HostKeyRule(known_hosts=f"@cert-authority {bastion.known_hosts_name()} {authority.public}\n")
    check_known(start(start_forwarder, bastion, postgres.port, rule))


def test_a_host_certificate_for_another_name(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    authority = key_pair()
    bastion.certify_host_key("ed25519", authority, "orders-bastion")
    text = f"@cert-authority {bastion.known_hosts_name()},orders-bastion {authority.public}\n"
    forwarder = start(start_forwarder, bastion, postgres.port, HostKeyRule(known_hosts=text))
    check_refused(forwarder, bastion, "HostCertificateInvalid", "rincipal")
    rule = HostKeyRule(known_hosts=text, alias="orders-bastion")
    check_known(start(start_forwarder, bastion, postgres.port, rule))


@produces(Reason.HOST_CERTIFICATE_INVALID)
@pytest.mark.parametrize(
    ("principals", "validity", "signer", "seen"),
    [
        ("elsewhere.internal", "-1h:+1h", "trusted", "rincipal"),
        ("127.0.0.1", "-2h:-1h", "trusted", "expired"),
        ("127.0.0.1", "+1h:+2h", "trusted", "not yet valid"),
        ("127.0.0.1", "-1h:+1h", "other", "not trusted"),
    ],
    ids=["name", "expired", "not yet valid", "authority"],
)
def test_a_host_certificate_that_is_not_valid(
    start_forwarder: StartForwarder,
    bastion: Bastion,
    postgres: PostgresServer,
    principals: str,
    validity: str,
    signer: str,
    seen: str,
) -> None:
    authority = key_pair()
    bastion.certify_host_key("ed25519", authority if signer == "trusted" else key_pair(), principals, validity)
    rule = HostKeyRule(known_hosts=f"@cert-authority {bastion.known_hosts_name()} {authority.public}\n")
    forwarder = start(start_forwarder, bastion, postgres.port, rule)
    check_refused(forwarder, bastion, "HostCertificateInvalid", seen)


def test_a_server_without_the_certificate(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    rule = HostKeyRule(known_hosts=f"@cert-authority {bastion.known_hosts_name()} {key_pair().public}\n")
    forwarder = start(start_forwarder, bastion, postgres.port, rule)
    check_refused(forwarder, bastion, "HostKeyMismatch", bastion.fingerprints["ed25519"])


def test_a_revoked_authority(start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer) -> None:
    authority = key_pair()
    bastion.certify_host_key("ed25519", authority, "127.0.0.1")
    lines = (f"@cert-authority * {authority.public}", f"@revoked * {authority.public}")
    rule = HostKeyRule(known_hosts="\n".join(lines))
    check_refused(start(start_forwarder, bastion, postgres.port, rule), bastion, "HostKeyRevoked", "revoked")


def test_a_revoked_key_with_a_certificate(
    start_forwarder: StartForwarder, bastion: Bastion, postgres: PostgresServer
) -> None:
    """The authority is still trusted, and the key is not."""
    authority = key_pair()
    bastion.certify_host_key("ed25519", authority, "127.0.0.1")
    lines = (f"@cert-authority * {authority.public}", f"@revoked * {bastion.host_keys['ed25519'].public}")
    rule = HostKeyRule(known_hosts="\n".join(lines))
    check_refused(start(start_forwarder, bastion, postgres.port, rule), bastion, "HostKeyRevoked", "revoked")
