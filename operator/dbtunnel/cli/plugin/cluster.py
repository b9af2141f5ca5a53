"""The Kubernetes API with the user's own kubeconfig and rights; what may not be done is told as the right to grant."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from kubernetes import config
from kubernetes.client import ApiClient, ApiException, Configuration
from pydantic import ValidationError
from urllib3.exceptions import HTTPError

from dbtunnel.api.forwarder import ADMIN_PORT
from dbtunnel.api.resource import API_VERSION, GROUP, PLURAL, DatabaseTunnel
from dbtunnel.cli import UnusableInputError
from dbtunnel.domain.diagnosis import printable
from dbtunnel.domain.names import REFRESH_ANNOTATION, TUNNEL_LABEL

Manifest = dict[str, Any]

TIMEOUT_SECONDS = 15

_BODY_LIMIT = 8 * 1024 * 1024
_POD_LIMIT = 256 * 1024
"""Bytes of an answer of the API server, and of one that a pod wrote."""

_JSON_PATCH, _MERGE_PATCH = "application/json-patch+json", "application/merge-patch+json"

_METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""What is answered to a write: so that no Secret comes back."""

_USER = re.compile(r'User "([^"]+)" cannot ')
"""In the API server's words of a refusal."""

_SERVICE_ACCOUNT = "system:serviceaccount:"


class ClusterError(UnusableInputError):
    """The API server did not do what was asked; the text says why."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class DeniedError(ClusterError):
    """A right is missing; the text says which, and how it is granted."""


class Cluster:
    """A namespace of a cluster. Raises ClusterError."""

    def __init__(self, api: ApiClient, namespace: str) -> None:
        self._api, self.namespace = api, namespace

    def tunnel(self, name: str) -> DatabaseTunnel:
        """A tunnel as it is now."""
        try:
            document = self._json("get", PLURAL, name)
        except ClusterError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
            raise ClusterError(
                f"there is no DatabaseTunnel {printable(name)} in namespace {self.namespace}: see"
                " `kubectl get databasetunnels --all-namespaces`, and give the namespace with -n",
                error.status,
            ) from None
        try:
            return DatabaseTunnel.parse(document)
        except ValidationError as error:
            raise ClusterError(
                f"this version of kubectl-dbtunnel cannot read the tunnel: {printable(str(error))}"
            ) from None

    def tunnel_names(self) -> list[str]:
        """The names of all tunnels of the namespace."""
        return [item["metadata"]["name"] for item in self._json("list", PLURAL)["items"]]

    def pods(self, tunnel: str) -> list[Manifest]:
        """The pods of a tunnel."""
        items: list[Manifest] = self._json("list", "pods", query={"labelSelector": f"{TUNNEL_LABEL}={tunnel}"})["items"]
        return items

    def ask(self, pod: str, path: str) -> bytes:
        """What a forwarder's admin port answers, through the API server."""
        return self._send("get", "pods", f"{pod}:{ADMIN_PORT}", f"proxy/{path}", limit=_POD_LIMIT)

    def secret(self, name: str) -> dict[str, str]:
        """The data of a Secret, in base64."""
        return dict(self._json("get", "secrets", name).get("data") or {})

    def patch(self, resource: str, name: str, operations: Sequence[Mapping[str, Any]]) -> None:
        """Changes an object by a JSON patch (RFC 6902), which is done as a whole or not at all."""
        self._send("patch", resource, name, body=list(operations), content_type=_JSON_PATCH)

    def refresh(self, pod: str, mark: str) -> None:
        """Has the kubelet look at once for changes of what is mounted into a pod."""
        body = {"metadata": {"annotations": {REFRESH_ANNOTATION: mark}}}
        self._send("patch", "pods", pod, body=body, content_type=_MERGE_PATCH)

    def _json(self, verb: str, resource: str, name: str = "", query: Mapping[str, str] | None = None) -> Manifest:
        document: Manifest = json.loads(self._send(verb, resource, name, query=query))
        return document

    def _send(
        self,
        verb: str,
        resource: str,
        name: str = "",
        subresource: str = "",
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        limit: int = _BODY_LIMIT,
    ) -> bytes:
        root = f"/apis/{API_VERSION}" if resource == PLURAL else "/api/v1"
        named = [quote(name, safe=":"), subresource] if name else []
        path = "/".join([root, "namespaces", quote(self.namespace, safe=""), resource, *filter(None, named)])
        headers = {"Accept": _METADATA_ONLY if verb == "patch" else "application/json", "Content-Type": content_type}
        status, data = self._call("PATCH" if verb == "patch" else "GET", path, headers, query, body, limit)
        if status == HTTPStatus.FORBIDDEN and _is_status(data):
            place = f"{resource}/{subresource.partition('/')[0]}" if subresource else resource
            raise DeniedError(denied_text(verb, place, name, self.namespace, _message(data)), status)
        if not 200 <= status <= 299:
            raise ClusterError(_refusal(status, data), status)
        if len(data) > limit:
            raise ClusterError(f"the answer has more than {limit} bytes")
        return data

    def _call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        query: Mapping[str, str] | None,
        body: Any,
        limit: int,
    ) -> tuple[int, bytes]:
        request = self._api.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=dict(headers),
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = self._api.call_api(*request, _request_timeout=TIMEOUT_SECONDS)
            data: bytes = response.response.read(limit + 1)
            response.response.release_conn()
        except (HTTPError, ApiException, OSError) as error:
            told = " ".join(str(getattr(error, "reason", None) or error).split())
            raise ClusterError(f"the API server does not answer: {printable(told, 300)}") from None
        return response.status, data


def open_cluster(kubeconfig: str | None, context: str | None, namespace: str | None) -> Cluster:
    """The cluster and namespace that kubectl would use. Raises ClusterError."""
    settings = Configuration()
    settings.retries = False  # and so no redirect: a pod behind the API server's proxy might lead anywhere
    try:
        config.load_kube_config(kubeconfig, context, settings)  # type: ignore[no-untyped-call]
        contexts, current = config.list_kube_config_contexts(kubeconfig)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError) as error:
        told = printable(str(error), 300).rstrip(".")
        raise ClusterError(
            f"kubeconfig: {told}. Name a file with --kubeconfig or KUBECONFIG, and one of its contexts with --context"
        ) from None
    chosen = next((one for one in contexts if one["name"] == context), current)
    return Cluster(ApiClient(settings), namespace or chosen["context"].get("namespace") or "default")


# --- what is told of refusals --------------------------------------------------------------------------------------


def denied_text(verb: str, resource: str, name: str, namespace: str, told: str) -> str:
    """Which right is missing, and the commands that grant it. `told`: the API server's own words."""
    name = "" if verb == "list" else name.partition(":")[0]
    user = _user(told)
    full = f"{resource}.{GROUP}" if resource == PLURAL else resource
    role = f"dbtunnel-{verb}-{resource.replace('/', '-')}"
    which = f" --resource-name={shlex.quote(name)}" if name and resource != "pods/proxy" else ""
    place = f"-n {shlex.quote(namespace)}"
    return "\n".join(
        [
            f"{user or 'you'} may not {verb} {full}{f' {name}' if name else ''} in namespace {namespace}."
            " Who may grant rights there can do it so:",
            f"  kubectl create role {role} {place} --verb={verb} --resource={full}{which}",
            f"  kubectl create rolebinding {role} {place} --role={role} {_subject(user)}",
        ]
    )


def _user(told: str) -> str:
    found = _USER.search(told)
    return printable(found[1], 200) if found else ""


def _subject(user: str) -> str:
    if user.startswith(_SERVICE_ACCOUNT):
        return f"--serviceaccount={shlex.quote(user.removeprefix(_SERVICE_ACCOUNT))}"
    return f"--user={shlex.quote(user) if user else 'USER'}"


def _refusal(status: int, data: bytes) -> str:
    if status == HTTPStatus.UNAUTHORIZED:
        return "the API server does not accept the credentials of the kubeconfig: log in again"
    return f"the API server answers {status}: {printable(_message(data), 600) or 'nothing more'}"


def _document(data: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, Mapping) else {}


def _is_status(data: bytes) -> bool:
    """Whether the API server itself wrote it: a forwarder's admin port forbids nothing."""
    return _document(data).get("kind") == "Status"


def _message(data: bytes) -> str:
    message = _document(data).get("message")
    return message if isinstance(message, str) else data[:600].decode(errors="replace")
