"""What every model shares: Kubernetes' field naming, and rules that hold in Python and in the API server alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

CEL_KEY = "x-kubernetes-validations"


def cel_rules(*rules: "Rule") -> dict[str, Any]:
    """The rules of a model, for its `json_schema_extra`."""
    return {CEL_KEY: [rule.as_cel() for rule in rules]}


class ApiModel(BaseModel):
    """Camel-case field names, docstrings as descriptions, immutable values.

    Unknown fields are ignored here so that an operator reads objects of a newer schema; people's input is read
    with `extra="forbid"`, and the API server refuses unknown fields under strict validation.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        frozen=True,
        use_attribute_docstrings=True,
        val_json_bytes="base64",
    )

    def document(self) -> dict[str, Any]:
        """The value as a Kubernetes document: camel-case names, nothing that is unset."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


@dataclass(frozen=True)
class Rule:
    """One validation rule of a field, told once: CEL for the API server, `check` for the command line.

    `message` says what to write instead; the API server puts the field's path before it.
    """

    cel: str
    check: Callable[[Any], bool]
    message: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.enforce, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        document = handler(schema)
        document.setdefault(CEL_KEY, []).append(self.as_cel())
        return document

    def as_cel(self) -> dict[str, str]:
        """The rule as an entry of `x-kubernetes-validations`."""
        return {"rule": self.cel, "message": self.message}

    def enforce(self, value: Any) -> Any:
        """Returns `value`; raises a validation error with this rule's message where it does not hold."""
        if not self.check(value):
            raise PydanticCustomError(
                "rule", "{found}: {message}", {"found": repr(value)[:100], "message": self.message}
            )
        return value


Port = Annotated[int, Field(ge=1, le=65535)]
