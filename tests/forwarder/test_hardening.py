"""What keeps the private key in the process."""

import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dbtunnel.forwarder import hardening
from tests.support.bastion import Bastion
from tests.support.databases import PostgresServer
from tests.support.forwarder import KEY, Forwarder, as_a_stranger, forwarder_config
from tests.support.keys import KeyPair
from tests.support.processes import Process, wait_until


@pytest.fixture
def stranger(tmp_path: Path, bastion: Bastion, postgres: PostgresServer, client_key: KeyPair) -> Iterator[Forwarder]:
    """A forwarder that runs as a user without privileges, as in a pod."""
    forwarder = Forwarder(tmp_path / "fwd", forwarder_config(bastion, postgres.port), {KEY: client_key.private})
    forwarder.start(*as_a_stranger())
    forwarder.wait_for("database", "Succeeded")
    yield forwarder
    forwarder.stop()


def limits(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
    return {line[:25].strip(): line[25:].split() for line in lines}


def owner_of_its_memory(pid: int) -> int:
    """Root, for a process that is not dumpable (proc(5)); else the user that it runs as."""
    return Path(f"/proc/{pid}/mem").stat().st_uid


def test_it_leaves_no_core_and_nobody_of_its_user_looks_into_it(stranger: Forwarder, tmp_path: Path) -> None:
    pid = stranger.process.pid
    assert limits(pid)["Max core file size"][:2] == ["0", "0"]
    assert "Uid:\t123456" in Path(f"/proc/{pid}/status").read_text()
    assert owner_of_its_memory(pid) == 0


def test_another_process_of_the_same_user_could_be_looked_into(tmp_path: Path) -> None:
    """Else the test before would prove nothing."""
    other = Process([*as_a_stranger(), "sleep", "20"], tmp_path / "sleep.log").start()
    wait_until(lambda: owner_of_its_memory(other.pid) == 123456, "it to run as that user")
    other.kill()


@pytest.mark.parametrize("fault", [OSError("no symbols"), AttributeError("prctl")], ids=["no library", "no prctl"])
def test_it_says_so_where_it_cannot(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> Any:
        raise fault

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    hardening.harden()
    assert "not hardened" in caplog.text
