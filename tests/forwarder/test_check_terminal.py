"""`dbtunnel check` at a terminal: colour, a passphrase, Ctrl-C; and input that cannot be used."""

import re
import signal
import subprocess
import time
from collections.abc import Callable

import pytest

from tests.support import faults
from tests.support.bastion import Bastion
from tests.support.keys import KeyPair, key_pair
from tests.support.laptop import PASSPHRASE, Laptop, at_a_terminal, too_wide
from tests.support.processes import wait_until

_COLORED = re.compile(r"\x1b\[(\d+)m")


def colors(text: str) -> set[str]:
    """The SGR parameters in it, after which no other escape sequence is left."""
    assert "\x1b" not in _COLORED.sub("", text)
    return set(_COLORED.findall(text))


GREEN, RED = "32", "31"


@pytest.mark.parametrize(
    ("works", "columns", "narrower"),
    [(True, 80, 60), (False, 120, 80), (False, 200, 120)],
    ids=["green", "red", "wide"],
)
def test_a_terminal_has_colors_and_lines_of_its_width(laptop: Laptop, works: bool, columns: int, narrower: int) -> None:
    if not works:
        laptop.tunnel["hostKey"] = {}
    until = "The tunnel works." if works else "fingerprints:"
    text = at_a_terminal(laptop.arguments(command="check"), "", until, columns=columns)
    assert {GREEN, RED} & colors(text) == ({GREEN} if works else {GREEN, RED})
    plain = _COLORED.sub("", text)
    assert too_wide(plain, columns) == []
    assert max(map(len, plain.splitlines())) > narrower


def test_a_pipe_has_none_unless_they_are_asked_for(laptop: Laptop) -> None:
    plain, colored = laptop.check(), laptop.check("--color=always")
    assert colors(plain.stdout) == set()
    assert GREEN in colors(colored.stdout)
    without_times = [re.sub(r" +[\d.]+", "", _COLORED.sub("", one.stdout)) for one in (plain, colored)]
    assert without_times[0] == without_times[1]


@pytest.mark.parametrize("way", ["NO_COLOR", "TERM", "--color=never"])
def test_a_terminal_where_nobody_wants_colors(laptop: Laptop, way: str) -> None:
    prefix = {"NO_COLOR": ["env", "NO_COLOR=1"], "TERM": ["env", "TERM=dumb"]}.get(way, [])
    more = [way] if way.startswith("--") else []
    text = at_a_terminal([*prefix, *laptop.arguments(*more, command="check")], "", "The tunnel works.")
    assert colors(text) == set()


def test_a_passphrase_is_asked_for_and_not_shown(laptop: Laptop, bastion: Bastion) -> None:
    locked = key_pair(passphrase=PASSPHRASE)
    bastion.authorize(locked.public)
    laptop.write("id", locked.private)
    shown = at_a_terminal(laptop.arguments(command="check"), PASSPHRASE, "The tunnel works.")
    assert PASSPHRASE not in shown


def test_ctrl_c_ends_it_at_once(laptop: Laptop) -> None:
    with faults.says_nothing() as server:
        laptop.tunnel["port"] = server.port
        arguments = laptop.arguments(command="check")
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            wait_until(lambda: server.accepted, "the connection")
            time.sleep(0.3)  # Python 3.11's wait_for may lose a cancel that comes together with the connection
            process.send_signal(signal.SIGINT)
            said, complained = process.communicate(timeout=5)
    assert (process.returncode, said, complained) == (130, "", "")


def _write(name: str, text: Callable[[KeyPair], str]) -> Callable[[Laptop, KeyPair], None]:
    def write(laptop: Laptop, key: KeyPair) -> None:
        laptop.write(name, text(key))

    return write


def _known_hosts(laptop: Laptop, _: KeyPair) -> None:
    laptop.tunnel["hostKey"] = {"knownHosts": "nonsense"}


def _misspelt(laptop: Laptop, _: KeyPair) -> None:
    laptop.tunnel["hots"] = "x"


def _no_key(laptop: Laptop, _: KeyPair) -> None:
    (laptop.directory / "id").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_misspelt, "spec.tunnel.hots: no such field"),
        (_known_hosts, "spec.tunnel.hostKey.knownHosts: line 1: it needs host names"),
        (_no_key, "there is no such file"),
        (_write("id", lambda key: key.public), "it is a public key"),
        (_write("id", lambda key: key.private[:100]), "it is cut off"),
        (_write("id", lambda _: key_pair(passphrase=PASSPHRASE).private), "Give its passphrase with --passphrase-file"),
    ],
    ids=["field", "known_hosts", "no key", "public", "cut", "encrypted"],
)
def test_input_that_cannot_be_used(
    laptop: Laptop, bastion: Bastion, client_key: KeyPair, change: Callable[[Laptop, KeyPair], None], said: str
) -> None:
    change(laptop, client_key)
    done = laptop.check("-o", "json")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Connection from" not in bastion.log_text()


@pytest.mark.parametrize("missing", ["-f", "-i"])
def test_manifest_and_key_are_needed(laptop: Laptop, missing: str) -> None:
    arguments = laptop.arguments(command="check")
    at = arguments.index(missing)
    del arguments[at : at + 2]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert f"required: {missing}" in done.stderr
