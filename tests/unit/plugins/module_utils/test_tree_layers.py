# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _tree_layers as layers
from ansible_collections.goldsmith.images.plugins.module_utils._cache import Cache
from ansible_collections.goldsmith.images.plugins.module_utils._command import Runner

pytestmark = pytest.mark.skipif(shutil.which("zstd") is None, reason="zstd is not installed")
KEY = "a" * 64


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "cache", 10**9)
    cache.open()
    return cache


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    log = tmp_path / "log"
    log.touch()
    return Runner(log)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    (tree / "etc/default").mkdir(parents=True)
    (tree / "usr/old").mkdir(parents=True)
    (tree / "etc/kept").write_text("kept")
    (tree / "etc/changed").write_text("before")
    (tree / "etc/gone").write_text("gone")
    (tree / "etc/was a file").write_text("file")
    (tree / "etc/was-folder").mkdir()
    (tree / "etc/was-folder/file").write_text("x")
    (tree / "usr/old/file").write_text("x")
    (tree / "usr/link").symlink_to("old")
    return tree


def change(tree: Path) -> None:
    """Every kind of change that a role can make."""
    before = (tree / "etc/changed").stat()
    (tree / "etc/changed").write_text("after!")
    os.utime(tree / "etc/changed", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tree / "etc/gone").unlink()
    (tree / "etc/kept").chmod(0o600)
    (tree / "etc/was a file").unlink()
    (tree / "etc/was a file").mkdir()
    (tree / "etc/was a file/new").write_text("new")
    shutil.rmtree(tree / "etc/was-folder")
    (tree / "etc/was-folder").write_text("file now")
    shutil.rmtree(tree / "usr/old")
    (tree / "usr/link").unlink()
    (tree / "usr/link").symlink_to("../etc")
    (tree / "usr/new\nline").write_text("strange name")
    os.link(tree / "usr/new\nline", tree / "usr/hard")
    os.mkfifo(tree / "usr/fifo")


def test_a_restored_layer_is_the_tree_that_was_kept(tree: Path, tmp_path: Path, cache: Cache, runner: Runner):
    copy = tmp_path / "copy"
    subprocess.run(["cp", "--archive", str(tree), str(copy)], check=True)
    assert layers.digest(copy) == layers.digest(tree)
    before = layers.snapshot(tree)
    change(tree)
    after = layers.save(runner, cache, KEY, "title", tree, before, 60)
    assert layers.digest(copy) != layers.digest(tree)
    layers.restore(runner, cache, KEY, copy)
    assert layers.digest(copy) == layers.digest(tree)
    assert (copy / "usr/hard").stat().st_nlink == 2
    assert layers.differences(after, layers.snapshot(tree)) == ([], [])


def test_a_change_that_hides_its_time_is_found(tree: Path):
    before = layers.snapshot(tree)
    status = (tree / "etc/kept").stat()
    (tree / "etc/kept").write_text("same")
    os.utime(tree / "etc/kept", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert layers.differences(before, layers.snapshot(tree)) == (["etc/kept"], [])


def test_what_a_mount_hides_has_not_gone(tree: Path):
    before = layers.snapshot(tree)
    after = {path: state for path, state in before.items() if not path.startswith("usr/old/")}
    after["usr/old"] = layers.MOUNTED
    assert layers.differences(before, after) == ([], [])
    assert layers.differences(before, {**after, "usr/old": before["usr/old"]}) == ([], ["usr/old/file"])


@pytest.mark.parametrize(
    "alter",
    [
        lambda tree: (tree / "etc/kept").chmod(0o604),
        lambda tree: (tree / "etc/kept").write_text("kepT"),
        lambda tree: os.utime(tree / "etc/kept", (1, 1)),
        lambda tree: (tree / "etc/kept").rename(tree / "etc/other"),
        lambda tree: os.setxattr(tree / "etc/kept", "user.note", b"x"),
        lambda tree: (tree / "etc/empty").mkdir(),
    ],
)
def test_the_digest_sees_everything(tree: Path, alter):
    before = layers.digest(tree)
    assert layers.digest(tree) == before
    alter(tree)
    assert layers.digest(tree) != before


def test_a_chain_ends_at_the_first_layer_that_is_missing_or_damaged(tree: Path, cache: Cache, runner: Runner):
    state = layers.snapshot(tree)
    keys = ["a" * 64, "b" * 64, "c" * 64]
    for number, key in enumerate(keys):
        (tree / f"file{number}").write_text(key)
        state = layers.save(runner, cache, key, "title", tree, state, 60)
    assert layers.usable(cache, keys) == keys
    assert layers.usable(cache, ["d" * 64, *keys]) == []
    damaged = cache.path / "entries" / keys[1] / layers.CHANGED
    damaged.chmod(0o644)
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    assert layers.usable(cache, keys) == keys[:1]
    assert "is damaged" in cache.notes[-1]
    with pytest.raises(layers.LayerError, match="start again"):
        layers.restore(runner, cache, keys[1], tree)
