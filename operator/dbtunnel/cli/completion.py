"""`dbtunnel completion`: what a shell needs to complete the command, read from the command line's own declaration."""

import argparse
import shlex
from collections.abc import Mapping, Sequence

from dbtunnel.cli.main import COMMANDS, build_parser

EXAMPLE = """\
  source <(dbtunnel completion bash)     # in ~/.bashrc
  source <(dbtunnel completion zsh)      # in ~/.zshrc

`kubectl dbtunnel` needs none: kubectl's own completion asks
kubectl_complete-dbtunnel, which is installed beside it.
"""

_BASH = """\
_dbtunnel() {{
  local words word="${{COMP_WORDS[COMP_CWORD]}}"
  if [ "$COMP_CWORD" -eq 1 ]; then words={commands}
  else case "${{COMP_WORDS[1]}} ${{COMP_WORDS[COMP_CWORD-1]}}" in
{values}
    *) case "${{COMP_WORDS[1]}}" in
{options}
    esac;;
  esac; fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -o default -F _dbtunnel dbtunnel
"""

_ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"
"""zsh takes bash's functions then."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shell."""
    parser.add_argument("shell", choices=("bash", "zsh"))


def run(arguments: argparse.Namespace) -> int:
    """Prints the script."""
    print((_ZSH if arguments.shell == "zsh" else "") + bash_script(subcommands(build_parser())), end="")
    return 0


def bash_script(parsers: Mapping[str, argparse.ArgumentParser]) -> str:
    """The function of bash that completes commands, options, and values of which there are few."""
    values = [
        f"    {_pattern(name, option)}) words={shlex.quote(' '.join(choices))};;"
        for name, parser in parsers.items()
        for option, choices in choices_of(parser).items()
    ]
    options = [f"      {name}) words={shlex.quote(' '.join(options_of(one)))};;" for name, one in parsers.items()]
    return _BASH.format(commands=shlex.quote(" ".join(COMMANDS)), values="\n".join(values), options="\n".join(options))


def _pattern(name: str, option: str) -> str:
    return shlex.quote(f"{name} {option or name}")


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the subcommands, by name."""
    actions = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    return {name: one for action in actions for name, one in action.choices.items()}


def options_of(parser: argparse.ArgumentParser) -> list[str]:
    """All options, long and short."""
    return [option for action in parser._actions for option in action.option_strings]


def choices_of(parser: argparse.ArgumentParser) -> dict[str, Sequence[str]]:
    """The values that an option may have, where there are few; under the empty name those of an argument."""
    return {
        option: [str(choice) for choice in action.choices]
        for action in parser._actions
        if action.choices
        for option in action.option_strings or [""]
    }
