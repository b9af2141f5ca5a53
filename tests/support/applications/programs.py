"""The programs of docs/tls.md, run as they stand there."""

import os
import re
import subprocess
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from tests.support.applications.runtimes import JAVA, POSTGRES_JAR, runtimes
from tests.support.databases import PASSWORD
from tests.support.pages import COMMANDS, was_run
from tests.support.processes import ROOT

PAGE = ROOT / "docs" / "tls.md"

AUTHORITY_FILE = "/etc/database-ca/ca.crt"
"""Where the page has the authority's certificate."""

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

_FAST_JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xshare:auto"


@dataclass(frozen=True)
class Program:
    """A client's program on the page."""

    language: str
    text: str

    def with_changes(self, changes: Mapping[str, str]) -> "Program":
        """The same with other words in it."""
        text = self.text
        for old, new in changes.items():
            assert old in text, old
            text = text.replace(old, new)
        return replace(self, text=text)


def programs() -> Mapping[str, Program]:
    """Each by the heading of its client."""
    parts = PAGE.read_text().split("\n### ")[1:]
    return {part.split("\n", 1)[0]: Program(*_BLOCK.findall(part)[0]) for part in parts}


def host_aliases() -> list[str]:
    """The names that the page gives a pod besides."""
    (block,) = (text for language, text in _BLOCK.findall(PAGE.read_text()) if language == "yaml")
    return [name for alias in yaml.safe_load(block)["spec"]["hostAliases"] for name in alias["hostnames"]]


class Pod:
    """Where an application runs: some names resolve, and the databases' authority is in a file."""

    def __init__(self, directory: Path, addresses: Mapping[str, str]) -> None:
        """`addresses`: what each name resolves to."""
        self._directory = directory
        directory.mkdir()
        self._hosts = directory / "hosts"
        lines = {"localhost": "127.0.0.1", **addresses}.items()
        self._hosts.write_text("".join(f"{address} {name}\n" for name, address in lines))

    def run(self, program: Program, authority: Path) -> tuple[int, str]:
        """Its exit code, and what it printed."""
        text = program.text.replace(AUTHORITY_FILE, str(authority))
        script = _LANGUAGES[program.language](self._directory, text)
        become = [] if os.geteuid() == 0 else ["--map-root-user"]
        within = f'mount --bind "{self._hosts}" /etc/hosts && {script}'
        done = subprocess.run(
            ["unshare", *become, "--mount", "sh", "-c", within],
            cwd=self._directory,
            env=self._environment(authority),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if program.language == COMMANDS and done.returncode == 0:
            was_run("tls", program.text)
        return done.returncode, done.stdout + done.stderr

    def _environment(self, authority: Path) -> Mapping[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self._directory),
            "PGPASSWORD": PASSWORD,
            "MYSQL_PWD": PASSWORD,
            "SSL_CERT_FILE": str(authority),
            "NODE_PATH": str(runtimes().node_modules),
        }


def _written(directory: Path, name: str, text: str) -> Path:
    path = directory / name
    path.write_text(textwrap.dedent(text))
    return path


def _shell(directory: Path, text: str) -> str:
    return f'exec bash -euo pipefail "{_written(directory, "program.sh", text)}"'


def _python(directory: Path, text: str) -> str:
    return f'exec "{runtimes().python}" "{_written(directory, "program.py", text)}"'


def _node(directory: Path, text: str) -> str:
    return f'exec "{runtimes().node}" "{_written(directory, "program.js", text)}"'


def _java(directory: Path, text: str) -> str:
    (name,) = re.findall(r"^public class (\w+)", text, re.MULTILINE)
    path = _written(directory, f"{name}.java", text)
    classes, fast = f'-cp "{directory}:{POSTGRES_JAR}"', " ".join(f"-J{word}" for word in _FAST_JAVA.split())
    return f'"{JAVA}/javac" {fast} -proc:none {classes} "{path}" && exec "{JAVA}/java" {_FAST_JAVA} {classes} {name}'


_LANGUAGES: Mapping[str, Callable[[Path, str], str]] = {"sh": _shell, "python": _python, "js": _node, "java": _java}
"""How a program of each language is begun in a folder, by the block's language."""
