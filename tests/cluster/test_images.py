"""The images as clusters run them: any user, a read-only root, no shell, nothing of the machine that built them."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from dbtunnel import __version__
from dbtunnel.api.crd import crd
from tests.support.cluster import Cluster
from tests.support.images import CLIENT, OPERATOR, BuiltImage, build
from tests.support.pages import follow

ANY_USER = 1000720000
"""As OpenShift chooses: no user of the image."""


@pytest.fixture(scope="module")
def operator_image(cluster: Cluster) -> BuiltImage:
    image = build(OPERATOR)
    cluster.load_image(image.archive, image.reference)
    return image


@pytest.fixture(scope="module")
def client_image(cluster: Cluster) -> BuiltImage:
    image = build(CLIENT)
    cluster.load_image(image.archive, image.reference)
    return image


def _run(cluster: Cluster, namespace: str, image: BuiltImage, *, user: int | None = None, **container: Any) -> str:
    """What a restricted pod of the image prints before it ends well."""
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        **({"runAsUser": user, "runAsGroup": 0} if user else {}),
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "image", "namespace": namespace},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "main",
                    "image": image.reference,
                    "imagePullPolicy": "Never",
                    "securityContext": security,
                    **container,
                }
            ],
        },
    }
    cluster.kubectl("create", "-f", "-", input=yaml.safe_dump(pod))
    succeeded = "--for=jsonpath={.status.phase}=Succeeded"
    cluster.kubectl("-n", namespace, "wait", succeeded, "pod/image", "--timeout=60s", timeout_seconds=70)
    return cluster.kubectl("-n", namespace, "logs", "image")


@pytest.mark.parametrize("user", [None, ANY_USER])
def test_the_operators_image_runs_restricted(
    cluster: Cluster, namespace: str, operator_image: BuiltImage, user: int | None
) -> None:
    assert _run(cluster, namespace, operator_image, user=user, args=["--version"]) == f"dbtunnel {__version__}\n"


def test_the_operators_image_has_the_definition_of_this_code(
    cluster: Cluster, namespace: str, operator_image: BuiltImage
) -> None:
    printed = _run(cluster, namespace, operator_image, user=ANY_USER, args=["crd"])

    assert yaml.safe_load(printed) == crd()


def test_everything_that_the_operator_and_the_forwarder_import_is_there(
    cluster: Cluster, namespace: str, operator_image: BuiltImage
) -> None:
    """Also on a read-only root and without a home."""
    for_help = "import dbtunnel.cli.main as m; [m.main([name, '--help']) for name in ['{}']]"
    command = ["/opt/dbtunnel/bin/python", "-c", for_help.format("operator")]

    assert "DBTUNNEL_FORWARDER_IMAGE" in _run(cluster, namespace, operator_image, user=ANY_USER, command=command)


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        (["psql", "--version"], "psql (PostgreSQL)"),
        (["mysql", "--version"], "MariaDB"),
        (["python", "-c", "import psycopg, pymysql, redshift_connector; print('imported')"], "imported"),
    ],
)
def test_the_clients_image_has_real_clients(
    cluster: Cluster, namespace: str, client_image: BuiltImage, command: list[str], printed: str
) -> None:
    assert printed in _run(cluster, namespace, client_image, command=command)


# --- what is in the archive -------------------------------------------------------------------------------------


def _configuration(archive: Path) -> dict[str, Any]:
    with tarfile.open(archive) as image:
        manifest = json.load(_member(image, "manifest.json"))[0]
        configuration: dict[str, Any] = json.load(_member(image, manifest["Config"]))
        return configuration


def _names(archive: Path) -> set[str]:
    """Every file of every layer."""
    names: set[str] = set()
    with tarfile.open(archive) as image:
        for layer in json.load(_member(image, "manifest.json"))[0]["Layers"]:
            with tarfile.open(fileobj=_member(image, layer)) as files:
                names.update(name.removeprefix("./") for name in files.getnames())
    return names


def _member(image: tarfile.TarFile, name: str) -> Any:
    content = image.extractfile(name)
    assert content, f"no {name}"
    return content


def test_make_says_which_image_it_has_built(cluster: Cluster, tmp_path: Path) -> None:
    image = build(OPERATOR)
    printed = follow("installation", cluster, "", tmp_path, "make image").splitlines()
    assert {f"archive:   {image.archive}", f"reference: {image.reference}"} <= set(printed)


def test_the_image_says_how_it_is_run() -> None:
    configuration = _configuration(build(OPERATOR).archive)["config"]

    assert configuration["Entrypoint"] == ["dbtunnel"]
    assert configuration["User"] == "65532:65532"
    assert configuration["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_the_image_has_bytecode_and_nothing_of_its_build() -> None:
    names = _names(build(OPERATOR).archive)
    installed = {name for name in names if name.startswith("opt/dbtunnel/lib/")}
    paths = [Path(name) for name in installed if "/dbtunnel/cli/" in name]
    modules = {path.with_suffix("") for path in paths if path.suffix == ".py"}
    compiled = {path.parent.parent / path.name.split(".")[0] for path in paths if path.suffix == ".pyc"}

    assert {"main", "operator", "plugin"} <= {path.name for path in modules | {path.parent for path in modules}}
    assert modules == compiled
    assert not [name for name in installed if "/site-packages/pip/" in name or "/site-packages/setuptools/" in name]
    assert not [name for name in names if name.startswith(("build/", "run/secrets")) or name == "etc/pip.conf"]
