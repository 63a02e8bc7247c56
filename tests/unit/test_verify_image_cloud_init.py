"""What cloud-init complains about must be heard, whichever of its files says so."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "roles/verify_image/files/checks/cloud_init.py"
STAGES = ("init-local", "init", "modules-config", "modules-final")
RESULT = json.dumps({"v1": {"datasource": "DataSourceNoCloud [seed=/dev/sr0]", "errors": []}})


@pytest.fixture(scope="module")
def complaints():
    spec = importlib.util.spec_from_file_location("cloud_init", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.complaints


def status(**changes: dict) -> str:
    """status.json as cloud-init 25.1 writes it."""
    stages = {name: {"errors": [], "recoverable_errors": {}, "start": 1.0, "finished": 2.0} for name in STAGES}
    for name, change in changes.items():
        stages[name].update(change)
    return json.dumps({"v1": {"datasource": "nocloud", "stage": None, **stages}}, indent=1)


def test_clean_boot(complaints):
    assert complaints(f"{status()}\n\n{RESULT}\n") == []


def test_error_of_a_stage(complaints):
    assert complaints(f"{status(init={'errors': ['no such module']})}\n{RESULT}") == ["init: no such module"]


def test_recoverable_error_counts(complaints):
    text = status(**{"modules-final": {"recoverable_errors": {"WARNING": ["a script failed"]}}})
    assert complaints(f"{text}\n{RESULT}") == ["modules-final: WARNING: a script failed"]


def test_error_of_the_result(complaints):
    result = json.dumps({"v1": {"datasource": None, "errors": ["no data source"]}})
    assert complaints(f"{status()}\n{result}") == ["no data source"]


def test_not_ended(complaints):
    assert complaints(status()) == ["cloud-init has not ended"]


def test_never_ran(complaints):
    assert complaints("\n") == ["cloud-init did not run"]
