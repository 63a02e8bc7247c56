# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The cache: shared, limited, never trusted, clean after a kill."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils import _cache
from ansible_collections.goldsmith.images.plugins.module_utils._cache import Cache, CacheError, make_key

KEY = make_key({"a": 1})
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    found = Cache(tmp_path / "cache", max_size=10**9)
    found.open()
    return found


def writer(content: str, calls: list[int] | None = None) -> Any:
    def build(folder: Path) -> dict[str, Any]:
        if calls is not None:
            calls.append(1)
        (folder / "disk").write_text(content)
        return {"note": content}

    return build


def test_key_is_the_same_for_the_same_inputs_in_any_order() -> None:
    assert make_key({"a": 1, "b": [1, 2]}) == make_key({"b": [1, 2], "a": 1})
    assert make_key({"a": 1}) != make_key({"a": "1"})


def test_second_time_needs_no_work(cache: Cache) -> None:
    calls: list[int] = []
    entry, made = cache.make(KEY, writer("x", calls), 5)
    again, made_again = cache.make(KEY, writer("y", calls), 5)
    assert (made, made_again, len(calls)) == (True, False, 1)
    assert again.file("disk").read_text() == "x"
    assert again.data == {"note": "x"}
    assert entry.file("disk").stat().st_mode & 0o777 == 0o444
    assert not list((cache.path / "work").iterdir())


@pytest.mark.parametrize("damage", ["content", "shorter", "missing", "no entry.json", "bad entry.json"])
def test_damaged_entry_is_made_again(cache: Cache, damage: str) -> None:
    entry, _made = cache.make(KEY, writer("good"), 5)
    disk = entry.file("disk")
    disk.chmod(0o644)
    if damage == "content":
        stat = disk.stat()
        disk.write_text("evil")
        os.utime(disk, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif damage == "shorter":
        disk.write_text("go")
    elif damage == "missing":
        disk.unlink()
    elif damage == "no entry.json":
        entry.file("entry.json").unlink()
    else:
        entry.file("entry.json").write_text("{")
    assert cache.lookup(KEY) is None
    again, made = cache.make(KEY, writer("good"), 5)
    assert made
    assert again.file("disk").read_text() == "good"
    assert not list((cache.path / "work").iterdir())


def test_failed_build_leaves_nothing(cache: Cache) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("x")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cache.make(KEY, fail, 5)
    assert cache.lookup(KEY) is None
    assert not list((cache.path / "work").iterdir())


def test_build_that_makes_nothing_is_an_error(cache: Cache) -> None:
    with pytest.raises(CacheError, match="nothing was made"):
        cache.make(KEY, lambda folder: {}, 5)


def slow_maker(path: Path, results: Any) -> None:
    def build(folder: Path) -> dict[str, Any]:
        time.sleep(0.5)
        (folder / "disk").write_text(str(os.getpid()))
        return {}

    cache = Cache(path, 10**9)
    cache.open()
    entry, made = cache.make(KEY, build, 20)
    results.put((made, entry.file("disk").read_text()))


def test_concurrent_builds_share_one(cache: Cache) -> None:
    results = FORK.Queue()
    processes = [FORK.Process(target=slow_maker, args=(cache.path, results)) for _number in range(4)]
    for process in processes:
        process.start()
    found = [results.get(timeout=20) for _process in processes]
    for process in processes:
        process.join(20)
    assert sorted(made for made, _content in found) == [False, False, False, True]
    assert len({content for _made, content in found}) == 1


def stuck_maker(path: Path, ready: Any) -> None:
    def build(folder: Path) -> dict[str, Any]:
        (folder / "half").write_text("x" * 1000)
        ready.set()
        time.sleep(60)
        return {}

    cache = Cache(path, 10**9)
    cache.open()
    cache.make(KEY, build, 20)


def test_killed_build_is_cleaned_by_the_next_run_and_a_living_one_is_left_alone(cache: Cache) -> None:
    ready = FORK.Event()
    process = FORK.Process(target=stuck_maker, args=(cache.path, ready))
    process.start()
    assert ready.wait(20)
    assert cache.sweep() == []
    with pytest.raises(CacheError, match="another process"):
        cache.make(KEY, writer("x"), 0.3)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert len(list((cache.path / "work").iterdir())) == 1
    second = Cache(cache.path, 10**9)
    second.open()
    assert not list((cache.path / "work").iterdir())
    assert second.make(KEY, writer("x"), 5)[1]


def age(entry: _cache.Entry, hours: float) -> None:
    when = time.time() - hours * 3600
    os.utime(entry.path, (when, when))


def test_longest_unused_goes_first(cache: Cache) -> None:
    keys = [make_key({"n": number}) for number in range(4)]
    entries = [cache.make(key, writer("x" * 100), 5)[0] for key in keys[:3]]
    for entry, hours in zip(entries, (30, 10, 20)):
        age(entry, hours)
    cache.max_size = 250
    cache.make(keys[3], writer("x" * 100), 5)
    assert [cache.lookup(key) is not None for key in keys] == [False, True, False, True]


def test_use_keeps_an_entry(cache: Cache) -> None:
    entry, _made = cache.make(KEY, writer("x" * 100), 5)
    age(entry, 30)
    cache.lookup(KEY, touch=False)
    cache.max_size = 10
    cache.lookup(KEY)
    assert cache.evict() == []
    assert "limit" in cache.notes[0]
    age(entry, 30)
    assert cache.evict() == [KEY]


def test_partial_downloads_are_forgotten_after_a_week(cache: Cache) -> None:
    for name, days in (("new", 1), ("old", 8)):
        folder = cache.path / "partial" / name
        folder.mkdir()
        when = time.time() - days * 86400
        os.utime(folder, (when, when))
    cache.sweep()
    assert [path.name for path in (cache.path / "partial").iterdir()] == ["new"]


def test_folder_of_somebody_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    with pytest.raises(CacheError, match="not a cache"):
        Cache(tmp_path, 1).open()
    assert [path.name for path in tmp_path.iterdir()] == ["letters"]


def test_folder_of_another_format_is_refused(cache: Cache) -> None:
    (cache.path / _cache.MARKER).write_text('{"format": 99}')
    with pytest.raises(CacheError, match="format 99"):
        cache.open()


def test_file_instead_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="not a folder"):
        Cache(tmp_path / "file", 1).check()


@pytest.mark.parametrize("key", ["", "../../etc", "A" * 64, "abc"])
def test_keys_that_are_none(cache: Cache, key: str) -> None:
    with pytest.raises(CacheError, match="not a cache key"):
        cache.lookup(key)


def test_evicted_entry_in_the_making_is_left_alone(cache: Cache) -> None:
    entry, _made = cache.make(KEY, writer("x" * 100), 5)
    age(entry, 30)
    cache.max_size = 1
    with contextlib.ExitStack() as stack:
        stack.enter_context(cache._lock(KEY, 1, None))
        assert Cache(cache.path, 1).evict() == []
    assert Cache(cache.path, 1).evict() == [KEY]


def test_a_removal_that_was_cut_short_is_finished(cache: Cache) -> None:
    rubbish = cache.path / "work/old.abc"
    rubbish.mkdir()
    (rubbish / "half of a tree").write_text("")
    fresh = cache.path / "work/abc"
    fresh.mkdir()
    assert cache.sweep() == ["old.abc"], "what has no lock yet is somebody's, what waits for its removal is nobody's"
    assert fresh.exists()
