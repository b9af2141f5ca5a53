"""What a test of a tunnel has shown, for a person: the layers, the tree of hops, what to do last."""

from collections.abc import Iterable, Iterator, Sequence

from dbtunnel.api.conditions import ConditionType
from dbtunnel.api.forwarder import LayerStatus
from dbtunnel.api.reasons import Reason
from dbtunnel.cli.advice import name_of, told
from dbtunnel.cli.results import CheckedHop, CheckResult, Layer
from dbtunnel.cli.terminal import COLUMNS, Color, Style
from dbtunnel.domain.hops import Role

_LAYER_COLUMNS, _STATE_COLUMNS, _TIME_COLUMNS = 20, 11, 9
_AFTER_NAME_COLUMNS = 2 + _STATE_COLUMNS + _TIME_COLUMNS
_DEEPER_COLUMNS = 3

_STEPS = {
    "connect": "connect",
    "version": "version",
    "key_exchange": "key exchange",
    "authentication": "login",
    "channel": "channel",
    "database": "answer",
}


def text_of(result: CheckResult, style: Style) -> str:
    """Lines that fit, but for names and keys that are longer."""
    lines = [
        style.text(f"{result.tunnel}: {result.engine} {result.database_address}", Color.BOLD),
        "",
        *(_layer(layer, style) for layer in result.layers),
        "",
        *_tree(result, style),
        "",
        *_advice(result, style),
    ]
    return "\n".join(lines) + "\n"


def _layer(layer: Layer, style: Style) -> str:
    row = _row(layer.type, layer, style, _LAYER_COLUMNS)
    return f"{row}  {style.text(layer.reason)}" if layer.status == LayerStatus.FALSE else row.rstrip()


def _row(name: str, layer: Layer, style: Style, columns: int, before: str = "") -> str:
    """A name, for which there are so many columns with what stands before it, what became of it, how long it took."""
    state, color = _state(layer)
    taken = "" if layer.milliseconds is None else f"{layer.milliseconds:.0f} ms"
    words = style.text(state, color) + " " * (_STATE_COLUMNS - len(state)) + taken.rjust(_TIME_COLUMNS)
    return f"{before}{style.text(name.ljust(columns - len(before)))}  {words}"


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
    database = f"database {result.database_address}"
    columns = _name_columns([*map(name_of, result.hops), database], len(jumps) + 1, style)
    indent = ""
    for depth, jump in enumerate(jumps):
        branch, indent = _branch(style, indent, is_first=not depth, is_last=True)
        yield from _hop(jump, style, columns, branch, indent)
    for end in ends:
        branch, deeper = _branch(style, indent, is_first=not jumps, is_last=end is ends[-1])
        yield from _hop(end, style, columns, branch, deeper)
        branch, deepest = _branch(style, deeper, is_first=False, is_last=True)
        yield _row(database, end.layers[-1], style, columns, branch).rstrip()
        yield from _details(_of_database(end), style, deepest)


def _name_columns(names: Iterable[str], deepest: int, style: Style) -> int:
    """As many as there are at COLUMNS, and more for longer names where the terminal has them."""
    wanted = max(map(len, names)) + deepest * _DEEPER_COLUMNS
    return min(max(wanted, COLUMNS - _AFTER_NAME_COLUMNS), style.columns - _AFTER_NAME_COLUMNS)


def _branch(style: Style, indent: str, *, is_first: bool, is_last: bool) -> tuple[str, str]:
    """What stands before a row, and before the rows behind it; the first of all has nothing before it."""
    if is_first:
        return indent, indent
    branch, deeper = (style.last, " " * _DEEPER_COLUMNS) if is_last else (style.branch, style.line)
    return indent + branch, indent + deeper


def _hop(hop: CheckedHop, style: Style, columns: int, before: str, indent: str) -> Iterator[str]:
    own = [layer for layer in hop.layers if layer.type != ConditionType.DATABASE_REACHABLE]
    first = next((layer for layer in own if layer.status != LayerStatus.TRUE), own[-1])
    taken = [layer.milliseconds for layer in own if layer.milliseconds is not None]
    row = first.model_copy(update={"milliseconds": sum(taken) if taken else None})
    yield _row(name_of(hop), row, style, columns, before).rstrip()
    yield from _details(_of_hop(hop), style, indent + style.line)


def _of_hop(hop: CheckedHop) -> Iterator[str]:
    yield _steps(hop, list(_STEPS)[:4])
    if hop.server_version:
        yield hop.server_version
    if hop.host_key_fingerprints:
        yield f"host key {hop.host_key_fingerprints[0]}"


def _of_database(hop: CheckedHop) -> Iterator[str]:
    yield _steps(hop, list(_STEPS)[4:])
    layer = hop.layers[-1]
    if layer.status == LayerStatus.TRUE:
        yield layer.message


def _steps(hop: CheckedHop, names: Sequence[str]) -> str:
    taken = [(_STEPS[name], getattr(hop.milliseconds, name)) for name in names]
    words = ", ".join(f"{step} {milliseconds:.0f}" for step, milliseconds in taken if milliseconds is not None)
    return f"{words} ms" if words else ""


def _details(texts: Iterable[str], style: Style, indent: str) -> Iterator[str]:
    for text in filter(None, texts):
        yield from style.wrapped(text, Color.DIM, indent)


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
