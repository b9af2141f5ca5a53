"""The peers of a NetworkPolicy, typed so that the API server refuses typing errors."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from dbtunnel.api.base import ApiModel, Rule, cel_rules
from dbtunnel.api.pods import LabelKey, Labels, LabelValue
from dbtunnel.api.rules import Cidr


class SelectorOperator(StrEnum):
    """How a label selector compares."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


_VALUES_WITH_OPERATOR = Rule(
    "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
    lambda given: (given.operator in (SelectorOperator.IN, SelectorOperator.NOT_IN)) == bool(given.values),
    "give `values` with operator In or NotIn, and only with them",
)


class LabelExpression(ApiModel):
    """A condition on one label."""

    model_config = ConfigDict(json_schema_extra=cel_rules(_VALUES_WITH_OPERATOR))

    key: LabelKey
    """The label's key."""
    operator: SelectorOperator
    """In, NotIn: the label has one of the values, or none of them. Exists, DoesNotExist: whatever its value."""
    values: Annotated[tuple[LabelValue, ...], Field(max_length=32)] | None = None
    """What the label's value is compared with."""

    @model_validator(mode="after")
    def _values_with_operator(self) -> Self:
        _VALUES_WITH_OPERATOR.enforce(self)
        return self


class LabelSelector(ApiModel):
    """Selects objects that meet every condition; with no condition, all."""

    match_labels: Labels | None = None
    """Labels that an object has."""
    match_expressions: Annotated[tuple[LabelExpression, ...], Field(max_length=16)] | None = None
    """Conditions on an object's labels."""


class IpBlock(ApiModel):
    """A range of addresses."""

    cidr: Cidr
    """The range."""
    except_: Annotated[tuple[Cidr, ...], Field(max_length=16)] | None = Field(default=None, alias="except")
    """Ranges within it that are left out."""


_SELECTORS_OR_BLOCK = Rule(
    "has(self.ipBlock) != (has(self.podSelector) || has(self.namespaceSelector))",
    lambda peer: (peer.ip_block is None) != (peer.pod_selector is None and peer.namespace_selector is None),
    "give podSelector, namespaceSelector or both, or ipBlock alone",
)


class Peer(ApiModel):
    """Who may connect, as in a NetworkPolicy's ingress rule."""

    model_config = ConfigDict(json_schema_extra=cel_rules(_SELECTORS_OR_BLOCK))

    pod_selector: LabelSelector | None = None
    """Pods: of the tunnel's namespace, or of those that namespaceSelector selects."""
    namespace_selector: LabelSelector | None = None
    """Namespaces, by their labels; all their pods without podSelector."""
    ip_block: IpBlock | None = None
    """Addresses; for clients outside the cluster."""

    @model_validator(mode="after")
    def _selectors_or_block(self) -> Self:
        _SELECTORS_OR_BLOCK.enforce(self)
        return self
