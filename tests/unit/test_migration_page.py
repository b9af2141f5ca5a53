"""docs/migration.md: the options that it names are ssh's, the fields the resource's, and its manifests say the same."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from dbtunnel.api.crd import resource_schema
from dbtunnel.cli.forward import _prepared
from dbtunnel.cli.main import build_parser
from dbtunnel.forwarder.app import Address
from tests.support.generated import fields_of
from tests.support.keys import key_pair
from tests.support.processes import ROOT, run
from tests.unit.test_docs import DOCUMENTS, name_of, section

PAGE = ROOT / "docs" / "migration.md"
FIELDS = {path.replace("[]", "") for path, _ in fields_of(resource_schema()["properties"]["spec"], "spec")}

_TEXTS = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
MANIFESTS = [one for text in _TEXTS for one in yaml.safe_load_all(text)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_field_that_is_named_exists(path: Path) -> None:
    named = set(re.findall(r"`(spec\.[\w.\[\]]+)`", path.read_text()))
    assert {one.replace("[]", "") for one in named} - FIELDS == set()


def ssh_options() -> list[str]:
    """The words of ssh_config in the table."""
    rows = re.findall(r"^\| (.*?) \|", section(PAGE, "What becomes of each option"), re.MULTILINE)
    words = [word for row in rows for word in re.findall(r"`([A-Z]+[a-z]\w*)(?:=[^`]*)?`", row)]
    return sorted(set(words))


def is_known(option: str) -> bool:
    """Whether ssh has such an option; it says something else of a value that is none."""
    command = ["ssh", "-F", "none", "-G", f"-o{option}=yes", "host"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return "Bad configuration option" not in done.stderr


def test_every_option_that_is_named_is_one_of_ssh() -> None:
    options = ssh_options()
    assert {"ServerAliveInterval", "ExitOnForwardFailure", "StrictHostKeyChecking", "TCPKeepAlive"} <= set(options)
    assert [option for option in options if not is_known(option)] == []
    assert not is_known("NoSuchOption")


@pytest.mark.parametrize(("deployment", "container", "local"), [(0, 0, "[0.0.0.0]:5432"), (3, 1, "[127.0.0.1]:5432")])
def test_the_tunnel_is_what_ssh_was(deployment: int, container: int, local: str) -> None:
    command = MANIFESTS[deployment]["spec"]["template"]["spec"]["containers"][container]["command"]
    words = [word for word in command if word not in ("autossh", "ssh", "-M0")]
    asked = dict(line.split(" ", 1) for line in run(["ssh", "-F", "none", "-G", *words]).splitlines() if " " in line)
    spec = MANIFESTS[2]["spec"]
    tunnel, database = spec["tunnel"], spec["database"]

    assert asked["hostname"] == tunnel["host"]
    assert asked["user"] == tunnel["user"]
    assert f"-i/ssh/{tunnel['keySecretRef']['key']}" in command, "which ssh leaves out where there is no such file"
    assert asked["userknownhostsfile"] == f"/ssh/{tunnel['hostKey']['knownHostsRef']['key']}"
    assert asked["serveraliveinterval"] == str(tunnel["keepalive"]["intervalSeconds"])
    assert asked["serveralivecountmax"] == str(tunnel["keepalive"]["countMax"])
    assert asked["localforward"] == f"{local} [{database['host']}]:{database['port']}"
    volume = MANIFESTS[deployment]["spec"]["template"]["spec"]["volumes"][0]
    assert volume["secret"]["secretName"] == tunnel["keySecretRef"]["name"]


def test_the_sidecar_that_stays_is_given_all_that_it_needs(tmp_path: Path) -> None:
    (command,) = re.findall(r"`(dbtunnel\sforward[^`]*)`", PAGE.read_text())
    _, *words = shlex.split(command.replace("/ssh/", f"{tmp_path}/").replace("tunnel.yaml", f"{tmp_path}/tunnel.yaml"))
    (tmp_path / "tunnel.yaml").write_text(yaml.safe_dump(MANIFESTS[2]))
    (tmp_path / "id_ed25519").write_text(key_pair().private)
    (tmp_path / "known_hosts").write_text(f"bastion.example.com {key_pair().public}\n")

    _, around = _prepared(build_parser(["forward"]).parse_args(words))

    assert (around.listen, around.admin_listen) == (Address("127.0.0.1", 5432), Address("127.0.0.1", 18080))
