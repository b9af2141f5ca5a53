"""The chart with every two choices of an installer together: what holds of each rendering, and which choice wins."""

import re
from pathlib import Path

import pytest

from tests.support.chart import CHART, Manifest, objects, render, settings_of, template, the_one
from tests.support.chart_matrix import FACTORS, WATCHED, matrix

ROWS = list(matrix())


def test_every_two_choices_meet_in_few_rows() -> None:
    largest = sorted(len(choices) for choices in FACTORS.values())[-2:]

    assert largest[0] * largest[1] <= len(ROWS) <= 24


@pytest.mark.parametrize("values", ROWS, ids=lambda _: "")
def test_a_rendering_is_the_same_every_time_and_bears_the_labels_everywhere(values: Manifest) -> None:
    first, second = template(values), template(values)

    assert first.returncode == 0, first.stderr
    assert first.stdout == second.stdout, "byte by byte"
    found = objects(first.stdout)
    wanted = {"app.kubernetes.io/instance": "tunnels", **values.get("commonLabels", {})}
    for manifest in found:
        metadata = manifest["metadata"]
        assert metadata["name"]
        assert metadata["labels"].items() >= wanted.items(), manifest["kind"]
        assert metadata.get("annotations", {}).items() >= values.get("commonAnnotations", {}).items(), manifest["kind"]
    identities = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in found]
    assert len(identities) == len(set(identities))
    _check_pod(next(one for one in found if one["kind"] == "Deployment"), values)


def _check_pod(deployment: Manifest, values: Manifest) -> None:
    template = deployment["spec"]["template"]
    environment = {one["name"]: one.get("value", "filled") for one in template["spec"]["containers"][0]["env"]}
    settings = settings_of(environment)

    assert template["metadata"]["labels"].items() >= deployment["spec"]["selector"]["matchLabels"].items()
    assert template["metadata"]["labels"].items() >= values.get("commonLabels", {}).items()
    assert template["metadata"].get("annotations", {}).items() >= values.get("commonAnnotations", {}).items()
    assert set(settings.namespaces) <= set(WATCHED)
    assert settings.leader_election


def test_an_objects_own_labels_and_annotations_count_before_those_of_all() -> None:
    own = {"labels": {"release": "monitoring", "app.kubernetes.io/name": "other"}}
    marked = {**own, "annotations": {"team": "data"}}
    monitors = {name: {"enabled": True, **own} for name in ("serviceMonitor", "podMonitor", "prometheusRule")}
    rendered = render(
        {
            "commonLabels": {"release": "all", "app.kubernetes.io/instance": "other"},
            "commonAnnotations": {"team": "all"},
            "metrics": {**monitors, "dashboard": {"enabled": True, **marked}},
            "serviceAccount": marked,
        }
    )

    for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap", "ServiceAccount", "Service"):
        metadata = the_one(rendered, kind)["metadata"]
        labels = metadata["labels"]
        assert labels["release"] == ("all" if kind == "Service" else "monitoring")
        assert (labels["app.kubernetes.io/name"], labels["app.kubernetes.io/instance"]) == (
            "dbtunnel-operator",
            "tunnels",
        )
        assert metadata["annotations"]["team"] == ("data" if kind in ("ConfigMap", "ServiceAccount") else "all")


VARYING = (
    r"lookup|rand.*|shuffle|uuidv4|now|ago|(html)?[dD]ate.*|gen[A-Z].*|buildCustomCert|bcrypt|htpasswd|encryptAES"
    r"|getHostByName|env|expandenv|IsUpgrade|IsInstall|Revision"
)
"""Functions of Helm whose answer is not in the values, and what tells one run from another."""


@pytest.mark.parametrize("path", sorted((CHART / "templates").iterdir()), ids=lambda path: path.name)
def test_a_template_asks_neither_the_cluster_nor_chance_nor_the_clock(path: Path) -> None:
    """Else what a repository renders is not what is installed, and no two renderings are the same."""
    used = set(re.findall(r"[A-Za-z]\w*", " ".join(re.findall(r"\{\{(.*?)\}\}", path.read_text(), re.DOTALL))))

    assert not {word for word in used if re.fullmatch(VARYING, word)}
