from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._owner import (
    LockError,
    acquire_lock,
    find_owner,
    read_process,
    release_lock,
)


def me():
    process = read_process(os.getpid())
    assert process is not None
    return process


def another():
    """Return a process that is alive and is not this one."""
    process = read_process(os.getppid())
    assert process is not None
    return process


def test_a_process_is_alive_until_its_number_belongs_to_another():
    assert me().alive()
    assert not replace(me(), start_time=me().start_time + 1).alive()


def test_an_ended_process_is_not_alive():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = read_process(child.pid)
    child.communicate(b"\n")
    assert process is not None
    assert not process.alive()


def test_a_zombie_is_not_alive():
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert read_process(child.pid) is None
    child.wait()


def test_the_owner_is_the_topmost_play(tmp_path: Path):
    utils = "ansible_collections.goldsmith.images.plugins.module_utils"
    module = f"import sys; sys.path[:0] = {sys.path!r}\nfrom {utils}._owner import find_owner\nprint(find_owner().pid)"
    # A process named ansible-playbook, a shell below it and the module below that: as Ansible starts a module.
    play = tmp_path / "ansible-playbook"
    (tmp_path / "module.py").write_text(module)
    play.write_text(
        f"import os, subprocess\nprint(os.getpid(), flush=True)\nsubprocess.run(['sh', '-c', "
        f"'{sys.executable} {tmp_path}/module.py; true'], check=True)"
    )
    result = subprocess.run([sys.executable, str(play)], capture_output=True, text=True, check=True)
    play_pid, owner_pid = result.stdout.split()
    assert owner_pid == play_pid


def test_there_is_always_an_owner():
    assert find_owner().alive()


def test_a_lock_is_held_until_its_owner_gives_it_up(tmp_path: Path):
    lock = tmp_path / "locks" / "image.lock"
    assert acquire_lock(lock, another(), since="2026-01-01")
    with pytest.raises(LockError, match=rf"process {another().pid} \(.+\) holds .*image.lock since 2026-01-01"):
        acquire_lock(lock, me())
    assert not release_lock(lock, me())
    assert release_lock(lock, another())
    assert acquire_lock(lock, me())


def test_taking_a_lock_twice_changes_nothing(tmp_path: Path):
    assert acquire_lock(tmp_path / "lock", me())
    assert not acquire_lock(tmp_path / "lock", me())


def test_the_lock_of_a_dead_owner_is_taken_over(tmp_path: Path):
    assert acquire_lock(tmp_path / "lock", replace(another(), start_time=1))
    assert acquire_lock(tmp_path / "lock", me())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"owner": 3}'])
def test_a_damaged_lock_file_is_no_lock(tmp_path: Path, content: str):
    (tmp_path / "lock").write_text(content)
    assert acquire_lock(tmp_path / "lock", me())
