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

_MOST_LINES = 12
_LONGEST_CODE = 60
_IMPORT = re.compile(r"import time: +(\d+) \| +\d+ \| +([\w.]+)")
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)$")
_PACKAGE = re.compile(r"/(?:site|dist)-packages/(\w+)")
_MOST_FILES = 6


def lines_table(lines: Iterable[Line]) -> list[str]:
    """The lines that took most, as shares of all, and how much of that was in the kernel."""
    ordered = sorted(lines, key=lambda line: -line[3] - line[4])
    whole = sum(line[3] + line[4] for line in ordered)
    if not whole:
        return ["It took no processor time."]
    shown = [["share", "kernel's", "function", "line"]]
    for file, function, number, user, kernel in ordered[:_MOST_LINES]:
        code = linecache.getline(file, number).strip()[:_LONGEST_CODE].replace("|", "\\|")
        shown.append([_percent(user + kernel, whole), _percent(kernel, whole), _place(file, function), f"`{code}`"])
    rest = ordered[_MOST_LINES:]
    kernels = sum(line[4] for line in rest)
    used = kernels + sum(line[3] for line in rest)
    shown.append([_percent(used, whole), _percent(kernels, whole), f"{len(rest)} other lines", ""])
    return table(shown)


def _place(file: str, function: str) -> str:
    return f"{Path(file).name} {function}"


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
