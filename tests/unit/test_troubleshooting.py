"""docs/troubleshooting.md: every reason has its place there, and the words of clients are those that tests hear."""

import re

from dbtunnel.api.reasons import Reason
from dbtunnel.cli.plugin.cluster import denied_text
from dbtunnel.forwarder import client
from tests.support.client_words import PAGE, check_words, lines
from tests.support.processes import ROOT
from tests.unit.test_docs import section

CONDITIONS = ROOT / "docs" / "conditions.md"


def first_columns(heading: str) -> list[str]:
    """The words in backquotes that stand in the first column of the tables of a part."""
    rows = re.findall(r"^\| (.*?) \|", section(PAGE, heading), re.MULTILINE)
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row)]


def test_every_reason_is_in_the_table_once() -> None:
    told = set(re.findall(r"^\| `(\w+)` \|", CONDITIONS.read_text(), re.MULTILINE))
    assert told == set(Reason) - {Reason.SUCCEEDED}
    assert sorted(first_columns("The tunnel is not Ready")) == sorted(told)


def test_what_a_bastion_may_have_become_are_reasons() -> None:
    assert set(first_columns("After the bastion was restarted")) <= set(Reason)


def test_every_end_of_a_session_is_explained() -> None:
    ends = {
        text for text in vars(client).values() if isinstance(text, str) and re.fullmatch("[a-zA-Z]+( [a-z]+)+", text)
    }
    named = set(re.findall(r"`([a-zA-Z ]+)`", section(PAGE, "The connection is cut")))
    assert {"client closed", "SSH connection lost"} <= ends
    assert ends | {"idle", "forwarder ended", "ConnectionLimit"} <= named


def test_metrics_that_the_page_names_exist() -> None:
    named = set(re.findall(r"\bdbtunnel_\w+", PAGE.read_text()))
    assert len(named) > 3
    assert named <= set(re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))


def test_each_line_of_clients_words_is_heard_by_a_test() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert len(lines()) > 20
    assert [line for line in lines() if line not in tests] == []


def test_the_words_of_a_missing_right_are_the_plugins() -> None:
    words = "... may not get databasetunnels.dbtunnel.dev ... in namespace ... Who may grant rights there can do it so:"
    check_words(words, denied_text("get", "databasetunnels", "orders", "shop", 'User "ann" cannot get resource'))
