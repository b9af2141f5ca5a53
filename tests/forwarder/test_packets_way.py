"""Which way packets take, ours or asyncssh's, and that it is said."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dbtunnel.api.engines import Engine
from tests.forwarder.test_packets import MEBIBYTE, client_of, exchange, far_end
from tests.support.bastion import Bastion
from tests.support.forwarder import KEY, Forwarder, forwarder_config
from tests.support.keys import KeyPair
from tests.support.streams import Exchange

OTHER_LIBRARIES = {
    "version": ("import asyncssh; asyncssh.__version__ = '9.9'", "asyncssh is 9.9 and not 2.24.1"),
    "self-check": (
        "from cryptography.hazmat.primitives.ciphers import aead\n"
        "class AESGCM:\n"
        "    def __init__(self, key, stock=aead.AESGCM):\n"
        "        self.encrypt, self.decrypt = stock(key).encrypt, stock(key).decrypt\n"
        "aead.AESGCM = AESGCM",
        "the self-check failed: AttributeError: 'AESGCM' object has no attribute 'encrypt_into'",
    ),
}


@pytest.fixture
def started(tmp_path: Path, bastion: Bastion, client_key: KeyPair) -> Iterator[Callable[..., Forwarder]]:
    """Starts a forwarder with arguments and environment of its own."""
    running: list[Forwarder] = []

    def start(port: int, **how: Any) -> Forwarder:
        config = forwarder_config(bastion, port, engine=Engine.MYSQL, probe_mode="Disabled")
        running.append(Forwarder(tmp_path / "other", config, {KEY: client_key.private}))
        running[0].start(**how).wait_for("authentication", "Succeeded")
        return running[0]

    yield start
    for forwarder in running:
        forwarder.stop()


def packets_told(forwarder: Forwarder) -> tuple[str, str]:
    """Before the first connection, and of it the same."""
    told = [event for event in forwarder.events() if event["event"] in ("started", "connected")]
    assert [event["event"] for event in told] == ["started", "connected"]
    (words,) = {(event["packets"], event["why_not_own"]) for event in told}
    return words


def test_the_switch_has_asyncssh_carry_the_data_and_says_so(started: Callable[..., Forwarder]) -> None:
    exchanges = [Exchange(4 * MEBIBYTE, 4 * MEBIBYTE, 1)]
    with far_end(exchanges) as port:
        forwarder = started(port, arguments=["--packets=asyncssh"])
        assert packets_told(forwarder) == ("asyncssh", "--packets=asyncssh")
        assert forwarder.metric("dbtunnel_forwarder_ssh_own_packets") == 0
        exchange(exchanges, client_of(forwarder))
        assert exchanges[0].is_whole


@pytest.mark.parametrize("library", OTHER_LIBRARIES)
def test_other_libraries_have_asyncssh_carry_the_data_and_it_is_said(
    started: Callable[..., Forwarder], tmp_path: Path, library: str
) -> None:
    """As after a careless upgrade."""
    change, why = OTHER_LIBRARIES[library]
    (tmp_path / "sitecustomize.py").write_text(change)
    exchanges = [Exchange(4 * MEBIBYTE, 4 * MEBIBYTE, 1)]
    with far_end(exchanges) as port:
        forwarder = started(port, environment={"PYTHONPATH": str(tmp_path)})
        assert packets_told(forwarder) == ("asyncssh", why)
        assert forwarder.metric("dbtunnel_forwarder_ssh_own_packets") == 0
        exchange(exchanges, client_of(forwarder))
        assert exchanges[0].is_whole


def test_our_own_way_is_what_is_taken_else(started: Callable[..., Forwarder]) -> None:
    with far_end([]) as port:
        forwarder = started(port)
        assert packets_told(forwarder) == ("own", "")
        assert forwarder.metric("dbtunnel_forwarder_ssh_own_packets") == 1
