"""The benchmark's arithmetic, its table, and that it misses no row."""

from typing import Any

import pytest

from bench import diagnosis, link
from bench.contenders import CONTENDERS, DIRECT, OURS, RELAY, SSH, SSH_GCM
from bench.figures import Aim, Spread, is_met, order, percentile, ratios, spread
from bench.loads import transaction_milliseconds
from bench.report import BEGIN, END, insert, markdown
from bench.rows import LOADS, ROWS, loads_of
from bench.sites import SITES
from tests.support.processes import ROOT

SAMPLES = {OURS: [30.0, 10.0, 40.0], SSH: [10.0, 10.0, 20.0], SSH_GCM: [20.0, 0.0]}


def test_a_percentile_is_a_value_that_so_many_do_not_exceed() -> None:
    values = [float(value) for value in range(200, 0, -1)]
    assert [percentile(values, percent) for percent in (0, 50, 99, 100)] == [1, 100, 198, 200]
    assert percentile([7], 99) == 7


def test_a_spread_is_of_median_least_and_most() -> None:
    assert spread([5, 1, 2]) == Spread(2, 1, 5)


def test_ratios_are_within_a_round_and_leave_out_what_has_no_base() -> None:
    assert ratios(SAMPLES, OURS, SSH) == [3, 1, 2]
    assert ratios(SAMPLES, OURS, SSH_GCM) == [1.5]
    assert ratios(SAMPLES, OURS, RELAY) == []


@pytest.mark.parametrize(
    ("aim", "higher_is_better", "met"),
    [
        (Aim(2, SSH), True, True),
        (Aim(2.01, SSH), True, False),
        (Aim(2, SSH), False, True),
        (Aim(1.99, SSH), False, False),
        (Aim(30), False, True),
        (Aim(29), False, False),
        (Aim(2, RELAY), True, None),
    ],
)
def test_an_aim_bounds_the_median_of_the_ratios_or_of_the_values(
    aim: Aim, higher_is_better: bool, met: bool | None
) -> None:
    assert is_met(SAMPLES, OURS, aim, higher_is_better=higher_is_better) is met


def test_each_round_goes_the_other_way() -> None:
    names = ["a", "b", "c"]
    rounds = [order(names, number) for number in range(4)]
    assert rounds == [["a", "b", "c"], ["c", "b", "a"]] * 2


def test_latencies_are_read_from_the_log_of_pgbench() -> None:
    log = "0 1 2800 0 1764100000 1 40\n3 1 400 0 1764100000 9 0\n"
    assert transaction_milliseconds(log) == [2.8, 0.4]


def test_every_row_is_filled_by_one_load_at_a_site_that_exists() -> None:
    filled = [name for load in LOADS for name in load.rows]
    assert sorted(filled) == sorted(row.name for row in ROWS)
    assert {load.site for load in LOADS} == set(SITES)
    assert {aim.against for row in ROWS for aim in row.aims} <= {None, *CONTENDERS}


def test_nobody_is_left_out_but_for_a_reason_that_the_table_tells() -> None:
    left_out = {row: sorted(load.without) for load in LOADS for row in load.rows if load.without}
    no_process = {"idle", "channels", "stalled", "uploads-dropped", "start"}
    assert left_out == {**{row: [DIRECT] for row in no_process}, "uploads": [DIRECT, RELAY]}
    told = {row.name for row in ROWS if row.without}
    assert told == {*left_out, "cpu-down", "cpu-up"}


def test_named_rows_are_measured_alone() -> None:
    assert [load.rows for load in loads_of(["late", "start"])] == [("start",), ("latency", "late")]
    assert loads_of([]) == list(LOADS)


def document(**results: Any) -> dict[str, Any]:
    return {"machine": {"date": "2026-11-25", "kernel": "6.1"}, "rounds": 3, "quick": False, "results": results}


def test_the_tables_show_medians_ratios_aims_and_verdicts() -> None:
    shown = markdown(document(idle={OURS: [36.04, 35.96, 34], SSH: [8, 8, 8]}, **{"down-1": SAMPLES}))

    lines = shown.splitlines()
    assert lines[0] == "date 2026-11-25; kernel 6.1. Medians of 3 rounds."
    assert "| bulk down, 1 stream | MiB/s | 30 |  | 10 | 10 |  |  |  |" in lines
    assert (
        "| bulk down, 1 stream | 2.00 (1.00 to 3.00) | 1.50 (1.50 to 1.50) |  |  |  "
        "| ≥ 1.6 times ssh -N -L, ≥ 1.1 times ssh, aes128-gcm | met |"
    ) in lines
    assert "| memory (RSS), idle | MiB | 36 |  | 8 |  |  |  | no process |" in lines
    assert "| memory (RSS), idle | 4.50 (4.25 to 4.50) |  |  |  |  | ≤ 35 MiB | missed |" in lines
    assert "bulk up" not in shown


def test_a_row_that_meets_one_aim_of_two_says_so() -> None:
    samples = {OURS: [17.0], SSH: [10.0], SSH_GCM: [16.0]}
    assert markdown(document(**{"down-4": samples})).splitlines()[-1].endswith("| met, missed |")


def test_tables_are_put_between_the_markers_and_nothing_else_changes() -> None:
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = insert(text, "| new |\n")
    assert once == f"before\n{BEGIN}\n\n| new |\n\n{END}\nafter\n"
    assert insert(once, "| new |\n") == once


@pytest.mark.parametrize("text", ["none\n", f"{BEGIN}\nno end\n", f"{END}\n{BEGIN}\n"])
def test_a_document_without_markers_is_left_alone(text: str) -> None:
    with pytest.raises(ValueError, match="needs a line"):
        insert(text, "| new |")


def test_the_page_on_diagnosis_has_a_line_of_each_fault() -> None:
    told = (ROOT / "docs/diagnosis.md").read_text().partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in told.splitlines() if line.startswith("| ")]
    rows = [f"| {fault} | `{reason}` | " for fault, (_, reason) in diagnosis.FAULTS.items()]
    assert len(lines) == 2 + len(rows)
    assert all(line.startswith(row) for line, row in zip(lines[2:], rows, strict=True))


def test_the_pages_say_with_which_buffers_long_links_were_measured() -> None:
    size = f"{link._BUFFERS // 2**20} MiB"
    readme, page = (" ".join((ROOT / name).read_text().split()) for name in ("README.md", "docs/performance.md"))
    assert f"{size} of TCP buffers at both ends" in readme
    assert f"Both namespaces let TCP have {size}" in page


def test_the_readmes_table_has_todays_columns_and_rows() -> None:
    lines = (ROOT / "README.md").read_text().split(BEGIN)[1].split(END)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    medians = cells[: len(ROWS) + 2]

    assert medians[0] == ["median", "unit", *(one.title for one in CONTENDERS.values())]
    assert [row[0] for row in medians[2:]] == [row.title for row in ROWS]
