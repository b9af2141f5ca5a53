"""Columns, ages, times of day, sizes."""

import time
from datetime import UTC, datetime, timedelta, timezone

import pytest

from dbtunnel.cli.tables import Cell, Row, age, age_of, size, table, time_of_day
from dbtunnel.cli.terminal import Color, Style

PLAIN, COLORED = Style(color=False, unicode=False), Style(color=True, unicode=False)

NOW = datetime(2026, 11, 5, 12, 0, tzinfo=UTC)


def test_columns_are_aligned() -> None:
    rows = [("NAME", "STATE", "COUNT"), ("a", "ok", "1"), ("longer", "FAILED", "10")]
    assert list(table(rows, PLAIN, right=[2])) == [
        "NAME    STATE   COUNT",
        "a       ok          1",
        "longer  FAILED     10",
    ]


def test_colour_moves_no_column() -> None:
    rows: list[Row] = [
        ("NAME", "STATE", "WHY"),
        ("a", Cell("ok", Color.GREEN), "x"),
        ("b", Cell("FAILED", Color.RED), "y"),
    ]
    told = list(table(rows, COLORED))
    assert told[1] == "a     \x1b[32mok    \x1b[0m  x"
    assert told[2] == "b     \x1b[31mFAILED\x1b[0m  y"


def test_a_name_that_is_too_long_has_a_line_of_its_own_and_stays_whole() -> None:
    name = "orders-tunnel-" + "x" * 60
    told = list(table([("NAME", "STATE"), (name, "ok and more"), ("short", "ok")], PLAIN))
    assert told == ["NAME   STATE", name, "       ok and more", "short  ok"]
    assert list(table([("NAME", "STATE"), (name, "ok and more")], PLAIN, columns=200))[1] == f"{name}  ok and more"


def test_nothing_in_a_cell_forges_a_line_or_a_colour() -> None:
    told = list(table([("NAME", "STATE"), ("a\nb", "\x1b[31mok\u202e")], PLAIN))
    assert told == ["NAME  STATE", "a\\nb  \\x1b[31mok\\u202e"]


def test_cells_are_bounded() -> None:
    assert max(map(len, table([("NAME", "STATE"), ("a", "x" * 5000)], PLAIN))) < 1100


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-3, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (7199, "120m"),
        (7200, "2h"),
        (172_800, "2d"),
        (8.64e6, "100d"),
    ],
)
def test_ages(seconds: float, told: str) -> None:
    assert age(seconds) == told


@pytest.mark.parametrize("stamp", [None, "", "yesterday", "2026-11-05", "2026-11-05T10:00:00"])
def test_what_is_no_time_has_no_age(stamp: str | None) -> None:
    assert age_of(stamp, NOW) == ""
    assert time_of_day(stamp, NOW, UTC) == "unknown"


def test_times_of_day_are_those_of_the_zone() -> None:
    assert age_of("2026-11-05T10:00:00Z", NOW) == "2h"
    assert time_of_day("2026-11-05T10:00:00Z", NOW, UTC) == "10:00:00 (2h ago)"
    east = timezone(timedelta(hours=5, minutes=30))
    assert time_of_day("2026-11-05T10:00:00Z", NOW, east) == "15:30:00 (2h ago)"
    west = timezone(timedelta(hours=-11))
    assert time_of_day("2026-11-05T10:00:00Z", NOW, west) == "2026-11-04 23:00 (2h ago)", "where now is the day after"


def test_where_none_is_given_the_zone_is_the_user_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-5:30")
    time.tzset()
    try:
        assert time_of_day("2026-11-05T10:00:00Z", NOW, None) == "15:30:00 (2h ago)"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("count", "told"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (5 * 2**30, "5.0 GiB"), (3 * 2**50, "3072.0 TiB")],
)
def test_sizes(count: float, told: str) -> None:
    assert size(count) == told
