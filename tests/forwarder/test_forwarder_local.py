"""`dbtunnel forward -f MANIFEST -i KEY`: a tunnel on any machine, with no cluster."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest

from dbtunnel.api.reasons import Reason
from tests.support.bastion import USER as BASTION_USER
from tests.support.bastion import Bastion
from tests.support.databases import DATABASE, PASSWORD, USER
from tests.support.key_tools import certificate_of
from tests.support.keys import KeyPair, key_pair
from tests.support.laptop import COMMAND, PASSPHRASE, Laptop, at_a_terminal
from tests.support.processes import wait_until
from tests.support.produced import checks, note_exit


def orders(port: int) -> int:
    options: dict[str, Any] = {"host": "127.0.0.1", "port": port, "connect_timeout": 15}
    with psycopg.connect(user=USER, password=PASSWORD, dbname=DATABASE, **options) as session:
        row = session.execute("select count(*) from orders").fetchone()
    assert row is not None
    return int(row[0])


# --- the way that works -----------------------------------------------------------------------------------------------


def test_it_listens_on_this_machine_alone_on_the_port_of_the_service(laptop: Laptop) -> None:
    process = laptop.start()
    port = laptop.manifest["spec"]["service"]["port"]
    assert "started tunnel=default/orders" in laptop.log()
    assert f"listen=127.0.0.1:{port} admin=127.0.0.1:{laptop.admin_port}" in laptop.log()
    assert orders(port) == 3
    process.signal(signal.SIGINT)
    assert process.wait(5) == 0
    assert "Traceback" not in laptop.log()


def test_where_it_listens_can_be_chosen(laptop: Laptop) -> None:
    laptop.start("--listen=127.0.0.1:0", "--namespace=shop", "--log-format=json")
    started = next(event for event in map(json.loads, laptop.log().splitlines()) if event["event"] == "started")
    assert started["tunnel"] == "shop/orders"
    host, _, port = started["listen"].rpartition(":")
    assert host == "127.0.0.1"
    assert orders(int(port)) == 3


def test_the_certificate_beside_the_key_is_taken_as_ssh_takes_it(
    laptop: Laptop, bastion: Bastion, client_key: KeyPair
) -> None:
    authority = key_pair()
    bastion.unauthorize()
    bastion.trust_authority(authority)
    laptop.write("id-cert.pub", certificate_of(key_pair().public, authority, "-I", "another", "-n", BASTION_USER))
    assert "id: it is no private key to use: its certificate, under that name with -cert.pub," in laptop.refused()
    laptop.write("id-cert.pub", certificate_of(client_key.public, authority, "-I", "laptop", "-n", BASTION_USER))
    laptop.start()
    assert orders(laptop.manifest["spec"]["service"]["port"]) == 3


def test_a_manifest_may_come_by_standard_input(laptop: Laptop) -> None:
    arguments = laptop.arguments(f"--admin-listen=127.0.0.1:{laptop.admin_port}")
    text = Path(arguments[arguments.index("-f") + 1]).read_text()
    arguments[arguments.index("-f") + 1] = "-"
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(text)
        process.stdin.close()
        assert "started" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_known_hosts_may_come_from_a_file(laptop: Laptop, bastion: Bastion) -> None:
    laptop.tunnel["hostKey"] = {"knownHostsRef": {"name": "bastions"}}
    laptop.start("--known-hosts", laptop.write("known", bastion.known_hosts()))
    assert orders(laptop.manifest["spec"]["service"]["port"]) == 3


def test_with_no_pin_it_says_what_to_pin_and_sends_nothing(laptop: Laptop, bastion: Bastion) -> None:
    """Also where the home folder trusts the server."""
    (laptop.directory / ".ssh").mkdir()
    laptop.write(".ssh/known_hosts", bastion.known_hosts())
    laptop.tunnel["hostKey"] = {}
    laptop.start()
    wait_until(lambda: "HostKeyUnknown" in laptop.log(), "the refusal")
    pin = re.search(r"pin it: (\{.*\})", laptop.log())
    assert pin is not None
    pinned = json.loads(pin[1])["spec"]["tunnel"]["hostKey"]["fingerprints"]
    assert set(pinned) == set(bastion.fingerprints.values())
    assert "user dbtunnel" not in bastion.log_text()


def test_an_encrypted_key_with_its_passphrase_in_a_file(laptop: Laptop, bastion: Bastion) -> None:
    locked = key_pair(passphrase=PASSPHRASE)
    bastion.authorize(locked.public)
    laptop.write("id", locked.private)
    laptop.start("--passphrase-file", laptop.write("passphrase", f"{PASSPHRASE}\n"))
    assert orders(laptop.manifest["spec"]["service"]["port"]) == 3
    assert PASSPHRASE not in laptop.log()


def test_jump_hosts_and_fallbacks_with_keys_and_host_keys_of_this_machine(
    laptop: Laptop, bastion: Bastion, further_bastions: Callable[..., Bastion]
) -> None:
    own = key_pair(passphrase=PASSPHRASE)
    jump_host, dead = further_bastions(None, own.public), further_bastions()
    dead.stop()
    laptop.tunnel["jumpHosts"] = [
        {
            "host": jump_host.host,
            "port": jump_host.port,
            "keySecretRef": {"name": "only-in-the-cluster"},
            "hostKey": {"knownHostsRef": {"name": "only-in-the-cluster"}},
        }
    ]
    place = {"host": laptop.tunnel["host"], "port": laptop.tunnel["port"], "hostKey": laptop.tunnel["hostKey"]}
    laptop.tunnel.update({"port": dead.port, "fallbacks": [place]})
    target = f"{jump_host.host}:{jump_host.port}"
    laptop.start(
        f"--hop-identity={target}={laptop.write('jump', own.private)}",
        f"--hop-known-hosts={target}={laptop.write('known', jump_host.known_hosts())}",
        f"--passphrase-file={laptop.write('words', PASSPHRASE)}",
    )
    assert orders(laptop.manifest["spec"]["service"]["port"]) == 3
    assert f"bastion {dead.host}:{dead.port}: it refuses the connection of jump host {target}" in laptop.log()
    assert f"fallback {bastion.host}:{bastion.port}" in laptop.log()


# --- a person at a terminal -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "until"), [(PASSPHRASE, "layer=database status=True"), ("no idea", "does not decrypt it")]
)
def test_a_passphrase_is_asked_for(laptop: Laptop, bastion: Bastion, typed: str, until: str) -> None:
    locked = key_pair(passphrase=PASSPHRASE)
    bastion.authorize(locked.public)
    laptop.write("id", locked.private)
    shown = at_a_terminal(laptop.arguments(f"--admin-listen=127.0.0.1:{laptop.admin_port}"), typed, until)
    assert typed not in shown  # not echoed either


# --- input that cannot be used ----------------------------------------------------------------------------------------


def _key(text: Callable[[KeyPair], str]) -> Callable[[Laptop, KeyPair], None]:
    def write(laptop: Laptop, key: KeyPair) -> None:
        laptop.write("id", text(key))

    return write


_LOCKED = key_pair(passphrase=PASSPHRASE)


def _no_file(laptop: Laptop, key: KeyPair) -> None:
    (laptop.directory / "id").unlink()


def _directory(laptop: Laptop, key: KeyPair) -> None:
    _no_file(laptop, key)
    (laptop.directory / "id").mkdir()


def _pipe(laptop: Laptop, key: KeyPair) -> None:
    _no_file(laptop, key)
    os.mkfifo(laptop.directory / "id")


MISSING, INVALID = (Reason.SECRET_NOT_FOUND, Reason.SECRET_KEY_MISSING), (Reason.PRIVATE_KEY_INVALID,)


def _unusable(change: Callable[[Laptop, KeyPair], None], said: str, *reasons: Reason) -> Any:
    """A case: how the key's file is changed, what is said of it, what it would be in a cluster."""
    return pytest.param(change, said, reasons, marks=checks(*reasons))


@pytest.mark.parametrize(
    ("change", "said", "reasons"),
    [
        _unusable(_no_file, "id: there is no such file", *MISSING),
        _unusable(_directory, "Is a directory", *INVALID),
        _unusable(_pipe, "it is not a regular file", *INVALID),
        _unusable(
            _key(lambda key: "nonsense"), "it is no private key to use: its 8 bytes have no BEGIN line", *INVALID
        ),
        _unusable(_key(lambda key: ""), "it is no private key to use: it is empty", *INVALID),
        _unusable(_key(lambda key: key.private[:100]), "it is cut off", *INVALID),
        _unusable(
            _key(lambda key: key.public),
            "it is a public key. Give the private one: the file without .pub",
            Reason.PUBLIC_KEY_GIVEN,
        ),
        _unusable(
            _key(lambda key: _LOCKED.private),
            "it is encrypted. Give its passphrase with --passphrase-file FILE",
            Reason.PASSPHRASE_REQUIRED,
        ),
    ],
    ids=["none", "directory", "pipe", "nonsense", "empty", "cut", "public", "encrypted"],
)
def test_a_key_that_cannot_be_used(
    laptop: Laptop,
    client_key: KeyPair,
    change: Callable[[Laptop, KeyPair], None],
    said: str,
    reasons: Sequence[Reason],
) -> None:
    change(laptop, client_key)
    told = laptop.refused(command="check")
    assert f"-i {laptop.directory}/id: " in told
    assert said in told
    for reason in reasons:
        note_exit(reason, 2)


@checks(Reason.PASSPHRASE_WRONG)
def test_a_passphrase_that_is_wrong_or_not_there(laptop: Laptop) -> None:
    laptop.write("id", _LOCKED.private)
    wrong = laptop.write("passphrase", "no idea")
    assert "does not decrypt it" in laptop.refused("--passphrase-file", wrong, command="check")
    assert "--passphrase-file /nowhere: there is no such file" in laptop.refused("--passphrase-file", "/nowhere")
    note_exit(Reason.PASSPHRASE_WRONG, 2)


def test_a_manifest_that_cannot_be_used(laptop: Laptop) -> None:
    laptop.tunnel["hots"] = laptop.tunnel["host"]
    assert "spec.tunnel.hots: no such field" in laptop.refused()
    del laptop.tunnel["host"]
    assert "spec.tunnel.host" in laptop.refused()


@checks(Reason.KNOWN_HOSTS_INVALID)
def test_host_keys_that_cannot_be_used(laptop: Laptop, bastion: Bastion) -> None:
    known = laptop.write("known", bastion.known_hosts())
    assert "pins the host key already" in laptop.refused("--known-hosts", known)
    laptop.tunnel["hostKey"] = {"knownHosts": "nonsense"}
    assert "spec.tunnel.hostKey.knownHosts: line 1: it needs host names" in laptop.refused(command="check")
    note_exit(Reason.KNOWN_HOSTS_INVALID, 2)
    laptop.tunnel["hostKey"] = {"knownHostsRef": {"name": "bastions"}}
    assert "give its content with --known-hosts FILE" in laptop.refused()
    assert "--known-hosts /nowhere: there is no such file" in laptop.refused("--known-hosts", "/nowhere")
    damaged = laptop.write("known", bastion.known_hosts() + "@revoked\n")
    assert f"--known-hosts {damaged}: line 4: it needs host names" in laptop.refused("--known-hosts", damaged)


def test_files_of_further_servers_that_cannot_be_used(laptop: Laptop) -> None:
    laptop.tunnel["fallbacks"] = [{"host": "b", "hostKey": {"knownHostsRef": {"name": "hosts"}}}]
    said = "spec.tunnel.fallbacks[0].hostKey.knownHostsRef: there is no cluster to read it from;"
    assert f"{said} give its content with --hop-known-hosts b:22=FILE" in laptop.refused()
    assert "--hop-known-hosts b=x: write HOST:PORT=FILE" in laptop.refused("--hop-known-hosts", "b=x")
    assert "there is b:22" in laptop.refused("--hop-identity", "b:23=x")
    assert "--hop-known-hosts b:22=/nowhere: there is no such file" in laptop.refused(
        "--hop-known-hosts", "b:22=/nowhere"
    )
    laptop.tunnel["fallbacks"] = [{"host": "b", "hostKey": {"knownHosts": "nonsense"}}]
    assert "spec.tunnel.fallbacks[0].hostKey.knownHosts: line 1" in laptop.refused()
    assert "pins the host key already" in laptop.refused("--hop-known-hosts", "b:22=/nowhere")
    laptop.tunnel["fallbacks"] = [{"host": "b"}]
    assert "--hop-identity b:22=/nowhere: there is no such file" in laptop.refused("--hop-identity", "b:22=/nowhere")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-f", "/nowhere.yaml", "-i", "/nowhere"], "/nowhere.yaml: "),
        (["-i", "/nowhere"], "--identity needs -f MANIFEST"),
        (["--known-hosts", "/nowhere"], "--known-hosts needs -f MANIFEST"),
        ([], "Without a cluster give a manifest and a key: -f tunnel.yaml -i KEY"),
    ],
)
def test_arguments_that_lack_others(arguments: list[str], said: str) -> None:
    done = subprocess.run([*COMMAND, *arguments], env={}, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_manifest_without_a_key(laptop: Laptop) -> None:
    arguments = laptop.arguments()
    at = arguments.index("-i")
    del arguments[at : at + 2]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert "-i KEY is needed with -f" in done.stderr


@pytest.mark.parametrize("option", ["--listen", "--admin-listen"])
def test_an_address_that_is_taken_is_named(laptop: Laptop, bastion: Bastion, option: str) -> None:
    taken = f"127.0.0.1:{bastion.port}"
    arguments = laptop.arguments("--listen=127.0.0.1:0", "--admin-listen=127.0.0.1:0", f"{option}={taken}")
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    assert f"{taken}: Address already in use; choose another with --listen or --admin-listen" in done.stderr
