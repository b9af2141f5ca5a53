"""The table of docs/tls.md says what its programs do."""

import re

from tests.support.applications.programs import PAGE, programs

_ROW = re.compile(r"^\| \[([\w]+)\]\(#\w+\)[^|]*\|(.*)\|$", re.MULTILINE)


def test_each_program_has_a_row_with_its_settings() -> None:
    rows = dict(_ROW.findall(PAGE.read_text()))

    missing = [
        f"{client}: {setting}"
        for client, columns in rows.items()
        for setting in re.findall("`([^`]+)`", columns)
        if setting not in programs()[client].text
    ]

    assert set(rows) == set(programs())
    assert all(columns.count("`") >= 4 for columns in rows.values())
    assert missing == []
