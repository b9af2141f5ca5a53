"""What is generated is what the code says."""

import pytest
import yaml

from dbtunnel.api.crd import crd
from dbtunnel.api.reasons import REASONS, Reason
from tests.support.events import MEANINGS, events_of
from tests.support.generated import GENERATED, ROOT
from tests.support.health_cases import FOLDER, HEALTH_FILES, RECORDED


@pytest.mark.parametrize("name", GENERATED)
def test_generated_files_are_current(name: str) -> None:
    assert (ROOT / name).read_text() == GENERATED[name](), f"{name} is not current: run make generate"


def test_no_state_for_the_health_script_is_left_of_earlier_ones() -> None:
    there = {f"{FOLDER}/testdata/{path.name}" for path in (ROOT / FOLDER / "testdata").iterdir()}
    assert there < {*HEALTH_FILES, *(f"{FOLDER}/testdata/{name}.yaml" for name in RECORDED)}


def test_the_schema_is_small_enough_to_be_applied() -> None:
    assert len(yaml.safe_dump(crd())) < 100_000


@pytest.mark.parametrize("package", MEANINGS)
def test_every_event_of_the_logs_is_explained_and_no_other(package: str) -> None:
    logged = events_of(package)
    assert {event.name for event in logged} == set(MEANINGS[package])
    assert all(event.level for event in logged)


def test_every_reason_is_explained() -> None:
    assert set(REASONS) == set(Reason) - {Reason.SUCCEEDED}
