# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of qemu_vm are run: with a boot sector, and once with Debian, to the letter."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support import documented
from ansible_collections.goldsmith.images.tests.support.boot_sector import BUTTON

pytestmark = [pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")]
IMAGE = "/srv/images/cloud_base.qcow2"
MODULE = "goldsmith.images.qemu_vm"

Task = dict[str, Any]
Play = Callable[[list[Task]], dict[str, Any]]


def examples() -> list[Task]:
    tasks: list[Task] = documented.section("qemu_vm", "EXAMPLES")
    return tasks


def page() -> list[Task]:
    [[play]] = documented.blocks("qemu_vm.md")
    return [{**task, "vars": play["vars"]} for task in play["tasks"]]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home directory with a key, for examples that use the user's."""
    key = tmp_path / "home/.ssh/id_ed25519"
    key.parent.mkdir(parents=True)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    return tmp_path / "home"


@pytest.fixture
def play(ansible_env: dict[str, str], tmp_path: Path, home: Path) -> Iterator[Play]:
    """Run tasks as a playbook; ``disk`` stands for the image and ``tmp_path`` for /var/tmp."""
    environment = {**ansible_env, "HOME": str(home)}

    def run(tasks: list[Task], ok: bool = True) -> dict[str, Any]:
        text = json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}])
        text = text.replace("/var/tmp", str(tmp_path)).replace(IMAGE, str(tmp_path / "disk"))
        playbook = tmp_path / "play.yml"
        playbook.write_text(text)
        command = [str(shutil.which("ansible-playbook", path=environment["PATH"])), "-i", "localhost,", str(playbook)]
        command += ["-c", "local", "-e", "ansible_python_interpreter={{ ansible_playbook_python }}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
        report = json.loads(done.stdout[done.stdout.index("{") :])
        results = {task["task"]["name"]: task["hosts"]["localhost"] for task in report["plays"][0]["tasks"]}
        assert not ok or done.returncode == 0, results
        return results

    yield run
    run([{"name": "remove", MODULE: {"state": "absent", "runtime_dir": f"/var/tmp/{name}"}} for name in ("vm", "vm2")])


@pytest.mark.parametrize("source", [examples, page])
def test_with_a_guest_that_fits_into_a_boot_sector(
    source: Callable[[], list[Task]], play: Play, tmp_path: Path
) -> None:
    (tmp_path / "disk").write_bytes(BUTTON.ljust(1024 * 1024, b"\0"))
    tasks = source()
    for task in tasks:
        for option in ("wait_for", "ssh_user", "ssh_private_key_file"):  # it cannot answer
            task.get(MODULE, {}).pop(option, None)
    results = play(tasks)
    assert [name for name, result in results.items() if result["changed"]] == [
        task["name"] for task in tasks if MODULE in task
    ]


@pytest.mark.slow_matrix
def test_with_debian(run_module: Any, play: Play, home: Path, tmp_path: Path) -> None:
    """To the letter; and the restored machine is the same one, with the right time."""
    base = run_module("base_disk", _timeout=900, cache_dir=str(tmp_path / "cache"))
    assert not base["failed"], base["msg"]
    (tmp_path / "disk").symlink_to(base["path"])
    *tasks, stop, remove = examples()
    restore = [task for task in tasks if "restore" in task["name"].lower()][0]
    tasks.insert(tasks.index(restore), {"name": "Let time go by", "ansible.builtin.pause": {"seconds": 20}})
    results = play(tasks)
    booted, restored = results[tasks[0]["name"]], results[restore["name"]]
    assert "DataSourceNoCloud" in booted["cloud_init"]
    assert restored["ssh_banner"].startswith("SSH-2.0-")
    assert (booted["clock_set"], restored["clock_set"]) == (False, True)

    console = (tmp_path / "vm/console.log").read_text(errors="replace")
    port = str(restored["vm"]["ssh_port"])
    scan = ["ssh-keyscan", "-T", "60", "-t", "ed25519", "-p", port, "127.0.0.1"]
    [key] = re.findall(r"AAAA\S+", subprocess.run(scan, capture_output=True, text=True, check=True).stdout)
    assert key in console, "the host key is the one that the first boot made"

    ssh = ["ssh", "-q", "-i", str(home / ".ssh/id_ed25519"), "-p", port, "-o", "StrictHostKeyChecking=no"]
    ssh += ["-o", "UserKnownHostsFile=/dev/null", "debian@127.0.0.1"]
    script = "date +%s; lsblk -ndbo SIZE /dev/disk/by-id/virtio-disk1"
    before = time.time()
    clock, size = subprocess.run([*ssh, script], capture_output=True, text=True, check=True).stdout.split()
    assert before - 2 <= int(clock) <= time.time() + 2
    assert int(size) == 1024**3

    failed = play(
        [{"name": "wait in vain", MODULE: {"runtime_dir": "/var/tmp/vm2", "wait_for": "cloud_init", "timeout": 1}}],
        ok=False,
    )
    assert Path(failed["wait in vain"]["screenshot"]).read_bytes().startswith(b"\x89PNG")
    assert play([stop, remove])[stop["name"]]["stopped_by"] == "acpi"
    assert not (tmp_path / "vm2").exists()
