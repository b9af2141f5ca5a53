"""What the width of a terminal changes; each is a real one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO

import pytest

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.reasons import Reason
from dbtunnel.cli.check_text import text_of
from dbtunnel.cli.plugin.status_text import status_text
from dbtunnel.cli.results import CheckResult
from dbtunnel.cli.terminal import COLUMNS, Style, style_for
from tests.support.laptop import terminal, too_wide
from tests.support.values import failing, working
from tests.unit.test_check_text import example
from tests.unit.test_plugin_status import ORDERS, SHOWN, VIEW, having, replica


@contextmanager
def style_at(columns: int) -> Iterator[Style]:
    ours, theirs = terminal(columns)
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        yield style_for(stream, "never", {})
    os.close(ours)


@pytest.mark.parametrize(("width", "columns"), [(0, COLUMNS), (20, 60), (80, 80), (120, 120), (200, 200)])
def test_text_has_the_width_of_its_terminal(width: int, columns: int) -> None:
    with style_at(width) as style:
        assert style.columns == columns


def test_text_for_no_terminal_has_80_columns(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert style_for(StringIO(), "auto", {}).columns == 80
    with (tmp_path_factory.mktemp("file") / "file").open("w") as stream:
        assert style_for(stream, "always", {"COLUMNS": "200"}).columns == 80


def shown_at(columns: int, *, works: bool = True, wide: bool = False) -> str:
    """What `kubectl dbtunnel status` shows at a terminal."""
    document = working(ORDERS, hops=(SHOWN,))
    if not works:
        document = failing(ORDERS, ConditionType.AUTHENTICATED, Reason.KEY_REJECTED, hops=(SHOWN,))
    with style_at(columns) as style:
        view = replace(VIEW, style=style, wide=wide)
        return status_text(having(document), [replica(), replica("p", status=None, problem="y " * 99)], view)


@pytest.mark.parametrize(
    ("columns", "last_of_servers", "last_of_replicas"),
    [(80, "VERSION", "RECEIVED"), (100, "CIPHER", "CLIENTS"), (120, "CIPHER", "NODE"), (200, "HOST KEY", "NODE")],
)
def test_where_there_is_room_there_are_more_columns(columns: int, last_of_servers: str, last_of_replicas: str) -> None:
    text = shown_at(columns)
    heads = [line for line in text.splitlines() if line.startswith(("SSH SERVER", "REPLICA"))]
    assert [head.endswith(f"  {last}") for head, last in zip(heads, (last_of_servers, last_of_replicas), strict=True)]
    assert heads[0].endswith(last_of_servers)
    assert heads[1].endswith(last_of_replicas)
    assert too_wide(text, columns) == []


def test_wide_output_has_all_of_them_whatever_the_terminal() -> None:
    heads = [line.split()[-1] for line in shown_at(80, wide=True).splitlines() if line.startswith(("SSH", "REPLICA"))]
    assert heads == ["KEY", "NODE"]


@pytest.mark.parametrize(("columns", "narrower"), [(60, 0), (80, 60), (120, 80), (200, 120)])
def test_sentences_take_the_width_that_there_is(columns: int, narrower: int) -> None:
    with style_at(columns) as style:
        checked = text_of(CheckResult.model_validate(example("json")), style)
    for text in (checked, shown_at(columns, works=False)):
        advice = text[text.index("NOT READY") :]
        assert too_wide(advice, columns) == []
        assert max(len(line) for line in advice.splitlines() if "ssh-ed25519 AAAA" not in line) > narrower


def test_names_stay_in_line_where_there_is_room() -> None:
    """And the rest of the row does not go to the far end for that."""
    document = example("yaml")
    (bastion,) = document["hops"]
    named = {**document, "hops": [{**bastion, "host": "b" * 70}, {**bastion, "role": "Fallback", "host": "short"}]}
    widths = []
    for columns in (80, 120, 200):
        with style_at(columns) as style:
            lines = text_of(CheckResult.model_validate(named), style).splitlines()
        rows = [line for line in lines if line.endswith(" ms") and "  ok  " in line and "Ready" not in line][-4:]
        widths.append({len(row) for row in rows})
    assert len(widths[0]) > 1
    assert widths[1] == widths[2]
    assert len(widths[1]) == 1
    assert max(widths[1]) < 120
