# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a disk image takes from the start of its machine to the first login over SSH; part of `make bench-roles`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ansible_collections.goldsmith.images.tests.bench.machine import CHECKOUT, JSON, environment, note, run

ROUNDS = 2
DEADLINE = 600.0
SEED = """\
#cloud-config
users:
  - name: bench
    groups: [sudo]
    shell: /bin/bash
    lock_passwd: true
    sudo: ALL=(ALL) NOPASSWD:ALL
    ssh_authorized_keys: ["{key}"]
"""


def module(work: Path, name: str, **params: Any) -> dict[str, Any]:
    """One module of the collection on this host."""
    command = ["ansible", "localhost", "-m", f"goldsmith.images.{name}", "-a", json.dumps(params)]
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    env = {**environment(work), **JSON, "ANSIBLE_LOAD_CALLBACK_PLUGINS": "true", "PATH": path}
    found: dict[str, Any] = json.loads(run(command, env))["plays"][0]["tasks"][0]["hosts"]["localhost"]
    return found


def age(pid: int) -> float:
    """Seconds since a process was started."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def greeted(host: str, port: int) -> bool:
    """Whether the guest's sshd answers; QEMU itself takes the connection before there is one."""
    with contextlib.suppress(OSError), socket.create_connection((host, port), 1) as connection:
        connection.settimeout(5)
        return connection.recv(4) == b"SSH-"
    return False


def boot(image: Path, work: Path) -> dict[str, float]:
    """The first boot of an overlay of the image."""
    key = work / "key"
    if not key.exists():
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], dict(os.environ))
    seed = {"user_data": SEED.format(key=key.with_suffix(".pub").read_text(encoding="utf-8").strip())}
    vm = module(work, "qemu_vm", runtime_dir=f"{work}/vm", image=str(image), overlay=True, seed=seed)["vm"]
    try:
        login = ["ssh", "-i", str(key), "-p", str(vm["ssh_port"]), "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]
        login += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes"]
        login += ["-o", "KexAlgorithms=^curve25519-sha256", f"bench@{vm['ssh_host']}", "true"]
        while not greeted(vm["ssh_host"], vm["ssh_port"]):
            if age(vm["pid"]) > DEADLINE:
                sys.exit(f"bench: {image} has no SSH after {DEADLINE:.0f} s")
            time.sleep(0.1)
        answer = age(vm["pid"])
        while subprocess.run(login, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode != 0:
            if age(vm["pid"]) > DEADLINE:
                sys.exit(f"bench: {image} lets nobody in after {DEADLINE:.0f} s")
            time.sleep(1)
        return {"ssh_answers": round(answer, 1), "login": round(age(vm["pid"]), 1)}
    finally:
        module(work, "qemu_vm", runtime_dir=f"{work}/vm", state="absent")


def measure(image: Path | None, definition: dict[str, Any], work: Path) -> dict[str, Any]:
    """The image against its base disk, and against one without the packages of the image."""
    if image is None:
        note("making the image, if it is not there")
        run(["ansible-playbook", "playbooks/build-image.yml", "-e", "image=cloud_base"], environment(work))
        image = CHECKOUT / "output/cloud_base/cloud_base.qcow2"
    base, disks = definition["base"], {"image": image}
    for name, packages in {"base_disk": base["packages"], "base_disk_without_packages": []}.items():
        made = module(work, "base_disk", release=base["release"], packages=packages, size=definition["disk_size"])
        disks[name] = Path(made["path"])
    boots: dict[str, list[dict[str, float]]] = {name: [] for name in disks}
    for _round in range(ROUNDS):
        for name, path in disks.items():
            boots[name].append(boot(path, work))
            note(f"first boot of {name}: {boots[name][-1]}")
    login = {name: statistics.mean(found["login"] for found in rounds) for name, rounds in boots.items()}
    return {
        "boots": boots,
        "login_seconds": {name: round(seconds, 1) for name, seconds in login.items()},
        "ratio_to_base_disk": round(login["image"] / login["base_disk"], 2),
        "ratio_to_base_disk_without_packages": round(login["image"] / login["base_disk_without_packages"], 2),
    }
