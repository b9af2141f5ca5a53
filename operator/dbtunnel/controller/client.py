"""The Kubernetes API as the operator uses it: plain documents, one error type, every write counted."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from dbtunnel.api.resource import API_VERSION, KIND, PLURAL
from dbtunnel.controller.metrics import API_ERRORS, API_WRITES, Metrics, code_of
from dbtunnel.controller.store import trimmed
from dbtunnel.domain.children import Manifest
from dbtunnel.domain.names import MANAGER

TIMEOUT_SECONDS = 30.0
"""How long a request may take."""

_LIST_CHUNK = 250
_MERGE_PATCH = "application/merge-patch+json"
_MESSAGE_LIMIT = 1000

LEASE_LOST = "LeaseLost"
"""Reason of the operator's own refusal to write, while the Lease may be another's."""


@dataclass(frozen=True)
class Kind:
    """A kind of object and where the API has it."""

    name: str
    group_version: str
    plural: str

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Path of the collection, of an object or of its subresource."""
        root = "/api" if "/" not in self.group_version else "/apis"
        parts = [root, self.group_version, f"namespaces/{namespace}" if namespace else "", self.plural]
        return "/".join(part for part in [*parts, name, subresource] if part)

    @property
    def group(self) -> str:
        """The API group; empty for the core."""
        return self.group_version.rpartition("/")[0]


TUNNEL = Kind(KIND, API_VERSION, PLURAL)
SERVICE = Kind("Service", "v1", "services")
NETWORK_POLICY = Kind("NetworkPolicy", "networking.k8s.io/v1", "networkpolicies")
DISRUPTION_BUDGET = Kind("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets")
DEPLOYMENT = Kind("Deployment", "apps/v1", "deployments")
POD = Kind("Pod", "v1", "pods")
SECRET = Kind("Secret", "v1", "secrets")
EVENT = Kind("Event", "events.k8s.io/v1", "events")

CHILDREN = (SERVICE, NETWORK_POLICY, DISRUPTION_BUDGET, DEPLOYMENT)
"""Kinds that a tunnel is made of."""

CHILD_KINDS = {kind.name: kind for kind in CHILDREN}


class ApiError(Exception):
    """The API server refused a request; `message` is its own, bounded."""

    def __init__(self, status: int, reason: str, message: str, causes: Sequence[str] = ()) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.causes = causes

    @classmethod
    def of(cls, status: int, body: bytes) -> Self:
        """The error of an answer; anything in between may have written it, so that it need not be a Status."""
        try:
            document = json.loads(body)
            details = document.get("details") or {}
            causes = [str(cause.get("reason")) for cause in details.get("causes") or ()]
            message = str.strip(document["message"])  # a TypeError where it is no text
            return cls(status, str(document.get("reason") or ""), message[:_MESSAGE_LIMIT], causes)
        except (ValueError, AttributeError, TypeError, LookupError, RecursionError):
            return cls(status, "", body[:_MESSAGE_LIMIT].decode(errors="replace"))


class Client:
    """Requests to the API server. Raises ApiError for refusals, aiohttp's and TimeoutError where it does not answer."""

    def __init__(
        self, api: ApiClient, metrics: Metrics, write_seconds: Callable[[], float] = lambda: TIMEOUT_SECONDS
    ) -> None:
        """`write_seconds` tells before each write how long it may take; where that is 0, it is refused with 409 and
        LEASE_LOST.
        """
        self._api = api
        self._metrics = metrics
        self._write_seconds = write_seconds

    async def get(self, kind: Kind, namespace: str, name: str) -> Manifest | None:
        """An object; None where it does not exist."""
        try:
            return await self._request("GET", kind.path(namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(self, kind: Kind, namespace: str = "", selector: str = "") -> tuple[list[Manifest], int]:
        """All objects, trimmed page by page, and the resourceVersion at which they were listed."""
        items: list[Manifest] = []
        query = {"limit": str(_LIST_CHUNK), "labelSelector": selector}
        while True:
            page = await self._request("GET", kind.path(namespace), query)
            # items of a list say of themselves neither what they are nor of which version
            named = {"apiVersion": kind.group_version, "kind": kind.name}
            items += [trimmed(kind.name, {**named, **item}) for item in page["items"]]
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                return items, int(page["metadata"]["resourceVersion"])

    async def create(self, kind: Kind, manifest: Mapping[str, Any]) -> Manifest:
        """Makes an object that must not exist; 409 where it does."""
        self._metrics.add(API_WRITES, label=(kind.name, "create"))
        path = kind.path(manifest["metadata"]["namespace"])
        return await self._request("POST", path, _STRICT, manifest)

    async def replace(self, kind: Kind, manifest: Mapping[str, Any]) -> Manifest:
        """Replaces the object with the uid and resourceVersion that the manifest has; 409 where it is another."""
        self._metrics.add(API_WRITES, label=(kind.name, "update"))
        metadata = manifest["metadata"]
        return await self._request("PUT", kind.path(metadata["namespace"], metadata["name"]), _STRICT, manifest)

    async def patch(
        self, kind: Kind, namespace: str, name: str, change: Mapping[str, Any], subresource: str = ""
    ) -> Manifest:
        """Changes an object by a merge patch (RFC 7396)."""
        self._metrics.add(API_WRITES, label=(f"{kind.name}/{subresource}" if subresource else kind.name, "patch"))
        path = kind.path(namespace, name, subresource)
        return await self._request("PATCH", path, {"fieldManager": MANAGER}, change, _MERGE_PATCH)

    async def delete(self, kind: Kind, manifest: Mapping[str, Any]) -> None:
        """Deletes the object, and in the background what it owns; 409 where it has another uid or resourceVersion."""
        self._metrics.add(API_WRITES, label=(kind.name, "delete"))
        metadata = manifest["metadata"]
        preconditions = {key: metadata[key] for key in ("uid", "resourceVersion")}
        options = {"preconditions": preconditions, "propagationPolicy": "Background"}
        await self._request("DELETE", kind.path(metadata["namespace"], metadata["name"]), body=options)

    async def proxy(
        self, namespace: str, pod: str, port: int, path_and_query: str, timeout_seconds: float, limit: int
    ) -> bytes:
        """What a pod answers through the API server's proxy, up to one byte more than `limit`."""
        path = POD.path(namespace, f"{pod}:{port}", f"proxy/{path_and_query}")
        return await self._send("GET", path, timeout_seconds=timeout_seconds, limit=limit)

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Manifest:
        seconds = TIMEOUT_SECONDS if method == "GET" else min(self._write_seconds(), TIMEOUT_SECONDS)
        if seconds <= 0:
            raise ApiError(409, LEASE_LOST, "the Lease may be another operator's by now")
        try:
            document: Manifest = json.loads(await self._send(method, path, query, body, content_type, seconds))
        except ApiError as error:
            self._metrics.add(API_ERRORS, label=(method, code_of(error.status)))
            raise
        except (aiohttp.ClientError, OSError):  # a TimeoutError is one
            self._metrics.add(API_ERRORS, label=(method, "none"))
            raise
        return document

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        timeout_seconds: float = TIMEOUT_SECONDS,
        limit: int | None = None,
    ) -> bytes:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        parameters = [(name, value) for name, value in (query or {}).items() if value]
        request = await self._api.param_serialize(
            method, path, query_params=parameters, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        response = await self._api.call_api(*request, _request_timeout=timeout_seconds)
        async with response.response as answer:
            data = await answer.read() if limit is None else await read_bounded(answer.content, limit)
        if not 200 <= response.status <= 299:
            raise ApiError.of(response.status, data)
        return data


_STRICT = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
"""A typing error in a pass-through field is an error that names the field, not silently nothing."""


async def read_bounded(stream: aiohttp.StreamReader, limit: int) -> bytes:
    """A body, of one that is longer than `limit` one byte more."""
    body = b""
    while len(body) <= limit and (chunk := await stream.read(limit + 1 - len(body))):
        body += chunk
    return body


async def load_configuration() -> Configuration:
    """Where the API server is and how to log in: the pod's service account, else the kubeconfig."""
    redirects = aiohttp.TraceConfig()
    redirects.on_request_redirect.append(_refuse_redirect)
    # no proxy of the environment, as Kopf has it, and no .netrc, which would be read for every request
    session = {"trust_env": False, "middlewares": (_send_once,)}
    configuration = Configuration(trace_configs=[redirects], client_session_kwargs=session)
    # workers are few; a limit would let the long-polls of many forwarders, through the proxy, keep the writes waiting
    configuration.connection_pool_maxsize = 0
    try:
        config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    except config.ConfigException:
        await config.load_kube_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
    return configuration


async def _refuse_redirect(_session: object, _context: object, _parameters: object) -> None:
    """The API server sends none of its own; a pod behind its proxy might lead the operator anywhere."""
    raise aiohttp.ClientError("a redirect, which is not followed")


async def _send_once(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """A session sends again what is idempotent where its connection broke, as the error's type tells it: a write, too,
    though the Lease was asked for long ago.
    """
    try:
        return await send(request)
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        if request.method not in ("PUT", "DELETE"):
            raise
        raise aiohttp.ClientConnectionError(f"{type(error).__name__}: {error}") from error
