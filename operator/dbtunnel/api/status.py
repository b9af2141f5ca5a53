"""`status` of a DatabaseTunnel: what is the case. Written by the operator alone.

No field is required and no value is an enumeration, except in a Condition, so that an older or newer schema
never rejects a status.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, ValidationError

from dbtunnel.api.base import ApiModel
from dbtunnel.api.conditions import ConditionType

MOST_CONDITIONS = 16
"""For which the schema has places; those of this version are half of them."""

Text = Annotated[str, Field(max_length=512)]
Time = Annotated[str, Field(max_length=64, json_schema_extra={"format": "date-time"})]


def _list_map(*keys: str) -> dict[str, Any]:
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


class Condition(ApiModel):
    """One aspect of the tunnel's state, as in metav1.Condition."""

    model_config = ConfigDict(
        json_schema_extra={"required": ["type", "status", "reason", "message", "lastTransitionTime"]}
    )

    type: Annotated[str, Field(max_length=64)]
    """Which aspect."""
    status: Annotated[str, Field(max_length=16, json_schema_extra={"enum": ["True", "False", "Unknown"]})]
    """True, False or Unknown."""
    reason: Annotated[str, Field(max_length=128)]
    """Why, in one word; docs/conditions.md lists them."""
    message: Annotated[str, Field(max_length=8192)]
    """What was seen, at which hop, and what to do."""
    last_transition_time: Time
    """When `status` last changed."""
    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """The generation of the spec that this speaks of."""


class Endpoint(ApiModel):
    """What an application connects to."""

    host: Text | None = None
    """Host name within the cluster."""
    port: int | None = None
    """TCP port."""
    cluster_ip: Text | None = Field(default=None, alias="clusterIP")
    """Address of the Service, for clients that verify the database's certificate by name (libpq's hostaddr)."""
    tls_server_name: Text | None = None
    """Name on the database's certificate."""


class Hop(ApiModel):
    """One SSH server of the tunnel."""

    role: Text = ""
    """JumpHost, Bastion or Fallback."""
    host: Text = ""
    """As in the spec."""
    port: int = 22
    """TCP port."""
    active: bool | None = None
    """Whether a forwarder's new connections go through it."""
    replicas: int | None = None
    """How many forwarders' do."""
    host_key_fingerprints: Annotated[tuple[Text, ...], Field(max_length=8)] | None = None
    """Fingerprints of the host keys that it shows, with their algorithm. With a connection first the one in use, then
    those that it has proved to hold besides (OpenSSH announces them): pin one before the server changes to it."""
    server_version: Text | None = None
    """Its identification string (RFC 4253, section 4.2), as the server says it."""
    cipher: Text | None = None
    """Cipher in use towards the server."""
    mac: Text | None = None
    """MAC in use towards the server; an AEAD cipher has none of its own."""
    authorized_keys_line: Annotated[str, Field(max_length=8192)] | None = None
    """What this server's administrator adds to the user's authorized_keys. It permits exactly what the tunnel opens
    from there: the database, or for a jump host what comes next. A line for each of its keys in status.publicKeys:
    there are two while a next key is to replace the current one."""


class PublicKey(ApiModel):
    """A key of the tunnel; its private half is never shown."""

    key: Annotated[str, Field(max_length=4096)] = ""
    """As in authorized_keys, with the tunnel's namespace and name as comment. Empty for a next key that cannot be read;
    the message of KeyReady says why."""
    fingerprint: Text = ""
    """SHA-256 fingerprint."""
    use: Text = "Current"
    """Current: the one under `<key>` of the Secret. Next: the one that is to replace it, under `<key>-next`; or what
    stands under `<key>` now, while it has not been accepted and connections go on with the one before it."""
    accepted: bool | None = None
    """Whether the SSH servers that were asked accepted it at the last attempt, those of all replicas. Left out while
    that is not known."""


class DatabaseStatus(ApiModel):
    """What a probe or real traffic showed of the database."""

    protocol: Text | None = None
    """The protocol that it speaks."""
    server_version: Text | None = None
    """Its version, where the protocol tells it before a login (MySQL)."""
    tls_offered: bool | None = None
    """Whether it offers TLS."""
    certificate_not_after: Text | None = None
    """When its certificate expires, where a probe has seen it: not with MySQL, which is not probed."""


class LastFailure(ApiModel):
    """The last transition of Ready to False, or to another failure: not to one that may mend by itself after another
    such of the same layer, since they take turns while an outage lasts."""

    time: Time | None = None
    """Since when it is, or was, the case."""
    reason: Text | None = None
    """Its reason."""
    message: Annotated[str, Field(max_length=8192)] | None = None
    """Its message."""


class Binding(ApiModel):
    """The tunnel as a Provisioned Service of servicebinding.io."""

    name: Text | None = None
    """The Secret with `type`, `provider`, `host`, `port` and `tls-server-name`. What is in it never changes: with
    another host name or port the tunnel has another Secret."""


class DatabaseTunnelStatus(ApiModel):
    """What is the case."""

    observed_generation: int | None = None
    """The generation of the spec that this status speaks of."""
    conditions: (
        Annotated[tuple[Condition, ...], Field(max_length=MOST_CONDITIONS, json_schema_extra=_list_map("type"))] | None
    ) = None
    """The three layers of SSH and what surrounds them, in causal order: WorkloadReady, KeyReady, TransportReady,
    Authenticated, DatabaseReachable; Ready sums them up; Reconciling and Stalled are kstatus's."""
    endpoint: Endpoint | None = None
    """What an application connects to."""
    hops: (
        Annotated[tuple[Hop, ...], Field(max_length=16, json_schema_extra=_list_map("role", "host", "port"))] | None
    ) = None
    """The SSH servers: the bastion, the fallbacks in their order, the jump hosts in theirs."""
    public_keys: Annotated[tuple[PublicKey, ...], Field(max_length=16)] | None = None
    """The tunnel's keys, for the SSH servers' administrators; those of single SSH servers after them."""
    database: DatabaseStatus | None = None
    """What was seen of the database."""
    egress_addresses: Annotated[tuple[Text, ...], Field(max_length=32)] | None = None
    """Addresses from which the SSH server sees the cluster, as the installer declared them."""
    replicas: int | None = None
    """Forwarder pods wanted."""
    ready_replicas: int | None = None
    """Forwarder pods that are connected and current."""
    last_failure: LastFailure | None = None
    """The last transition of Ready to False, or to another failure."""
    binding: Binding | None = None
    """Where `spec.serviceBinding` is Enabled: what workloads bind to."""

    @classmethod
    def known(cls, document: Mapping[str, Any] | None) -> Self:
        """What this version knows of a status. Of one that another version wrote, what is not known here is left out,
        fields and conditions; and so is what breaks this version's rules: an entry of a list, or else the field.
        """
        found = dict(document or {})
        if isinstance(conditions := found.get("conditions"), list):
            found["conditions"] = [one for one in conditions if is_known(one)]
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            return cls.model_validate(_without(found, [one["loc"] for one in error.errors()]))


def is_known(condition: Any) -> bool:
    """Whether it is of a type that this version has. Others are for a newer version, or somebody else, to change."""
    return isinstance(condition, Mapping) and condition.get("type") in [*ConditionType]


def _without(document: Mapping[str, Any], places: Sequence[tuple[int | str, ...]]) -> dict[str, Any]:
    """A status without the entries of its lists, and the fields, in which these places are."""
    fields = {place[0] for place in places if not isinstance((*place, None)[1], int)}
    entries = {place[:2] for place in places}
    return {
        name: [one for number, one in enumerate(value) if (name, number) not in entries]
        if isinstance(value, list)
        else value
        for name, value in document.items()
        if name not in fields
    }
