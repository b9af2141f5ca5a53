"""JSON documents of frozen dataclasses: read strictly, written compactly.

What passes between operator and forwarder is such, and no model of pydantic's, which would take more of a forwarder's
memory and of its start than all of its own code.
"""

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from enum import StrEnum
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

T = TypeVar("T")

_Place = tuple[str | int, ...]
"""Names and numbers that lead to a value."""

UNWRITTEN = {"unwritten": True}
"""Metadata of a field that is no part of the document."""

_FOUND_LIMIT = 80
"""Characters of a bad value that an error shows."""

_WANTED = {str: "a text", int: "a whole number", bool: "true or false", list: "a list", dict: "a mapping"}

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
"""JSON can name one by an escape; UTF-8 has none."""


class DocumentError(ValueError):
    """A document cannot be used. The text, in printable ASCII, names the field, what was found and what to write."""


@dataclass(frozen=True)
class Limits:
    """What a value may be, beside its type: of a number the value, of a text or list the length."""

    least: int = 0
    most: int | None = None
    pattern: str = ""
    """Matches the whole of a text."""

    def admit(self, value: Any) -> bool:
        """Whether the value is within them."""
        size = value if isinstance(value, int) else len(value)
        is_sized = size >= self.least and (self.most is None or size <= self.most)
        return is_sized and (not self.pattern or re.fullmatch(self.pattern, value) is not None)

    def __str__(self) -> str:
        most = "" if self.most is None else f" and at most {self.most}"
        return f"at least {self.least}{most}" + (f", all of it like {self.pattern}" if self.pattern else "")


def read(kind: type[T], text: str | bytes) -> T:
    """The document in a JSON text. Fields that it does not know are ignored, since who wrote it may be newer.

    Raises DocumentError.
    """
    try:
        found = json.loads(text if isinstance(text, str) else text.decode(), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"it is no JSON: {ascii(str(error))[1:-1][:_FOUND_LIMIT]}") from None
    document: T = _value(kind, found, ())
    return document


def written(document: Any) -> str:
    """The document as JSON, without what is None; the same value always gives the same text."""
    return json.dumps(_plain(document), ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if not is_dataclass(value) or isinstance(value, type):
        return value
    given = ((name, getattr(value, field.name)) for name, field in _named(type(value)))
    return {name: _plain(one) for name, one in given if one is not None}


@functools.cache
def _named(kind: Any) -> "Sequence[tuple[str, Field[Any]]]":
    """The fields, each with its name in the document."""
    return [(_camel_case(field.name), field) for field in fields(kind) if not field.metadata]


def _camel_case(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(map(str.capitalize, rest))


def _value(kind: Any, found: Any, place: _Place, limits: Limits | None = None) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _value(arguments[0], found, place, arguments[1])
    if origin in (Union, UnionType):  # with None alone
        return None if found is None else _value(arguments[0], found, place, limits)
    if origin is tuple:
        items = enumerate(_checked(list, found, place, limits))
        return tuple(_value(arguments[0], item, (*place, number)) for number, item in items)
    if is_dataclass(kind):
        return _document(kind, _checked(dict, found, place), place)
    if issubclass(kind, StrEnum):
        return _choice(kind, found, place)
    return _checked(kind, found, place, limits)


def _document(kind: Any, found: dict[str, Any], place: _Place) -> Any:
    values = {}
    for name, field in _named(kind):
        if name in found:
            values[field.name] = _value(field.type, found[name], (*place, name))
        elif field.default is MISSING:
            raise DocumentError(f"{_told((*place, name))}it is missing")
    return kind(**values)


def _choice(kind: type[StrEnum], found: Any, place: _Place) -> StrEnum:
    try:
        return kind(_checked(str, found, place))
    except ValueError:
        raise _bad(found, place, f"one of {', '.join(kind)}") from None


def _checked(kind: Any, found: Any, place: _Place, limits: Limits | None = None) -> Any:
    """What was found, which must be of this very type: true is no number."""
    wanted = _WANTED[kind] + (f", {limits}" if limits else "")
    if type(found) is not kind or (kind is str and _HALF_CHARACTER.search(found)):
        raise _bad(found, place, wanted)
    if limits and not limits.admit(found):
        raise _bad(found, place, wanted)
    return found


def _bad(found: Any, place: _Place, wanted: str) -> DocumentError:
    shown = _WANTED[type(found)] if isinstance(found, list | dict) else json.dumps(found)
    shown = shown if len(shown) <= _FOUND_LIMIT else f"{shown[:_FOUND_LIMIT]}..."
    return DocumentError(f"{_told(place)}found {shown}; write {wanted}")


def _told(place: _Place) -> str:
    return "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in place)[1:] + (": " if place else "")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
