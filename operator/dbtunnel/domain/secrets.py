"""The Secrets that the operator makes. It can create them and not read, change or delete any."""

from collections.abc import Mapping

from dbtunnel.api.engines import ENGINES
from dbtunnel.api.resource import DatabaseTunnel
from dbtunnel.api.spec import ServiceBinding
from dbtunnel.domain import names
from dbtunnel.domain.children import Manifest, child_metadata, digest
from dbtunnel.domain.forwarding import server_name, service_port

BINDING_TYPE_PREFIX = "servicebinding.io/"
"""Before the engine's type; both are the type of a binding's Secret (servicebinding.io, "Provisioned Service")."""

PROVIDER = "dbtunnel"
"""`provider` of every binding."""


def build_key_secret(tunnel: DatabaseTunnel, data: Mapping[str, str]) -> Manifest:
    """A generated key's. It has no owner: a key that a bastion's administrator authorized outlives a mistaken delete of
    the tunnel.
    """
    metadata = {
        "name": names.key_secret_name(tunnel),
        "namespace": tunnel.metadata.namespace,
        "labels": names.child_labels(tunnel),
    }
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "stringData": dict(data)}


def build_binding(tunnel: DatabaseTunnel) -> Manifest | None:
    """What workloads bind to (servicebinding.io); None where it is not asked for.

    Its name says what is in it and whose it is, so that a Secret of that name need not be read. An earlier one stays
    until the tunnel goes, since workloads may have it mounted.
    """
    if tunnel.spec.service_binding is ServiceBinding.DISABLED:
        return None
    kind = ENGINES[tunnel.spec.engine].binding_type
    data = {
        "type": kind,
        "provider": PROVIDER,
        "host": names.endpoint_host(tunnel),
        "port": str(service_port(tunnel)),
        "tls-server-name": server_name(tunnel),
    }
    metadata = child_metadata(tunnel, names.binding_name(tunnel, digest({"uid": tunnel.metadata.uid, "data": data})))
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": f"{BINDING_TYPE_PREFIX}{kind}",
        "immutable": True,
        "stringData": data,
    }
