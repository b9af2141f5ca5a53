"""`dbtunnel forward`: addresses, and what is said of a configuration that cannot be used."""

import argparse

import pytest

from dbtunnel.cli.forward import address
from dbtunnel.cli.main import main
from dbtunnel.forwarder.app import Address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":5432", "", 5432),
        ("127.0.0.1:5432", "127.0.0.1", 5432),
        ("localhost:0", "localhost", 0),
        ("[::1]:5432", "::1", 5432),
        ("[::]:65535", "::", 65535),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert address(text) == Address(host, port)


@pytest.mark.parametrize("text", ["", "5432", "host", "host:", "host:x", "host:65536", "host:-1", "host:1.5", "host:²"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="write HOST:PORT, or :PORT for every address") as refusal:
        address(text)
    assert repr(text) in str(refusal.value)


def test_an_address_that_cannot_be_used_is_told_with_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["forward", "--listen", "5432"])
    assert ended.value.code == 2
    assert "argument --listen: found '5432'; write HOST:PORT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (None, "DBTUNNEL_CONFIG: not set; the operator sets it"),
        ("{", "DBTUNNEL_CONFIG: it is no JSON: "),
        ("{}", "DBTUNNEL_CONFIG: namespace: it is missing"),
        (
            '{"namespace": "shop", "name": "orders", "engine": "Oracle"}',
            'DBTUNNEL_CONFIG: engine: found "Oracle"; write one of PostgreSQL, Redshift, AlloyDB, MySQL',
        ),
    ],
)
def test_a_configuration_that_cannot_be_used(
    config: str | None, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("DBTUNNEL_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("DBTUNNEL_CONFIG", config)
    assert main(["forward"]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    "flag", ["--identity", "--passphrase-file", "--known-hosts", "--hop-identity", "--hop-known-hosts"]
)
def test_flags_that_need_a_manifest(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["forward", flag, "file"]) == 2
    assert capsys.readouterr().err == f"{flag} needs -f MANIFEST\n"
