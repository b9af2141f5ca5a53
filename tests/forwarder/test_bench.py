"""The benchmark runs: once, as small as it can be, and says nothing of speed."""

from pathlib import Path

from bench.contenders import OURS, SSH
from bench.loads import TINY
from bench.measure import measure
from bench.rows import LOADS, ROWS


def test_every_row_gets_a_value_of_each_who_is_compared(tmp_path: Path) -> None:
    told: list[str] = []
    results = measure(tmp_path, LOADS, TINY, 1, told.append, (OURS, SSH))

    assert sorted(results) == sorted(row.name for row in ROWS)
    for name, samples in results.items():
        assert {contender: len(values) for contender, values in samples.items()} == {OURS: 1, SSH: 1}, name
    assert len(told) == len(ROWS)
