"""The benchmark runs: once, as small as it can be, which says nothing of speed."""

import re
from pathlib import Path

import pytest

from bench import diagnosis
from bench.contenders import CONTENDERS, OURS, SSH
from bench.loads import TINY
from bench.measure import measure
from bench.profile import profile
from bench.rows import LOADS, ROWS, loads_of
from bench.sites import SITES


def test_every_row_gets_a_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SITES, "100ms", SITES["20ms"])  # the same but for the time that it takes
    told: list[str] = []
    results = measure(tmp_path, LOADS, TINY, 1, told.append, (OURS,))

    assert results.failures == []
    assert sorted(results.values) == sorted(row.name for row in ROWS)
    assert all(list(samples) == [OURS] and len(samples[OURS]) == 1 for samples in results.values.values())
    assert len(told) == len(ROWS)


def test_everybody_who_is_compared_gets_a_value_of_each_round(tmp_path: Path) -> None:
    results = measure(tmp_path, loads_of(["ping-p50"]), TINY, 2, lambda line: None)

    assert results.failures == []
    assert {name: len(values) for name, values in results.values["ping-p50"].items()} == dict.fromkeys(CONTENDERS, 2)


def test_what_fails_is_told_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(directory: Path) -> None:
        raise OSError("no such device")

    monkeypatch.setitem(SITES, "peer", cannot)
    told: list[str] = []
    loads = [load for load in LOADS if load.rows in {("down-20ms",), ("idle",)}]
    results = measure(tmp_path, loads, TINY, 1, told.append, (SSH,))

    assert results.failures == ["peer: no such device"]
    assert list(results.values) == ["down-20ms"]
    assert told[0] == "peer failed: no such device"


def test_a_profile_tells_of_time_memory_and_start(tmp_path: Path) -> None:
    told: list[str] = []
    shown = profile(tmp_path, loads_of(["ping-p50", "idle", "start"]), TINY, told.append)

    assert told == ["ping-p50, ping-p99", "idle", "start"]
    for line in ("dbtunnel forward | ", "ssh -N -L | ", "what it allocates | ", "the client has its first byte | "):
        assert f"\n| {line}" in shown


def test_how_soon_a_fault_is_told_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = "the key is revoked, and its sessions end"
    monkeypatch.setattr(diagnosis, "FAULTS", {fault: diagnosis.FAULTS[fault]})

    assert re.fullmatch(
        r"date [^|]*; processor [^|]* Runs of each: 2\.\n\n\| fault [^\n]*\n\| --- [^\n]*\n"
        rf"\| {fault} \| `KeyRejected` \| \d+\.\d \| \d+\.\d \|",
        diagnosis.report(tmp_path, 2),
    )
