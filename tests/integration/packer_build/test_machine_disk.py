# Copyright: Contributors to the goldsmith.images project
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The disk of the machine that is built: what its guest gives back is nowhere in the image, and the base disk stays."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.goldsmith.images.tests.support.packer_build import (
    POWER_OFF,
    boot_disk,
    needs_packer,
    needs_qemu,
)

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = (ROOT / "roles/packer/files/qemu/qemu.pkr.hcl").read_text(encoding="utf-8")
CANARY = b"canary-5f2c-" * 341  # fills a block of ext4
BLOCK = 4096

pytestmark = needs_qemu


def arguments(name: str) -> list[str]:
    """What the template gives qemu-img."""
    [found] = re.findall(rf"^ *{name} += (\[.*\])$", TEMPLATE, re.MULTILINE)
    return json.loads(found)


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def info(image: Path) -> dict[str, Any]:
    return json.loads(run("qemu-img", "info", "--output=json", image))


def content(image: Path, raw: Path) -> bytes:
    run("qemu-img", "convert", "-O", "raw", image, raw)
    return raw.read_bytes()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base disk with something in every block, in clusters of the usual size."""
    raw, disk = tmp_path / "base.raw", tmp_path / "base.qcow2"
    raw.write_bytes(b"kept" * (1 << 18))
    run("qemu-img", "convert", "-O", "qcow2", raw, disk)
    return disk


@pytest.mark.parametrize("smaller_than_a_cluster", [True, False])
def test_a_discarded_block_is_nowhere_in_the_image(base: Path, tmp_path: Path, smaller_than_a_cluster: bool) -> None:
    create = arguments("create")
    if not smaller_than_a_cluster:
        # The control: in clusters of the usual size the block stays.
        create = [word for word in create if "cluster_size" not in word and word != "-o"]
    disk, image = tmp_path / "disk.qcow2", tmp_path / "image.qcow2"
    run("qemu-img", "create", "-f", "qcow2", "-b", base, *create, disk, "2M")
    (tmp_path / "canary").write_bytes(CANARY[:BLOCK])
    # A block of a deleted file between others in one cluster, as fstrim gives it back; once where the base disk has
    # something, once behind its end.
    commands = []
    for offset in (5 * BLOCK, (1 << 20) + 5 * BLOCK):
        commands += [f"write -q -P 0x6e {offset - BLOCK} {3 * BLOCK}", f"write -q -s canary {offset} {BLOCK}"]
        commands += ["flush", f"discard -q {offset} {BLOCK}"]
    options = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", "qcow2", "-d", "unmap", *options, disk], check=True, cwd=tmp_path)
    run("qemu-img", "convert", "-c", *arguments("convert"), "-O", "qcow2", disk, image)

    found = content(image, tmp_path / "image.raw")
    assert (CANARY[:BLOCK] in found) != smaller_than_a_cluster
    neighbours = b"\x6e" * BLOCK
    assert found[4 * BLOCK : 5 * BLOCK] == found[6 * BLOCK : 7 * BLOCK] == neighbours
    assert found[: 4 * BLOCK] == b"kept" * BLOCK


@needs_packer
def test_packer_makes_one_image_of_both(tmp_path: Path) -> None:
    """The role's own template, with a boot sector instead of a guest that could be logged in to."""
    boot_disk(tmp_path / "base.raw", POWER_OFF)
    base = tmp_path / "base.qcow2"
    run("qemu-img", "convert", "-O", "qcow2", tmp_path / "base.raw", base)
    digest = hashlib.sha256(base.read_bytes()).hexdigest()
    template = re.sub(r'provisioner "ansible" \{.*?\n  \}\n', "", TEMPLATE, flags=re.DOTALL)
    template = re.sub(r'( communicator +)= "ssh"', r'\1= "none"', template)
    template = re.sub(r"\n  shutdown_command.*", "", template)
    (tmp_path / "template").mkdir()
    (tmp_path / "template/qemu.pkr.hcl").write_text(template, encoding="utf-8")
    (tmp_path / "seed").touch()
    values = {
        **dict.fromkeys(re.findall(r'^variable "(\w+)" \{\n  type +=? string', TEMPLATE, re.MULTILINE), "unused"),
        "name": "mine",
        "output_directory": str(tmp_path / "out"),
        "base_disk": str(base),
        "base_disk_checksum": f"sha256:{digest}",
        "disk_size": "2M",
        "accelerator": "tcg",
        "cpu_model": "qemu64",
        "cpus": 1,
        "memory": 32,
        "seed_files": [str(tmp_path / "seed")],
        "ssh_timeout": "1m",
        "ansible_arguments": [],
        "ansible_environment": [],
        "shutdown_timeout": "2m",
        "console_log": str(tmp_path / "console.log"),
    }
    (tmp_path / "values.json").write_text(json.dumps(values), encoding="utf-8")
    # Packer leaves the folder of its seed behind, and wants a short path.
    with tempfile.TemporaryDirectory(prefix="gi-") as temporary:
        built = subprocess.run(
            ["packer", "build", "-color=false", f"-var-file={tmp_path}/values.json", "template"],
            cwd=tmp_path,
            env={**os.environ, "TMPDIR": temporary},
            capture_output=True,
            text=True,
            check=False,
        )
    assert built.returncode == 0, built.stdout + built.stderr
    found = info(tmp_path / "out/mine.qcow2")
    assert "backing-filename" not in found
    assert found["cluster-size"] == 65536
    assert found["format-specific"]["data"]["compression-type"] == "zstd"
    assert found["virtual-size"] == 2 << 20
    assert content(tmp_path / "out/mine.qcow2", tmp_path / "out.raw")[510:512] == b"\x55\xaa"
    assert hashlib.sha256(base.read_bytes()).hexdigest() == digest
