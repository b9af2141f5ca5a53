"""Blocks of commands: each is run by a test, or says why not; `make test` ends with what was left out."""

import re
from pathlib import Path

import pytest

from tests.support import pages
from tests.support.pages import (
    COMMANDS,
    Block,
    all_blocks,
    blocks_of,
    faults,
    follow_here,
    following_here,
    tell,
    was_run,
    without_blocks,
)
from tests.support.processes import ROOT, ProcessError, wait_until

ALL = list(all_blocks())

LANGUAGES = {COMMANDS, "yaml", "json", "text", "python", "java", "js"}
"""Of blocks; those of applications are the last. `console`, `bash` and `shell` would be commands that nothing runs."""

COMMAND = re.compile(
    r"^ *(\$ |(sudo |\S*/)?(curl|cosign|dbtunnel|docker|helm|kubectl|pip|ssh|ssh-keygen|psql) [a-z-])", re.MULTILINE
)
"""A line that a reader would take for a command."""


def places(found: list[Block]) -> list[str]:
    return [f"{one.page}:{one.line}" for one in found]


# --- the pages --------------------------------------------------------------------------------------------------------


def test_there_are_blocks_on_the_pages_that_people_read() -> None:
    names = {str(path.relative_to(ROOT)) for path in pages.pages()}
    assert {"README.md", "CONTRIBUTING.md", "docs/keys.md", "charts/dbtunnel-operator/README.md"} <= names
    assert {"README.md", "docs/keys.md"} <= {one.page for one in ALL if one.language == COMMANDS}


def test_each_block_says_what_it_is() -> None:
    assert places([one for one in ALL if one.language not in LANGUAGES]) == []
    assert places([one for one in ALL if not one.text.strip()]) == []


def test_no_block_is_overlooked() -> None:
    """Each fence, and each mark, belongs to a block."""
    for path in pages.pages():
        left = re.sub(r"`[^`\n]+`", "", without_blocks(path.read_text()))
        assert not re.search(r"```|~~~|<!-- not run", left), path


def test_each_mark_stands_at_commands_and_has_a_reason() -> None:
    marked = [one for one in ALL if one.reason is not None]
    assert places([one for one in marked if one.language != COMMANDS]) == []
    assert places([one for one in marked if len((one.reason or "").split()) < 3]) == []


def test_no_other_block_and_no_indented_text_has_commands() -> None:
    texts = [(f"{one.page}:{one.line}", one.text) for one in ALL if one.language == "text"]
    for path in pages.pages():
        indented = re.findall(r"^(?: {4}|\t).*$", without_blocks(path.read_text()), re.MULTILINE)
        texts.append((str(path), "\n".join(indented)))
    assert [place for place, text in texts if COMMAND.search(text)] == []


# --- how they are run -------------------------------------------------------------------------------------------------

PAGE = """
<!-- not run: it needs a registry -->
```sh
docker push IMAGE
```

1. An item:

   ```sh
   echo -u in a list --set=a=b > made
   cat made NAME 2>&1
   ```

```yaml
kind: Text
```

```sh
false # fails
```

```sh
echo waits; sleep 100
```
"""


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A page, and a place for what is run of it."""
    monkeypatch.setattr(pages, "DIRECTORY", tmp_path / "run")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(PAGE)
    (tmp_path / "NAME").write_text("of the clone")
    return "page.md"


def done(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "run").glob("*")}


def left_out(tmp_path: Path) -> list[str]:
    found = [one for one in blocks_of("page.md", PAGE) if one.language == COMMANDS]
    return list(faults(found, done(tmp_path)))


def test_what_is_run_is_written_down(page: str, tmp_path: Path) -> None:
    assert [one.split(": ")[0] for one in left_out(tmp_path)] == ["page.md:9", "page.md:18", "page.md:22"]
    assert follow_here(page, tmp_path / "home", "in a list") == "-u in a list --set=a=b\nof the clone"
    assert left_out(tmp_path) == [
        "page.md:18: no test runs it, and it is not marked: false # fails",
        "page.md:22: no test runs it, and it is not marked: echo waits; sleep 100",
    ]
    assert not (tmp_path / "made").exists(), "the clone is left alone"


def test_what_fails_is_not(page: str, tmp_path: Path) -> None:
    with pytest.raises(ProcessError):
        follow_here(page, tmp_path / "home", "false")
    assert done(tmp_path) == set()


def test_what_goes_on_is_written_down_once_it_has(page: str, tmp_path: Path) -> None:
    with following_here(page, tmp_path / "home", "waits") as process:
        wait_until(lambda: "waits" in process.log_end(), "its first words")
        assert done(tmp_path) == set()
    assert len(done(tmp_path)) == 1
    assert not process.is_running()


def test_what_has_a_mark_is_not_run(page: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:3 is marked"):
        follow_here(page, tmp_path / "home", "docker")
    marked, *_ = blocks_of(page, PAGE)
    assert list(faults([marked], {marked.record})) == [
        "page.md:3: it was run: take the mark away: docker push IMAGE",
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cat made", "echo other"),
        ("cat made", "cat -n made"),
        ("cat made", "cat made made"),
        ("NAME 2>&1", "NAME"),
        ("-u in", "-n in"),
        ("--set=a=b", "--set=a=b,c=d"),
        ("--set=a=b", "--put=a=b"),
    ],
)
def test_no_command_and_no_option_is_another_than_the_page_s(page: str, tmp_path: Path, old: str, new: str) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:9 would not be run as it stands"):
        follow_here(page, tmp_path / "home", "in a list", **{old: new})
    assert done(tmp_path) == set()


@pytest.mark.parametrize(("old", "new"), [("NAME", "made"), ("--set=a=b", "--set=a=another")])
def test_a_value_may_be_the_reader_s(page: str, tmp_path: Path, old: str, new: str) -> None:
    follow_here(page, tmp_path / "home", "in a list", **{old: new})
    assert len(done(tmp_path)) == 1


def test_what_is_run_in_another_way_is_known_by_its_commands(page: str, tmp_path: Path) -> None:
    (commands,) = (one.text for one in blocks_of(page, PAGE) if "in a list" in one.text)
    was_run(page, commands.replace("NAME", "SOMETHING"))
    assert done(tmp_path) == set()
    was_run(page, commands)
    assert [one.split(": ")[0] for one in left_out(tmp_path)] == ["page.md:18", "page.md:22"]


def test_the_account_ends_with_what_was_measured(page: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell("3 commands")
    assert pages.main() == 1, "nothing was run"
    assert capsys.readouterr().out.endswith("\n3 commands\n")
    assert len(left_out(tmp_path)) == 3


def test_what_a_test_changes_must_be_there(page: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:9 has no ANOTHER"):
        follow_here(page, tmp_path / "home", "in a list", **{"ANOTHER": "name"})


def test_another_text_is_another_block() -> None:
    (one,) = blocks_of("page.md", "```sh\necho one\n```")
    (other,) = blocks_of("page.md", "```sh\necho other\n```")
    assert one.record != other.record
