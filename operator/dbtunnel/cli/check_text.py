"""What a test of a tunnel has shown, for a person: the layers, the tree of hops, what to do last."""

from collections.abc import Iterable, Iterator, Sequence

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import LayerStatus
from dbtunnel.api.reasons import Reason
from dbtunnel.cli.advice import name_of, told
from dbtunnel.cli.results import CheckedHop, CheckResult, Layer
from dbtunnel.cli.terminal import COLUMNS, Color, Style, wrapped
from dbtunnel.domain.hops import Role

_STATE_COLUMNS, _TIME_COLUMNS = 11, 9

_STEPS = {
    "connect": "connect",
    "version": "version",
    "key_exchange": "key exchange",
    "authentication": "login",
    "channel": "channel",
    "database": "answer",
}


def text_of(result: CheckResult, style: Style) -> str:
    """Lines of at most COLUMNS, but for names and keys that are longer."""
    lines = [
        style.text(f"{result.tunnel}: {result.engine} {result.database_address}", Color.BOLD),
        "",
        *(_row(layer.type, layer, style, shows_reason=True) for layer in result.layers),
        "",
        *_tree(result, style),
        "",
        *_advice(result, style),
    ]
    return "\n".join(lines) + "\n"


def _row(name: str, layer: Layer, style: Style, before: str = "", *, shows_reason: bool = False) -> str:
    """A name, what became of it, how long it took."""
    state, color = _state(layer)
    taken = "" if layer.milliseconds is None else f"{layer.milliseconds:.0f} ms"
    words = [style.text(state, color), " " * (_STATE_COLUMNS - len(state)), taken.rjust(_TIME_COLUMNS)]
    if shows_reason and layer.status == LayerStatus.FALSE:
        words.append(f"  {layer.reason}")
    width = 20 if shows_reason else COLUMNS - 2 - _STATE_COLUMNS - _TIME_COLUMNS
    return f"{before}{style.text(name.ljust(width - len(before)))}  {''.join(words)}".rstrip()


def _state(layer: Layer) -> tuple[str, Color]:
    if layer.status == LayerStatus.TRUE:
        return "ok", Color.GREEN
    if layer.status == LayerStatus.FALSE:
        return "FAILED", Color.RED
    return ("not probed" if layer.reason == Reason.NOT_PROBED else "not reached"), Color.DIM


# --- the tree -----------------------------------------------------------------------------------------------------


def _tree(result: CheckResult, style: Style) -> Iterator[str]:
    """Each jump host stands behind the one before, bastion and fallbacks beside each other behind the last."""
    jumps = [hop for hop in result.hops if hop.role == Role.JUMP_HOST]
    ends = result.hops[len(jumps) :]
    indent = ""
    for depth, jump in enumerate(jumps):
        branch, indent = _branch(style, indent, is_first=not depth, is_last=True)
        yield from _hop(jump, style, branch, indent)
    for end in ends:
        branch, deeper = _branch(style, indent, is_first=not jumps, is_last=end is ends[-1])
        yield from _hop(end, style, branch, deeper)
        database, deepest = _branch(style, deeper, is_first=False, is_last=True)
        yield _row(f"database {result.database_address}", end.layers[-1], style, database)
        yield from _details(_of_database(end, deepest), style, deepest)


def _branch(style: Style, indent: str, *, is_first: bool, is_last: bool) -> tuple[str, str]:
    """What stands before a row, and before the rows behind it; the first of all has nothing before it."""
    if is_first:
        return indent, indent
    return indent + (style.last if is_last else style.branch), indent + (" " * 3 if is_last else style.line)


def _hop(hop: CheckedHop, style: Style, before: str, indent: str) -> Iterator[str]:
    own = [layer for layer in hop.layers if layer.type != ConditionType.DATABASE_REACHABLE]
    first = next((layer for layer in own if layer.status != LayerStatus.TRUE), own[-1])
    taken = [layer.milliseconds for layer in own if layer.milliseconds is not None]
    row = first.model_copy(update={"milliseconds": sum(taken) if taken else None})
    yield _row(name_of(hop), row, style, before)
    yield from _details(_of_hop(hop), style, indent + style.line)


def _of_hop(hop: CheckedHop) -> Iterator[str]:
    yield _steps(hop, list(_STEPS)[:4])
    if hop.server_version:
        yield hop.server_version
    if hop.host_key_fingerprints:
        yield f"host key {hop.host_key_fingerprints[0]}"


def _of_database(hop: CheckedHop, indent: str) -> Iterator[str]:
    yield _steps(hop, list(_STEPS)[4:])
    layer = hop.layers[-1]
    if layer.status == LayerStatus.TRUE:
        yield from (line.removeprefix(indent) for line in wrapped(layer.message, indent))


def _steps(hop: CheckedHop, names: Sequence[str]) -> str:
    taken = [(_STEPS[name], getattr(hop.milliseconds, name)) for name in names]
    words = ", ".join(f"{step} {milliseconds:.0f}" for step, milliseconds in taken if milliseconds is not None)
    return f"{words} ms" if words else ""


def _details(texts: Iterable[str], style: Style, indent: str) -> Iterator[str]:
    for text in filter(None, texts):
        yield indent + style.text(text, Color.DIM)


# --- what to do ---------------------------------------------------------------------------------------------------


def _advice(result: CheckResult, style: Style) -> Iterator[str]:
    """What else has failed, then the verdict, with what to add and where."""
    for hop in result.hops:
        for layer in hop.layers:
            if layer.status == LayerStatus.FALSE and layer.message not in result.message:
                yield from told(layer.message, result.hops, style)
                yield ""
    if result.ready:
        way = next(hop for hop in result.hops if hop.active and hop.role != Role.JUMP_HOST)
        yield style.text(f"READY through {name_of(way)}", Color.GREEN)
    else:
        yield style.text(f"NOT READY: {result.reason}", Color.RED)
    yield from told(result.message, result.hops, style)
