"""The command line: what it prints, and what it says of input that it cannot use."""

import json
import subprocess
import sys
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml

from dbtunnel import __version__
from dbtunnel.api.crd import crd
from dbtunnel.cli.main import COMMANDS, main
from dbtunnel.cli.manifests import ManifestError, parse_tunnel, read_tunnel
from dbtunnel.domain.children import desired_children
from dbtunnel.domain.settings import Installation
from tests.support.values import changed

MANIFEST = """\
apiVersion: dbtunnel.dev/v1alpha1
kind: DatabaseTunnel
metadata: {name: orders, namespace: shop}
spec:
  engine: PostgreSQL
  database: {host: orders.internal}
  tunnel: {host: 203.0.113.7}
"""


def written(directory: Path, text: str = MANIFEST) -> str:
    file = directory / "tunnel.yaml"
    file.write_text(text)
    return str(file)


def refused(changes: Mapping[str, Any]) -> str:
    """What is said of the manifest with changes at dotted paths."""
    with pytest.raises(ManifestError) as refusal:
        parse_tunnel(changed(yaml.safe_load(MANIFEST), changes), "tunnel.yaml", "default")
    return str(refusal.value)


# --- the command ------------------------------------------------------------------------------------------------------


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name, help_text in COMMANDS.items():
        assert f"    {name}" in text
        assert help_text in " ".join(text.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_own_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert COMMANDS[name] in " ".join(capsys.readouterr().out.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"dbtunnel {__version__}\n"


@pytest.mark.parametrize("words", [[], ["tunnel"], ["render"], ["crd", "extra"], ["render", "-f", "x", "--colour"]])
def test_a_command_line_that_cannot_be_used_ends_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage: dbtunnel" in capsys.readouterr().err


OF_THE_OPERATOR = {"kopf", "kubernetes", "aiohttp", "yaml", "pydantic", "pydantic_core"}
UNUSED_BY_FORWARDERS = {
    *("asyncssh.sftp", "asyncssh.scp", "asyncssh.crypto.x509", "cryptography.x509", "typing_extensions"),
    *("ssl", "_ssl", "email", "http.client", "http.server", "urllib.request", "multiprocessing", "importlib.metadata"),
    *("dbtunnel.api.base", "dbtunnel.api.spec", "dbtunnel.cli.local", "dbtunnel.cli.operator"),
}


def test_a_forwarder_starts_without_what_it_does_not_need() -> None:
    """In a process of its own: what this one has imported says nothing."""
    code = (
        "import gc, sys; from dbtunnel.cli.main import main\n"
        "assert main(['forward']) == 2\n"
        "print(gc.isenabled(), *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={}, check=True)
    collects, *imported = done.stdout.split()
    assert sorted((OF_THE_OPERATOR | UNUSED_BY_FORWARDERS) & set(imported)) == []
    assert {"asyncssh", "dbtunnel.forwarder.app"} <= set(imported)
    assert collects == "True"
    assert "DBTUNNEL_CONFIG: not set" in done.stderr


def test_nothing_that_was_left_out_of_a_forwarder_passes_for_it() -> None:
    code = (
        "import sys, dbtunnel.forwarder, asyncssh\n"
        "try: asyncssh.SFTPClient(None)\n"
        "except NotImplementedError as error: print(error)\n"
        "import ssl, asyncssh.sftp\n"
        "print(ssl.SSLContext, asyncssh.sftp.SFTPClient.__doc__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("SFTPClient: a forwarder does not import it\n<class 'ssl.SSLContext'> ")
    assert "SFTP client" in done.stdout, "the real one is there for who imports it"


# --- crd and render ---------------------------------------------------------------------------------------------------


def test_crd_prints_what_can_be_applied(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["crd"]) == 0
    text = capsys.readouterr().out
    assert yaml.safe_load(text) == crd()
    assert (Path(__file__).parents[2] / "crds/dbtunnel.dev_databasetunnels.yaml").read_text().endswith(text)


def test_render_prints_the_objects_that_the_operator_would_make(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--forwarder-image", "registry.example/x:1", "--operator-namespace", "system"]
    assert main(["render", "-f", written(tmp_path), *words]) == 0
    printed = list(yaml.safe_load_all(capsys.readouterr().out))
    installation = Installation(forwarder_image="registry.example/x:1", operator_namespace="system")
    assert printed == desired_children(read_tunnel(written(tmp_path)), installation)
    assert [one["kind"] for one in printed] == ["Service", "NetworkPolicy", "Deployment"]


def test_render_reads_standard_input_and_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", StringIO(json.dumps(yaml.safe_load(MANIFEST))))
    assert main(["render", "-f", "-"]) == 0
    assert "kind: Deployment" in capsys.readouterr().out


def test_render_of_a_manifest_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, MANIFEST.replace("PostgreSQL", "Oracle"))
    assert main(["render", "-f", file]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err == (
        f"{file}: spec.engine: Input should be 'PostgreSQL', 'Redshift', 'AlloyDB' or 'MySQL' (found 'Oracle')\n"
    )


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "found 0 documents; give one DatabaseTunnel"),
        ("---\n---\n", "found 0 documents"),
        (f"{MANIFEST}---\n{MANIFEST}", "found 2 documents; give one DatabaseTunnel"),
        ("just text", "found 'just text'; write a mapping"),
        ("- a\n- b\n", "found ['a', 'b']; write a mapping"),
        ("a: [b", "while parsing a flow sequence"),
        ("\x00", "special characters are not allowed"),
        ("a: b: c", "mapping values are not allowed here"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_not_one_manifest(tmp_path: Path, text: str, told: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ManifestError) as refusal:
        read_tunnel(file)
    assert str(refusal.value).startswith(f"{file}: ")
    assert told in str(refusal.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="No such file"):
        read_tunnel(str(tmp_path / "absent.yaml"))
    with pytest.raises(ManifestError, match="Is a directory"):
        read_tunnel(str(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ManifestError, match="can't decode"):
        read_tunnel(str(tmp_path / "binary"))


def test_the_namespace_is_the_manifests_unless_it_names_none(tmp_path: Path) -> None:
    assert read_tunnel(written(tmp_path), "billing").metadata.namespace == "shop"
    bare = written(tmp_path, MANIFEST.replace(", namespace: shop", ""))
    assert read_tunnel(bare, "billing").metadata.namespace == "billing"


def test_dates_are_text_as_for_kubectl(tmp_path: Path) -> None:
    dated = MANIFEST + "  podTemplate: {annotations: {reviewed: 2026-11-05, at: 2026-11-05T12:00:00Z}}\n"
    annotations = read_tunnel(written(tmp_path, dated)).spec.pod_template.annotations
    assert annotations == {"reviewed": "2026-11-05", "at": "2026-11-05T12:00:00Z"}


def test_what_kubectl_shows_can_be_read_again(tmp_path: Path) -> None:
    shown = yaml.safe_load(MANIFEST)
    shown["metadata"] |= {"uid": "u", "resourceVersion": "1", "labels": {"a": "b"}, "managedFields": [{"manager": "x"}]}
    shown["status"] = {"observedGeneration": 1, "conditions": []}
    assert read_tunnel(written(tmp_path, yaml.safe_dump(shown))).metadata.uid == "u"


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"spec": None}, "spec: Field required"),
        ({"spec.engine": None}, "spec.engine: Field required"),
        ({"metadata": None}, "metadata.name: Field required"),
        ({"metadata.name": "Orders"}, "manifest: 'Orders': metadata.name: write at most 63 lower-case letters"),
        ({"kind": "Deployment"}, "kind: Input should be 'DatabaseTunnel' (found 'Deployment')"),
        ({"spec.tunnel.port": "22"}, "spec.tunnel.port: Input should be a valid integer (found '22')"),
        ({"spec.tunnel.port": 0}, "spec.tunnel.port: Input should be greater than or equal to 1 (found 0)"),
        ({"spec.tunnel.host": "ssh://x"}, "spec.tunnel.host: 'ssh://x': write a host name or an IPv4 or IPv6 address"),
        (
            {"spec.tunnel.hostKey": {"fingerprints": ["MD5:x"]}},
            "spec.tunnel.hostKey.fingerprints.0: 'MD5:x': write SHA256: and 43 characters",
        ),
        ({"spec.tunel": {}}, "spec.tunel: no such field"),
        ({"spec.tunnel.hostkey": {}}, "spec.tunnel.hostkey: no such field"),
        ({"spec.podTemplate.resources": {"limit": {}}}, "spec.podTemplate.resources.limit: no such field"),
        ({"spec.podTemplate.tolerations": [{}, {"efect": "x"}]}, "spec.podTemplate.tolerations.1.efect: no such field"),
        ({"metadata": "orders"}, "metadata: found 'orders'; write a mapping"),
        ({"spec": "text"}, "spec: Input should be an object (found 'text')"),
        ({"spec.podTemplate.labels": {"a": b"bytes"}}, "Object of type bytes is not JSON serializable"),
    ],
)
def test_an_error_names_the_field_what_was_found_and_what_to_write(changes: Mapping[str, Any], told: str) -> None:
    (line,) = refused(changes).splitlines()
    assert line.startswith("tunnel.yaml: ")
    assert told in line


def test_every_problem_has_its_line() -> None:
    lines = refused({"spec.engine": "Oracle", "spec.tunnel.port": 0, "spec.database.host": "a b"}).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["spec.engine", "spec.database.host", "spec.tunnel.port"]
    lines = refused({"spec.tunel": 1, "spec.database.tls": {"sni": "x"}}).splitlines()
    assert lines == [
        "tunnel.yaml: spec.database.tls.sni: no such field",
        "tunnel.yaml: spec.tunel: no such field",
    ]


def test_fields_that_take_anything_are_not_looked_into() -> None:
    affinity = {"newer": {"field": [{"a": 1}]}}
    given = changed(yaml.safe_load(MANIFEST), {"spec.podTemplate": {"affinity": affinity, "labels": {"any": "label"}}})
    assert parse_tunnel(given, "tunnel.yaml", "default").spec.pod_template.affinity == affinity


def test_an_unknown_field_in_a_list_is_found() -> None:
    peers = [{"podSelector": {}}, {"podSelector": {"matchLables": {"app": "shop"}}}]
    lines = refused({"spec.access": {"policy": "Selected", "from": peers}}).splitlines()
    assert lines == ["tunnel.yaml: spec.access.from.1.podSelector.matchLables: no such field"]


def test_a_long_value_is_shown_shortened() -> None:
    assert len(refused({"spec.engine": "x" * 10_000})) < 250
