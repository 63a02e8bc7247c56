# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one sees of a build while it runs: on a terminal, in a log, in the progress file, over SSH."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.goldsmith.images.tests.support import documented, ssh_server
from ansible_collections.goldsmith.images.tests.support.packer_build import (
    SHELL_TEMPLATE,
    Module,
    Result,
    marked,
    needs_packer,
    needs_qemu,
    playbook_command,
    write_playbook,
)
from ansible_collections.goldsmith.images.tests.support.processes import wait_until

pytestmark = needs_packer
TWO_BUILDS = """
source "null" "one" { communicator = "none" }
source "null" "two" { communicator = "none" }
build {
  sources = ["source.null.one", "source.null.two"]
  provisioner "shell-local" {
    inline = ["for i in 1 2 3 4; do echo $i; sleep 0.7; done"]
  }
}
"""
LINE = re.compile(r"^\[(\w+)\] \d+:\d\d (\w+)", re.MULTILINE)


@needs_qemu
def test_plain_lines_where_there_is_no_terminal(
    ansible_env: dict[str, str],
    run_module: Callable[..., Result],
    build: Callable[..., Result],
    tmp_path: Path,
    qemu_template: Path,
) -> None:
    work = qemu_template.parent
    playbook = write_playbook(tmp_path / "play.yml", template=str(qemu_template))
    env = {**ansible_env, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"}
    done = subprocess.run(
        playbook_command(env, playbook), env=env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = re.findall(r"^\[localhost\] \d+:\d\d (\w+)", done.stdout, flags=re.MULTILINE)
    assert shown == ["validate", "build", "download", "boot", "shutdown", "convert"]

    unchanged = run_module("packer_build", template=str(qemu_template))
    assert not unchanged["changed"]
    (file,) = unchanged["artifacts"][0]["files"]
    image = work / "out/t.qcow2"
    assert file["sha256"] == hashlib.sha256(image.read_bytes()).hexdigest()
    assert image.read_bytes()[:4] == b"QFI\xfb"

    documented.check_returned("packer_build", unchanged)

    # The output is there: an error without force, in check mode as well, and none with it.
    for check in (True, False):
        refused = build(template=str(qemu_template), rebuild="always", _ansible_check_mode=check)
        assert refused["failed"]
        assert "force=true" in refused["msg"]
    checked = build(template=str(qemu_template), rebuild="always", force=True, _ansible_check_mode=True)
    assert checked["changed"]
    documented.check_returned("packer_build", checked)


def on_a_terminal(ansible_env: dict[str, str], playbook: Path) -> tuple[int, bytes]:
    """Exit status and output of a play that was started on a terminal."""
    env = {**ansible_env, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default", "TERM": "xterm"}
    pid, terminal = pty.fork()
    if pid == 0:
        command = playbook_command(env, playbook)
        os.execve(command[0], command, env)
    output = b""
    with contextlib.suppress(OSError):  # EIO: the last process has closed the terminal
        while chunk := os.read(terminal, 4096):
            output += chunk
    return os.waitpid(pid, 0)[1], output


@needs_qemu
def test_terminal_gets_one_updated_line(ansible_env: dict[str, str], tmp_path: Path, qemu_template: Path) -> None:
    playbook = write_playbook(tmp_path / "play.yml", template=str(qemu_template))
    status, output = on_a_terminal(ansible_env, playbook)
    assert status == 0, output
    updates = re.findall(rb"\r\x1b\[J(\[localhost\][^\x1b]*)", output)
    assert any(b" boot qemu.t: " in update for update in updates)
    assert not any(b"\n" in update for update in updates[:-1])


def test_terminal_gets_one_line_for_each_build(ansible_env: dict[str, str], tmp_path: Path, work: Path) -> None:
    (work / "two.pkr.hcl").write_text(TWO_BUILDS)
    playbook = write_playbook(tmp_path / "play.yml", template=str(work / "two.pkr.hcl"))
    status, output = on_a_terminal(ansible_env, playbook)
    assert status == 0, output
    updates = re.findall(rb"\r\x1b\[J(\[localhost\][^\x1b]*)", output)
    both = [update for update in updates if update.count(b"[localhost]") == 2]
    seen = [re.findall(rb"provision (null\.\w+): ", update) for update in both]
    assert any(sorted(names) == [b"null.one", b"null.two"] for names in seen), updates
    # Each update begins where the one before began.
    assert output.count(b"\x1b[1A\r\x1b[J") >= len(both)


def test_no_progress(ansible_env: dict[str, str], tmp_path: Path, file_template: Path) -> None:
    playbook = write_playbook(tmp_path / "play.yml", template=str(file_template), no_progress=True)
    env = {**ansible_env, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"}
    done = subprocess.run(playbook_command(env, playbook), env=env, capture_output=True, text=True, check=True)
    assert "changed=1" in done.stdout
    assert "[localhost] " not in done.stdout


def test_log_can_be_followed(collections_path: str, tmp_path: Path, work: Path) -> None:
    (work / "shell.pkr.hcl").write_text(SHELL_TEMPLATE)
    (work / "build.log").write_text("of an earlier build\n")
    tail = subprocess.Popen(["tail", "-n", "+1", "-F", work / "build.log"], stdout=subprocess.PIPE, text=True)
    try:
        module = Module(
            collections_path,
            tmp_path,
            template=str(work / "shell.pkr.hcl"),
            sensitive_variables={"pw": "something"},
            log_path="build.log",
        )
        assert tail.stdout
        while "********" not in tail.stdout.readline():
            pass
        assert module.process.poll() is None, "the line came only when the build was over"
        assert not module.result().get("failed")
        assert "of an earlier build" not in (work / "build.log").read_text()
        assert (work / "build.log").stat().st_mode & 0o777 == 0o600
    finally:
        tail.kill()
        tail.communicate()


@pytest.fixture
def ssh_inventory(tmp_path: Path) -> Iterator[Path]:
    """An inventory with the host "builder": this machine, through an SSH server of the test's own."""
    with ssh_server.running(tmp_path) as builder:
        (tmp_path / "inventory.yml").write_text(yaml.safe_dump({"all": {"hosts": {"builder": builder}}}))
        yield tmp_path / "inventory.yml"


def ssh_play(ansible_env: dict[str, str], inventory: Path, **params: Any) -> subprocess.Popen[str]:
    playbook = write_playbook(inventory.parent / "play.yml", **params)
    (play,) = yaml.safe_load(playbook.read_text())
    play = {**play, "hosts": "builder", "connection": "ssh"}
    playbook.write_text(yaml.safe_dump([play]))
    env = {**ansible_env, "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"}
    command = [*playbook_command(env, playbook), "-i", str(inventory)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@needs_qemu
def test_over_ssh(
    ansible_env: dict[str, str], ssh_inventory: Path, qemu_template: Path, no_leftovers: dict[str, str]
) -> None:
    play = ssh_play(ansible_env, ssh_inventory, template=str(qemu_template), environment=no_leftovers)
    output, unused = play.communicate(timeout=120)
    assert play.returncode == 0, output
    assert LINE.findall(output)[-2:] == [("builder", "shutdown"), ("builder", "convert")]


@needs_qemu
def test_death_of_the_ssh_connection_ends_the_build(
    ansible_env: dict[str, str], ssh_inventory: Path, qemu_template: Path, no_leftovers: dict[str, str]
) -> None:
    params = {"template": str(qemu_template), "variables": {"disk": "hang.raw"}, "cancel_grace": 5}
    play = ssh_play(ansible_env, ssh_inventory, **params, environment=no_leftovers)
    wait_until(lambda: any("out/t.qcow2" in x for x in marked(no_leftovers["MARK"])), 60, "the virtual machine")
    clients = Path(f"/proc/{play.pid}/task/{play.pid}/children").read_text().split()
    deadline = time.monotonic() + 60
    # The client of the module is a grandchild of ansible-playbook; that of the progress lives for a moment only.
    while marked(no_leftovers["MARK"]) and time.monotonic() < deadline:
        for worker in clients:
            with contextlib.suppress(OSError):
                for pid in Path(f"/proc/{worker}/task/{worker}/children").read_text().split():
                    os.kill(int(pid), 9)
        time.sleep(0.1)
    output, unused = play.communicate(timeout=60)
    assert play.returncode != 0, output
    assert not marked(no_leftovers["MARK"])
