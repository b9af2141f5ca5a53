"""Which lines of known_hosts hold for a server: as ssh looks them up, and never more."""

import pytest

from dbtunnel.api.forwarder import HostKeyRule
from dbtunnel.forwarder.host_keys import KnownHostsError, Trust, trust_of
from dbtunnel.forwarder.keys import MountedFile
from tests.support.keys import key_pair

KEY, OTHER = key_pair().public, key_pair().public


def trust(*lines: str, host: str = "bastion", port: int = 22, alias: str | None = None) -> Trust:
    return trust_of(HostKeyRule(known_hosts="\n".join(lines), alias=alias), MountedFile(), host, port)


@pytest.mark.parametrize("names", ["elsewhere,", ",elsewhere", "elsewhere,,other", ",", "else*,"])
def test_a_comma_too_many_does_not_make_a_line_hold_for_every_server(names: str) -> None:
    with pytest.raises(KnownHostsError, match="line 2: one of its host names is empty"):
        trust(f"elsewhere {OTHER}", f"{names} {KEY}")


@pytest.mark.parametrize(
    ("revoked", "granted"), [("[bastion]:2222", "bastion"), ("bastion", "[bastion]:2222"), ("*", "bastion")]
)
def test_a_key_that_is_revoked_under_either_name_is_revoked(revoked: str, granted: str) -> None:
    found = trust(f"@revoked {revoked} {KEY}", f"{granted} {KEY}", port=2222)
    assert len(found.keys) == 1
    assert not found.accepts(found.keys[0])
    assert set(found.for_asyncssh()[2]) == set(found.keys)


def test_a_line_with_the_port_comes_before_one_without() -> None:
    lines = f"[bastion]:2222 {KEY}", f"bastion {OTHER}"
    assert [key.export_public_key().decode().strip() for key in trust(*lines, port=2222).keys] == [KEY]
    assert [key.export_public_key().decode().strip() for key in trust(*lines).keys] == [OTHER]


def test_a_name_that_is_left_out_of_a_pattern_is_not_trusted() -> None:
    assert trust(f"*,!bastion {KEY}").is_empty
    assert not trust(f"*,!bastion {KEY}", host="other").is_empty


def test_names_are_compared_without_case() -> None:
    assert not trust(f"Bastion.Example {KEY}", host="bastion.EXAMPLE").is_empty
    assert trust(f"bastion {KEY}", f"@revoked BASTION {KEY}").revoked


def test_the_alias_replaces_the_name() -> None:
    assert not trust(f"orders-bastion {KEY}", port=2222, alias="orders-bastion").is_empty
    assert trust(f"[bastion]:2222 {KEY}", port=2222, alias="orders-bastion").is_empty
    for names in ("[orders-bastion]:2222", "!orders-bastion,*", "[*]:2222"):
        assert trust(f"{names} {KEY}", port=2222, alias="orders-bastion").is_empty, "ssh does not put the port to it"


@pytest.mark.parametrize("names", ["|1|x|y", "|2|eA==|eA==", "|1|eA==", "|"])
def test_a_hashed_name_that_cannot_be_read_is_told_with_its_line(names: str) -> None:
    with pytest.raises(KnownHostsError, match=r"^line 2: its host names cannot be read$"):
        trust(f"bastion {KEY}", f"{names} {KEY}")


def test_a_key_of_another_type_than_it_says_is_refused() -> None:
    with pytest.raises(KnownHostsError, match="line 1: its key, of type ssh-rsa"):
        trust(f"bastion ssh-rsa {KEY.split()[1]}")


@pytest.mark.parametrize(
    "line", ["password: hunter2 #", "@hunter2 a b c", "login db hunter2", "hunter2 a b", "hunter2", "a,,hunter2 b c"]
)
def test_nothing_is_told_of_a_line_that_is_none(line: str) -> None:
    """Whoever writes a tunnel may have named any Secret, and see less than what is in it."""
    with pytest.raises(KnownHostsError, match="line 1: ") as failure:
        trust(line)
    assert "hunter2" not in str(failure.value)
