from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _image_plan as planning

KVM_HARDWARE = {"usable": True, "accelerated": True}
KVM_SOFTWARE = {"usable": True, "accelerated": False, "backend": "kvm_pvm"}
KVM_NONE = {"usable": False, "accelerated": False, "reason": "no_device", "hint": "load the module kvm_intel"}


@pytest.mark.parametrize(
    ("wanted", "kvm", "qemu", "name", "cpu_model"),
    [
        ("auto", KVM_HARDWARE, (7, 2), "kvm", "host"),
        ("auto", KVM_SOFTWARE, (10, 0), "tcg", "max"),
        ("auto", KVM_NONE, (8, 0), "tcg", "max"),
        ("auto", KVM_NONE, (7, 2), "tcg", "qemu64"),
        ("kvm", KVM_SOFTWARE, (10, 0), "kvm", "host"),
        ("tcg", KVM_HARDWARE, (10, 0), "tcg", "max"),
    ],
)
def test_the_accelerator_follows_what_was_measured(wanted, kvm, qemu, name, cpu_model):
    accelerator = planning.choose_accelerator(wanted, kvm, qemu)
    assert (accelerator.name, accelerator.cpu_model) == (name, cpu_model)


def test_kvm_that_cannot_be_used_is_an_error_when_demanded():
    with pytest.raises(planning.PlanError, match="load the module kvm_intel"):
        planning.choose_accelerator("kvm", KVM_NONE, (10, 0))


KVM = planning.Accelerator("kvm", "host", "")
TCG = planning.Accelerator("tcg", "max", "")


@pytest.mark.parametrize(
    ("wanted", "accelerator", "base", "running", "problem", "name", "reason"),
    [
        ("vm", TCG, "bootstrap", {}, "", "vm", "asked for"),
        ("auto", KVM, "bootstrap", {}, "", "vm", "with KVM"),
        ("auto", TCG, "bootstrap", {}, "", "rootfs", "no accelerated KVM"),
        ("rootfs", KVM, "bootstrap", {}, "", "rootfs", "asked for"),
        ("auto", TCG, "download", {}, "", "vm", "does not say what it holds"),
        ("auto", TCG, "bootstrap", {"zfs": "needs a kernel"}, "", "vm", "zfs (needs a kernel)"),
        ("auto", TCG, "bootstrap", {}, "this user may not mount here", "vm", "may not mount"),
    ],
)
def test_the_build_method_follows_what_is_possible(wanted, accelerator, base, running, problem, name, reason):
    method = planning.choose_build_method(wanted, accelerator, {"method": base}, running, lambda: problem)
    assert method.name == name
    assert reason in method.reason


@pytest.mark.parametrize(
    ("base", "running", "problem"),
    [("bootstrap", {"zfs": "needs a kernel"}, ""), ("bootstrap", {}, "may not mount here")],
)
def test_a_tree_that_was_demanded_and_is_impossible_is_an_error(base, running, problem):
    with pytest.raises(planning.PlanError, match="build_method=rootfs was asked for, but cannot be used"):
        planning.choose_build_method("rootfs", TCG, {"method": base}, running, lambda: problem)


BOOKWORM = {"method": "bootstrap", "release": "bookworm"}


def test_debian_12_is_built_in_a_tree():
    method = planning.choose_build_method("auto", KVM, BOOKWORM, {}, lambda: "")
    assert method.name == "rootfs"
    assert "cannot read the CD" in method.reason
    with pytest.raises(planning.PlanError, match="build_method=vm was asked for, but cannot be used: .*; rootfs can"):
        planning.choose_build_method("vm", KVM, BOOKWORM, {}, lambda: "")
    with pytest.raises(planning.PlanError, match="no build_method can be used: .* and for a root tree it is full"):
        planning.choose_build_method("auto", KVM, BOOKWORM, {}, lambda: "it is full")


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    for role, text in {"one": "plain", "two": "name: goldsmith.images.helper", "helper": "helps"}.items():
        folder = tmp_path / "roles" / role / "tasks"
        folder.mkdir(parents=True)
        (folder / "main.yml").write_text(text)
    (tmp_path / "plugins").mkdir()
    (tmp_path / "playbooks/tasks").mkdir(parents=True)
    (tmp_path / "playbooks/provision.yml").write_text("")
    (tmp_path / "playbooks/tasks/apply_role.yml").write_text("")
    return tmp_path


def changed_layers(collection: Path, before: list[dict[str, str]], variables: dict[str, object]) -> list[str]:
    after = planning.layers(["one", "two", "acme.tools.three"], variables, collection, {})
    return [new["role"] for old, new in zip(before, after, strict=True) if old != new]


def test_a_layer_depends_on_its_role_what_that_uses_and_its_variables(collection: Path):
    variables: dict[str, object] = {"one_x": 1, "two_x": 2, "shared": 3}
    before = planning.layers(["one", "two", "acme.tools.three"], variables, collection, {})
    assert before[2] == {"role": "acme.tools.three", "digest": ""}
    assert changed_layers(collection, before, variables) == []
    assert changed_layers(collection, before, {**variables, "one_x": 9}) == ["one"]
    assert changed_layers(collection, before, {**variables, "shared": 9}) == ["one", "two"]
    both = planning.layers(["two", "helper"], {"helper_x": 1}, collection, {})
    other = planning.layers(["two", "helper"], {"helper_x": 2}, collection, {})
    assert both[0] != other[0], "a role that another uses brings its variables along"
    (collection / "roles/helper/tasks/main.yml").write_text("helps otherwise")
    assert changed_layers(collection, before, variables) == ["two"]


def test_missing_programs_come_with_the_apt_line(tmp_path: Path):
    (tmp_path / "there").write_text("#!/bin/sh\n")
    (tmp_path / "there").chmod(0o755)
    lines = planning.missing_programs({"there": "a", "nothere": "b", "nor-this": "c"}, str(tmp_path))
    assert lines[:2] == ["nothere is not installed or not on PATH.", "nor-this is not installed or not on PATH."]
    assert lines[2] == "Install with: apt-get install b c"


def test_disk_space_needed_on_one_file_system_adds_up(tmp_path: Path):
    assert planning.space_problems({"cache": (tmp_path / "a" / "b", 1), "output": (tmp_path, 1)}) == []
    [line] = planning.space_problems({"cache": (tmp_path, 2**59), "output": (tmp_path / "new", 2**59)})
    assert line.startswith(f"Too little disk space in {tmp_path}")
    assert "1073741824.0 GiB needed" in line


def test_a_folder_below_a_file_is_not_writable(tmp_path: Path):
    (tmp_path / "file").write_text("")
    [line] = planning.space_problems({"output folder": (tmp_path / "file" / "x", 1)})
    assert "output folder" in line
    assert "not writable" in line


def test_memory_is_counted_for_all_guests():
    assert planning.memory_problems(2048, 2, 4608 * 2**20) == []
    [line] = planning.memory_problems(2048, 2, 2048 * 2**20)
    assert line == "Too little memory: 4608 MiB needed (2 guests of 2048), 2048 MiB available."


def test_a_tree_digest_sees_names_contents_and_execute_bits(tmp_path: Path):
    (tmp_path / "a").write_text("x")
    digests = [planning.tree_digest(tmp_path)]
    (tmp_path / "a").write_text("y")
    digests.append(planning.tree_digest(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    digests.append(planning.tree_digest(tmp_path))
    (tmp_path / "b").chmod(0o755)
    digests.append(planning.tree_digest(tmp_path))
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "b.pyc").write_text("z")
    assert planning.tree_digest(tmp_path) == digests[-1]
    assert len(set(digests)) == 4


@pytest.fixture
def finished(tmp_path: Path):
    """An image with its manifest, and the inputs it was made from."""
    image, inputs = tmp_path / "i.qcow2", {"role a": "1", "accelerator": "tcg"}
    image.write_bytes(b"disk")
    manifest = {
        "schema": planning.SCHEMA,
        "inputs": inputs,
        "image": {"sha256": planning.file_digest(image)},
        "verification": {"passed": True},
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return image, inputs, tmp_path / "manifest.json", manifest


def test_nothing_is_built_when_nothing_changed(finished):
    image, inputs, manifest, _data = finished
    assert planning.why_build(inputs, image, manifest) == []


def test_the_reason_names_what_changed(finished):
    image, inputs, manifest, _data = finished
    reasons = planning.why_build({"role a": "2", "role b": "1"}, image, manifest)
    assert reasons == ["changed: accelerator", "changed: role a", "changed: role b"]


def test_an_altered_or_missing_image_is_built_again(finished):
    image, inputs, manifest, _data = finished
    image.write_bytes(b"disl")
    assert planning.why_build(inputs, image, manifest) == [f"{image} was altered after the build"]
    image.unlink()
    assert planning.why_build(inputs, image, manifest) == [f"{image} is gone"]


def test_an_image_that_did_not_pass_is_built_again(finished):
    image, inputs, manifest, data = finished
    manifest.write_text(json.dumps({**data, "verification": {"passed": False}}))
    assert planning.why_build(inputs, image, manifest) == ["the last image did not pass its verification"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": 1}'])
def test_a_damaged_manifest_is_a_reason(finished, content):
    image, inputs, manifest, _data = finished
    manifest.write_text(content)
    assert planning.why_build(inputs, image, manifest) == [f"{manifest} cannot be read"]


def test_no_manifest_is_a_reason(tmp_path: Path):
    assert planning.why_build({}, tmp_path / "i", tmp_path / "m") == ["there is no finished image yet"]


def test_an_ami_is_built_again_when_something_changed_or_it_is_gone(tmp_path: Path):
    manifest, inputs = tmp_path / "manifest.json", {"role a": "1"}
    amis = {"eu-west-1": {"image_id": "ami-1"}}
    manifest.write_text(json.dumps({"schema": planning.SCHEMA, "inputs": inputs, "amis": amis}))
    gone = "{} is gone".format
    assert planning.why_build_ami(inputs, "eu-west-1", manifest, lambda image_id: "") == []
    assert planning.why_build_ami(inputs, "eu-west-1", manifest, gone) == ["ami-1 is gone"]
    assert planning.why_build_ami({"role a": "2"}, "eu-west-1", manifest, gone) == ["changed: role a"]
    assert planning.why_build_ami(inputs, "us-east-1", manifest, gone) == [f"{manifest} cannot be read"]


def test_a_changed_check_does_not_change_what_is_in_the_image():
    inputs = {"role hardening": "1", "role verify_image": "1", "definition checks": "1"}
    fingerprint = planning.build_fingerprint(inputs)
    assert planning.build_fingerprint({**inputs, "role verify_image": "2", "definition checks": "2"}) == fingerprint
    assert planning.build_fingerprint({**inputs, "role hardening": "2"}) != fingerprint


@pytest.mark.parametrize(
    ("kvm", "accelerator", "allowed", "text"),
    [
        ({"accelerated": True, "nested_param": True}, KVM, False, ""),
        ({"accelerated": True, "nested_param": None}, KVM, False, ""),
        ({"accelerated": True, "nested_param": False}, KVM, False, "nested=0"),
        (KVM_NONE, TCG, False, "load the module kvm_intel"),
        (KVM_SOFTWARE, KVM, False, "no accelerated KVM"),
        (KVM_NONE, TCG, True, ""),
    ],
)
def test_host_whose_machines_cannot_run_vms_is_refused_unless_allowed(kvm, accelerator, allowed, text):
    problems = planning.nested_kvm_problems(kvm, accelerator, allowed)
    assert bool(problems) is bool(text)
    assert all(text in problem and "image_allow_no_kvm=true" in problem for problem in problems)
