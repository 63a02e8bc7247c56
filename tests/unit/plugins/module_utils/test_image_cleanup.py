# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The clean-up enforces its rules, all of them and nothing else. Real trees under tmp_path."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import typing as t

import pytest
import yaml
from ansible_collections.goldsmith.images.plugins.module_utils import _image_cleanup as logic

COLLECTION = pathlib.Path(logic.__file__).resolve().parents[2]
CONTRACT = yaml.safe_load((COLLECTION / "roles/cleanup/files/contract.yml").read_text(encoding="utf-8"))
PLANTED = yaml.safe_load((COLLECTION / "tests/support/hygiene_violations.yml").read_text(encoding="utf-8"))
CHOICES = {"machine_id": "empty", "ssh_host_keys": "remove"}


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    for name in ("etc/ssh", "var/log/journal/0123", "var/tmp", "tmp", "home/admin/.ssh", "root"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


def fill(root: pathlib.Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of the build\n", encoding="utf-8")


def files_of(root: pathlib.Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or not path.is_dir()}


def enforce(root: pathlib.Path, rule: dict[str, t.Any], **context: t.Any) -> list[str]:
    """Enforce one rule and make sure that there is nothing left to do; return the paths that were acted on."""
    made = logic.make_rule({"id": "test", **rule})
    where = logic.Context(root=str(root), choices=CHOICES, **context)
    if not logic.holds(made, where):
        return []
    actions = logic.decide(made, where)
    for action in actions:
        logic.apply(action)
    assert logic.decide(made, where) == []
    return [str(pathlib.Path(action.path).relative_to(root)) for action in actions]


def test_absent_takes_files_and_trees(root: pathlib.Path) -> None:
    fill(root, "etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_rsa_key.pub", "etc/ssh/sshd_config", "root/.cache/a/b")
    enforce(root, {"state": "absent", "paths": ["/etc/ssh/ssh_host_*", "/root/.cache"]})
    assert files_of(root) == {"etc/ssh/sshd_config"}


def test_a_link_is_removed_and_its_target_stays(root: pathlib.Path) -> None:
    fill(root, "etc/precious")
    (root / "var/tmp/link").symlink_to(root / "etc")
    enforce(root, {"state": "empty_directory", "paths": ["/var/tmp"]})
    assert files_of(root) == {"etc/precious"}


def test_a_path_that_leads_through_a_link_is_left_alone(root: pathlib.Path) -> None:
    fill(root, "etc/known_hosts")
    (root / "home/eve").mkdir()
    (root / "home/eve/.ssh").symlink_to(root / "etc")
    assert enforce(root, {"state": "absent", "paths": ["/home/*/.ssh/known_hosts"]}) == []
    assert "etc/known_hosts" in files_of(root)


def test_empty_directory_takes_hidden_entries_and_leaves_the_directory(root: pathlib.Path) -> None:
    fill(root, "var/tmp/.hidden", "var/tmp/a/b")
    enforce(root, {"state": "empty_directory", "paths": ["/var/tmp"]})
    assert os.listdir(root / "var/tmp") == []


def test_no_files_leaves_directories(root: pathlib.Path) -> None:
    fill(root, "var/log/a.log", "var/log/apt/term.log", "var/log/journal/0123/system.journal")
    enforce(root, {"state": "no_files", "paths": ["/var/log"], "keep": ["/var/log/journal/*"]})
    assert files_of(root) == {"var/log/journal/0123/system.journal"}
    assert (root / "var/log/apt").is_dir()


def test_content_is_written_with_its_mode(root: pathlib.Path) -> None:
    fill(root, "etc/machine-id")
    rule = {"state": "content", "paths": ["/etc/machine-id"], "content": "", "mode": "0444"}
    assert enforce(root, rule) == ["etc/machine-id"]
    assert (root / "etc/machine-id").read_text(encoding="utf-8") == ""
    assert (root / "etc/machine-id").stat().st_mode & 0o777 == 0o444


def test_content_makes_the_last_directory_only(root: pathlib.Path) -> None:
    assert enforce(root, {"state": "content", "paths": ["/etc/new/file"], "content": "x"}) == ["etc/new/file"]
    assert enforce(root, {"state": "content", "paths": ["/opt/none/file"], "content": "x"}) == []


def test_link_replaces_a_file_and_a_wrong_link(root: pathlib.Path) -> None:
    fill(root, "etc/resolv.conf")
    rule = {"state": "link", "paths": ["/etc/resolv.conf"], "target": "../run/stub"}
    enforce(root, rule)
    assert os.readlink(root / "etc/resolv.conf") == "../run/stub"
    assert enforce(root, {**rule, "target": "../run/other"}) == ["etc/resolv.conf"]


def test_lines_go_and_the_mode_stays(root: pathlib.Path) -> None:
    path = root / "etc/hosts"
    path.write_text("127.0.0.1 localhost\n127.0.1.1 build\n192.0.2.1 kept\n", encoding="utf-8")
    path.chmod(0o640)
    enforce(root, {"state": "no_lines", "paths": ["/etc/hosts"], "pattern": r"^127\.0\.1\.1\s"})
    assert path.read_text(encoding="utf-8") == "127.0.0.1 localhost\n192.0.2.1 kept\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_the_user_keeps_stays_inside_a_tree_that_goes(root: pathlib.Path) -> None:
    fill(root, "var/tmp/a/keep/x", "var/tmp/a/other", "var/tmp/b")
    rule = {"state": "empty_directory", "paths": ["/var/tmp"]}
    enforce(root, rule, keep_paths=("/var/tmp/a/keep",))
    assert files_of(root) == {"var/tmp/a/keep/x"}


def test_own_code_stays_even_where_nobody_lives(root: pathlib.Path) -> None:
    fill(root, "tmp/ansible_payload/module.zip", "tmp/other")
    rule = {"state": "empty_directory", "paths": ["/tmp"]}
    enforce(root, rule, in_use=("/tmp/ansible_payload",), live=False)
    assert files_of(root) == {"tmp/ansible_payload/module.zip"}


@pytest.mark.parametrize(("live", "left"), [(True, {"var/tmp/systemd-private-1/x"}), (False, set())])
def test_what_services_use_stays_only_on_a_live_machine(root: pathlib.Path, live: bool, left: set[str]) -> None:
    fill(root, "var/tmp/systemd-private-1/x", "var/tmp/y")
    rule = {"state": "empty_directory", "paths": ["/var/tmp"], "live_keep": ["/var/tmp/systemd-private-*"]}
    enforce(root, rule, live=live)
    assert files_of(root) == left


@pytest.mark.parametrize(
    ("condition", "context"),
    [
        ({"choice": {"machine_id": "absent"}}, {}),
        ({"final": True}, {"final": False}),
        ({"if_exists": "/usr/bin/cloud-init"}, {}),
        ({"unless_contains": {"path": "/etc/marker", "text": "of the"}}, {}),
        ({}, {"skip_rules": ("test",)}),
        ({"paths": ["/home/{build_user}"]}, {}),
    ],
)
def test_rules_that_do_not_hold(root: pathlib.Path, condition: dict[str, t.Any], context: dict[str, t.Any]) -> None:
    fill(root, "etc/marker", "var/tmp/x", "home/{build_user}/x")
    before = files_of(root)
    assert enforce(root, {"state": "absent", "paths": ["/var/tmp/x"], **condition}, **context) == []
    assert files_of(root) == before


def test_build_user_is_no_glob(root: pathlib.Path) -> None:
    fill(root, "home/packer/x", "home/other/x")
    enforce(root, {"state": "absent", "paths": ["/home/{build_user}"]}, build_user="*")
    assert files_of(root) == {"home/packer/x", "home/other/x"}
    enforce(root, {"state": "absent", "paths": ["/home/{build_user}"]}, build_user="packer")
    assert files_of(root) == {"home/other/x"}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"state": "gone", "paths": ["/tmp/x"]}, "state 'gone'"),
        ({"state": "absent", "paths": ["tmp/x"]}, "not an absolute path"),
        ({"state": "absent", "paths": ["/"]}, "not an absolute path"),
        ({"state": "absent", "paths": ["/*"]}, "below a named directory"),
        ({"state": "absent", "paths": ["/tmp/../etc"]}, "not an absolute path"),
        ({"state": "absent"}, "'paths' is missing"),
        ({"state": "link", "paths": ["/etc/x"]}, "'target' is missing"),
        ({"state": "absent", "paths": ["/tmp/x"], "pathes": []}, "unknown keys: pathes"),
    ],
)
def test_bad_rules_are_refused(rule: dict[str, t.Any], message: str) -> None:
    with pytest.raises(logic.ImageCleanupError, match=re.escape(message)):
        logic.make_rule({"id": "bad", **rule})


def test_freed_bytes_are_those_on_disk(root: pathlib.Path) -> None:
    path = root / "var/tmp/x"
    path.write_bytes(b"x" * 10000)
    os.link(path, root / "etc/second_name")
    assert logic.size_of(str(path)) == 0
    os.unlink(root / "etc/second_name")
    assert logic.size_of(str(path)) >= 10000


def test_user_is_looked_up_by_its_whole_name(root: pathlib.Path) -> None:
    (root / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\npacker2:x:1000:1000::/h:/bin/sh\n", encoding="utf-8")
    assert logic.user_exists("packer2", str(root))
    assert not logic.user_exists("packer", str(root))


# --- the contract


RULES = [logic.make_rule(data) for data in CONTRACT["rules"]]


def test_contract_is_complete() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)
    assert [rule.id for rule in RULES if not rule.reason] == []


def test_contract_can_be_enforced_by_a_shell() -> None:
    """The finish script has the paths unquoted, for their globs."""
    paths = [path for data in CONTRACT["rules"] for path in data["paths"]]
    assert [path for path in paths if not re.fullmatch(r"[A-Za-z0-9_./*{}\[\]-]+", path)] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_each_rule_finds_its_violation(root: pathlib.Path, rule: logic.Rule) -> None:
    """Plant what the rule is about, and see that the clean-up acts on it."""
    context = logic.Context(root=str(root), choices=dict(rule.choice), build_user="packer")
    if rule.if_exists:
        fill(root, rule.if_exists.lstrip("/") + "/needed")
    for path in rule.paths:
        name = path.lstrip("/").replace("{build_user}", "packer").replace("[0-9]", "7").replace("*", "planted")
        below = "/planted" if rule.state in ("empty_directory", "no_files") else ""
        fill(root, name + below)
        if rule.state == "no_lines":
            (root / name).write_text(next(iter(PLANTED[rule.id].values())), encoding="utf-8")
    assert logic.holds(rule, context)
    acted_on = {action.path for action in logic.decide(rule, context)}
    assert len(acted_on) >= len(rule.paths), f"of {rule.paths} only {acted_on}"


# --- the finish script


def render_finish(**variables: t.Any) -> str:
    from ansible.parsing.dataloader import DataLoader
    from ansible.template import Templar, trust_as_template

    role = COLLECTION / "roles/cleanup"
    known = {
        **yaml.safe_load((role / "defaults/main.yml").read_text(encoding="utf-8")),
        **yaml.safe_load((role / "vars/main.yml").read_text(encoding="utf-8")),
        "__cleanup_rules": CONTRACT["rules"],
        "__cleanup_choices": CHOICES,
        **variables,
    }
    text = (role / "templates/finish.sh.j2").read_text(encoding="utf-8")
    templar = Templar(loader=DataLoader(), variables=known)
    return t.cast(str, templar.template(trust_as_template("#jinja2: trim_blocks: True\n" + text)))


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"cleanup_build_user": "packer"},
        {"cleanup_build_user": "packer", "cleanup_keep_paths": ["/home/admin/.ssh/authorized_keys", "/var/log/my*"]},
    ],
    ids=["plain", "user", "keep"],
)
def test_finish_script_is_a_clean_shell_script(tmp_path: pathlib.Path, variables: dict[str, t.Any]) -> None:
    script = tmp_path / "finish.sh"
    script.write_text(render_finish(**variables).lstrip(), encoding="utf-8")
    assert script.read_text(encoding="utf-8").startswith("#!/bin/sh\n")
    subprocess.run(["sh", "-n", script], check=True)
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", script], check=False, capture_output=True, text=True)
        assert done.stdout == ""


def test_finish_script_knows_every_rule_that_holds() -> None:
    text = render_finish(cleanup_build_user="packer")
    for rule in RULES:
        wanted = rule.state != "no_lines" and all(CHOICES[key] == value for key, value in rule.choice)
        assert (f"\n# {rule.id}\n" in text) is wanted, rule.id


def test_finish_script_without_a_build_user_names_none() -> None:
    text = render_finish()
    assert "userdel" not in text
    assert "{build_user}" not in text
