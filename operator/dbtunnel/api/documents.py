"""JSON documents: values that do not change, read strictly, written compactly.

What passes between operator and forwarder is such, and no model of pydantic's, which would take more of a forwarder's
memory and of its start than all of its own code.
"""

import json
import re
from dataclasses import MISSING, Field, FrozenInstanceError, dataclass, field, fields
from enum import StrEnum
from types import UnionType
from typing import Annotated, Any, ClassVar, Never, TypeVar, Union, dataclass_transform, get_args, get_origin

T = TypeVar("T", bound="Document")

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


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
class Document:
    """What a frozen dataclass is, by keywords alone. The methods are here, since to write them for each class takes
    dataclasses half a millisecond of a forwarder's start.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    _defaults: ClassVar[dict[str, Any]]
    _named: ClassVar[dict[str, Field[Any]]]
    """The fields by their names in JSON."""

    def __init_subclass__(cls) -> None:
        dataclass(init=False, repr=False, eq=False)(cls)
        cls._defaults = {one.name: one.default for one in fields(cls) if one.default is not MISSING}
        cls._named = {_camel_case(one.name): one for one in fields(cls) if not one.metadata}

    def __init__(self, **values: Any) -> None:
        given = {**self._defaults, **values}
        if given.keys() != self.__dataclass_fields__.keys():
            strange = sorted(given.keys() ^ self.__dataclass_fields__.keys())
            raise TypeError(f"{type(self).__name__}: missing, or not known: {', '.join(strange)}")
        vars(self).update(given)

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash(frozenset(vars(self).items()))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__dataclass_fields__)
        return f"{type(self).__name__}({shown})"

    def __setattr__(self, name: str, _: object) -> Never:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> Never:
        raise FrozenInstanceError(f"cannot delete field {name!r}")


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


def written(document: Document) -> str:
    """The document as JSON, without what is None; the same value always gives the same text."""
    return json.dumps(_plain(document), ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if not isinstance(value, Document):
        return value
    given = ((name, getattr(value, one.name)) for name, one in value._named.items())
    return {name: _plain(one) for name, one in given if one is not None}


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
    if issubclass(kind, Document):
        return _document(kind, _checked(dict, found, place), place)
    if issubclass(kind, StrEnum):
        return _choice(kind, found, place)
    return _checked(kind, found, place, limits)


def _document(kind: type[Document], found: dict[str, Any], place: _Place) -> Any:
    values = {}
    for name, one in kind._named.items():
        if name in found:
            values[one.name] = _value(one.type, found[name], (*place, name))
        elif one.default is MISSING:
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
