"""Pictures of a terminal: drawn of what a run printed, shown on a page with its words, and compared by a test."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support import pictures
from tests.support.pages import pages
from tests.support.pictures import DIRECTORY, RECORD, constant, recorded, shown, svg
from tests.support.processes import ROOT

_PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")

SCREEN = "$ dbtunnel check\n\x1b[1mshop/orders\x1b[0m  <ok>\n  \x1b[32mok\x1b[0m  3 ms\n\n" + "x" * 150


def on_pages() -> dict[str, str]:
    """The words of each picture, by its name."""
    found = {}
    for page in pages():
        for words, link in _PICTURE.findall(page.read_text()):
            assert (page.parent / link).exists(), link
            found[Path(link).stem] = " ".join(words.split())
    return found


def test_each_picture_is_drawn_of_its_text() -> None:
    assert {path.stem for path in recorded()} == {path.stem for path in DIRECTORY.glob("*.svg")}
    for path in recorded():
        assert path.with_suffix(".svg").read_text() == svg(path.read_text()), f"{path.stem}: make pictures"


def test_each_picture_is_on_a_page_and_has_words_for_whoever_does_not_see_it() -> None:
    found = on_pages()
    assert set(found) == {path.stem for path in recorded()}
    assert all(len(words.split()) >= 10 for words in found.values())


def test_each_picture_is_compared_by_a_test() -> None:
    tests = [path.read_text() for folder in ("cluster", "forwarder") for path in (ROOT / "tests" / folder).glob("*.py")]
    compared = {name for text in tests for name in re.findall(r'shown\(\s*"([\w-]+)"', text)}
    assert compared == {path.stem for path in recorded()}


def test_a_terminal_is_drawn_as_it_is() -> None:
    tree = ElementTree.fromstring(svg(SCREEN))
    texts = [(one.text, one.get("class"), one.get("y")) for one in tree.iter() if one.tag.endswith("}text")]
    first = int(texts[0][2] or 0)
    lines = [(text, name, (int(y or 0) - first) // 18) for text, name, y in texts]
    assert lines == [
        ("$ dbtunnel check", "prompt", 0),
        ("shop/orders", "bold", 1),
        ("<ok>", None, 1),
        ("ok", "green", 2),
        ("3 ms", None, 2),
        ("x" * 96, None, 4),
        ("x" * 54, None, 5),
    ]


def test_what_a_run_shows_is_compared_but_for_what_varies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "DIRECTORY", tmp_path / "pictures")
    monkeypatch.setenv(RECORD, "1")
    shown("screen", SCREEN)
    monkeypatch.delenv(RECORD)
    shown("screen", SCREEN.replace("3 ms", "12 ms"))
    for old, new in {"ok": "FAILED", "\x1b[32m": "\x1b[31m", "orders": "others"}.items():
        with pytest.raises(AssertionError, match="make pictures"):
            shown("screen", SCREEN.replace(old, new))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ready for 41s", "ready for 2m"),
        ("orders-tunnel-5b9f6c7d8-abcde  yes", "orders-tunnel-7f-zzzzz   yes"),
        (
            "\x1b[2mconnect 8, version 21, key exchange 10, login 24 ms",
            "\x1b[2mconnect 0, version 2, key exchange 101, login 9 ms",
        ),
        ("OpenSSH_9.2p1 Debian-2+deb12u7\n", "OpenSSH_10.0\n"),
        ("1.2 MiB      42 B", "0 B  1.0 KiB"),
        ("at 2027-02-25T09:00:00Z.", "at 2028-12-31T23:59:59Z."),
        ("ssh-ed25519 AAAAC3Nz+/== shop/orders", "ssh-ed25519 AAAAB shop/orders"),
    ],
)
def test_what_varies(one: str, other: str) -> None:
    assert constant(one) == constant(other)
