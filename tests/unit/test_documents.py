"""Documents of frozen dataclasses: what is written, what is read, what is refused and how that is told."""

import json
from dataclasses import FrozenInstanceError, field, replace
from enum import StrEnum
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbtunnel.api.documents import UNWRITTEN, Document, DocumentError, Limits, read, written
from dbtunnel.api.forwarder import ForwarderStatus


class Colour(StrEnum):
    RED = "Red"
    DARK_BLUE = "DarkBlue"


class Leaf(Document):
    long_name: str
    count: Annotated[int, Limits(1, 9)] = 1
    colour: Colour = Colour.RED


class Tree(Document):
    leaf: Leaf
    leaves: Annotated[tuple[Leaf, ...], Limits(most=2)] = ()
    word: Annotated[str, Limits(most=5, pattern="[a-z]*")] | None = None
    note: str | None = None
    is_old: bool = False
    secret: str = field(default="kept", metadata=UNWRITTEN)


SMALLEST = {"leaf": {"longName": "a"}}


def refused(document: object) -> str:
    with pytest.raises(DocumentError) as refusal:
        read(Tree, document if isinstance(document, str | bytes) else json.dumps(document))
    text = str(refusal.value)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) < 300
    return text


# --- values ----------------------------------------------------------------------------------------------------------


def test_values_are_equal_by_what_they_hold() -> None:
    one, same, other = Leaf(long_name="a", count=1), Leaf(count=1, long_name="a"), Leaf(long_name="a", count=2)
    assert one == same != other
    assert len({one, same, other}) == 2
    assert one != Colour.RED
    assert replace(one, count=2) == other
    assert repr(other) == "Leaf(long_name='a', count=2, colour=<Colour.RED: 'Red'>)"


def test_values_cannot_be_changed() -> None:
    leaf = Leaf(long_name="a")
    with pytest.raises(FrozenInstanceError, match="count"):
        setattr(leaf, "count", 2)  # noqa: B010 - a plain assignment is refused by the type checker
    with pytest.raises(FrozenInstanceError, match="count"):
        delattr(leaf, "count")
    assert leaf == Leaf(long_name="a")


@pytest.mark.parametrize("values", [{}, {"count": 1}, {"long_name": "a", "size": 1}])
def test_a_value_has_its_fields_and_no_others(values: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"Leaf: missing, or not known: (long_name|size)"):
        Leaf(**values)


# --- what is written --------------------------------------------------------------------------------------------------


def test_names_are_camel_case_and_what_is_none_is_left_out() -> None:
    tree = Tree(leaf=Leaf(long_name="a", colour=Colour.DARK_BLUE), leaves=(Leaf(long_name="b", count=2),))
    assert written(tree) == (
        '{"leaf":{"longName":"a","count":1,"colour":"DarkBlue"},'
        '"leaves":[{"longName":"b","count":2,"colour":"Red"}],"isOld":false}'
    )


def test_texts_are_written_as_they_are_but_for_what_json_must_escape() -> None:
    assert '"longName":"é \\"\\n\\u0000\x7f😀"' in written(Tree(leaf=Leaf(long_name='é "\n\0\x7f😀')))


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.integers(1, 9),
    st.none() | st.text(st.characters(min_codepoint=97, max_codepoint=122), max_size=5),
    st.booleans(),
)
def test_what_was_written_is_read_as_it_was(name: str, count: int, word: str | None, is_old: bool) -> None:
    tree = Tree(leaf=Leaf(long_name=name, count=count), word=word, is_old=is_old)
    assert read(Tree, written(tree)) == tree
    assert read(Tree, written(tree).encode()) == tree


# --- what is read -----------------------------------------------------------------------------------------------------


def test_what_is_left_out_has_its_default() -> None:
    assert read(Tree, json.dumps(SMALLEST)) == Tree(leaf=Leaf(long_name="a"))


def test_what_may_be_left_out_may_be_null() -> None:
    assert read(Tree, json.dumps({**SMALLEST, "word": None})).word is None


def test_fields_of_a_newer_version_are_ignored() -> None:
    newer = {"leaf": {"longName": "a", "size": [1.5]}, "age": {}, "secret": "told"}
    assert read(Tree, json.dumps(newer)) == Tree(leaf=Leaf(long_name="a"))


def test_a_word_of_a_table_becomes_its_member() -> None:
    document = {"leaf": {"longName": "a", "colour": "DarkBlue"}}
    assert read(Tree, json.dumps(document)).leaf.colour is Colour.DARK_BLUE


# --- what is refused --------------------------------------------------------------------------------------------------

LEAF = {"longName": "a"}

BAD: dict[str, tuple[object, str]] = {
    "nothing": ("", "it is no JSON: Expecting value: line 1 column 1 (char 0)"),
    "half": ('{"leaf": {', "it is no JSON: "),
    "more than one": (json.dumps(SMALLEST) * 2, "it is no JSON: Extra data"),
    "no UTF-8": (b"\xff\x1b", "it is no JSON: 'utf-8' codec can't decode"),
    "UTF-16": (json.dumps(SMALLEST).encode("utf-16-le"), "it is no JSON: "),
    "no number": ('{"leaf": {"longName": "a", "count": NaN}}', "it is no JSON: NaN is no number"),
    "no end": ('{"leaf": {"longName": "a"}, "x": -Infinity}', "it is no JSON: -Infinity is no number"),
    "a depth": ("[" * 60_000, "it is no JSON: maximum recursion depth exceeded"),
    "a depth that ends": ('{"leaf":' * 30_000 + "1" + "}" * 30_000, "it is no JSON: maximum recursion depth exceeded"),
    "a list": ([SMALLEST], "found a list; write a mapping"),
    "null": (None, "found null; write a mapping"),
    "too few": ({}, "leaf: it is missing"),
    "too few within": ({"leaf": {}}, "leaf.longName: it is missing"),
    "null for a text": ({"leaf": {"longName": None}}, "leaf.longName: found null; write a text"),
    "a number for a text": ({"leaf": {"longName": 7}}, "leaf.longName: found 7; write a text"),
    "a mapping for a text": ({"leaf": {"longName": {"a": 1}}}, "leaf.longName: found a mapping; write a text"),
    "half a character": ('{"leaf": {"longName": "\\ud800"}}', 'leaf.longName: found "\\ud800"; write a text'),
    "a text for a number": (
        {"leaf": {**LEAF, "count": "7"}},
        'leaf.count: found "7"; write a whole number, at least 1 and at most 9',
    ),
    "a truth for a number": ({"leaf": {**LEAF, "count": True}}, "leaf.count: found true; write a whole number"),
    "a fraction": ({"leaf": {**LEAF, "count": 1.0}}, "leaf.count: found 1.0; write a whole number"),
    "too little": ({"leaf": {**LEAF, "count": 0}}, "leaf.count: found 0; write a whole number, at least 1"),
    "too much": ({"leaf": {**LEAF, "count": 10}}, "leaf.count: found 10; write a whole number, at least 1"),
    "too many digits": ('{"leaf": {"longName": "a", "count": ' + "9" * 60_000 + "}}", "it is no JSON: Exceeds"),
    "no such word": ({"leaf": {**LEAF, "colour": "red"}}, 'leaf.colour: found "red"; write one of Red, DarkBlue'),
    "a number for a word": ({"leaf": {**LEAF, "colour": 1}}, "leaf.colour: found 1; write one of Red, DarkBlue"),
    "a number for a truth": ({**SMALLEST, "isOld": 1}, "isOld: found 1; write true or false"),
    "a mapping for a list": ({**SMALLEST, "leaves": LEAF}, "leaves: found a mapping; write a list, at least 0"),
    "too many items": (
        {**SMALLEST, "leaves": [LEAF] * 3},
        "leaves: found a list; write a list, at least 0 and at",
    ),
    "a bad item": ({**SMALLEST, "leaves": [LEAF, 1]}, "leaves[1]: found 1; write a mapping"),
    "a bad field of an item": ({**SMALLEST, "leaves": [LEAF, {}]}, "leaves[1].longName: it is missing"),
    "too long": (
        {**SMALLEST, "word": "abcdef"},
        'word: found "abcdef"; write a text, at least 0 and at most 5, all of it like [a-z]*',
    ),
    "much too long": ({**SMALLEST, "word": "a" * 50_000}, f'word: found "{"a" * 79}...; write a text'),
    "another letter": ({**SMALLEST, "word": "é"}, 'word: found "\\u00e9"; write a text'),
    "an escape": ({**SMALLEST, "word": "\x1b[2J"}, 'word: found "\\u001b[2J"; write a text'),
    "a line end": ({**SMALLEST, "word": "abc\n"}, 'word: found "abc\\n"; write a text'),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_refused(kind: str) -> None:
    document, said = BAD[kind]
    assert refused(document).startswith(said)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_any_other_value_is_refused_and_brings_about_nothing_else(value: object) -> None:
    refused({**SMALLEST, "leaves": [value]})


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DocumentError):
        read(ForwarderStatus, data)
