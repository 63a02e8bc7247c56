from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from ansible_collections.goldsmith.images.plugins.module_utils._owner import Process, read_process
from ansible_collections.goldsmith.images.plugins.module_utils._watchdog import watch

IGNORES_SIGTERM = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"


def gone(process: Process, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while process.alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not process.alive()


def as_process(child: subprocess.Popen) -> Process:
    process = read_process(child.pid)
    assert process is not None
    return process


@pytest.fixture
def start():
    children = []

    def start_child(code: str) -> subprocess.Popen:
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        children.append(child)
        return child

    yield start_child
    for child in children:
        child.kill()
        child.wait()
        child.stdout.close()


@pytest.mark.parametrize("code", ["import time; print(flush=True); time.sleep(60)", IGNORES_SIGTERM])
def test_the_target_and_its_files_go_with_the_owner(start, tmp_path: Path, code: str):
    owner, target = start("import time; print(flush=True); time.sleep(60)"), start(code)
    (tmp_path / "key").write_text("secret")
    watchdog = read_process(watch(as_process(owner), as_process(target), [tmp_path / "key"]))
    owner.kill()
    assert watchdog is not None
    assert gone(watchdog)
    assert target.wait(timeout=5) < 0
    assert not (tmp_path / "key").exists()


def test_the_watchdog_ends_with_its_target(start, tmp_path: Path):
    owner, target = (start("import time; print(flush=True); time.sleep(60)") for _ in range(2))
    (tmp_path / "key").write_text("secret")
    watchdog = read_process(watch(as_process(owner), as_process(target), [tmp_path / "key"]))
    target.kill()
    target.wait()
    assert watchdog is not None
    assert gone(watchdog)
    assert owner.poll() is None
    assert (tmp_path / "key").exists()
