from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible_collections.goldsmith.images.plugins.module_utils._image_definition import DefinitionError, load_definition

IMAGES = Path(__file__).parents[4] / "playbooks" / "images"
DEFAULTS = yaml.safe_load((IMAGES / "defaults.yml").read_text())
ROLES = ["base_packages", "hardening", "cleanup"]
CHECKS = ["base", "identity"]
BASE = {"method": "bootstrap", "distribution": "debian", "release": "trixie"}


def load(**keys: object) -> dict:
    data = {"name": "mine", "base": BASE, "checks": ["base"], **keys}
    return load_definition(data, DEFAULTS, source="mine.yml", known_roles=ROLES, known_checks=CHECKS)


def test_a_definition_is_completed_from_the_defaults():
    definition = load(memory=4096)
    assert definition["memory"] == 4096
    assert definition["builder"] == DEFAULTS["builder"]
    assert definition["base"] == {**BASE, "packages": []}


def test_the_defaults_are_not_changed_by_a_definition():
    load(vars={"a": 1})["vars"]["b"] = 2
    assert DEFAULTS["vars"] == {}


def test_roles_of_other_collections_are_left_to_ansible():
    assert load(roles=["my.own.role"])["roles"] == ["my.own.role"]


@pytest.mark.parametrize("path", sorted(IMAGES.glob("*.yml")), ids=lambda path: path.stem)
def test_the_definitions_of_this_collection_are_valid(path: Path):
    if path.stem != "defaults":
        assert load_definition(yaml.safe_load(path.read_text()), DEFAULTS, source=path.name)["name"] == path.stem


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"memroy": 1}, "mine.yml: unknown key 'memroy'; did you mean 'memory'? Allowed: base, budgets,"),
        ({"memory": "2G"}, "mine.yml: memory: expected integer, found string ('2G')"),
        ({"cpus": 0}, "mine.yml: cpus: 0 is less than the minimum of 1"),
        ({"builder": "vmware"}, "mine.yml: builder: 'vmware' is not possible Allowed: qemu"),
        ({"base": {**BASE, "release": "trixi"}}, "base.release: 'trixi' is not possible; did you mean 'trixie'?"),
        ({"base": {"method": "bootstrap"}}, "mine.yml: base: missing key 'distribution'"),
        ({"base": {"method": "download", "url": "https://example.com/x"}}, "base: needs 'checksum', or 'checksum_url'"),
        ({"base": {**BASE, "url": "https://example.com/x"}}, "'base.url' cannot be used with this base.method"),
        (
            {"roles": ["hardning"]},
            "roles: unknown role 'hardning'; did you mean 'hardening'? Allowed: base_packages, h",
        ),
        ({"roles": ["cleanup"]}, "roles: 'cleanup' is always applied last and must not be listed"),
        ({"checks": ["bse"]}, "checks: unknown check 'bse'; did you mean 'base'? Allowed: base, identity"),
        ({"budgets": {"size": "500"}}, "mine.yml: budgets.size: '500' does not have the form"),
        ({"name": "../x"}, "mine.yml: name: '../x' does not have the form"),
        ({"checks": None}, "mine.yml: checks: expected array, found nothing (None)"),
    ],
)
def test_a_mistake_is_named_with_file_key_and_what_is_allowed(keys: dict, message: str):
    with pytest.raises(DefinitionError) as caught:
        load(**keys)
    assert message in str(caught.value)


def test_all_mistakes_are_reported_together():
    with pytest.raises(DefinitionError) as caught:
        load(memory="x", roles=["nope"], wrong=1)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("data", [None, [], "text"])
def test_something_that_is_no_mapping_is_refused(data: object):
    with pytest.raises(DefinitionError, match=r"mine\.yml: an image definition is a mapping"):
        load_definition(data, DEFAULTS, source="mine.yml")
