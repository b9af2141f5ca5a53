"""The command line of `kubectl dbtunnel`, its help and its completion, and that of `dbtunnel`."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from dbtunnel.cli import completion
from dbtunnel.cli import main as dbtunnel
from dbtunnel.cli.plugin import complete
from dbtunnel.cli.plugin.main import COMMANDS, main
from dbtunnel.cli.terminal import COLUMNS
from tests.support.debian import ensure_packages
from tests.support.pages import follow_here
from tests.support.processes import run
from tests.support.zsh import PACKAGES, typed


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: kubectl dbtunnel {name} ")
    assert f"\nexample:\n  kubectl dbtunnel {name} orders" in text
    assert "--kubeconfig FILE" in text
    assert [line for line in text.splitlines() if len(line) > COLUMNS] == []


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert [name for name in COMMANDS if f"    {name}" not in text] == []


def test_what_cannot_be_tried_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "orders", "--kubeconfig", str(tmp_path / "none")]) == 2
    assert "kubectl dbtunnel: kubeconfig: " in capsys.readouterr().err
    assert main(["rotate-key", "orders", "--now"]) == 2
    assert "--now goes with --finish" in capsys.readouterr().err


# --- completion ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        ([""], list(COMMANDS)),
        (["st"], ["status"]),
        (["handout", "orders", "-o", ""], ["text", "markdown"]),
        (["rotate-key", "orders", "--f"], ["--finish"]),
        (["rotate-key", "--type", "E"], ["Ed25519", "ECDSA"]),
        (["trust", "orders", "--kube"], ["--kubeconfig"]),
        (["trust", "-n", ""], []),
        (["nothing", ""], []),
        ([], list(COMMANDS)),
        (["status", "--kubeconfig", "/nonexistent", ""], []),
        (["status", "-n"], ["-n"]),
    ],
)
def test_what_kubectl_is_told(words: Sequence[str], candidates: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert complete.main(words) == 0
    assert capsys.readouterr().out.splitlines() == [*candidates, ":4"]


def completed(shell: str, tmp_path: Path, *words: str) -> list[str]:
    """What bash completes of the words, the last of which is unfinished."""
    script = tmp_path / "completion"
    script.write_text(completion.bash_script(completion.subcommands(dbtunnel.build_parser())))
    line = " ".join(f'"{word}"' for word in ("dbtunnel", *words))
    told = (
        f'source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words)}; _dbtunnel; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    return run([shell, "-c", told]).split()


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        ([""], list(dbtunnel.COMMANDS)),
        (["ren"], ["render"]),
        (["forward", "--known-hosts"], ["--known-hosts-directory", "--known-hosts"]),
        (["forward", "--packets", ""], ["own", "asyncssh"]),
        (["completion", ""], ["bash", "zsh"]),
        (["render", "--packets", ""], []),
    ],
)
def test_what_bash_completes(tmp_path: Path, words: list[str], candidates: list[str]) -> None:
    found = completed("bash", tmp_path, *words)
    assert sorted(found) == sorted(candidates) or (not candidates and "--packets" not in found)


@pytest.mark.parametrize(
    ("words", "whole"), [("dbtunnel ren", "dbtunnel render "), ("dbtunnel forward --packets o", "--packets own ")]
)
def test_zsh_completes_at_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, whole: str
) -> None:
    ensure_packages(PACKAGES)
    assert dbtunnel.main(["completion", "zsh"]) == 0
    assert whole in typed(tmp_path, capsys.readouterr().out, words, whole)


def test_the_script_is_printed_and_sourced(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    follow_here("plugin", tmp_path, "completion bash")
    assert dbtunnel.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    assert dbtunnel.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out == completion._ZSH + script
