# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Files, links and directories: what is found, what is decided, what is done. Real paths under tmp_path."""

from __future__ import annotations

import os
import pathlib
import typing as t

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _config_files as logic

ME = {"owner": str(os.getuid()), "group": str(os.getgid())}


def step_for(path: pathlib.Path, **options: t.Any) -> logic.Step:
    wish = logic.make_wish({"path": str(path), **ME, **options})
    return logic.decide(wish, logic.look(wish.path))


def do(path: pathlib.Path, **options: t.Any) -> logic.Step:
    step = step_for(path, **options)
    staged = None
    if step.replace and step.wish.state == "present":
        staged = f"{path.parent.parent}/staged"
        with open(staged, "wb") as stream:
            stream.write(step.wish.content or b"")
    if step.changed:
        logic.apply(step, staged, os.rename)
    assert not step_for(path, **options).changed, "the second look must find nothing to do"
    return step


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "etc"
    path.mkdir()
    return path


def test_a_new_file_and_its_parents(folder: pathlib.Path) -> None:
    path = folder / "a" / "b" / "c.conf"
    step = step_for(path, content="x\n", mode="0640", directory_mode="0750")
    assert step.missing_parents == (str(folder / "a"), str(folder / "a" / "b"))
    logic.apply(step, str(_staged(folder, b"x\n")), os.rename)
    assert path.read_text() == "x\n"
    assert path.stat().st_mode & 0o7777 == 0o640
    assert path.parent.stat().st_mode & 0o7777 == 0o750
    assert not step_for(path, content="x\n", mode="0640", directory_mode="0750").changed


def _staged(folder: pathlib.Path, content: bytes) -> pathlib.Path:
    staged = folder / "staged"
    staged.write_bytes(content)
    return staged


def test_only_the_mode_is_wrong(folder: pathlib.Path) -> None:
    path = folder / "x"
    path.write_text("same")
    path.chmod(0o666)
    inode = path.stat().st_ino
    step = do(path, content="same", mode="0600")
    assert (step.replace, step.set_mode, step.set_owner) == (False, True, False)
    assert path.stat().st_mode & 0o7777 == 0o600
    assert path.stat().st_ino == inode
    assert "mode: 0666" in logic.diff_of(step)[0]["before"]


def test_a_link_is_replaced_by_the_file_and_its_target_is_left_alone(folder: pathlib.Path) -> None:
    target = folder / "target"
    target.write_text("precious")
    path = folder / "x"
    path.symlink_to("target")
    step = do(path, content="new")
    assert not path.is_symlink()
    assert path.read_text() == "new"
    assert target.read_text() == "precious"
    assert logic.diff_of(step)[0]["before"] == "link to target\n"


def test_link_is_made_replaced_and_may_dangle(folder: pathlib.Path) -> None:
    path = folder / "bin" / "x"
    do(path, state="link", src="../nowhere")
    assert os.readlink(path) == "../nowhere"
    do(path, state="link", src="/else")
    assert os.readlink(path) == "/else"
    assert os.listdir(path.parent) == ["x"]


def test_link_in_the_place_of_a_file(folder: pathlib.Path) -> None:
    path = folder / "x"
    path.write_text("old")
    do(path, state="link", src="y")
    assert os.readlink(path) == "y"


def test_without_force_what_exists_is_left_alone(folder: pathlib.Path) -> None:
    path = folder / "loopback"
    do(path, state="link", src="/usr/lib/cni/loopback", force=False)
    path.unlink()
    path.write_text("a newer plugin")
    assert not step_for(path, state="link", src="/usr/lib/cni/loopback", force=False).changed
    assert step_for(path, state="link", src="/usr/lib/cni/loopback").replace
    assert step_for(path, state="absent", force=False).remove


def test_directory_and_its_mode(folder: pathlib.Path) -> None:
    path = folder / "d" / "e"
    do(path, state="directory", directory_mode="0700")
    assert path.stat().st_mode & 0o7777 == 0o700
    step = do(path, state="directory", directory_mode="0755")
    assert (step.replace, step.set_mode) == (False, True)


@pytest.mark.parametrize("kind", ["file", "link", "directory"])
def test_absent(folder: pathlib.Path, kind: str) -> None:
    path = folder / "x"
    if kind == "file":
        path.write_text("old")
    elif kind == "link":
        path.symlink_to("nowhere")
    else:
        path.mkdir()
    do(path, state="absent")
    assert not os.path.lexists(path)


def test_absent_below_a_missing_directory_is_no_change(folder: pathlib.Path) -> None:
    assert not step_for(folder / "no" / "such", state="absent").changed


def test_a_full_directory_is_not_removed(folder: pathlib.Path) -> None:
    (folder / "d").mkdir()
    (folder / "d" / "x").write_text("")
    with pytest.raises(logic.ConfigFilesError, match="not empty"):
        step_for(folder / "d", state="absent")


def test_a_directory_is_not_replaced_by_a_file(folder: pathlib.Path) -> None:
    with pytest.raises(logic.ConfigFilesError, match="is a directory"):
        step_for(folder, content="x")


def test_a_file_as_parent(folder: pathlib.Path) -> None:
    (folder / "x").write_text("")
    with pytest.raises(logic.ConfigFilesError, match="not a directory"):
        step_for(folder / "x" / "y", content="z")


def test_unknown_owner_is_a_change_first_and_an_error_when_applied(folder: pathlib.Path) -> None:
    path = folder / "x"
    path.write_text("x")
    wish = logic.make_wish({"path": str(path), "content": "x", "owner": "no-such-user-here"})
    step = logic.decide(wish, logic.look(wish.path))
    assert step.set_owner
    with pytest.raises(logic.ConfigFilesError, match="no-such-user-here"):
        logic.apply(step, None, os.rename)


@pytest.mark.parametrize("mode", ["420", "u=rw", "0999", "644", ""])
def test_mode_must_be_octal_text(mode: str) -> None:
    with pytest.raises(logic.ConfigFilesError, match="octal"):
        logic.parse_mode(mode, "/x")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "x", "content": ""}, "absolute"),
        ({"path": "/x"}, "content"),
        ({"path": "/x", "state": "link"}, "src"),
        ({"path": "/x", "content": "", "validate": "visudo -c"}, "%s"),
    ],
)
def test_bad_entries(entry: dict[str, t.Any], message: str) -> None:
    with pytest.raises(logic.ConfigFilesError, match=message):
        logic.make_wish(entry)


def test_a_path_is_named_once() -> None:
    with pytest.raises(logic.ConfigFilesError, match="more than once"):
        logic.make_wishes([{"path": "/a/b", "content": ""}, {"path": "/a//b", "state": "absent"}])


def test_binary_content_has_a_readable_difference(folder: pathlib.Path) -> None:
    path = folder / "x"
    path.write_bytes(b"\xff\x00")
    assert logic.diff_of(step_for(path, content="text\n"))[0]["before"] == "(binary)\n"


def test_validate_command_keeps_words_together() -> None:
    assert logic.validate_command("sh -c 'test -s %s'", "/tmp/x y") == ["sh", "-c", "test -s /tmp/x y"]
