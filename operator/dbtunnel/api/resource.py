"""The DatabaseTunnel as an object of the Kubernetes API."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from dbtunnel.api.base import ApiModel, cel_rules
from dbtunnel.api.rules import RESOURCE_NAME_RULE
from dbtunnel.api.spec import DatabaseTunnelSpec
from dbtunnel.api.status import DatabaseTunnelStatus

GROUP = "dbtunnel.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "DatabaseTunnel"
PLURAL = "databasetunnels"


class ObjectMeta(ApiModel):
    """What the operator reads of an object's metadata."""

    name: str
    namespace: str = "default"
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    deletion_timestamp: str | None = None


class DatabaseTunnel(ApiModel):
    """A host name in the cluster for a private database behind an SSH bastion."""

    model_config = ConfigDict(json_schema_extra=cel_rules(RESOURCE_NAME_RULE))

    api_version: Annotated[Literal["dbtunnel.dev/v1alpha1"], Field(exclude=True)] = "dbtunnel.dev/v1alpha1"
    kind: Annotated[Literal["DatabaseTunnel"], Field(exclude=True)] = "DatabaseTunnel"
    metadata: ObjectMeta
    spec: DatabaseTunnelSpec
    """What the tunnel should be."""
    status: DatabaseTunnelStatus = DatabaseTunnelStatus()
    """What is the case; written by the operator."""

    @field_validator("status", mode="before")
    @classmethod
    def _known(cls, status: Any) -> Any:
        """A status of another version is no reason not to serve its tunnel."""
        return DatabaseTunnelStatus.known(status) if isinstance(status, Mapping) else status

    @model_validator(mode="after")
    def _name(self) -> Self:
        RESOURCE_NAME_RULE.enforce(self.metadata.name)
        return self

    @classmethod
    def parse(cls, manifest: Mapping[str, Any]) -> Self:
        """The tunnel of an object as the API server has it. Raises pydantic.ValidationError.

        Read as JSON, and strictly: a port as a text is as wrong here as it is in the API server.
        """
        return cls.model_validate_json(json.dumps(manifest), strict=True)
