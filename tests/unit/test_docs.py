"""What the documents say is there: links, manifests, targets, messages, numbers, the settings of sshd."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from dbtunnel.api import forwarder as wire
from dbtunnel.api.conditions import CAUSAL_ORDER, ConditionType
from dbtunnel.api.crd import resource_schema
from dbtunnel.api.engines import ENGINES
from dbtunnel.api.reasons import SLOW, TURNED_AWAY, Reason
from dbtunnel.api.resource import KIND
from dbtunnel.cli.manifests import parse_tunnel
from dbtunnel.controller import forwarders, leader, operator, queue
from dbtunnel.controller import pace as operator_pace
from dbtunnel.controller.reconcile import SETTLE_SECONDS, _outline
from dbtunnel.controller.rollouts import _LONGEST_SECONDS
from dbtunnel.controller.settings import SETTINGS
from dbtunnel.domain.children import build_deployment
from dbtunnel.forwarder import channel, pace, windows
from dbtunnel.forwarder.app import _PROBE_END_SECONDS
from dbtunnel.forwarder.client import EARLY_LIMIT
from dbtunnel.forwarder.failures import Failure
from dbtunnel.forwarder.keyring import PARSE_SECONDS
from dbtunnel.forwarder.link import ABANDONED_AT_MOST, OPENING_AT_ONCE
from dbtunnel.forwarder.listener import _LEFT_SECONDS
from dbtunnel.forwarder.transport import HIGH_WATER
from tests.support.generated import ROOT
from tests.support.pages import blocks_of, pages, without_blocks
from tests.support.values import INSTALLATION, tunnel

DOCUMENTS = pages()
README = ROOT / "README.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_MAKE = re.compile(r"\bmake ([a-z][a-z-]*)")
_CODE = re.compile(r"`[^`]*`")
_ADDRESS = re.compile(r"\w+://[^\s)>\]\"']+")

SITES = {
    "aws.amazon.com",
    "cloud.google.com",
    "developer.hashicorp.com",
    "docs.aws.amazon.com",
    "docs.cloud.google.com",
    "github.com",
    "goteleport.com",
    "keepachangelog.com",
    "kubernetes.io",
    "manpages.ubuntu.com",
    "s3.amazonaws.com",
    "semver.org",
    "servicebinding.io",
    "tailscale.com",
}
"""Where pages lead to outside the repository. No test asks them: whoever adds one has looked."""


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def text_of(path: Path) -> str:
    return path.read_text()


def one_line(text: str) -> str:
    """Without line ends and other spaces, which come with wrapping."""
    return "".join(text.split())


def blocks(path: Path, language: str) -> list[str]:
    return [one.text for one in blocks_of(name_of(path), text_of(path)) if one.language == language]


def tunnels() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every DatabaseTunnel in a YAML block, with its document."""
    for path in DOCUMENTS:
        for block in blocks(path, "yaml"):
            for document in yaml.safe_load_all(block):
                if document.get("kind") == KIND:
                    yield name_of(path), document


def anchors(path: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", without_blocks(text_of(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def section(path: Path, heading: str) -> str:
    return text_of(path).split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]


def test_there_are_documents() -> None:
    names = {name_of(path) for path in DOCUMENTS}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/architecture.md"} <= names


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for link in _LINK.findall(without_blocks(text_of(path))):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=name_of)
def test_a_page_begins_with_whom_it_is_for_and_what_they_can_do_then(path: Path) -> None:
    _, first, *_ = re.sub(r"<!--.*?-->\n", "", text_of(path)).split("\n\n")
    assert first.startswith("For whoever ")
    assert re.search(r"\b[Aa]fter\s(it|this page)\s", first)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_are_of_the_one_form_that_is_followed(path: Path) -> None:
    """No reference, no HTML: `[text](target)` alone."""
    text = _CODE.sub("", without_blocks(text_of(path)))
    assert not re.search(r"^ *\[[^\]]+\]: |\]\[|<(?:a|img)\b", text, re.MULTILINE)
    assert not re.search(r"\]\([^)]*\s[^)]*\)", text), "with no title, and no space"


def test_links_to_other_sites_are_whole_and_known() -> None:
    found = {
        address for path in DOCUMENTS for address in _ADDRESS.findall(_CODE.sub("", without_blocks(text_of(path))))
    }
    for address in found:
        parts = urlsplit(address.rstrip(".,;:"))
        assert (parts.scheme, parts.query, parts.username) == ("https", "", None), address
    assert {urlsplit(address).hostname for address in found} <= SITES


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


def test_the_readme_lists_the_conditions_in_their_order() -> None:
    named = ", ".join(f"`{kind}`" for kind in CAUSAL_ORDER)
    assert one_line(named) in one_line(section(README, "What it looks like"))


def test_the_comparison_with_ssh_is_what_was_measured() -> None:
    """In words: the figures are of the README's last run."""
    _, _, table = text_of(README).partition("| ratio | to ssh -N -L | to ssh, aes128-gcm |")
    measured = re.findall(r"^\| ([^|]+) \| ([\d.]+) [^|]*\| ([\d.]+) ", table, re.MULTILINE)
    ratios = {row: (float(ssh), float(gcm)) for row, ssh, gcm in measured}

    def of(words: str) -> list[tuple[float, float]]:
        return [found for row, found in ratios.items() if words in row]

    assert "| many connections, long ways | | several times as fast |" in text_of(ROOT / "docs" / "comparison.md")
    assert min(ssh for ssh, _ in [*of("connects"), *of("round trip")]) > 2
    assert all(0.8 < ratio < 1.25 for ssh_and_gcm in of("`pgbench -S`") for ratio in ssh_and_gcm)
    assert all(ssh > 1.2 and gcm > 0.8 for ssh, gcm in [*of("bulk down, "), *of("bulk up, ")])
    assert all(ssh > 2 for ssh, _ in of("idle"))


def test_the_readme_has_a_row_for_each_engine() -> None:
    rows = re.findall(r"^\| (\w+) \| (\d+) \|", section(README, "Engines"), re.MULTILINE)
    assert rows == [(engine, str(info.default_port)) for engine, info in ENGINES.items()]


def test_what_rolls_the_pods_is_said_of_every_field() -> None:
    said = set(re.findall(r"`spec\.(\w+)", section(ARCHITECTURE, "What rolls the pods")))
    assert said == set(resource_schema()["properties"]["spec"]["properties"])


def _default_of(name: str) -> str:
    return next(one.default for one in SETTINGS if one.name == name)


def _size(count: int) -> str:
    return f"{count // 1024} KiB" if count < 1024 * 1024 else f"{count // 1024 // 1024} MiB"


def _numbers() -> Iterator[str]:
    """What the architecture says of constants, as it must stand there, but for the wrapping."""
    yield f"left of {_size(windows.FIRST_BYTES)}, from {_size(windows.FIRST_WINDOW)} down to"
    yield f"down to {_size(windows.SMALLEST_WINDOW)}"
    yield f"up to {_size(channel.STREAM_WINDOW)} for a stream, and up to {_size(channel.LARGEST_WINDOW)} where"
    yield f"grow by at most {_size(windows.WIDEST_BYTES)} together"
    yield f"{_size(EARLY_LIMIT)} may wait from a client"
    yield f"more than {_size(HIGH_WATER)} waits for the SSH connection"
    yield f"once in {_LEFT_SECONDS} s"
    yield f"At most {OPENING_AT_ONCE} are being opened at a time; up to {ABANDONED_AT_MOST} more"
    yield f"{pace.FIRST_BACKOFF_SECONDS} s, doubled up to {pace.LONGEST_BACKOFF_SECONDS:.0f} s"
    yield f"of an outage it is {pace.EAGER_BACKOFF_SECONDS} s at most"
    yield f"for {pace.RESTART_SECONDS:.0f} s, while no connection to it comes about"
    yield f"reset by a connection that stood for {pace.STABLE_SECONDS:.0f} s"
    no_key = Failure(ConditionType.KEY_READY, Reason.SECRET_NOT_FOUND)
    yield f"one more try after {pace.FIRST_BACKOFF_SECONDS} s at most"
    yield f"tried after {pace.FIRST_RETURN_SECONDS:.0f} s, then less and less often"
    yield f"up to every {pace.LONGEST_RETURN_SECONDS:.0f} s, less a random half"
    yield f"another file helps, so that {pace.pause_seconds(no_key, 0, 1):.0f} s pass"
    yield f"a probe under way still has {_PROBE_END_SECONDS} s"
    yield f"A key that is not decrypted after {PARSE_SECONDS} s"
    yield f"holds its place for {_LONGEST_SECONDS} s"
    yield f"is asked again after {TURNED_AWAY} s"
    yield f"wait at least {SLOW} s, half as much again"
    yield f"port {wire.DATABASE_PORT}, whatever the engine"
    yield f"on port {wire.ADMIN_PORT}."
    yield f"`/healthz` is on port {_default_of('liveness-port')}"
    yield f"`/metrics` on {_default_of('metrics-port')}"
    yield f"a reconcile has taken {operator.STUCK_SECONDS} s"
    yield f"after {queue.BACKOFF_FIRST_SECONDS} s, then twice as long each time"
    yield f"twice as long each time, up to {queue.BACKOFF_LIMIT_SECONDS:.0f} s"
    yield f"{_default_of('workers')} workers by default"
    yield f"Every {_default_of('resync-seconds')} s (`settings.resyncSeconds`"
    yield f"jittered), {operator.SOON_SECONDS} s after the start"
    yield f"spread over {operator.SPREAD_SECONDS} s"
    yield f"wait up to {SETTLE_SECONDS:.0f} s for more"
    yield f"as they are wait for {SETTLE_SECONDS:.0f} s**"
    yield f"After {operator_pace.BURST} writes at once"
    yield f"at most every {operator_pace.INTERVAL.seconds} s"
    yield f"are gathered for {operator.NEWS_SECONDS} s"
    yield f"at most {_size(forwarders.BODY_LIMIT)}"
    yield f"timeoutSeconds={forwarders.POLL_SECONDS}`"
    yield f"hold for {_default_of('unreachable-after-seconds')} s"
    yield f"renews it every {leader.RETRY_SECONDS} s. If it cannot for {leader.RENEW_SECONDS} s"
    yield f"holds for {leader.LEASE_SECONDS} s after"
    yield f"as long as the Lease still holds, {leader.LEASE_SECONDS - leader.RENEW_SECONDS} s at least"
    yield f"has told within {leader.LEASE_SECONDS} s who has the Lease"
    yield f"`settings.rollouts` tunnels ({_default_of('rollouts')})"


@pytest.mark.parametrize("text", list(_numbers()))
def test_the_numbers_of_the_architecture_are_those_of_the_code(text: str) -> None:
    assert one_line(text) in one_line(text_of(ARCHITECTURE))


def test_the_architecture_says_how_often_and_how_long_the_kubelet_looks() -> None:
    pod = build_deployment(tunnel(), INSTALLATION)["spec"]["template"]["spec"]
    period = pod["containers"][0]["readinessProbe"]["periodSeconds"]
    longer = pod["terminationGracePeriodSeconds"] - INSTALLATION.defaults.drain_max_seconds
    said = one_line(text_of(ARCHITECTURE))

    assert one_line(f"asks `/readyz` every {period} s") in said
    assert one_line(f"The kubelet waits {longer} s longer than the drain") in said


def test_what_is_told_at_once_is_what_the_architecture_names() -> None:
    before = {"conditions": [{"type": kind, "status": "False", "reason": "Rejected"} for kind in ConditionType]}
    urgent = [kind for kind in ConditionType if _outline(before) != _outline(_with(before, kind))]
    names = ", ".join(f"`{kind}`" for kind in urgent[:-1]) + f" or `{urgent[-1]}`"
    assert one_line(f"A change of {names}, of their status, reason or generation, is written at once") in one_line(
        text_of(ARCHITECTURE)
    )


def _with(status: Mapping[str, Any], kind: ConditionType) -> Mapping[str, Any]:
    return {"conditions": [one | {"status": "True"} if one["type"] == kind else one for one in status["conditions"]]}
