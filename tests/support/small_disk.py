# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Small disk images with the files of a folder: GPT, ext4 and an ESP, made in milliseconds without root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SECTOR = 512
MIB = 1024 * 1024
ESP = (1, 2)  # where it starts and how large it is, in MiB
ROOT_START = 3
TABLE = f"""\
label: gpt
start={ESP[0] * MIB // SECTOR}, size={ESP[1] * MIB // SECTOR}, type=U, name="ESP"
start={ROOT_START * MIB // SECTOR}, size=+, type=L, name="root"
"""
PROGRAMS = ("sfdisk", "mke2fs", "mformat", "mcopy", "qemu-img")


def missing() -> str:
    """Why no disk can be made here; empty if it can."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=path_with_sbin())]
    return f"not installed: {', '.join(absent)}" if absent else ""


def path_with_sbin() -> str:
    return os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"


def run(*command: str | Path, text: str = "") -> None:
    environment = {"PATH": path_with_sbin(), "LC_ALL": "C.UTF-8"}
    subprocess.run(command, input=text, check=True, capture_output=True, text=True, env=environment)


def make_raw(root: Path, disk: Path, esp: Path | None = None, size: int = 12) -> Path:
    """Write a disk whose root file system of `size` MiB holds the folder `root`, and whose ESP holds `esp`."""
    with disk.open("wb") as stream:
        stream.truncate((ROOT_START + size + 1) * MIB)
    run("sfdisk", "--quiet", disk, text=TABLE)
    offset = ROOT_START * MIB
    run("mke2fs", "-q", "-t", "ext4", "-L", "root", "-d", root, "-E", f"offset={offset}", disk, f"{size}M")
    partition = f"{disk}@@{ESP[0]}M"
    run("mformat", "-i", partition, "-v", "ESP", "-T", str(ESP[1] * MIB // SECTOR), "-h", "4", "-s", "16", "::")
    for path in sorted(esp.iterdir()) if esp else []:
        run("mcopy", "-s", "-i", partition, path, "::")
    return disk


def make_qcow2(raw: Path, image: Path, compression: str = "") -> Path:
    options = ["-c", "-o", f"compression_type={compression}"] if compression else []
    run("qemu-img", "convert", "-O", "qcow2", *options, raw, image)
    return image
