"""The benchmark's profile: its tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bench.inside.sitecustomize import FILE_VARIABLE
from bench.places import imports_table, lines_table, memory_table, milestones
from bench.spent import Spent


def test_the_lines_that_took_most_come_first_after_what_lines_do(tmp_path: Path) -> None:
    source = tmp_path / "client.py"
    source.write_text("sent = self._socket.send(pieces[0])\nbox.aead.decrypt_into(sealed)\nx | y\n")
    lines = [(str(source), "few", 3, 0.001, 0.0)] * 10
    table = lines_table([*lines, (str(source), "C.write", 1, 0.09, 0.5), (str(source), "C.open", 2, 0.4, 0.0)])
    assert table[2:7] == [
        "| lines with a system call | 59 % | 50 % |",
        "| lines with AES-GCM | 40 % | 0 % |",
        "| Python alone | 1 % | 0 % |",
        "| client.py, C.write: `sent = self._socket.send(pieces[0])` | 59 % | 50 % |",
        "| client.py, C.open: `box.aead.decrypt_into(sealed)` | 40 % | 0 % |",
    ]
    assert table[7] == "| client.py, few: `x \\| y` | 0 % | 0 % |"
    assert len(table) == 2 + 3 + 6
    assert lines_table([]) == ["It took no processor time."]


SMAPS = """\
55d0c0000000-55d0c0100000 r-xp 00000000 fe:00 123 /usr/bin/python3.11
Rss:                2048 kB
Private_Clean:      1024 kB
Private_Dirty:         0 kB
55d0c1000000-55d0c2000000 rw-p 00000000 00:00 0 [heap]
Rss:                8192 kB
Private_Clean:         0 kB
Private_Dirty:      8192 kB
7f0000000000-7f0000001000 rw-p 00000000 00:00 0
Rss:                1024 kB
Private_Clean:         0 kB
Private_Dirty:      1024 kB
7f0000100000-7f0000200000 r--p 00000000 fe:00 9 /x/lib/python3.11/site-packages/cryptography/hazmat/_rust.abi3.so
Rss:                4096 kB
Private_Clean:         0 kB
Private_Dirty:       512 kB
"""


def test_memory_is_told_by_what_it_is_of() -> None:
    assert memory_table(SMAPS)[2:] == [
        "| what it allocates | 9.0 | 9.0 |",
        "| cryptography | 4.0 | 0.5 |",
        "| python3.11 | 2.0 | 1.0 |",
        "| other files | 0.0 | 0.0 |",
        "| all | 15.0 | 10.5 |",
    ]


def test_imports_are_told_by_package() -> None:
    log = """\
import time: self [us] | cumulative | imported package
import time:      2000 |       2000 |   asyncssh.crypto.cipher
import time:      4000 |       6000 | asyncssh
import time:      1000 |       1000 |     json
import time:      3000 |       9000 | dbtunnel.cli.main
{"event": "started"}
"""
    assert imports_table(log)[2:] == [
        "| asyncssh | 6 | 60 % |",
        "| cryptography | 0 | 0 % |",
        "| asyncio | 0 | 0 % |",
        "| dbtunnel | 3 | 30 % |",
        "| all others, most of them Python's own | 1 | 10 % |",
        "| all | 10 | 100 % |",
    ]


def test_a_start_has_milestones() -> None:
    events = [
        {"event": name, "time": f"1970-01-01T00:01:{seconds}+00:00"}
        for name, seconds in (("started", "40.125"), ("connected", "40.250"), ("connected", "59.000"))
    ]
    found = [line.split(" | ")[1].rstrip(" |") for line in milestones(100, 100.5, 0.25, events)[2:]]
    assert found == ["125", "250", "500", "250"]


def test_what_was_spent_within_a_while_is_shares_of_a_processor() -> None:
    before = Spent(100, {"sshd": (1, 2)}, 50)
    spent = Spent(110, {"sshd": (3, 7)}, 55).since(before)
    assert spent == Spent(10, {"sshd": (2, 5)}, 5)
    assert (spent.share("sshd"), spent.kernel_share("sshd")) == (0.7, 0.5)


BUSY = """
import signal, os
def burn():
    while sum(range(1000)):
        if os.times().user > end: break
end = os.times().user + 0.1
burn()
signal.raise_signal(signal.SIGUSR1)
"""


def test_a_process_notes_which_of_its_lines_run(tmp_path: Path) -> None:
    target = tmp_path / "notes.json"
    inside = Path(__file__).parents[2] / "bench" / "inside"
    environment = {**os.environ, "PYTHONPATH": str(inside), FILE_VARIABLE: str(target)}
    subprocess.run([sys.executable, "-c", BUSY], env=environment, check=True, timeout=20)
    notes = json.loads(target.read_text())
    burnt = sum(user + kernel for _, function, _, user, kernel in notes["lines"] if function == "burn")
    assert 0.05 < burnt < 1
    assert "[heap]" in notes["maps"]
