"""The events of the logs: what the code says, and what each means, for docs/logs.md."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).parents[2] / "operator" / "dbtunnel"

FORWARDER = {
    "started": "It listens. By which packets it means to carry data, as the self-check at the start has it.",
    "connected": "An SSH connection takes new clients from now on; by which packets, and why not by its own.",
    "connection lost": "One is gone with its sessions; what was seen. It is made anew.",
    "connection unanswered": "Packets to its server are dropped, it seems: another is made for new clients.",
    "connection retired": "Another has taken its place. It ends with the last of its sessions.",
    "connection of a revoked key ended": "It was made with a key that the Secret now lists as revoked.",
    "another connection failed": "One that was to take the place of the current one, which goes on.",
    "further connection failed": "One beside the first, where `tunnel.connections` wants several.",
    "layer changed": "A layer works, does not work, or is not known to; the message is the condition's. At most 20 a"
    " minute of each layer.",
    "passed over": "A bastion or fallback cannot be used, where others may do in its place.",
    "next key cannot be used": "The key that is to replace the current one fails.",
    "certificate not valid now": "A key's certificate has expired, or its time has not come, so that the key alone is"
    " offered.",
    "certificate not accepted": "The server takes a key alone, or another one: why, and what to do.",
    "server holds host keys that are not pinned": "It proved to hold them. Before it changes to one, pin it.",
    "not hardened": "A debugger of the same user could read the key, since the system does not prevent it.",
    "client taken": "A client has connected. `id` is its number in this process, in each of its events.",
    "client parked": "It waits, since there is no SSH connection.",
    "channel asked for": "The SSH server is to connect to the database for it.",
    "session begun": "The server has; after so many seconds.",
    "client refused": "Its connection is reset; the reason is that of `dbtunnel_forwarder_clients_refused_total`.",
    "client gone": "It had no session. Each client's last event is this or `session ended`.",
    "session ended": "Bytes that the client sent and received, seconds, and how it ended.",
    "clients refused": "For `Parking`, `Silent` or `TooManyClients`: how many since this was last told for the reason,"
    " and the latest's address. The first is told at once, then once a minute at most; the metric counts them all.",
    "connection limit reached": "`connectionLimits.max`; told once a minute at most.",
    "client left before its login": "Of MySQL, whose server counts it against the bastion; told once a minute at most.",
    "no client can be taken": "The system has no descriptor or no memory for it.",
    "draining": "It was told to end, and lets clients finish.",
    "ended": "It ends.",
}

OPERATOR = {
    "started": "It works: all lists are there.",
    "waiting for the API server": "At its start.",
    "elected": "It holds the Lease, and begins.",
    "lease not taken": "Another holds it (debug), or the API server does not answer.",
    "lease not given up": "At its end; another takes over once it has expired.",
    "reconciled": "One tunnel; `result` is that of `dbtunnel_operator_reconcile_seconds`. With `error`, or with the"
    " `requeue_seconds` after which it looks again. A warning where it was refused, else debug.",
    "child created": "An object of a tunnel.",
    "child written": "It differed from what is wanted.",
    "child deleted": "It is not wanted any more.",
    "secret created": "A Secret with a generated key, or with what workloads bind to.",
    "event not posted": "An Event of a tunnel: it is refused, or an hour has passed.",
    "event waits": "The API server did not take an Event of a tunnel; it is tried again.",
    "forwarder not read": "A bug, met in what a pod answered.",
    "namespace not readable": "One of `settings.namespaces` refuses lists.",
    "resync failed": "The comparison with fresh lists; it is tried again soon.",
    "ended": "It ends.",
    "the operator ends": "It cannot go on.",
}

MEANINGS = {"forwarder": FORWARDER, "controller": OPERATOR}
"""By the package that logs them, in the order of a life."""


@dataclass(frozen=True)
class Event:
    """An event as a call in the code has it."""

    name: str
    level: str
    fields: tuple[str, ...]


def events_of(package: str) -> list[Event]:
    """Every event that a package logs, once for each call. Raises ValueError where a name cannot be read."""
    folders = [SOURCES / package] if package == "forwarder" else [SOURCES / package, SOURCES / "cli" / "operator.py"]
    paths = [path for folder in folders for path in (sorted(folder.glob("*.py")) if folder.is_dir() else [folder])]
    return [event for path in paths for event in _in(path)]


def _in(path: Path) -> Iterator[Event]:
    for function in ast.walk(ast.parse(path.read_text())):
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef) and function.name not in ("event", "_trace"):
            for node in ast.walk(function):
                if isinstance(node, ast.Call):
                    yield from _of(node, function, path)


def _of(call: ast.Call, function: ast.AST, path: Path) -> Iterator[Event]:
    called = ast.unparse(call.func)
    fields = tuple(word.arg for word in call.keywords if word.arg and word.arg != "level")
    if called == "self._trace":
        for name in _texts(call.args[0], function, path):
            yield Event(name, "debug", ("id", "client", *fields))
    elif called in ("event", "logs.event"):
        for name in _texts(call.args[1], function, path):
            yield Event(name, _level(call, function), fields)


def _texts(node: ast.expr, function: ast.AST, path: Path) -> list[str]:
    """The names that an expression can have: a text, one of two, or a variable that was set to such."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, function, path), *_texts(node.orelse, function, path)]
    if isinstance(node, ast.Name):
        set_to = [one.value for one in ast.walk(function) if isinstance(one, ast.Assign) and _sets(one, node.id)]
        if set_to:
            return [name for value in set_to for name in _texts(value, function, path)]
    raise ValueError(f"{path}:{node.lineno}: the name of an event is a text, so that it stays what it is")


def _sets(assignment: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in assignment.targets)


def _level(call: ast.Call, function: ast.AST) -> str:
    given = next((word.value for word in call.keywords if word.arg == "level"), None)
    if given is None:
        return "info"
    if isinstance(given, ast.Attribute):
        return given.attr.lower()
    levels = [one.attr.lower() for one in ast.walk(function) if isinstance(one, ast.Attribute) and one.attr.isupper()]
    return " or ".join(level for level in ("debug", "info", "warning", "error") if level in levels)
