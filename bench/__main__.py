"""`python -m bench run` measures; `python -m bench insert README.md` puts the last run's tables into a document;
`python -m bench profile` says where the time and the memory of rows go.
"""

import argparse
import contextlib
import json
import resource
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from bench.contenders import CONTENDERS
from bench.loads import FULL, QUICK
from bench.machine import machine
from bench.measure import measure, say_with_time
from bench.profile import LONG, profile
from bench.report import insert, markdown, write
from bench.rows import ROWS, loads_of
from tests.support.bastion import PACKAGES
from tests.support.databases import PostgresServer
from tests.support.debian import MissingPackageError, ensure_packages
from tests.support.processes import ROOT, ProcessError

OUTPUT = ROOT / "build" / "bench"
_ROUNDS, _QUICK_ROUNDS = 5, 2


def main() -> int:
    """Runs the command line; 1 where something cannot be had or fails."""
    arguments = _parser().parse_args()
    try:
        _COMMANDS[arguments.command](arguments)
    except (MissingPackageError, ProcessError, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure, print the tables and write them")
    run.add_argument("--rounds", type=int, metavar="N", help=f"default {_ROUNDS}; with --quick {_QUICK_ROUNDS}")
    run.add_argument("--rows", type=_words, default=(), help=f"of {','.join(row.name for row in ROWS)}")
    run.add_argument("--contenders", type=_words, default=tuple(CONTENDERS), help=f"of {','.join(CONTENDERS)}")
    run.add_argument("--quick", action="store_true", help="shorter measurements, for a first look")
    run.add_argument("--output", type=Path, default=OUTPUT, help="folder of bench.json and bench.md (%(default)s)")
    where = commands.add_parser("profile", help="say where the time and the memory of rows go, and write it")
    where.add_argument("--rows", type=_words, default=(), help="as those of run")
    where.add_argument("--output", type=Path, default=OUTPUT / "profile.md", help="default %(default)s")
    where.add_argument("--into", type=Path, metavar="DOCUMENT", help="put it between the marker comments, too")
    put = commands.add_parser("insert", help="put the tables between the two marker comments of a document")
    put.add_argument("document", type=Path)
    put.add_argument("--result", type=Path, default=OUTPUT / "bench.json", help="default %(default)s")
    return parser


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


@contextlib.contextmanager
def _prepared(rows: Collection[str], contenders: Collection[str] = ()) -> Iterator[Path]:
    """A directory to measure in, for rows and contenders that there are."""
    unknown = set(rows) - {row.name for row in ROWS} | set(contenders) - set(CONTENDERS)
    if unknown:
        raise ValueError(f"there is no {', '.join(sorted(unknown))}; see --help")
    ensure_packages({**PACKAGES, **PostgresServer.packages})
    # a channel is two descriptors for each who forwards
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        Path(directory).chmod(0o755)  # servers run as other users
        yield Path(directory)


def _run(arguments: argparse.Namespace) -> None:
    rounds = arguments.rounds or (_QUICK_ROUNDS if arguments.quick else _ROUNDS)
    sizes = QUICK if arguments.quick else FULL
    document = {"machine": machine(), "rounds": rounds, "quick": arguments.quick}
    with _prepared(arguments.rows, arguments.contenders) as directory:
        loads = loads_of(arguments.rows)
        results = measure(directory, loads, sizes, rounds, say_with_time(), arguments.contenders)
    document |= {"results": results.values, "failures": results.failures}
    files = write(document, arguments.output)
    print(f"\n{markdown(document)}\nwritten: {', '.join(map(str, files))}")
    if results.failures:
        raise ProcessError("\n".join(["failed:", *results.failures]))


def _profile(arguments: argparse.Namespace) -> None:
    with _prepared(arguments.rows) as directory:
        told = profile(directory, loads_of(arguments.rows), LONG, say_with_time())
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(told)
    if arguments.into:
        arguments.into.write_text(insert(arguments.into.read_text(), told))
    print(f"\n{told}\nwritten: {arguments.output}")


def _insert(arguments: argparse.Namespace) -> None:
    document = json.loads(arguments.result.read_text())
    arguments.document.write_text(insert(arguments.document.read_text(), markdown(document)))


_COMMANDS = {"run": _run, "profile": _profile, "insert": _insert}


if __name__ == "__main__":
    sys.exit(main())
