# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests of packer_build share: templates that cost seconds, and the module's own file as a process."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.goldsmith.images.tests.support.processes import wait_until

Result = dict[str, Any]

needs_packer = pytest.mark.skipif(shutil.which("packer") is None, reason="packer is not installed")
needs_qemu = pytest.mark.skipif(shutil.which("qemu-system-x86_64") is None, reason="QEMU is not installed")

# Waits for about two seconds of timer ticks, then tells the emulated chipset to power off.
POWER_OFF = bytes.fromhex("fb31c08ed8a16c0405250089c3f43b1e6c0477f9ba0406b80020eff4ebfd")
# Interrupts off, halt: nothing ever happens again.
HANG = bytes.fromhex("faf4ebfd")

FILE_TEMPLATE = """
variable "text" { default = "hello" }
variable "pw" {
  type      = string
  default   = "none-given"
  sensitive = true
}
source "file" "a" {
  content = "${var.text}"
  target  = "out/a.txt"
}
build {
  name    = "img"
  sources = ["source.file.a"]
}
"""

QEMU_TEMPLATE = """
variable "disk" { default = "off.raw" }
source "qemu" "t" {
  disk_image       = true
  iso_url          = var.disk
  iso_checksum     = "none"
  disk_size        = "1M"
  format           = "qcow2"
  accelerator      = "tcg"
  headless         = true
  memory           = 32
  disable_vnc      = true
  communicator     = "none"
  shutdown_timeout = "5m"
  output_directory = "out"
  vm_name          = "t.qcow2"
  qemuargs         = [["-serial", "file:console.log"]]
}
build {
  sources = ["source.qemu.t"]
}
"""

SHELL_TEMPLATE = """
variable "pw" {
  type      = string
  sensitive = true
}
variable "rc" { default = "0" }
source "null" "n" { communicator = "none" }
build {
  sources = ["source.null.n"]
  provisioner "shell-local" {
    # Not environment_vars: Packer puts those on a command line.
    inline = ["cat <<'E'", var.pw, "E", "cat >&2 <<'E'", var.pw, "E", "sleep 1.5", "exit ${var.rc}"]
  }
}
"""


def boot_disk(path: Path, code: bytes) -> None:
    path.write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(1 << 20, b"\0"))


def marked(mark: str) -> list[str]:
    """Command lines of all processes that have the mark in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and f"MARK={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
    return found


class Module:
    """The module's own file run as Ansible runs it, without Ansible around it: quick, and it can be sent signals."""

    def __init__(self, collections_path: str, folder: Path, /, **params: Any) -> None:
        arguments = folder / "args.json"
        arguments.write_text(json.dumps({"ANSIBLE_MODULE_ARGS": params}))
        self.progress = Path(params.get("progress_path", ""))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ansible_collections.goldsmith.images.plugins.modules.packer_build", str(arguments)],
            env={**os.environ, "PYTHONPATH": collections_path.split(os.pathsep)[0]},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for_phase(self, phase: str) -> None:
        def reached() -> bool:
            with contextlib.suppress(OSError, ValueError):
                return phase in [item["phase"] for item in json.loads(self.progress.read_text())["phases"]]
            return False

        wait_until(reached, 30, f"phase {phase}")

    def result(self, timeout: float = 60) -> Result:
        out, err = self.process.communicate(timeout=timeout)
        assert out, err
        return json.loads(out)


def write_playbook(path: Path, **params: Any) -> Path:
    tasks = [{"name": "Build", "goldsmith.images.packer_build": params}]
    play = {"name": "Test", "hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
    play["vars"] = {"ansible_python_interpreter": sys.executable}
    path.write_text(yaml.safe_dump([play]))
    return path


def playbook_command(env: dict[str, str], playbook: Path, *arguments: str) -> list[str]:
    command = shutil.which("ansible-playbook", path=env["PATH"])
    assert command
    return [command, "-i", "localhost,", str(playbook), *arguments]
