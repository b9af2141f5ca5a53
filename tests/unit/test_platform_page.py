"""The values that docs/platform.md begins with."""

import yaml

from tests.support.chart import render
from tests.support.pages import blocks


def test_the_chart_takes_the_values_of_the_platform_page() -> None:
    (text,) = blocks("platform", "yaml")
    kinds = [one["kind"] for one in render(yaml.safe_load(text))]
    for kind in ("ServiceMonitor", "PodMonitor", "PrometheusRule", "PodDisruptionBudget"):
        assert kind in kinds
    assert kinds.count("ValidatingAdmissionPolicy") == 1 + 7
