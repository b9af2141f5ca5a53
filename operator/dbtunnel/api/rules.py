"""The formats of the resource's fields, each told once for the API server (CEL) and for the command line (Python)."""

import re
from collections.abc import Callable
from ipaddress import ip_address
from typing import Annotated, Any

from pydantic import Field

from dbtunnel.api.base import Rule

_DNS_NAME = r"^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?([.][A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*[.]?$"
_ONLY_NUMBERS = r"^[0-9.]+$"
_DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_DNS_1035_LABEL = r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"
_DATA_KEY = r"^[-._a-zA-Z0-9]+$"
_FINGERPRINT = r"^SHA256:[A-Za-z0-9+/]{43}$"
_PREFIX_LENGTH = r"^(0|[1-9][0-9]{0,2})$"
_QUANTITY = r"^[+-]?([0-9]+|[0-9]+[.][0-9]*|[.][0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$"
_USER = r"^[!-,.-~][!-~]*$"


def _matching(pattern: str) -> Callable[[Any], bool]:
    compiled = re.compile(pattern)
    return lambda value: compiled.fullmatch(value) is not None


def _format(pattern: str, message: str) -> Rule:
    return Rule(f"self.matches(r'{pattern}')", _matching(pattern), message)


def is_address(value: str) -> bool:
    """Whether `value` is an IPv4 or IPv6 address, as CEL's isIP: no brackets, no zone, no IPv4 within IPv6."""
    try:
        return "%" not in value and getattr(ip_address(value), "ipv4_mapped", None) is None
    except ValueError:
        return False


def _is_cidr(value: str) -> bool:
    """Whether `value` is a range of addresses, as CEL's isCIDR: bits beyond the prefix may be set."""
    address, _, length = value.partition("/")
    if not is_address(address) or not _matching(_PREFIX_LENGTH)(length):
        return False
    return int(length) <= ip_address(address).max_prefixlen


def _is_host(value: str) -> bool:
    is_name = _matching(_DNS_NAME)(value) and not _matching(_ONLY_NUMBERS)(value)
    return is_address(value) or is_name


HOST_RULE = Rule(
    f"isIP(self) || (self.matches(r'{_DNS_NAME}') && !self.matches(r'{_ONLY_NUMBERS}'))",
    _is_host,
    "write a host name or an IPv4 or IPv6 address alone: no scheme, no port, no brackets",
)

Host = Annotated[str, Field(min_length=1, max_length=253), HOST_RULE]

ObjectName = Annotated[
    str,
    Field(min_length=1, max_length=253),
    _format(_DNS_SUBDOMAIN, "write an object's name: lower-case letters, digits, '-' and '.'"),
]

SERVICE_NAME_MESSAGE = (
    "write at most 63 lower-case letters, digits and '-', beginning with a letter: a Service bears it"
)
ServiceName = Annotated[str, Field(min_length=1, max_length=63), _format(_DNS_1035_LABEL, SERVICE_NAME_MESSAGE)]
RESOURCE_NAME_RULE = Rule(
    f"self.metadata.name.matches(r'{_DNS_1035_LABEL}')",
    _matching(_DNS_1035_LABEL),
    f"metadata.name: {SERVICE_NAME_MESSAGE}",
)

DataKey = Annotated[
    str,
    Field(min_length=1, max_length=253),
    _format(_DATA_KEY, "write a key of the object's data: letters, digits, '-', '_' and '.'"),
]

Fingerprint = Annotated[
    str,
    Field(max_length=50),
    _format(_FINGERPRINT, "write SHA256: and 43 characters, as `ssh-keygen -lf` prints it, without trailing '='"),
]

User = Annotated[
    str,
    Field(min_length=1, max_length=128),
    _format(_USER, "write the login name on the SSH server: no spaces, not beginning with '-'"),
]

Cidr = Annotated[
    str,
    Field(max_length=43),
    Rule("isCIDR(self)", _is_cidr, "write a range of addresses such as 10.0.0.0/8 or 2001:db8::/32"),
]

Quantity = Annotated[
    int | str,
    Rule(
        f"type(self) == int || self.matches(r'{_QUANTITY}')",
        lambda value: _matching(_QUANTITY)(str(value)),
        "write a quantity such as 100m, 64Mi or 0.5",
    ),
    Field(
        json_schema_extra={
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-int-or-string": True,
            "maxLength": 32,
        }
    ),
]
