"""What the operator counts, declared once: the text at /metrics and its documentation come from here."""

from http import HTTPStatus

from dbtunnel.domain.metrics import Kind, Label, Metric, Values

_RESULTS = ("succeeded", "conflict", "refused", "failed")
_CODES = frozenset(str(status.value) for status in HTTPStatus if status >= HTTPStatus.MULTIPLE_CHOICES)
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
_CHILDREN = ("Service", "NetworkPolicy", "PodDisruptionBudget", "Deployment")
_WRITTEN = (*_CHILDREN, "DatabaseTunnel/status", "Pod", "Secret", "Event", "Lease")

_RESULT = Label(
    "result",
    "`succeeded`; `conflict`: somebody else wrote meanwhile; `refused`: the API server refused or did not answer;"
    " `failed`: a bug",
    len(_RESULTS),
    known=_RESULTS,
)
_KIND = Label("kind", ", ".join(_WRITTEN), len(_WRITTEN))
_CHILD = Label("kind", ", ".join(_CHILDREN), len(_CHILDREN), known=_CHILDREN)
_VERB = Label("verb", "`create`, `update`, `patch`, `delete`", 4)
_METHOD = Label("method", ", ".join(f"`{method}`" for method in _METHODS), len(_METHODS))
_CODE = Label("code", "the HTTP status; `none` where it did not answer, `other` for one of nobody's", len(_CODES) + 2)
_READY = Label("ready", "`True`, `False`, `Unknown`", 3)
_NAMESPACE = Label("namespace", "the tunnel's", None)
_TUNNEL = Label("tunnel", "the tunnel's name", None)
_REASON = Label("reason", "that of its condition Ready, of [conditions.md](conditions.md); one at a time", None)

RECONCILE_SECONDS = Metric(
    "dbtunnel_operator_reconcile_seconds",
    Kind.HISTOGRAM,
    "Reconciles of tunnels: how long each took, and how it ended.",
    (_RESULT,),
    buckets=(0.01, 0.1, 0.5, 2.5, 10, 60),
)
API_WRITES = Metric("dbtunnel_operator_api_writes_total", Kind.COUNTER, "Writes to the API server.", (_KIND, _VERB))
API_ERRORS = Metric(
    "dbtunnel_operator_api_errors_total",
    Kind.COUNTER,
    "Requests that the API server refused or did not answer. A 404 of a GET and a 409 may be as they should be. Watches"
    " are not counted, nor what pods answer through its proxy.",
    (_METHOD, _CODE),
)
REPAIRS = Metric("dbtunnel_operator_repairs_total", Kind.COUNTER, "Children that were not as wanted.", (_CHILD,))
QUEUE_DEPTH = Metric("dbtunnel_operator_queue_depth", Kind.GAUGE, "Tunnels that wait for a reconcile.")
LAST_RECONCILE = Metric(
    "dbtunnel_operator_last_reconcile_age_seconds", Kind.GAUGE, "Time since the last finished reconcile."
)
WORKING = Metric(
    "dbtunnel_operator_working", Kind.GAUGE, "1 while this one reconciles, 0 while it stands by or waits at its start."
)
TUNNELS = Metric("dbtunnel_operator_tunnels", Kind.GAUGE, "Tunnels by the status of their condition Ready.", (_READY,))
TUNNEL_READY = Metric(
    "dbtunnel_operator_tunnel_ready",
    Kind.GAUGE,
    "1 while the tunnel's condition Ready is True, else 0. By the operator that works alone; not for a tunnel that is"
    " being deleted.",
    (_NAMESPACE, _TUNNEL, _REASON),
)

METRICS = (
    RECONCILE_SECONDS,
    API_WRITES,
    API_ERRORS,
    REPAIRS,
    QUEUE_DEPTH,
    LAST_RECONCILE,
    WORKING,
    TUNNELS,
    TUNNEL_READY,
)
"""All of them, in the order of /metrics."""


def code_of(status: int) -> str:
    """The label for an HTTP status: whatever is between the operator and the API server cannot make up others."""
    return str(status) if str(status) in _CODES else "other"


class Metrics(Values):
    """Their values in a process."""

    def __init__(self) -> None:
        super().__init__(METRICS)
