"""docs/argocd.md has what is tried."""

from tests.support.health_cases import SCRIPT
from tests.support.processes import ROOT
from tests.support.teams_repository import FORMS, documented


def test_the_setting_to_copy_is_the_script() -> None:
    settings = documented("ConfigMap")["argocd-cm"]["data"]
    assert settings == {"resource.customizations.health.dbtunnel.dev_DatabaseTunnel": (ROOT / SCRIPT).read_text()}


def test_every_application_is_tried() -> None:
    assert set(documented("Application")) == set(FORMS)
