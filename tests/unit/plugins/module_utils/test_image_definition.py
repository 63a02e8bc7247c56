from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible_collections.goldsmith.images.plugins.module_utils._image_definition import (
    DefinitionError,
    load_definition,
    output_name,
)

IMAGES = Path(__file__).parents[4] / "playbooks" / "images"
DEFAULTS = yaml.safe_load((IMAGES / "defaults.yml").read_text())
ROLES = ["base_packages", "hardening", "cleanup"]
CHECKS = ["base", "identity"]
BASE = {"method": "bootstrap", "distribution": "debian", "release": "trixie"}


EBS = {"instance_type": "m5.large", "source_ami": {"owner": "self", "name": "debian-*"}}


def ebs(**settings: object) -> dict:
    return {"amazon_ebs": {**EBS, **settings}}


def load(picked: str | None = None, /, **keys: object) -> dict:
    data = {"name": "mine", "base": BASE, "checks": ["base"], **keys}
    known = {"known_roles": ROLES, "known_checks": CHECKS}
    return load_definition(data, DEFAULTS, source="mine.yml", builder=picked, **known)


def test_a_definition_is_completed_from_the_defaults():
    definition = load(memory=4096)
    assert definition["memory"] == 4096
    assert definition["builder"] == DEFAULTS["builder"]
    assert definition["base"] == {**BASE, "packages": []}


def test_one_of_several_builders_is_picked_and_what_is_only_for_others_is_left_out():
    keys = {**ebs(region="eu-west-1"), "builder": ["qemu", "amazon-ebs"]}
    local, ami = load(**keys), load("amazon-ebs", **keys)
    assert local["builder"] == "qemu"
    assert "amazon_ebs" not in local
    assert ami["builder"] == "amazon-ebs"
    assert ami["amazon_ebs"] == {**DEFAULTS["amazon_ebs"], **EBS, "region": "eu-west-1"}
    assert not {"base", "memory", "checks"} & set(ami)
    assert [output_name(each, keys["builder"]) for each in (local, ami)] == ["mine", "mine-amazon-ebs"]
    with pytest.raises(DefinitionError, match="builder: 'amazon-ebs' was asked for; this definition has: qemu"):
        load("amazon-ebs")


def test_an_ami_needs_no_base():
    data = {"name": "mine", "builder": "amazon-ebs", **ebs()}
    assert load_definition(data, DEFAULTS, source="mine.yml")["builder"] == "amazon-ebs"
    del data["builder"]
    with pytest.raises(DefinitionError, match="missing key 'base'"):
        load_definition(data, DEFAULTS, source="mine.yml")


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
        ({"memroy": 1}, "mine.yml: unknown key 'memroy'; did you mean 'memory'? Allowed: amazon_ebs, base, budgets,"),
        ({"memory": "2G"}, "mine.yml: memory: expected integer, found string ('2G')"),
        ({"cpus": 0}, "mine.yml: cpus: 0 is less than the minimum of 1"),
        ({"builder": "vmware"}, "mine.yml: builder: 'vmware' is not possible Allowed: qemu, amazon-ebs"),
        ({"builder": ["qemu", "qemo"]}, "mine.yml: builder.1: 'qemo' is not possible; did you mean 'qemu'?"),
        ({"builder": []}, "mine.yml: builder: [] should be non-empty"),
        ({"builder": ["qemu", "amazon-ebs"]}, "mine.yml: missing key 'amazon_ebs'"),
        ({"amazon_ebs": {}}, "mine.yml: amazon_ebs: missing key 'instance_type'"),
        (ebs(regoin="x"), "mine.yml: unknown key 'amazon_ebs.regoin'; did you mean 'region'? Allowed: endpoint_url,"),
        (ebs(source_ami={"id": "ami-1"}), "unknown key 'amazon_ebs.source_ami.id' Allowed: name, owner"),
        (ebs(ssh_source_cidrs=["0.0.0.0/0"]), "ssh_source_cidrs.0: '0.0.0.0/0' does not have the form"),
        (ebs(ssh_source_cidrs=["::/0"]), "(who may reach SSH; a prefix below 8 would be half the Internet)"),
        (ebs(ssh_interface="session_manager"), "amazon_ebs.ssh_interface: 'session_manager' is not possible"),
        (ebs(tags={"a": 1}), "mine.yml: amazon_ebs.tags.a: expected string, found integer (1)"),
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
