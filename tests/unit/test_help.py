"""`--help` of every command has examples, and each of them is a command line that it takes."""

import argparse
import re
import shlex
from collections.abc import Callable

import pytest

from dbtunnel.cli import main as dbtunnel
from dbtunnel.cli.completion import subcommands
from dbtunnel.cli.plugin import main as plugin
from dbtunnel.cli.terminal import COLUMNS

PROGRAMS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "dbtunnel": dbtunnel.build_parser,
    "kubectl dbtunnel": plugin.build_parser,
}
COMMANDS = [(program, name) for program, build in PROGRAMS.items() for name in subcommands(build())]


def examples(program: str, text: str) -> list[str]:
    """What follows the program's name in the lines of examples, up to a pipe or the like."""
    lines = [line for line in text.partition("\nexample:\n")[2].splitlines() if re.match(r"  \S", line)]
    return re.findall(rf"(?<!kubectl ){program} ([^|&>)#\n]+)", "\n".join(lines))


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_command_has_an_example_that_it_takes(program: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    parser = PROGRAMS[program]()
    text = subcommands(parser)[name].format_help()
    shown = examples(program, text)
    assert [one for one in shown if one.split()[0] == name], text
    for example in shown:
        parser.parse_args(shlex.split(example))
    assert [line for line in text.splitlines() if len(line) > COLUMNS] == []


def test_an_example_that_is_not_taken_is_noticed() -> None:
    (example,) = examples("dbtunnel", "\nexample:\n  dbtunnel crd --loud | less\n      prints it\n")
    with pytest.raises(SystemExit):
        dbtunnel.build_parser().parse_args(shlex.split(example))
