"""Columns, ages, times of day and sizes, for a terminal."""

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime, tzinfo
from typing import NamedTuple

from dbtunnel.cli.terminal import Color, Style
from dbtunnel.domain.diagnosis import printable

_GAP = "  "

_LIMIT = 1000
"""Characters of a cell."""

_AGES = ((86400, "d"), (3600, "h"), (60, "m"))
"""Seconds of a unit that is used from twice its length on."""


class Cell(NamedTuple):
    """A text of a table, and its colour."""

    text: str
    color: Color | None = None


Row = Sequence[str | Cell]


def table(
    rows: Sequence[Row], style: Style, *, right: Collection[int] = (), further: int = 0, columns: int | None = None
) -> Iterator[str]:
    """Aligned columns, those of `right` to the right; the first row is the head. Of the last `further` as many as there
    is room for. `columns`: the width, if not the style's.

    The first cell of a row that would be wider than this gets a line of its own, and so stays whole.
    """
    plain = [[printable(_cell(cell).text, _LIMIT) for cell in row] for row in rows]
    columns = columns or style.columns
    widths = [max(map(len, column)) for column in zip(*plain, strict=True)]
    later = widths[1 : _fitting(widths, further, columns)]
    room = columns - sum(later) - len(_GAP) * len(later)
    first = max((len(row[0]) for row in plain if len(row[0]) <= room), default=0)
    for row, texts in zip(rows, plain, strict=True):
        padded = [_padded(texts[place], width, place in right) for place, width in enumerate((first, *later))]
        colors = [_cell(cell).color for cell in row[: len(padded)]]
        colors = [Color.DIM] * len(row) if row is rows[0] else colors
        if len(texts[0]) > first:
            yield style.text(texts[0], colors[0])
            padded[0] = " " * first
        yield _GAP.join(map(style.text, padded, colors)).rstrip()


def _fitting(widths: Sequence[int], further: int, columns: int) -> int:
    """How many columns are shown."""
    count = len(widths)
    while count > len(widths) - further and sum(widths[:count]) + len(_GAP) * (count - 1) > columns:
        count -= 1
    return count


def _cell(cell: str | Cell) -> Cell:
    return cell if isinstance(cell, Cell) else Cell(cell)


def _padded(text: str, width: int, is_right: bool) -> str:
    return text.rjust(width) if is_right else text.ljust(width)


def age(seconds: float) -> str:
    """As kubectl tells it, in one unit: 45s, 90s, 5m, 3h, 12d."""
    for length, unit in _AGES:
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def age_of(stamp: str | None, now: datetime) -> str:
    """How long ago a time of the API server's was (RFC 3339); empty where it is none."""
    time = _parsed(stamp)
    return age((now - time).total_seconds()) if time else ""


def time_of_day(stamp: str | None, now: datetime, zone: tzinfo | None) -> str:
    """A time of the API server's in a zone, None for the machine's, with the date where it is not today's."""
    time = _parsed(stamp)
    if time is None:
        return "unknown"
    here = time.astimezone(zone)
    form = "%H:%M:%S" if here.date() == now.astimezone(zone).date() else "%Y-%m-%d %H:%M"
    return f"{here.strftime(form)} ({age((now - time).total_seconds())} ago)"


def size(count: float) -> str:
    """Bytes with a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _parsed(stamp: str | None) -> datetime | None:
    try:
        time = datetime.fromisoformat(stamp or "")
    except ValueError:
        return None
    return time if time.tzinfo else None
