"""The chart's alert rules and dashboard, as files."""

import json
from typing import Any

import yaml

from tests.support.chart import CHART

ALERTS = CHART / "files" / "alerts.yaml"
DASHBOARD = CHART / "files" / "dashboard.json"


def alert_rules() -> list[dict[str, Any]]:
    """Every rule."""
    groups = yaml.safe_load(ALERTS.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """The dashboard's document."""
    document: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return document


def expressions(**variables: str) -> list[str]:
    """The queries of all panels, with the variables' values in their places."""
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]
    for name, value in variables.items():
        found = [expression.replace(f"${name}", value) for expression in found]
    return found
