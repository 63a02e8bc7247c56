"""The judge of a verification must not be fooled: what was not run has not passed."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "roles/verify_image/files/summarise.py"


@pytest.fixture(scope="module")
def summarise():
    spec = importlib.util.spec_from_file_location("summarise", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.summarise


@pytest.fixture
def junit(pytester):
    """Run test files for real and return what a round is described by."""

    def run(name: str, **files: str) -> dict:
        paths = pytester.makepyfile(**files) and [f"{stem}.py" for stem in files]
        path = pytester.path / f"{name}.xml"
        done = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-o", "addopts=", f"--junit-xml={path}", *paths)
        return {"name": name, "rc": done.ret, "junit": str(path), "output": "tail"}

    return run


pytest_plugins = ["pytester"]
PASSES = "def test_a(): pass"
FAILS = "def test_b(): assert 1 == 2, 'one is not two'"
SKIPS = "import pytest\ndef test_c(): pytest.skip('no')"


def test_two_rounds_become_one_file(summarise, junit, tmp_path):
    rounds = [junit("first", test_base=PASSES), junit("again", test_base=PASSES)]
    found = summarise(tmp_path / "all.xml", rounds, ["test_base"])
    assert (found["tests"], found["failures"], found["problems"]) == (2, 0, [])
    assert len(ET.parse(tmp_path / "all.xml").getroot().findall("testsuite")) == 2


def test_failed_check_is_named(summarise, junit, tmp_path):
    found = summarise(tmp_path / "all.xml", [junit("first", test_base=FAILS)], ["test_base"])
    assert found["failures"] == 1
    assert found["failed"][0]["test"] == "test_base::test_b (first)"
    assert "one is not two" in found["failed"][0]["message"]


def test_check_that_only_skips_has_not_run(summarise, junit, tmp_path):
    found = summarise(
        tmp_path / "all.xml", [junit("first", test_base=PASSES, test_hygiene=SKIPS)], ["test_base", "test_hygiene"]
    )
    assert found["problems"] == ["no test of test_hygiene was run"]
    assert found["skipped"] == 1


def test_check_that_cannot_be_imported(summarise, junit, tmp_path):
    found = summarise(
        tmp_path / "all.xml", [junit("first", test_base=PASSES, test_bad="import nothing_like_it")], ["test_base"]
    )
    assert any("could not be imported" in problem for problem in found["problems"])
    assert found["failures"] == 1


def test_nothing_collected(summarise, junit, tmp_path):
    found = summarise(tmp_path / "all.xml", [junit("first", test_base="")], ["test_base"])
    assert len(found["problems"]) == 2
    assert "found no test" in found["problems"][0]


def test_round_that_was_killed(summarise, tmp_path):
    rounds = [{"name": "first", "rc": 124, "junit": str(tmp_path / "none.xml"), "output": "last words"}]
    found = summarise(tmp_path / "all.xml", rounds, ["test_base"])
    assert "did not end within verify_image_timeout" in found["problems"][0]
    assert "last words" in found["problems"][0]


def test_no_round_at_all(summarise, tmp_path):
    # The machines never came up: that is told elsewhere, and each check need not be named as well.
    found = summarise(tmp_path / "all.xml", [], ["test_base"])
    assert (found["tests"], found["problems"]) == (0, [])
