# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""When a build is needed, and what the record of the last one says about it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _packer_state as state
from ansible_collections.goldsmith.images.plugins.module_utils._packer_cli import PackerError, Request
from ansible_collections.goldsmith.images.plugins.module_utils._packer_log import Log, Progress, console_tail

SALT = "00" * 16


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "t.pkr.hcl"
    path.write_text("x")
    return path


def parts(template: Path, **more: Any) -> dict[str, Any]:
    version, extra, inputs = more.pop("version", (1, 6, 6)), more.pop("extra", None), more.pop("inputs", [])
    wanted = Request(template=str(template), kind="hcl", chdir=str(template.parent), **more)
    return state.components(wanted, version, inputs, extra, more.get("salt", SALT))


CHANGES = [
    pytest.param({}, [], id="nothing"),
    pytest.param({"variables": {"a": "1"}}, ["variables changed: a"], id="type"),
    pytest.param({"variables": {"a": True}}, ["variables changed: a"], id="boolean"),
    pytest.param({"variables": {}}, ["variables removed: a"], id="variable-removed"),
    pytest.param({"sensitive": {"s": "other"}}, ["variables changed: s"], id="secret"),
    pytest.param({"version": (1, 6, 9)}, [], id="patch-release"),
    pytest.param({"version": (1, 7, 0)}, ["Packer's version changed from 1.6 to 1.7"], id="minor-release"),
    pytest.param({"only": ("a",)}, ["the selection of builds changed"], id="selection"),
    pytest.param({"extra": {"plan": 1}}, ["fingerprint_extra changed"], id="extra"),
    pytest.param({"environment": {"PKR_VAR_z": "1"}}, ["variables added: PKR_VAR_z"], id="environment-variable"),
    pytest.param({"environment": {"PATH": "/x"}}, [], id="other-environment"),
    pytest.param({"force": True, "parallel_builds": 3}, [], id="way-of-building"),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES)
def test_differences(template: Path, change: dict[str, Any], expected: list[str]) -> None:
    base: dict[str, Any] = {"variables": {"a": 1}, "sensitive": {"s": "topsecret"}}
    before, after = parts(template, **base), parts(template, **{**base, **change})
    assert state.differences(before, after) == expected
    assert (state.key_of(before) == state.key_of(after)) is (not expected)
    assert "topsecret" not in json.dumps(before)


def test_files_of_a_template_directory_and_inputs(tmp_path: Path) -> None:
    for name in ("a.pkr.hcl", "b.auto.pkrvars.hcl", "notes.txt", "in/one", "in/.packer_build/stamp", "in/.git/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "in/dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "in/pipe")
    inputs = state.input_files([str(tmp_path / "in"), str(tmp_path / "n*.txt")], ignore={str(tmp_path / "ignored")})
    wanted = Request(template=str(tmp_path), kind="hcl", chdir=str(tmp_path))
    files = state.components(wanted, (1, 6, 6), inputs, None, SALT)["files"]
    assert sorted(files) == ["a.pkr.hcl", "b.auto.pkrvars.hcl", "in/one", "notes.txt"]
    with pytest.raises(PackerError, match="nothing matches"):
        state.input_files([str(tmp_path / "none*")])


def stamp_of(template: Path, file: Path, status: str = "success") -> dict[str, Any]:
    build = {"name": "img.file.a", "status": status}
    artifacts = [{"build": "img.file.a", "files": [state.describe_file(str(file), True)]}]
    return {
        "schema": state.SCHEMA,
        "key": "k",
        "salt": SALT,
        "components": parts(template),
        "builds": [build, {"name": "img.file.b", "status": "success"}],
        "artifacts": artifacts,
    }


def test_reasons(template: Path, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_text("image")
    stamp, now = stamp_of(template, file), parts(template)
    changed = parts(template, variables={"new": 1})

    def reasons(current: dict[str, Any], rebuild: str = "if_changed", verify: str = "checksum") -> list[str]:
        return state.reasons_to_build(stamp, "", current, rebuild, verify)

    assert reasons(now) == []
    assert reasons(now, "always") == ["rebuild is 'always'"]
    assert reasons(changed) == ["variables added: new"]
    assert reasons(changed, "never") == []
    file.write_text("imagf")
    assert reasons(now) == [f"content of the artifact changed: {file}"]
    assert reasons(now, verify="size") == []
    file.write_text("im")
    assert reasons(now, verify="size") == [f"size of the artifact changed: {file}"]
    assert reasons(now, verify="exists") == []
    file.unlink()
    assert reasons(now, "never", "exists") == [f"artifact is missing: {file}"]


def test_only_unfinished_builds_are_repeated(template: Path, tmp_path: Path) -> None:
    file = tmp_path / "image"
    file.write_text("image")
    stamp = stamp_of(template, file, status="failed")
    wanted = Request(template=str(template), kind="hcl", chdir=str(tmp_path))
    judge = (wanted, "if_changed", "checksum")
    assert state.reasons_to_build(stamp, "", parts(template), "if_changed", "checksum") == [
        "not successful last time: img.file.a"
    ]
    assert state.only_unfinished(stamp, parts(template), *judge) == ["img.file.a"]
    assert state.only_unfinished(stamp, parts(template, variables={"new": 1}), *judge) == []
    file.unlink()
    assert state.only_unfinished(stamp, parts(template), *judge) == []


UNUSABLE = [
    ("", "cannot be read"),
    ('{"schema": 1, "key"', "cannot be read"),
    ("\x00\xff", "cannot be read"),
    ("[]", "of another version"),
    ('{"schema": 99}', "of another version"),
    ('{"schema": 1, "key": 1}', "incomplete"),
]


@pytest.mark.parametrize(("content", "why"), UNUSABLE)
def test_unusable_stamp_is_a_reason_and_no_error(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "stamp"
    path.write_bytes(content.encode("latin-1"))
    stamp, reason = state.load(str(path))
    assert stamp is None
    assert why in reason


def test_stamp_is_private_and_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "stamp"
    path.write_text("old")
    path.chmod(0o644)
    state.write_private(str(path), "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [item.name for item in tmp_path.iterdir()] == ["stamp"]


def test_lock_refuses_a_second_run_and_cleans_up_after_a_dead_one(tmp_path: Path) -> None:
    path = str(tmp_path / "stamp")
    first, second = state.Lock(path), state.Lock(path)
    first.acquire(0)
    first.record("token", "")
    with pytest.raises(PackerError, match=f"process {os.getpid()}"):
        second.acquire(5)
    first.release()
    # What a run leaves that was killed together with its guard.
    left = tmp_path / "gp-left"
    left.mkdir()
    token = os.urandom(8).hex()
    with subprocess.Popen(["sleep", "300"], env={"GOLDSMITH_IMAGES_RUN": token}) as orphan:
        Path(first.path).write_text(json.dumps({"pid": 1, "start": 0, "token": token, "tmpdir": str(left)}))
        second.acquire(0)
        assert second.recover()
        assert orphan.wait(10) < 0
    assert not left.exists()
    second.release()
    second.acquire(0)
    assert not second.recover()
    second.release()


def test_recovery_puts_back_what_was_moved_aside(tmp_path: Path) -> None:
    lock = state.Lock(str(tmp_path / "stamp"))
    half, gone, foreign = tmp_path / "half", tmp_path / "gone", tmp_path / "foreign"
    backups = [Path(f"{path}.previous-1") for path in (half, gone)]
    for path in (half, foreign, *backups, Path(f"{backups[1]}.done")):
        path.mkdir()
        (path / "content").write_text(path.name)
    pairs = [(half, f"{half}.previous-1"), (gone, f"{gone}.previous-1"), (tmp_path / "precious", foreign)]
    lock.acquire(0)
    lock.record("token", "", [(str(path), str(backup)) for path, backup in pairs])
    assert lock.recover()
    lock.release()
    left = {path.name: (path / "content").read_text() for path in tmp_path.iterdir() if path.is_dir()}
    assert left == {"half": "half.previous-1", "gone": "gone.previous-1", "foreign": "foreign"}


def test_recovery_removes_nothing_but_private_directories(tmp_path: Path) -> None:
    lock = state.Lock(str(tmp_path / "stamp"))
    other = tmp_path / "precious"
    other.mkdir()
    Path(lock.path).write_text(json.dumps({"tmpdir": str(other)}))
    lock.acquire(0)
    assert not lock.recover()
    assert other.exists()
    lock.release()


def test_log_and_progress_are_private_and_follow_no_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("untouched")
    (tmp_path / "log").symlink_to(target)
    log = Log(str(tmp_path / "log"))
    log.write("one\ntwo\n")
    log.close()
    assert target.read_text() == "untouched"
    assert [line[9:] for line in (tmp_path / "log").read_text().splitlines()] == ["one", "two"]
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600

    progress = Progress(str(tmp_path / "progress"))
    progress.update("validate")
    progress.update("boot", "qemu.t", "Waiting for SSH")
    progress.update("boot", "qemu.t", "not written so soon")
    seen = json.loads((tmp_path / "progress").read_text())
    assert (seen["phase"], seen["build"], seen["last"], seen["state"]) == (
        "boot",
        "qemu.t",
        "Waiting for SSH",
        "running",
    )
    progress.finish()
    seen = json.loads((tmp_path / "progress").read_text())
    assert (seen["state"], seen["last"]) == ("finished", "not written so soon")
    assert [item["phase"] for item in progress.phases] == ["validate", "boot"]
    with pytest.raises(PackerError, match="log_path"):
        Log(str(tmp_path / "none" / "log"))


def test_console_tail_has_no_terminal_control(tmp_path: Path) -> None:
    path = tmp_path / "console"
    path.write_bytes(b"\x1b[2J\x1b[01;01H" + b"line\r\n" * 80 + b"\xff\x1b[0mPanic\x00!\r\n\r\n")
    tail = console_tail(str(path))
    assert len(tail) == 50
    assert tail[-1] == "\ufffdPanic!"
    assert console_tail(str(tmp_path / "none")) == []
