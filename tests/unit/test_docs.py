"""What the documents say is there: links, manifests, targets, messages, the settings of sshd."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from dbtunnel.api.conditions import CAUSAL_ORDER
from dbtunnel.api.crd import resource_schema
from dbtunnel.api.engines import ENGINES
from dbtunnel.api.forwarder import PublicKeyFact
from dbtunnel.api.reasons import Reason
from dbtunnel.api.resource import KIND
from dbtunnel.cli.manifests import parse_tunnel
from dbtunnel.domain.diagnosis import Subject, explain
from dbtunnel.domain.forwarding import forwarder_config
from dbtunnel.domain.settings import Defaults
from tests.support.bastion import HARDENED
from tests.support.generated import ROOT

_FOLDERS = (".", "docs", "charts/dbtunnel-operator", "examples")
DOCUMENTS = sorted(path for folder in _FOLDERS for path in (ROOT / folder).glob("*.md"))
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_MAKE = re.compile(r"\bmake ([a-z][a-z-]*)")
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    return path.read_text()


def one_line(text: str) -> str:
    """Without line ends and other spaces, which come with wrapping."""
    return "".join(text.split())


def blocks(path: Path, language: str) -> list[str]:
    return [text for found, text in _FENCE.findall(text_of(path)) if found == language]


def tunnels() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every DatabaseTunnel in a YAML block, with its document."""
    for path in DOCUMENTS:
        for block in blocks(path, "yaml"):
            for document in yaml.safe_load_all(block):
                if document.get("kind") == KIND:
                    yield name_of(path), document


def anchors(path: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", _FENCE.sub("", text_of(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(path: Path, heading: str) -> str:
    return text_of(path).split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def test_there_are_documents() -> None:
    names = {name_of(path) for path in DOCUMENTS}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"} <= names


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for link in _LINK.findall(_FENCE.sub("", text_of(path))):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_make_target_that_is_named_exists(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    commands = re.findall(r"`([^`\n]+)`", text_of(path)) + blocks(path, "sh")
    named = {target for command in commands for target in _MAKE.findall(command)}
    assert named <= targets


def test_manifests_are_accepted() -> None:
    found = list(tunnels())
    assert "README.md" in dict(found)
    for path, manifest in found:
        parse_tunnel(manifest, path, "default")


def test_the_message_in_the_readme_is_what_its_tunnel_would_say() -> None:
    manifest = dict(tunnels())["README.md"]
    config = forwarder_config(parse_tunnel(manifest, "README.md", "default"), Defaults())
    shown = next(block for block in blocks(README, "text") if "authorized_keys" in block)
    key = re.search(r"ssh-ed25519 \S+", shown)
    assert key

    public_key = PublicKeyFact(key=key[0], fingerprint="SHA256:" + "k" * 43)
    assert one_line(shown) == one_line(explain(Reason.KEY_REJECTED, "", Subject(config, public_key=public_key)))


def test_the_readme_lists_the_conditions_in_their_order() -> None:
    assert ", ".join(f"`{kind}`" for kind in CAUSAL_ORDER) in section(README, "What the status tells")


def test_the_readme_restricts_the_user_as_the_tests_do() -> None:
    match, *lines = next(block for block in blocks(README, "text") if block.startswith("Match")).splitlines()
    assert match == "Match User dbtunnel"
    assert tuple(line.strip() for line in lines) == HARDENED


def test_the_readme_has_a_row_for_each_engine() -> None:
    rows = re.findall(r"^\| (\w+) \| (\d+) \|", section(README, "Engines"), re.MULTILINE)
    assert rows == [(engine, str(info.default_port)) for engine, info in ENGINES.items()]


def test_what_rolls_the_pods_is_said_of_every_field() -> None:
    said = set(re.findall(r"`spec\.(\w+)", section(ARCHITECTURE, "What rolls the pods")))
    assert said == set(resource_schema()["properties"]["spec"]["properties"])
