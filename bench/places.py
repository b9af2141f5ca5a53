"""Where the forwarder's time and memory go, as tables of Markdown. Pure, but for the sources that are quoted."""

import linecache
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from bench.report import table

Line = tuple[str, str, int, float, float]
"""File, function, number; seconds in the process and in the kernel."""

_MOST_LINES = 6
_LONGEST_CODE = 60
_KINDS = {
    "lines with a system call": re.compile(r"\.(send(msg)?|recv\w*|poll|setsockopt)\("),
    "lines with AES-GCM": re.compile(r"\.(en|de)crypt\w*\("),
    "Python alone": re.compile(""),
}
"""What a line is counted as: the first that fits."""
_IMPORT = re.compile(r"import time: +(\d+) \| +\d+ \| +([\w.]+)")
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)$")
_PACKAGE = re.compile(r"/(?:site|dist)-packages/(\w+)")
_MOST_FILES = 6


def lines_table(lines: Iterable[Line]) -> list[str]:
    """Shares of all, and the kernel's part of them: by what lines do, and of the lines that took most."""
    ordered = sorted(lines, key=lambda line: -line[3] - line[4])
    whole = sum(line[3] + line[4] for line in ordered)
    if not whole:
        return ["It took no processor time."]
    shown = [["", "share", "kernel's"]]
    for kind, sums in _by_kind(ordered).items():
        shown.append([kind, *(_percent(part, whole) for part in sums)])
    for file, function, number, user, kernel in ordered[:_MOST_LINES]:
        code = _code(file, number)[:_LONGEST_CODE].replace("|", "\\|")
        shares = _percent(user + kernel, whole), _percent(kernel, whole)
        shown.append([f"{Path(file).name}, {function}: `{code}`", *shares])
    return table(shown)


def _by_kind(lines: Iterable[Line]) -> Mapping[str, Sequence[float]]:
    """Seconds in all, and in the kernel."""
    sums = {kind: [0.0, 0.0] for kind in _KINDS}
    for file, _, number, user, kernel in lines:
        code = _code(file, number)
        kind = next(kind for kind, pattern in _KINDS.items() if pattern.search(code))
        sums[kind][0] += user + kernel
        sums[kind][1] += kernel
    return sums


def _code(file: str, number: int) -> str:
    return linecache.getline(file, number).strip()


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %"


def memory_table(maps: str) -> list[str]:
    """Resident memory by what it is of, from the text of /proc/PID/smaps: all of it, and that of this process alone."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    name = ""
    for line in maps.splitlines():
        if mapping := _MAPPING.match(line):
            name = _kind(mapping[1])
        elif line.startswith(("Rss:", "Private_Clean:", "Private_Dirty:")):
            found[name][0 if line.startswith("Rss:") else 1] += int(line.split()[1])
    ordered = sorted(found.items(), key=lambda item: -item[1][0])
    named, others = ordered[:_MOST_FILES], [sizes for _, sizes in ordered[_MOST_FILES:]]
    sums = [("other files", _sums(others)), ("all", _sums(list(found.values())))]
    rows = [[name, *(f"{size / 1024:.1f}" for size in sizes)] for name, sizes in [*named, *sums]]
    return table([["of", "MiB", "of it no other process's"], *rows])


def _sums(sizes: Sequence[Sequence[int]]) -> list[int]:
    return [sum(each[place] for each in sizes) for place in (0, 1)]


def _kind(name: str) -> str:
    """Whose memory a mapping is: no file's, a package's, or a file's."""
    if not name.startswith("/"):
        return "what it allocates"
    package = _PACKAGE.search(name)
    return package[1] if package else Path(name).name


def imports_table(log: str) -> list[str]:
    """What importing took, from the lines of Python's `-X importtime`: of each package, without what it imports."""
    found: dict[str, int] = defaultdict(int)
    for microseconds, module in _IMPORT.findall(log):
        found[module.partition(".")[0]] += int(microseconds)
    whole = sum(found.values())
    named = [(name, found.pop(name, 0)) for name in ("asyncssh", "cryptography", "asyncio", "dbtunnel")]
    rows = [*named, ("all others, most of them Python's own", sum(found.values())), ("all", whole)]
    return table([["imports", "ms", "share"], *([name, f"{us / 1000:.0f}", _percent(us, whole)] for name, us in rows)])


def milestones(begun: float, first_byte: float, cpu_seconds: float, events: Sequence[Mapping[str, str]]) -> list[str]:
    """When the process got where, in ms from its start; times in Unix seconds."""
    at = {event["event"]: datetime.fromisoformat(event["time"]).timestamp() for event in reversed(events)}
    reached = [
        ("it listens (event `started`)", at["started"] - begun),
        ("it is logged in (event `connected`)", at["connected"] - begun),
        ("the client has its first byte", first_byte - begun),
        ("processor time of all that", cpu_seconds),
    ]
    return table([["until", "ms"], *([what, f"{1000 * seconds:.0f}"] for what, seconds in reached)])
