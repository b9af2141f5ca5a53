"""What `dbtunnel check` prints, and that its page says the same."""

import ast
import itertools
import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic.alias_generators import to_camel

from dbtunnel.cli import results
from dbtunnel.cli.check_text import text_of
from dbtunnel.cli.main import main
from dbtunnel.cli.results import CheckResult
from dbtunnel.cli.terminal import COLUMNS, Color, Style, style_for
from tests.support.generated import ROOT
from tests.support.laptop import as_text, too_wide
from tests.unit.test_docs import blocks
from tests.unit.test_docs import text_of as page_text

PAGE = ROOT / "docs" / "check.md"

_WITHIN = {"CheckResult.layers": "Layer", "CheckResult.hops": "CheckedHop", "CheckedHop.milliseconds": "Milliseconds"}
"""What the fields of other models are made of."""


def example(language: str) -> dict[str, Any]:
    """The document on the page."""
    (block,) = blocks(PAGE, language)
    document: dict[str, Any] = yaml.safe_load(block)  # JSON is YAML
    return document


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", ["yaml", "json"])
def test_the_examples_are_documents(language: str) -> None:
    assert CheckResult.model_validate(example(language)).document() == example(language)


def test_the_text_on_the_page_is_that_of_its_yaml() -> None:
    assert blocks(PAGE, "text") == [as_text(example("yaml"))]


def documented(model: str = "CheckResult", path: str = "") -> Iterator[tuple[str, str]]:
    """Each field by its path, and the text under it in the code."""
    body = next(
        node.body
        for node in ast.parse(Path(results.__file__).read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == model
    )
    for field, text in itertools.pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            name = path + to_camel(field.target.id)
            yield name, " ".join(str(ast.literal_eval(text.value)).split())
            within = _WITHIN.get(f"{model}.{field.target.id}")
            if within:
                yield from documented(within, name + ("." if within == "Milliseconds" else "[]."))


@pytest.mark.parametrize(("field", "text"), list(documented()))
def test_every_field_is_on_the_page_with_its_text(field: str, text: str) -> None:
    assert f"\n| `{field}` | {text} |\n" in page_text(PAGE)


def test_the_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["check", "--help"])
    told = capsys.readouterr().out
    assert "dbtunnel check -f tunnel.yaml -i ~/.ssh/id_ed25519" in told
    assert "Exit code: 0 clients would be served, 1 a layer failed, 2 unusable input." in told


# --- text -------------------------------------------------------------------------------------------------------------


def test_without_unicode_the_tree_is_ascii() -> None:
    text = text_of(CheckResult.model_validate(example("yaml")), Style(color=False, unicode=False))
    assert "\n`- database orders.internal:5432 " in text
    assert text.isascii()


def test_names_that_are_longer_than_a_line_move_the_rest() -> None:
    long = {**example("yaml")["hops"][0], "host": "b" * 60}
    text = as_text({**example("yaml"), "hops": [long]})
    (line,) = [line for line in too_wide(text) if "ok" in line]
    assert f"bastion {'b' * 60}:22  ok" in line


@pytest.mark.parametrize("place", ["serverVersion", "hostKeyFingerprints"])
def test_a_document_of_somebody_else_can_forge_nothing(place: str) -> None:
    """A forwarder may be an impostor's."""
    evil = "\x1b[2J\nREADY\u202e"
    hop = {**example("yaml")["hops"][0], place: [evil] if place == "hostKeyFingerprints" else evil}
    text = as_text({**example("yaml"), "message": evil, "hops": [hop], "database": {"protocol": evil}})
    assert all(char == "\n" or char.isprintable() for char in text)
    assert "\nREADY\\" not in text


def test_the_lines_that_pin_a_fallback_name_it() -> None:
    unknown = example("json")["layers"][1]
    keys = [{"op": "add", "path": "/spec/tunnel/fallbacks/1/hostKey", "value": {"fingerprints": ["SHA256:b"]}}]
    place, pinned = {"host": "spare", "port": 2222}, {"fingerprints": ["SHA256:b"]}
    failed = {**unknown, "message": f"fallback spare:2222: no host key is pinned, then pin it: {json.dumps(keys)}"}
    fallback = {**example("json")["hops"][0], **place, "role": "Fallback", "layers": [failed, *unreached()]}
    works = example("yaml")
    text = as_text({**works, "hops": [*works["hops"], fallback | {"hostKeyFingerprints": ["ssh-ed25519 SHA256:b"]}]})

    before, _, rest = text.partition("fallback spare:2222: no host key is pinned, then pin it: (below)\n\n")
    lines, _, after = rest.partition("\n\n")
    assert yaml.safe_load(lines) == {"spec": {"tunnel": {"fallbacks": [{**place, "hostKey": pinned}]}}}
    assert after.startswith("READY through bastion bastion.example.com:22\n"), "the verdict comes last"
    assert "fallback spare:2222" in before


def unreached() -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = example("json")["layers"][2:]
    return layers


class _Stream(StringIO):
    def __init__(self, encoding: str, *, is_terminal: bool) -> None:
        super().__init__()
        self._encoding, self._is_terminal = encoding, is_terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.mark.parametrize(
    ("choice", "is_terminal", "environment", "is_colored"),
    [
        ("auto", True, {}, True),
        ("auto", False, {}, False),
        ("auto", True, {"NO_COLOR": "1"}, False),
        ("auto", True, {"NO_COLOR": ""}, True),
        ("auto", True, {"TERM": "dumb"}, False),
        ("always", False, {"NO_COLOR": "1"}, True),
        ("never", True, {}, False),
    ],
)
def test_when_there_are_colors(choice: str, is_terminal: bool, environment: dict[str, str], is_colored: bool) -> None:
    style = style_for(_Stream("utf-8", is_terminal=is_terminal), choice, environment)
    assert style.text("ok", Color.GREEN) == ("\x1b[32mok\x1b[0m" if is_colored else "ok")


@pytest.mark.parametrize(
    ("encoding", "last"), [("utf-8", "└─ "), ("UTF8", "└─ "), ("ascii", "`- "), ("latin-1", "`- ")]
)
def test_what_the_terminal_can_show(encoding: str, last: str) -> None:
    assert style_for(_Stream(encoding, is_terminal=True), "auto", {}).last == last


def test_lines_fit_where_what_a_server_said_is_escaped() -> None:
    text = "\x1b[2J\u202e\N{SNOWMAN} " * 60
    lines = list(Style(color=False, unicode=True).wrapped(text))
    assert max(map(len, lines)) <= COLUMNS
    assert " ".join(lines) == " ".join([r"\x1b[2J\u202e\u2603"] * 60)


def test_lines_fit_and_nothing_is_lost() -> None:
    text = f"{'word ' * 40}{'x' * 200} AllowTcpForwarding-local"
    lines = list(Style(color=False, unicode=False).wrapped(text))
    assert max(map(len, lines)) == COLUMNS
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert json.dumps(lines).isascii()
