"""The example of a HelmRelease, by its controller's own types and the chart itself."""

import pytest
import yaml

from tests.support.chart import render, the_one
from tests.support.kstatus import check_release
from tests.support.processes import ROOT

TEXT = next(
    text for text in (ROOT / "examples/flux/operator.yaml").read_text().split("\n---\n") if "kind: HelmRelease" in text
)


def test_the_example_has_fields_of_a_helm_release_alone() -> None:
    check_release(TEXT)


def test_a_typing_error_would_be_found() -> None:
    with pytest.raises(ValueError, match='unknown field "driftDetectoin"'):
        check_release(TEXT.replace("driftDetection", "driftDetectoin"))


def test_the_chart_takes_its_values() -> None:
    values = yaml.safe_load(TEXT)["spec"]["values"]
    container = the_one(render(values), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"].startswith(f"{values['image']['repository']}:")
