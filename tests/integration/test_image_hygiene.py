# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checker of images finds a violation of every rule of the contract in a disk, and none in a clean one.

The disks are real ones (GPT, ext4, FAT, qcow2), made of folders in milliseconds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.goldsmith.images.plugins.module_utils import _image_cleanup, _image_tree
from ansible_collections.goldsmith.images.plugins.module_utils import _image_hygiene as logic
from ansible_collections.goldsmith.images.tests.support import canaries, documented, small_disk

pytestmark = pytest.mark.skipif(bool(small_disk.missing()), reason=small_disk.missing())

CHECKOUT = Path(__file__).resolve().parents[2]
CONTRACT = yaml.safe_load((CHECKOUT / "roles/cleanup/files/contract.yml").read_text(encoding="utf-8"))
RULES = {rule["id"]: rule for rule in CONTRACT["rules"]}
DEFAULTS = {name: values[0] for name, values in CONTRACT["choices"].items()}
# What real machines have been found to carry, by rule: written from those, not from the globs of the contract.
PLANTED = yaml.safe_load((CHECKOUT / "tests/support/hygiene_violations.yml").read_text(encoding="utf-8"))
CLEAN = {
    "/etc/machine-id": "",
    "/etc/hostname": "localhost\n",
    "/etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost\n",
    "/etc/fstab": "LABEL=root / ext4 rw 0 1\nLABEL=ESP /boot/efi vfat umask=0077,noauto 0 0\n",
    "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\npackers:x:1000:1000::/home/packers:/bin/sh\n",
    "/etc/apt/sources.list.d/debian.sources": "Types: deb\nURIs: https://deb.example/debian\n",
    "/etc/environment": "LANG=C.UTF-8\n",
    "/root/.bashrc": "# user@host:/path\n",
    "/usr/bin/cloud-init": "",
    "/usr/lib/systemd/systemd-resolved": "",
    "/var/log/README": "see journalctl\n",
    "/var/log/apt/": "",
    "/var/tmp/": "",
    "/tmp/": "",
    "/boot/efi/": "",
    "/var/lib/cloud/": "",
}
CLEAN_LINKS = {
    "/etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf",
    "/var/lib/dbus/machine-id": "/etc/machine-id",
}


def put(root: Path, path: str, content: str = "") -> None:
    """A file; a directory if the path ends in a slash; a link to what follows "-> "."""
    place = root / path.strip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_symlink() or place.is_file():
        place.unlink()
    if path.endswith("/"):
        place.mkdir(exist_ok=True)
    elif content.startswith("-> "):
        place.symlink_to(content.removeprefix("-> "))
    else:
        place.write_text(content, encoding="utf-8")


def clean_tree(root: Path, machine_id: str = "empty") -> Path:
    for path, content in CLEAN.items():
        put(root, path, content)
    for path, target in CLEAN_LINKS.items():
        put(root, path, f"-> {target}")
    put(root, "/etc/systemd/system-preset/")
    if machine_id != "empty":
        put(root, "/etc/systemd/system-preset/00-goldsmith.preset", "disable *\n")
        put(root, "/etc/machine-id", "uninitialized\n")
    os.chmod(root / "etc/machine-id", 0o444)
    if machine_id == "absent":
        (root / "etc/machine-id").unlink()
    return root


def terms_of(rule: dict[str, Any] | None = None) -> logic.Terms:
    return logic.Terms(choices={**DEFAULTS, **((rule or {}).get("choice") or {})}, build_user="packer")


def look(disk: Path, terms: logic.Terms) -> dict[str, set[str]]:
    """The paths of the violations, by rule."""
    _checked, violations = logic.check(_image_tree.open_tree(str(disk)), CONTRACT["rules"], terms)
    found: dict[str, set[str]] = {}
    for violation in violations:
        found.setdefault(violation.rule, set()).add(violation.path)
    return found


def test_every_rule_has_planted_violations() -> None:
    assert sorted(PLANTED) == sorted(RULES)


@pytest.mark.parametrize("machine_id", CONTRACT["choices"]["machine_id"])
def test_a_clean_disk_has_no_violations(tmp_path: Path, machine_id: str) -> None:
    root = clean_tree(tmp_path / "root", machine_id)
    disk = small_disk.make_raw(root, tmp_path / "disk.raw")
    terms = terms_of({"choice": {"machine_id": machine_id}})
    assert look(disk, terms) == {}
    checked, _found = logic.check(_image_tree.open_tree(str(disk)), CONTRACT["rules"], terms)
    others = {name for name, rule in RULES.items() if "choice" in rule}
    assert set(RULES) - others <= set(checked), "a rule that is not looked at finds nothing"


@pytest.mark.parametrize("name", RULES)
def test_a_violation_of_each_rule_is_found(tmp_path: Path, name: str) -> None:
    terms = terms_of(RULES[name])
    root = clean_tree(tmp_path / "root", terms.choices["machine_id"])
    esp = tmp_path / "esp"
    esp.mkdir()
    for path, content in PLANTED[name].items():
        if path.startswith("/boot/efi/"):
            put(esp, path.removeprefix("/boot/efi"), content)
        elif content is None:
            (root / path.strip("/")).unlink()
        else:
            put(root, path, content)
    found = look(small_disk.make_raw(root, tmp_path / "disk.raw", esp), terms)
    # A folder that must not be there is one violation, whatever is in it.
    missed = {path for path in PLANTED[name] if not any(f"{path}/".startswith(f"{p}/") for p in found.get(name, ()))}
    assert missed == set()
    # Other rules may name the same path, and no other.
    others = {path for rule in found for path in found[rule] if rule != name}
    assert {path for path in others if not any(p.startswith(path) for p in PLANTED[name])} == set()


def derived(rule: dict[str, Any], pattern: str) -> str:
    path = pattern.replace("{build_user}", "packer").replace("[0-9]", "7").replace("*", "planted")
    return f"{path}/planted" if rule["state"] in ("empty_directory", "no_files") else path


@pytest.mark.parametrize("name", RULES)
def test_each_path_of_a_rule_is_looked_at(tmp_path: Path, name: str) -> None:
    """A folder will do here, and the contract's own words: each glob is used, the last as well as the first."""
    rule = RULES[name]
    line = next((text for text in PLANTED[name].values() if text), "planted\n")
    root = clean_tree(tmp_path / "root")
    paths = {derived(rule, pattern) for pattern in rule["paths"]}
    for path in paths:
        put(root, path, line)
    missed = paths - look(root, terms_of(rule)).get(name, set())
    assert missed == set()


@pytest.mark.parametrize("machine_id", CONTRACT["choices"]["machine_id"])
def test_what_the_clean_up_removes_is_what_the_checker_finds(tmp_path: Path, machine_id: str) -> None:
    """All violations at once: the code of the role, which the checker knows nothing of, leaves none."""
    terms = terms_of({"choice": {"machine_id": machine_id}})
    root = clean_tree(tmp_path / "root")
    for planted in PLANTED.values():
        for path, content in planted.items():
            if content is not None:
                put(root, path, content)
    assert len(look(root, terms)) > 50
    clean_up(root, terms)
    assert look(small_disk.make_raw(root, tmp_path / "disk.raw"), terms) == {}


def clean_up(root: Path, terms: logic.Terms) -> None:
    context = _image_cleanup.Context(root=str(root), choices=terms.choices, build_user=terms.build_user)
    for rule in map(_image_cleanup.make_rule, CONTRACT["rules"]):
        if _image_cleanup.holds(rule, context):
            for action in _image_cleanup.decide(rule, context):
                _image_cleanup.apply(action)


def test_no_planted_secret_is_anywhere_on_the_disk(tmp_path: Path) -> None:
    """In more than 30 places, deleted files too; the same with the whole role is in test_roles_in_a_root_tree.py."""
    planted = canaries.make()
    assert len(planted) > 30
    root = clean_tree(tmp_path / "root")
    subprocess.run(["sh"], input=canaries.script(planted, str(root)), check=True, text=True)
    dirty = small_disk.make_raw(root, tmp_path / "dirty.raw")
    assert canaries.found_in(dirty, planted) == set(planted) - set(canaries.DELETED)
    clean_up(root, terms_of())
    raw = small_disk.make_raw(root, tmp_path / "clean.raw")
    for compression in ("", "zlib", "zstd"):
        image = small_disk.make_qcow2(raw, tmp_path / f"clean{compression}.qcow2", compression)
        assert canaries.found_in(image, planted) == set()


# --- forms of a disk


@pytest.mark.parametrize("form", ["raw", "qcow2", "zlib", "zstd"])
def test_every_form_of_a_disk(run_module: Callable[..., dict[str, Any]], tmp_path: Path, form: str) -> None:
    root = clean_tree(tmp_path / "root")
    put(root, "/var/log/syslog", "x" * 200_000)
    (tmp_path / "esp").mkdir()
    put(tmp_path / "esp", "/loader/random-seed", "seed")
    disk = small_disk.make_raw(root, tmp_path / "disk.raw", tmp_path / "esp")
    if form != "raw":
        disk = small_disk.make_qcow2(disk, tmp_path / "disk.qcow2", "" if form == "qcow2" else form)
    before = (disk.read_bytes(), disk.stat().st_mtime_ns)
    result = run_module("image_hygiene", path=str(disk))
    assert not result["failed"] and not result["changed"], result
    documented.check_returned("image_hygiene", result)
    assert {one["path"] for one in result["violations"]} == {"/var/log/syslog", "/boot/efi/loader/random-seed"}
    assert result["read"] == {
        "format": "raw" if form == "raw" else "qcow2",
        "mounts": {"/": "partition 2 (ext4)", "/boot/efi": "partition 1 (vfat)"},
        "unread": [],
    }
    assert (disk.read_bytes(), disk.stat().st_mtime_ns) == before


def test_a_file_system_without_a_partition_table(tmp_path: Path) -> None:
    disk = tmp_path / "root.ext4"
    small_disk.run("mke2fs", "-q", "-t", "ext4", "-d", clean_tree(tmp_path / "root"), disk, "8M")
    assert look(disk, terms_of()) == {}


def test_fail_names_path_and_rule_and_no_content(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    root = clean_tree(tmp_path / "root")
    put(root, "/root/.bash_history", "mysql -phunter2\n")
    put(root, "/etc/environment", "https_proxy=http://joe:hunter2@proxy.example:3128\n")
    result = run_module("image_hygiene", path=str(root), fail=True)
    assert result["failed"]
    assert "/root/.bash_history: must not be there (histories)" in result["msg"]
    assert "/etc/environment: must not have such a line: 1 (passwords_in_urls)" in result["msg"]
    assert "hunter2" not in json.dumps(result)
    documented.check_returned("image_hygiene", result)


def test_examples(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    root = clean_tree(tmp_path / "root", "empty")
    places = {"/srv/images/node.qcow2": str(small_disk.make_raw(root, tmp_path / "disk.raw")), "/": str(root)}
    examples = [task.get("goldsmith.images.image_hygiene") for task in documented.section("image_hygiene", "EXAMPLES")]
    for params in filter(None, examples):
        secrets = {"secrets": ["a secret"]} if "secrets" in params else {}
        result = run_module("image_hygiene", **{**params, **secrets, "path": places[params["path"]]})
        assert not result["failed"], result["msg"]
        documented.check_returned("image_hygiene", result)


def test_secrets_are_found_wherever_they_are(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Also where a deleted file was, of which the file system knows nothing any more."""
    root = clean_tree(tmp_path / "root")
    put(root, "/usr/share/notes", "the first secret is s3cret-one\n")
    put(root, "/usr/share/gone", "s3cret-two\n")
    raw = small_disk.make_raw(root, tmp_path / "disk.raw")
    place = f"{raw}?offset={small_disk.ROOT_START * small_disk.MIB}"
    small_disk.run("debugfs", "-w", "-R", "rm /usr/share/gone", place)
    assert "gone" not in _image_tree.open_tree(str(raw)).names("/usr/share")
    for disk in (raw, small_disk.make_qcow2(raw, tmp_path / "disk.qcow2", "zstd")):
        result = run_module("image_hygiene", path=str(disk), secrets=["s3cret-one", "s3cret-two", "s3cret-three"])
        problems = [one["problem"] for one in result["violations"]]
        assert sorted(problems) == ["secret 1 stands there", "secret 2 stands there"]
        assert "s3cret" not in json.dumps(result)
    result = run_module("image_hygiene", path=str(root), secrets=["s3cret-one"])
    assert [one["path"] for one in result["violations"]] == ["/usr/share/notes"]


def test_a_secret_across_two_reads(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"\0" * (_image_tree.CHUNK - 3) + b"secret" + b"\0" * _image_tree.CHUNK)
    with disk.open("rb") as stream:
        assert list(_image_tree.search(stream, [b"other", b"secret"])) == [(1, _image_tree.CHUNK - 3)]


# --- links, choices, exceptions


def test_links_are_followed_within_the_image(tmp_path: Path) -> None:
    root = clean_tree(tmp_path / "root")
    put(root, "/srv/homes/admin/.bash_history", "secret\n")
    put(root, "/home", "-> /srv/homes")
    put(root, "/var/lib/dhcp", "-> ../../../../../../../../etc")
    put(root, "/srv/loop", "-> loop")
    put(root, "/root/.ssh", "-> /srv/loop")
    for image in (root, small_disk.make_raw(root, tmp_path / "disk.raw")):
        assert look(image, terms_of()) == {"histories": {"/srv/homes/admin/.bash_history"}}


def test_exceptions_of_the_user(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    root = clean_tree(tmp_path / "root")
    put(root, "/home/admin/.ssh/authorized_keys", "ssh-ed25519 AAAA\n")
    put(root, "/var/tmp/keep/a", "")
    put(root, "/var/tmp/keep/b", "")
    put(root, "/var/tmp/other", "")
    put(root, "/opt/agent/id", "")
    put(root, "/root/.netrc", "")
    result = run_module(
        "image_hygiene", path=str(root), keep_paths=["/home/admin/.ssh/authorized_keys", "/var/tmp/keep"],
        skip_rules=["stored_credentials"],
        extra_rules=[{"id": "agent", "state": "absent", "paths": ["/opt/agent/id"]}],
    )  # fmt: skip
    assert {one["path"] for one in result["violations"]} == {"/var/tmp/other", "/opt/agent/id"}


def test_a_running_machine(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """This one was not cleaned; what it writes at once is told apart from what it has."""
    result = run_module("image_hygiene", path="/", final=False)
    assert not result["failed"]
    documented.check_returned("image_hygiene", result)
    assert result["read"]["format"] == "folder"
    assert "authorized_keys" not in result["rules"]
    volatile = {name for name, rule in RULES.items() if rule.get("volatile")}
    assert {one["rule"] for one in result["rewritten"]} <= volatile
    assert {one["rule"] for one in result["violations"]} & volatile == set()
    root = clean_tree(tmp_path / "root")
    put(root, "/var/log/syslog", "")
    put(root, "/etc/netplan/50-cloud-init.yaml", "")
    assert run_module("image_hygiene", path=str(root), live=True)["violations"] == []
    assert len(run_module("image_hygiene", path=str(root))["violations"]) == 2


def test_pinned_images_of_containers_stay(tmp_path: Path) -> None:
    root = clean_tree(tmp_path / "root")
    store = "/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db"
    put(root, store, "images")
    assert "containerd" in look(root, terms_of())
    put(root, store, "io.cri-containerd.pinned")
    assert look(root, terms_of()) == {}


# --- what cannot be judged


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"choices": {"machine_id": "random"}}, "machine_id: random is not one of empty, uninitialized, absent"),
        ({"choices": {"keys": "remove"}}, "keys: remove is not a choice: machine_id, ssh_host_keys"),
        ({"rules": []}, "there are none"),
        ({"secrets": [""]}, "an empty string is everywhere"),
        ({"contract": "/nowhere/contract.yml"}, "/nowhere/contract.yml"),
    ],
)
def test_bad_arguments(
    run_module: Callable[..., dict[str, Any]], tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    result = run_module("image_hygiene", path=str(clean_tree(tmp_path / "root")), **arguments)
    assert result["failed"]
    assert message in " ".join(result["msg"].split())


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"id": "x", "state": "gone", "paths": ["/x"]}], "state 'gone' is none of absent,"),
        ([{"id": "x", "state": "absent"}], "rule x: needs id, state and a list of paths"),
        ([{"id": "x", "state": "absent", "paths": ["/x"], "pahts": 1}], "unknown keys: pahts"),
        ([{"id": "x", "state": "absent", "paths": ["/x"]}] * 2, "rules with the same id: x"),
        ([{"id": "x", "state": "absent", "paths": ["/x"]}], "skip_rules: no such rule: y"),
    ],
)
def test_bad_contracts(tmp_path: Path, rules: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(logic.ImageHygieneError, match=re.escape(message)):
        logic.check(_image_tree.FolderTree(str(tmp_path)), rules, logic.Terms(skip_rules=("y",)))


def broken(raw: Path, how: str) -> Path:
    offset = small_disk.ROOT_START * small_disk.MIB
    place = f"{raw}?offset={offset}"
    if how == "journal":
        small_disk.run("debugfs", "-w", "-R", "feature needs_recovery", place)
    elif how == "errors":
        small_disk.run("debugfs", "-w", "-R", "ssv state 3", place)
    elif how == "inline data":
        small_disk.run("mke2fs", "-q", "-F", "-t", "ext4", "-O", "inline_data", "-E", f"offset={offset}", raw, "8M")
    elif how == "no root":
        small_disk.run("mke2fs", "-q", "-F", "-t", "ext4", "-E", f"offset={offset}", raw, "8M")
    elif how == "cut off":
        image = small_disk.make_qcow2(raw, raw.with_suffix(".qcow2"))
        with image.open("r+b") as stream:
            stream.truncate(image.stat().st_size // 4)
        return image
    elif how == "text":
        raw.write_text("no disk\n" * 1000)
    return raw


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("journal", "partition 2: its ext4 file system was not unmounted, or has errors"),
        ("errors", "partition 2: its ext4 file system was not unmounted, or has errors"),
        ("inline data", "uses inline_data, which cannot be read offline"),
        ("no root", "no ext4 file systems with a directory /etc, where one is wanted"),
        ("cut off", "cannot be read, it is cut off or damaged"),
        ("text", "neither a partition table nor an ext4 file system"),
    ],
)
def test_what_cannot_be_read_is_never_clean(tmp_path: Path, how: str, message: str) -> None:
    disk = broken(small_disk.make_raw(clean_tree(tmp_path / "root"), tmp_path / "disk.raw"), how)
    with pytest.raises(_image_tree.TreeError, match=re.escape(message)) as raised:
        look(disk, terms_of())
    assert str(disk) in str(raised.value)


def test_an_image_that_is_cut_off_anywhere_is_never_clean(tmp_path: Path) -> None:
    """What the tables at the front name is no longer there: an error, or what is left of the violations."""
    root = clean_tree(tmp_path / "root")
    put(root, "/root/.bash_history", "")
    put(root, "/etc/environment", "http_proxy=http://proxy.example\n")
    raw = small_disk.make_raw(root, tmp_path / "disk.raw")
    image = small_disk.make_qcow2(raw, tmp_path / "disk.qcow2", "zstd")
    size = image.stat().st_size
    for part in range(19, 0, -1):
        os.truncate(image, size * part // 20)
        try:
            found = look(image, terms_of())
        except _image_tree.TreeError:
            continue
        assert found, part


def test_a_missing_image(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    result = run_module("image_hygiene", path=f"{tmp_path}/none.qcow2")
    assert result["failed"]
    assert result["msg"].endswith(f"{tmp_path}/none.qcow2: No such file or directory")


def test_file_systems_that_are_not_read_are_named(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    root = clean_tree(tmp_path / "root")
    put(root, "/etc/fstab", "LABEL=root / ext4 rw 0 1\nUUID=1234 /var ext4 rw 0 2\n/dev/vdb1 none swap sw 0 0\n")
    disk = small_disk.make_raw(root, tmp_path / "disk.raw")
    result = run_module("image_hygiene", path=str(disk))
    assert result["read"]["unread"] == ["/var: fstab's UUID=1234 is not a file system of this disk"]


def test_without_the_library(run_module: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Folders need none; for a disk the message says what to install."""
    python = tmp_path / "python"
    subprocess.run([shutil.which("python3") or "python3", "-m", "venv", "--without-pip", python], check=True)
    root = clean_tree(tmp_path / "root")
    disk = small_disk.make_raw(root, tmp_path / "disk.raw")
    bare = {"_python": str(python / "bin/python3")}
    assert run_module("image_hygiene", path=str(root), **bare)["passed"]
    result = run_module("image_hygiene", path=str(disk), **bare)
    assert result["failed"]
    assert "dissect.hypervisor" in result["msg"] and "Failed to import" in result["msg"]


# --- the page


def test_commands_of_the_page(ansible_env: dict[str, str], tmp_path: Path) -> None:
    text = (CHECKOUT / "docs/hygiene.md").read_text(encoding="utf-8")
    raw = small_disk.make_raw(clean_tree(tmp_path / "root"), tmp_path / "disk.raw")
    disk = small_disk.make_qcow2(raw, tmp_path / "node.qcow2", "zstd")
    commands = re.findall(r"^\$ (ansible .*(?:\\\n.*)*)", text, re.MULTILINE)
    assert commands
    for command in commands:
        shell = command.replace("/srv/images/node.qcow2", str(disk))
        done = subprocess.run(shell, shell=True, env=ansible_env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_plays_of_the_page(ansible_env: dict[str, str], tmp_path: Path) -> None:
    raw = small_disk.make_raw(clean_tree(tmp_path / "root"), tmp_path / "disk.raw")
    disk = small_disk.make_qcow2(raw, tmp_path / "node.qcow2", "zstd")
    pages = [block for block in documented.blocks("hygiene.md") if isinstance(block, list) and "hosts" in block[0]]
    assert pages
    for number, play in enumerate(pages):
        text = json.dumps(play).replace("/srv/images/node.qcow2", str(disk))
        (tmp_path / f"play{number}.yml").write_text(text)
        command = ["ansible-playbook", f"play{number}.yml"]
        done = subprocess.run(command, cwd=tmp_path, env=ansible_env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
